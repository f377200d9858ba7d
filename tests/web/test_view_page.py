"""`ilgnet view` as a page: its API, the command, and the page itself in a headless browser."""

from __future__ import annotations

import builtins
import json
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from places import ROOT
from small_nets import SMALL_TEXT, write_net

import ilgnet_repro as ir
from ilgnet_repro import opencv as cv2
from ilgnet_repro.cli import view as command
from ilgnet_repro.cli.main import main
from ilgnet_repro.errors import GraphError
from ilgnet_repro.web.rows import Rows
from ilgnet_repro.web.view_files import View, open_view

testclient = pytest.importorskip("fastapi.testclient", reason="needs the extra serve")
from ilgnet_repro.web.view_app import create_view_app  # noqa: E402

PAGE = "http://127.0.0.1"
FIGURES = ROOT / "docs" / "figures"
# A name that would be markup, and control characters of a terminal.
HOSTILE = SMALL_TEXT.replace('"conv"', '"<img src=x onerror=alert(1)>"').replace('"relu"', '"re\\033[31mlu"')


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("view")
    for name, text in (("small", SMALL_TEXT), ("hostile", HOSTILE)):
        write_net(made, name, text)
    pixels = np.random.default_rng(4).integers(0, 256, (12, 10, 3), np.uint8)
    (made / "image.png").write_bytes(bytes(cv2.imencode(".png", pixels)[1]))
    return made


def opened(folder: Path, name: str = "small", *, weights: bool = True) -> View:
    held = str(folder / f"{name}.caffemodel") if weights else None
    return open_view(str(folder / f"{name}.prototxt"), held)


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[Any]:
    with testclient.TestClient(create_view_app(opened(folder)), base_url=PAGE) as client:
        yield client


# ------------------------------------------------------------------------------------------- the API


def test_the_net_and_its_drawing(client: Any) -> None:
    net = client.get("/api/view").json()
    assert (net["name"], net["net"], net["why"]) == ("small.caffemodel", "small", "")
    assert (net["parameters"], net["multiply_adds"]) == (237, 3900)
    assert net["inputs"] == [{"name": "data", "shape": [1, 3, 9, 7]}] and net["outputs"] == ["prob"]
    conv = net["layers"][1]
    assert conv["tops"] == [{"name": "conv@conv", "shape": [1, 4, 7, 5]}]
    assert conv["bottoms"] == [{"name": "data", "shape": [1, 3, 9, 7]}]
    assert [box["rows"] for box in net["drawing"]["boxes"]] == [[0], [1, 2], [3], [4], [5]]
    edges = [(edge["from"], edge["to"], edge["blob"]) for edge in net["drawing"]["edges"]]
    assert edges == [(0, 1, "data"), (1, 2, "conv"), (2, 3, "pool"), (3, 4, "ip")]


def test_the_text_of_a_layer_and_the_statistics_of_its_weights(client: Any, folder: Path) -> None:
    assert "num_output: 4" in client.get("/api/view/layer", params={"row": 1}).json()["fields"]
    found = client.get("/api/view/weights", params={"row": 1}).json()
    kernel, bias = ir.load(folder / "small.caffemodel", folder / "small.prototxt").params["conv"]
    assert [one["blob"] for one in found] == ["weight", "bias"]
    assert found[0]["mean"] == pytest.approx(float(kernel.detach().double().mean()))
    assert found[1]["min"] == found[1]["max"] == pytest.approx(float(bias[0].detach()))
    assert client.get("/api/view/weights", params={"row": 3}).json() == []


def test_the_statistics_of_a_blob_for_an_image_and_for_seeded_inputs(client: Any, folder: Path) -> None:
    seeded = client.post("/api/view/blob", params={"row": 2}).json()
    assert (seeded["blob"], seeded["shape"], seeded["from"]) == (
        "conv", [1, 4, 7, 5], "inputs drawn from seed 7"
    )  # fmt: skip
    assert seeded["min"] == 0 and len(seeded["channels"]) == 4 and sum(seeded["histogram"]) == 140
    image = {"files": ("a.png", (folder / "image.png").read_bytes())}
    found = client.post("/api/view/blob", params={"row": 2}, files=image).json()
    assert found["from"].startswith("your image, resized") and found["mean"] != seeded["mean"]
    assert client.post("/api/view/blob", params={"row": 2}).json() == seeded


def test_shapes_only_without_weights(folder: Path) -> None:
    with testclient.TestClient(create_view_app(opened(folder, weights=False)), base_url=PAGE) as client:
        assert client.get("/api/view").json()["why"].startswith("a prototxt has no weights")
        for answer in (
            client.get("/api/view/weights", params={"row": 1}), client.post("/api/view/blob", params={"row": 1})
        ):  # fmt: skip
            assert answer.status_code == 422 and answer.json()["error"].startswith(
                "a prototxt has no weights"
            )


REFUSED: dict[str, tuple[str, str, dict[str, Any], int, str]] = {
    "no such row": ("GET", "/api/view/layer?row=6", {}, 404, "row 6: the net has 6, from 0"),
    "a row that is no number": ("GET", "/api/view/weights?row=x", {}, 422, "row: "),
    "no such value": ("POST", "/api/view/blob?row=1&top=1", {}, 404, "conv: writes 1 values, from 0"),
    "no image": (
        "POST", "/api/view/blob?row=1", {"files": {"files": ("a.png", b"text")}}, 422,
        "a.png: is not an image that can be decoded; give a JPEG or PNG",
    ),
    "another field": (
        "POST", "/api/view/blob?row=1", {"files": {"file": ("a.png", b"text")}}, 422, "field `files`: give one image",
    ),
    "two images": (
        "POST", "/api/view/blob?row=1", {"files": [("files", ("a", b"a")), ("files", ("b", b"b"))]}, 400, "Too many files",
    ),
    "another form": (
        "POST", "/api/view/blob?row=1", {"json": {}}, 415, "send the image as multipart/form-data",
    ),
    "another host": ("GET", "/api/view", {"headers": {"host": "example.com"}}, 421, "example.com is not this machine's"),
    "another site": (
        "POST", "/api/view/blob?row=1", {"headers": {"origin": "http://example.com"}}, 403, "the request comes from another",
    ),
    "no such page": ("GET", "/other", {}, 404, "Not Found"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_request_is_refused_in_one_line(client: Any, case: str) -> None:
    method, path, options, status, message = REFUSED[case]
    answer = client.request(method, path, **options)
    assert answer.status_code == status
    assert answer.json()["error"].startswith(message) and "\n" not in answer.json()["error"]


def test_the_page_runs_its_own_scripts_only_and_holds_nothing_of_the_net(folder: Path) -> None:
    with testclient.TestClient(create_view_app(opened(folder, "hostile")), base_url=PAGE) as client:
        page = client.get("/", follow_redirects=True)
        assert page.url.path == "/view" and "onerror" not in page.text
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert " onclick=" not in page.text and " style=" not in page.text
        net = client.get("/api/view").json()
        assert net["layers"][1]["name"] == "<img src=x onerror=alert(1)>"
        assert net["layers"][2]["name"] == "re\\x1b[31mlu"
        assert client.get("/openapi.json").json()["paths"].keys() == {
            "/api/view", "/api/view/layer", "/api/view/weights", "/api/view/blob",
        }  # fmt: skip


def test_a_net_without_layers_is_refused() -> None:
    with pytest.raises(GraphError, match="empty: holds no layers to draw"):
        create_view_app(View("empty", Rows("", "", (), 0, 0)))


# ------------------------------------------------------------------------------------------- the command


def test_the_command_serves_the_page_and_opens_it(folder: Path, monkeypatch, capsys) -> None:
    served: list[Any] = []
    asked: list[str] = []
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: served.append(sockets[0].getsockname()))
    monkeypatch.setattr(command.webbrowser, "open", asked.append)
    monkeypatch.setenv("DISPLAY", ":0")
    weights = str(folder / "small.caffemodel")
    text = str(folder / "small.prototxt")
    assert main(["view", weights, text]) == 0
    counts, address = capsys.readouterr().out.splitlines()
    assert counts == "small.caffemodel: 6 layers, 237 parameters, 3,900 multiply-adds per image"
    host, port = served[0]
    assert host == "127.0.0.1" and address == f"http://127.0.0.1:{port}/view" and asked == [address]
    assert main(["view", weights, text, "--no-open"]) == 0
    monkeypatch.delenv("DISPLAY")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr(command.sys, "platform", "linux")
    assert main(["view", weights, text]) == 0
    assert len(served) == 3 and len(asked) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["small.prototxt", "--svg", "a.svg", "--port", "8001"], "--port 8001: is of the page, which --svg does not serve"),
        (["small.prototxt", "--svg", "a.svg", "--no-open"], "--no-open: is of the page, which --svg does not serve"),
        (["small.prototxt", "--port", "70000"], "give an integer from 0 to 65535"),
        (["image.png"], "image.png: is a PNG image, not a net to draw; give a prototxt, or a .caffemodel"),
        (["cut.caffemodel", "small.prototxt"], "cut.caffemodel"),
    ],
    ids=["a port and a drawing", "no browser and a drawing", "no port", "no net", "a truncated file"],
)  # fmt: skip
def test_the_command_refuses(arguments: list[str], message: str, folder: Path, monkeypatch, capsys) -> None:
    (folder / "cut.caffemodel").write_bytes((folder / "small.caffemodel").read_bytes()[:300])
    monkeypatch.chdir(folder)
    assert main(["view", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (folder / "a.svg").exists()


def test_without_the_extra_the_command_names_it(folder: Path, monkeypatch, capsys) -> None:
    load = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "uvicorn":
            raise ImportError("No module named 'uvicorn'", name="uvicorn")
        return load(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    assert main(["view", str(folder / "small.prototxt")]) == 1
    assert capsys.readouterr().err.endswith(
        "view: the page needs uvicorn; pip install 'ilgnet_repro[serve]' brings it, and --svg FILE draws without it\n"
    )
    assert main(["view", str(folder / "small.prototxt"), "--svg", str(folder / "drawn.svg")]) == 0


def test_a_port_in_use_is_named(folder: Path, capsys) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["view", str(folder / "small.prototxt"), "--port", str(port), "--no-open"]) == 1
    assert f"--port {port}: is in use on 127.0.0.1" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- the browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless chromium."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright (extra test)")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no chromium on this machine; make browser installs it")
    with api.sync_playwright() as play:
        found = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def served() -> Iterator[Any]:
    """Serve views on free ports: a function from a view to its address."""
    uvicorn = pytest.importorskip("uvicorn", reason="needs the extra serve")
    servers: list[tuple[Any, threading.Thread]] = []

    def start(view: View) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(create_view_app(view), log_config=None, lifespan="off", http="h11", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{listener.getsockname()[1]}/view"

    yield start
    for server, thread in servers:
        server.should_exit = True
        thread.join(10)


def visited(browser: Any, address: str, **options: Any) -> Any:
    """The page, loaded; its errors are in the list `problems`."""
    context = browser.new_context(**{"viewport": {"width": 1180, "height": 860}, **options})
    page = context.new_page()
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on(
        "console", lambda message: page.problems.append(message.text) if message.type == "error" else None
    )
    page.goto(address)
    page.wait_for_selector("#content:not([hidden]) .box")
    return page


def test_a_layer_is_found_and_shown_with_its_values(browser: Any, served: Any, folder: Path) -> None:
    page = visited(browser, served(opened(folder)))
    assert page.title() == "small.caffemodel · ilgnet"
    assert page.inner_text("#facts").split()[:4] == ["6", "layers", "237", "parameters"]
    page.fill("#search", "convol")
    assert page.inner_text("#found") == "1 of 6 layers"
    page.press("#search", "Enter")
    assert page.inner_text("#layer-title") == "conv" and "1 × 4 × 7 × 5" in page.inner_text("#layer")
    page.wait_for_selector("#values .summary")
    page.wait_for_selector("#weights .bars")
    assert "num_output: 4" in page.inner_text("#fields pre")
    assert "112 (47.3 % of the net)" in page.inner_text("#layer")
    seeded = page.inner_text("#values .summary dl")
    assert page.locator("#values .channels canvas").count() == 4
    # The in-place layer of the same box, then an image.
    page.click(".siblings >> text=relu")
    assert page.inner_text("#layer-title") == "relu"
    page.wait_for_selector("#values .summary")
    assert "conv" in page.inner_text("#values dl") and page.inner_text("#values .summary dl") != seeded
    page.set_input_files("#image", str(folder / "image.png"))
    page.wait_for_selector("text=your image, resized")
    assert "Image: image.png" in page.inner_text("#values")
    page.wait_for_selector("#values .summary")
    # A file that is no image is named, and the page stays.
    page.set_input_files("#image", {"name": "bad.png", "mimeType": "image/png", "buffer": b"text"})
    page.wait_for_selector("#values .problem")
    assert page.inner_text("#values .problem").startswith("bad.png: is not an image")
    assert [one for one in page.problems if "422" not in one] == []


def test_keys_reach_every_layer_and_the_table_is_sorted(browser: Any, served: Any, folder: Path) -> None:
    page = visited(browser, served(opened(folder, weights=False)))
    assert page.locator('.box[tabindex="0"]').count() == 1  # one stop of the Tab key
    page.focus('.box[tabindex="0"]')
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("pool (Pooling)")
    page.keyboard.press("Enter")
    assert page.inner_text("#layer-title") == "pool"
    assert page.get_attribute(".box.chosen", "aria-pressed") == "true"
    page.wait_for_selector("#values >> text=Shapes only: a prototxt has no weights")
    page.click("#heads >> text=Parameters")
    assert page.get_attribute("#heads th[aria-sort]", "aria-sort") == "descending"
    assert page.locator("#rows button").all_inner_texts()[:2] == ["ip", "conv"]
    page.click("#heads >> text=Layer")
    assert page.locator("#rows button").all_inner_texts() == ["conv", "data", "ip", "pool", "prob", "relu"]
    page.click("#rows >> text=ip")
    assert page.inner_text("#layer-title") == "ip"
    before = page.get_attribute("#graph > g", "transform")
    page.click("#closer")
    page.mouse.move(300, 500)
    page.mouse.wheel(0, 60)
    assert page.get_attribute("#graph > g", "transform") != before
    assert page.problems == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_narrow_window(browser: Any, served: Any, folder: Path, scheme: str) -> None:
    page = visited(
        browser, served(opened(folder)), viewport={"width": 420, "height": 800}, color_scheme=scheme
    )
    page.click("#rows >> text=ip")
    page.wait_for_selector("#values .summary")
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    luminance = page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number).reduce((a, b) => a + b)"
    )
    assert (luminance < 200) == (scheme == "dark")
    assert page.problems == []


def test_names_of_the_file_are_text_in_the_page(browser: Any, served: Any, folder: Path) -> None:
    page = visited(browser, served(opened(folder, "hostile")))
    page.click("#rows >> text=onerror")
    page.wait_for_selector("#values .summary")
    assert page.inner_text("#layer-title") == "<img src=x onerror=alert(1)>"
    assert page.locator("img").count() == 0 and page.problems == []


def test_the_figure_of_the_documentation(browser: Any, served: Any, tmp_path: Path) -> None:
    """Written to docs/figures where it is not there yet; `rm docs/figures/view.jpg` to take it again."""
    text = ROOT / "prototxt" / "squeezenet" / "deploy.prototxt"
    net = ir.load_net(text, input_shapes={"data": (1, 3, 227, 227)})
    drawn = torch.Generator().manual_seed(3)  # the text has no fillers
    with torch.no_grad():
        for blob in net.parameters():
            blob.normal_(0, blob[0].numel() ** -0.5 if blob.dim() > 1 else 0.02, generator=drawn)
    ir.save(net, tmp_path / "squeezenet.safetensors")
    down, across = np.mgrid[:227, :227]
    rings = 127 + 127 * np.sin(np.hypot(down - 90, across - 120) / 7)
    pixels = np.stack([rings, across, down], 2).astype(np.uint8)
    shown = {"name": "rings.png", "mimeType": "image/png", "buffer": bytes(cv2.imencode(".png", pixels)[1])}
    view = open_view(None, str(tmp_path / "squeezenet.safetensors"))
    page = visited(browser, served(view), viewport={"width": 1180, "height": 980})
    page.fill("#search", "fire2/concat")
    page.press("#search", "Enter")
    page.wait_for_selector("#values .channels canvas")
    page.set_input_files("#image", shown)
    page.wait_for_selector("text=your image")
    page.wait_for_selector("#values .channels canvas")
    page.mouse.move(5, 5)
    target = FIGURES / "view.jpg"
    shot = page.screenshot(type="jpeg", quality=80)
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(shot)
    assert len(shot) < 150_000 and target.stat().st_size < 150_000
    assert json.dumps(page.problems) == "[]"
