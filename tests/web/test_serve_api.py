"""`ilgnet serve` without a browser: what its API answers, what it refuses, and the headers of every answer."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_nets import SMALL_TEXT, write_weights

import ilgnet_repro as ir
from ilgnet_repro import opencv as cv2
from ilgnet_repro.about import RANDOM_MARK
from ilgnet_repro.scoring import Scorer
from ilgnet_repro.web import guard as guards
from ilgnet_repro.web.app import MOST_FILES, create_app
from ilgnet_repro.web.guard import host_name, is_local
from ilgnet_repro.web.service import open_served

testclient = pytest.importorskip("fastapi.testclient", reason="needs the extra serve")

HOW = ir.Preprocessing(size=(9, 7), mean_value=(104.0, 117.0, 123.0), scale=0.02)
LABELS = ("sea", "sky", "land", "sun", "<b>moon</b>")
PAGE = "http://127.0.0.1"


def image(seed: int = 0, suffix: str = ".png") -> bytes:
    """An image of 13 x 11 pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (11, 13, 3), np.uint8)
    return bytes(cv2.imencode(suffix, pixels)[1])


def bomb() -> bytes:
    """A PNG of a few bytes that states 60,000 x 60,000 pixels."""
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights, and an allowed folder of images beside one that is not allowed."""
    made = tmp_path_factory.mktemp("serve")
    write_weights(made / "small.caffemodel")
    (made / "deploy.prototxt").write_text(SMALL_TEXT)
    for name in ("photos/one.png", "photos/inner/two.png", "private/three.png"):
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_bytes(image(len(name)))
    (made / "photos" / "notes.txt").write_text("text")
    (made / "photos" / "bad.jpg").write_text("text")
    (made / "photos" / "link.png").symlink_to(made / "private" / "three.png")
    (made / "photos" / "link").symlink_to(made / "private")
    return made


def opened(folder: Path, **options: Any) -> Any:
    """The application of the small net, with labels and without."""
    nets = [
        ("labelled", Scorer(ir.load(folder / "small.caffemodel"), preprocessing=HOW, labels=LABELS, top=3)),
        ("plain", Scorer(ir.load(folder / "small.caffemodel"), preprocessing=HOW)),
    ]
    for _, scorer in nets:
        scorer.net.about = scorer.about
    return create_app(open_served(nets), folders=[str(folder / "photos")], **options)


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[Any]:
    with testclient.TestClient(opened(folder), base_url=PAGE, raise_server_exceptions=False) as client:
        yield client


def uploaded(*files: tuple[str, bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    return [("files", file) for file in files]


# ------------------------------------------------------------------------------------------- scores


def test_one_object_per_file_in_order_with_its_score_or_error(client: Any, folder: Path) -> None:
    good = [("a.png", image(1)), ("b.jpg", image(2, ".jpg"))]
    answer = client.post("/api/score", files=uploaded(good[0], ("c.txt", b"text"), good[1], ("d.png", b"")))
    assert answer.status_code == 200
    records = answer.json()
    assert [one["name"] for one in records] == ["a.png", "c.txt", "b.jpg", "d.png"]
    assert records[1] == {
        "name": "c.txt", "error": "c.txt: is not an image that can be decoded; give a JPEG or PNG",
    }  # fmt: skip
    assert records[3] == {
        "name": "d.png", "error": "d.png: is not an image that can be decoded; give a JPEG or PNG",
    }  # fmt: skip
    # The numbers are those of the net itself on the image that OpenCV decodes.
    net = ir.load(folder / "small.caffemodel")
    for record, (_, data) in zip((records[0], records[2]), good, strict=True):
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        values = net(net.prepare([pixels], preprocessing=HOW))["prob"][0].detach()
        best = int(values.argmax())
        assert record["score"] == pytest.approx(float(values[best]), abs=1e-6)
        assert record["meaning"] == LABELS[best]
        assert [one["index"] for one in record["classes"]] == values.argsort(descending=True)[:3].tolist()
        assert (record["width"], record["height"]) == (13, 11)


def test_a_net_without_labels_gives_the_number_of_its_best_value(client: Any) -> None:
    (record,) = client.post("/api/score?net=1", files=uploaded(("a.png", image(1)))).json()
    (labelled,) = client.post("/api/score", files=uploaded(("a.png", image(1)))).json()
    best = labelled["classes"][0]["index"]
    assert (record["score"], record["meaning"]) == (labelled["score"], f"value {best}")


NAMES = {
    "a path": ("../../etc/passwd.png", "passwd.png"),
    "a path of Windows": ("C:\\images\\a.png", "a.png"),
    "markup": ("<img src=x>.png", "<img src=x>.png"),
    "a control character": ("a\x1b[2J.png", "a\\x1b[2J.png"),
    "letters of any language": ("été 日本.png", "été 日本.png"),
    "a long one": ("x" * 1000 + ".png", "x" * 254 + "…"),
}


@pytest.mark.parametrize(("given", "shown"), NAMES.values(), ids=NAMES)
def test_names_are_repeated_as_printable_text(client: Any, given: str, shown: str) -> None:
    boundary = b"--x\r\n"
    head = f'Content-Disposition: form-data; name="files"; filename="{given}"\r\n\r\n'.encode()
    if "\\" in given:
        head = head.replace(b"\\", b"\\\\")
    answer = client.post(
        "/api/score", content=boundary + head + image() + b"\r\n--x--\r\n",
        headers={"content-type": "multipart/form-data; boundary=x"},
    )  # fmt: skip
    (record,) = answer.json()
    assert record["name"] == shown and "score" in record


def test_an_image_bomb_is_refused_before_it_is_decoded(client: Any) -> None:
    (record,) = client.post("/api/score", files=uploaded(("bomb.png", bomb()))).json()
    assert record["error"].startswith("bomb.png: states 60000x60000 pixels, more than 178,956,970")


def test_a_score_that_is_no_number_is_an_error(folder: Path) -> None:
    net = ir.load(folder / "small.caffemodel")
    net.about = net.about.stating(HOW)
    for blobs in net.params.values():
        for blob in blobs:
            blob.data.fill_(float("nan"))
    app = create_app(open_served([("nan", Scorer(net, preprocessing=HOW))]))
    with testclient.TestClient(app, base_url=PAGE) as client:
        (record,) = client.post("/api/score", files=uploaded(("a.png", image()))).json()
    assert record == {
        "name": "a.png", "error": "a.png: the net gives nan for it; check its weights and preprocessing",
    }  # fmt: skip


# ------------------------------------------------------------------------------------------- heat maps, nets, folders


def test_a_heat_map_is_scaled_from_0_to_1_and_says_what_it_is_of(client: Any) -> None:
    heat = client.post("/api/heat?net=1&blob=conv", files=uploaded(("a.png", image(3)))).json()
    values = np.array(heat["values"])
    assert (heat["blob"], heat["output"], heat["region"]) == ("conv", "prob", [0, 0, 1, 1])
    assert values.shape == (7, 5) and values.min() >= 0 and values.max() in (0, 1)


def test_what_is_known_of_the_nets(client: Any) -> None:
    nets = client.get("/api/nets").json()
    assert [(one["name"], one["labels"], one["random"]) for one in nets] == [
        ("labelled", 5, ""),
        ("plain", 0, ""),
    ]
    assert nets[0]["preprocessing"] == "image resized to 9x7, BGR minus 104, 117, 123, times 0.02"
    assert nets[0]["blobs"] == ["conv@conv", "conv", "pool"]
    assert nets[0]["file"] == "small.caffemodel"


def test_random_weights_are_said(tmp_path: Path) -> None:
    text = SMALL_TEXT.replace('name: "small"', f'name: "a net with {RANDOM_MARK}"')
    write_weights(tmp_path / "net.caffemodel", text)
    (tmp_path / "net.prototxt").write_text(SMALL_TEXT)
    for name in ("net.caffemodel", "net.safetensors"):
        if not (tmp_path / name).exists():
            ir.save(ir.load(tmp_path / "net.caffemodel"), tmp_path / name)
        (served,) = open_served([(name, Scorer(ir.load(tmp_path / name), preprocessing=HOW))])
        assert served.facts()["random"] == f"the file says: a net with {RANDOM_MARK}"


def test_the_images_of_an_allowed_folder(client: Any) -> None:
    assert len(client.get("/api/folders").json()) == 1
    listed = client.get("/api/folder").json()["images"]
    assert [one["name"] for one in listed] == ["bad.jpg", "link.png", "one.png", "inner/two.png"]
    chosen = {"folder": 0, "images": [one["id"] for one in listed]}
    records = client.post("/api/folder/score", json=chosen).json()
    assert [sorted(one.keys() & {"score", "error"}) for one in records] == [
        ["error"], ["error"], ["score"], ["score"],
    ]  # fmt: skip
    assert records[1]["error"] == "link.png: is not below an allowed folder"
    small = client.get("/api/folder/image", params={"image": listed[2]["id"], "side": 16})
    assert small.headers["content-type"] == "image/jpeg"
    assert cv2.imdecode(np.frombuffer(small.content, np.uint8), 1).shape == (11, 13, 3)
    inner = client.get("/api/folder", params={"path": "inner"}).json()["images"]
    assert [one["name"] for one in inner] == ["inner/two.png"]


# ------------------------------------------------------------------------------------------- what is refused

ONE = uploaded(("a.png", image()))
REFUSED: dict[str, tuple[str, str, dict[str, Any], int, str]] = {
    "another host": ("GET", "/", {"headers": {"host": "evil.example"}}, 421,
                     "evil.example is not this machine's loopback name; open the page as http://localhost or 127.0.0.1"),
    "no host name": ("GET", "/", {"headers": {"host": "a b"}}, 400, "the request needs one valid Host header"),
    "another origin": ("POST", "/api/score", {"files": ONE, "headers": {"origin": "http://evil.example"}}, 403,
                       "the request comes from another site's page; use this server's own"),
    "an opaque origin": ("POST", "/api/score", {"files": ONE, "headers": {"origin": "null"}}, 403,
                         "the request comes from another site's page; use this server's own"),
    "another site": ("GET", "/api/nets", {"headers": {"sec-fetch-site": "cross-site"}}, 403,
                     "the request comes from another site's page; use this server's own"),
    "no multipart": ("POST", "/api/score", {"content": b"{}"}, 415,
                     "send the images as multipart/form-data, in the field `files`"),
    "no file": ("POST", "/api/score", {"files": [("files", (None, b"text"))]}, 422,
                "field `files`: holds no file; give images, each with a file name"),
    "another field": ("POST", "/api/score", {"files": [("file", ("a.png", b""))]}, 422,
                      "field 'file': is unknown; images are in the field `files`"),
    "too many files": ("POST", "/api/score", {"files": ONE * (MOST_FILES + 1)}, 400,
                       f"Too many files. Maximum number of files is {MOST_FILES}."),
    "a net that is not there": ("POST", "/api/score?net=2", {"files": ONE}, 404, "net 2 is not served; there are 2, from 0"),
    "a net that is no number": ("POST", "/api/score?net=x", {"files": ONE}, 422,
                                "net: Input should be a valid integer, unable to parse string as an integer"),
    "two images of a heat map": ("POST", "/api/heat", {"files": ONE * 2}, 422, "field `files`: holds 2 files; give one"),
    "a heat map of no image": ("POST", "/api/heat", {"files": uploaded(("a.txt", b"text"))}, 422,
                               "a.txt: is not an image that can be decoded; give a JPEG or PNG"),
    "a heat map at no blob": ("POST", "/api/heat?blob=pol", {"files": ONE}, 404,
                              "net 'small': has no blob 'pol' (did you mean pool?)"),
    "a path upwards": ("GET", "/api/folder?path=../private", {}, 404, "../private: is not below an allowed folder"),
    "an absolute path": ("GET", "/api/folder?path=/etc", {}, 404, "/etc: is not below an allowed folder"),
    "a link to outside": ("GET", "/api/folder?path=link", {}, 404, "link: is not below an allowed folder"),
    "a folder that is not there": ("GET", "/api/folder?path=none", {}, 404, "none: no such folder below {photos}"),
    "a name that is too long": ("GET", f"/api/folder?path={'x' * 300}", {}, 404,
                                f"{'x' * 79}…: no such folder below {{photos}}"),
    "an image upwards": ("GET", "/api/folder/image?image=..%252Fprivate%252Fthree.png", {}, 404,
                         "../private/three.png: is not below an allowed folder"),
    "no image": ("GET", "/api/folder/image?image=notes.txt", {}, 404, "notes.txt: no such image below {photos}"),
    "a folder of another number": ("GET", "/api/folder?folder=1", {}, 404, "folder 1 is not served; there are 1"),
    "no images": ("POST", "/api/folder/score", {"json": {"images": []}}, 422,
                  "images: List should have at least 1 item after validation, not 0"),
    "no JSON": ("POST", "/api/folder/score", {"content": b"{", "headers": {"content-type": "application/json"}}, 422,
                "1: JSON decode error"),
    "another method": ("DELETE", "/api/score", {}, 405, "Method Not Allowed"),
    "no such page": ("GET", "/docs", {}, 404, "Not Found"),
}  # fmt: skip


@pytest.mark.parametrize(("method", "path", "options", "status", "text"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_in_one_line(
    client: Any, folder: Path, method: str, path: str, options: dict[str, Any], status: int, text: str
) -> None:
    answer = client.request(method, path, **options)
    assert (answer.status_code, answer.json()) == (
        status, {"error": text.replace("{photos}", str(folder / "photos"))},
    )  # fmt: skip


ACCEPTED = {
    "its own origin": {"origin": PAGE, "sec-fetch-site": "same-origin"},
    "its own origin by another scheme": {"origin": "https://127.0.0.1"},
    "no browser": {},
    "the address typed": {"sec-fetch-site": "none"},
    "by name": {"host": "localhost:8000", "origin": "http://localhost:8000"},
    "by its other address": {"host": "[::1]:8000"},
}


@pytest.mark.parametrize("headers", ACCEPTED.values(), ids=ACCEPTED)
def test_what_is_accepted(client: Any, headers: dict[str, str]) -> None:
    answer = client.post("/api/score", files=ONE, headers=headers)
    assert answer.status_code == 200 and "score" in answer.json()[0]


def test_the_size_of_a_request_is_limited_by_its_header_and_by_what_comes(folder: Path) -> None:
    message = {"error": "a request has at most 2,000 bytes; send fewer or smaller images"}

    def parts() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        for _ in range(40):
            yield b"\0" * 100

    with testclient.TestClient(opened(folder, most_body=2000), base_url=PAGE) as client:
        stated = client.post("/api/score", files=uploaded(("a.png", b"\0" * 3000)))
        multipart = {"content-type": "multipart/form-data; boundary=x"}
        streamed = client.post("/api/score", content=parts(), headers=multipart)
        assert [(one.status_code, one.json()) for one in (stated, streamed)] == [(413, message)] * 2
        assert client.post("/api/score", files=ONE).status_code == 200


# ------------------------------------------------------------------------------------------- headers, token, OpenAPI

HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
ANSWERS = {
    "the page": ("GET", "/", {}),
    "JSON": ("GET", "/api/nets", {}),
    "no such page": ("GET", "/none", {}),
    "a refusal": ("GET", "/", {"host": "evil.example"}),
    "a wrong method": ("PUT", "/api/score", {}),
}


@pytest.mark.parametrize(("method", "path", "headers"), ANSWERS.values(), ids=ANSWERS)
def test_the_headers_of_every_answer(client: Any, method: str, path: str, headers: dict[str, str]) -> None:
    answer = client.request(method, path, headers=headers)
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy and "*" not in policy and "http" not in policy


def test_the_page_loads_nothing_from_elsewhere_and_holds_nothing_of_the_nets(client: Any) -> None:
    pages = [client.get("/") for _ in range(2)]
    nonces = []
    for page in pages:
        policy = page.headers["content-security-policy"]
        nonces.append(policy.partition("'nonce-")[2].partition("'")[0])
        assert page.text.count(f'nonce="{nonces[-1]}"') == page.text.count("<script") + page.text.count(
            "<style"
        )
        for loading in (
            "src=",
            "@import",
            "url(",
            "innerHTML",
            "http://",
            "deploy.prototxt",
            "small.caffemodel",
            "onclick=",
        ):
            assert loading not in page.text.replace('"http://www.w3.org/2000/svg"', ""), loading
    assert nonces[0] != nonces[1]


TOKEN = "a-token-of-a-test"
TOKENS = {
    "none": ({}, 401),
    "a wrong one": ({"authorization": "Bearer wrong"}, 401),
    "a part": ({"authorization": f"Bearer {TOKEN[:-1]}"}, 401),
    "another scheme": ({"authorization": f"Basic {TOKEN}"}, 401),
    "in the address": ({}, 401),
    "the right one": ({"authorization": f"Bearer {TOKEN}"}, 200),
    "the right one for another site": (
        {"authorization": f"Bearer {TOKEN}", "origin": "http://evil.example"},
        403,
    ),
}


def test_with_a_token_only_the_page_and_healthz_are_open(folder: Path) -> None:
    app = opened(folder, token=TOKEN, only_local=False)
    with testclient.TestClient(app, base_url="http://machine.example:8000") as client:
        assert [client.get(path).status_code for path in ("/", "/healthz")] == [200, 200]
        for path in ("/api/nets", "/api/folders", "/openapi.json", f"/api/nets?token={TOKEN}"):
            refused = client.get(path)
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
            assert refused.json() == {
                "error": "give the token that the server printed, as the header Authorization: Bearer TOKEN"
            }
        for name, (headers, status) in TOKENS.items():
            answer = client.post("/api/score", files=ONE, headers=headers)
            assert answer.status_code == status, name


def test_health_and_openapi(client: Any) -> None:
    assert client.get("/healthz").json() == {"status": "ok", "version": ir.__version__}
    text = client.get("/openapi.json").json()
    assert set(text["paths"]) == {
        "/healthz", "/api/nets", "/api/score", "/api/heat", "/api/folders", "/api/folder", "/api/folder/score",
        "/api/folder/heat", "/api/folder/image", "/api/view", "/api/view/layer", "/api/view/weights", "/api/view/blob",
    }  # fmt: skip
    files = text["paths"]["/api/score"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert files["properties"]["files"]["maxItems"] == MOST_FILES and json.dumps(text)


HOSTS = {
    "127.0.0.1": ("127.0.0.1", True),
    "127.8.8.8:80": ("127.8.8.8", True),
    "LOCALHOST:8000": ("localhost", True),
    "[::1]:8000": ("::1", True),
    "localhost.evil.example": ("localhost.evil.example", False),
    "127.0.0.1.evil.example": ("127.0.0.1.evil.example", False),
    "192.168.0.7:8000": ("192.168.0.7", False),
    "0.0.0.0": ("0.0.0.0", False),
}


@pytest.mark.parametrize(
    ("host", "name", "local"), [(host, *found) for host, found in HOSTS.items()], ids=HOSTS
)
def test_which_hosts_are_this_machine(host: str, name: str, local: bool) -> None:
    assert (host_name(host), is_local(name)) == (name, local)


def test_a_silent_sender_is_not_waited_for(
    client: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests beyond those that are read wait; beyond those that wait they are refused."""
    import asyncio

    monkeypatch.setattr(guards, "SILENCE", 0.05)
    guard = opened(folder)
    guard.active, guard.waiting = 1, 1
    guard.__post_init__()
    scope = {
        "type": "http", "http_version": "1.1", "method": "POST", "path": "/api/score", "raw_path": b"/api/score",
        "query_string": b"", "root_path": "", "scheme": "http", "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1),
        "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"multipart/form-data; boundary=x")],
    }  # fmt: skip

    async def ask() -> tuple[int, str]:
        sent: list[Any] = []

        async def receive() -> Any:
            await asyncio.sleep(10)

        async def send(message: Any) -> None:
            sent.append(message)

        await guard(dict(scope), receive, send)
        return sent[0]["status"], json.loads(sent[1]["body"])["error"]

    async def ask_three() -> list[tuple[int, str]]:
        return await asyncio.gather(*(ask() for _ in range(3)))

    silent = (408, "no byte of the request came in 0 seconds")
    assert asyncio.run(ask_three()) == [silent, silent, (503, "busy: 1 requests wait already; try again")]
