"""`ilgnet serve` in a browser without a window: what a person sees, by roles and names as a screen reader has them.

``SERVE_FIGURES=docs/figures`` writes the screenshots of docs/page.md there.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ilgnet_repro as ir
from ilgnet_repro import opencv as cv2
from ilgnet_repro.about import RANDOM_MARK
from ilgnet_repro.scoring import Scorer
from ilgnet_repro.zoo import squeezenet

uvicorn = pytest.importorskip("uvicorn", reason="needs the extra serve")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs chromium: make browser")

FIGURES = os.environ.get("SERVE_FIGURES", "")
LABELS = tuple(f"class {number}" for number in range(1000))
# Playwright waits by evaluating text, which the page's policy forbids: `expect` on locators does not.
DROP = """(files) => {
  const dropped = new DataTransfer();
  for (const [name, data, type] of files) {
    dropped.items.add(new File([Uint8Array.from(atob(data), (one) => one.charCodeAt(0))], name, { type }));
  }
  const event = new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer: dropped });
  document.getElementById("drop").dispatchEvent(event);
}"""


def scene(seed: int) -> bytes:
    """A sky, a ground and a sun, each image another one."""
    rng = np.random.default_rng(seed)
    sky, ground, sun = rng.integers(30, 230, (3, 3))
    height, width = 300, 400
    ramp = np.linspace(0.5, 1.1, height)[:, None, None]
    pixels = (ramp * sky + np.zeros((height, width, 3))).clip(0, 255)
    horizon = int(rng.integers(150, 240))
    pixels[horizon:] = ground
    pixels = np.ascontiguousarray(pixels.astype(np.uint8))
    cv2.circle(pixels, (int(rng.integers(60, 340)), int(rng.integers(40, 150))), 34, sun.tolist(), -1)
    return bytes(cv2.imencode(".png", pixels)[1])


IMAGES = [(f"scene{number}.png", scene(number), "image/png") for number in range(10)]
BAD = ("notes.txt", b"no image", "text/plain")


def write_random_net(path: Path, seed: int, name: str) -> None:
    """SqueezeNet in its own size with seeded weights."""
    text = squeezenet.deploy()
    text.name = name
    net = ir.load_net(text, seed=seed)
    rng = np.random.default_rng(seed)
    for blobs in net.params.values():
        weight = blobs[0].data
        fan = weight[0].numel()
        weight.copy_(weight.new_tensor(rng.normal(0, (2 / fan) ** 0.5, tuple(weight.shape))))
    ir.save(net, path)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running server of two nets: one that states random weights, one of which nothing is known."""
    from ilgnet_repro.cli.serve import listen
    from ilgnet_repro.web.app import create_app
    from ilgnet_repro.web.service import open_served

    made = tmp_path_factory.mktemp("page")
    (made / "photos").mkdir()
    for name, data, _ in IMAGES[:3]:
        (made / "photos" / name).write_bytes(data)
    how = ir.Preprocessing(size=(227, 227), mean_value=(104.0, 117.0, 123.0))
    scorers = []
    for seed, (name, title) in enumerate((("first", f"a net with {RANDOM_MARK}"), ("second", "SqueezeNet"))):
        write_random_net(made / f"{name}.caffemodel", seed, title)
        net = ir.load(made / f"{name}.caffemodel")
        net.about = net.about.stating(how)
        scorers.append((name, Scorer(net, preprocessing=how, labels=LABELS)))
    os.chdir(made)
    app = create_app(open_served(scorers), folders=["photos"])
    with listen("127.0.0.1", 0) as listener:
        config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", http="h11", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(site: str, browser: Any) -> Iterator[Any]:
    """Opens the page in a context of the given options; errors of its scripts fail the test."""
    contexts: list[Any] = []
    faults: list[str] = []

    def opened(**options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda line: faults.append(line.text) if is_fault(line) else None)
        page.on(
            "request", lambda request: faults.append(request.url) if is_foreign(request.url, site) else None
        )
        page.goto(site)
        playwright.expect(page.locator("body")).to_have_attribute("data-ready", "yes", timeout=60_000)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert faults == []


def is_fault(line: Any) -> bool:
    """Whether a line of the console is an error, other than the browser's own line about a refused request."""
    return line.type == "error" and not line.text.startswith(
        "Failed to load resource: the server responded with"
    )


def is_foreign(url: str, site: str) -> bool:
    return not url.startswith((site, "blob:" + site, "data:"))


def drop(page: Any, *files: tuple[str, bytes, str]) -> None:
    page.evaluate(DROP, [[name, base64.b64encode(data).decode(), kind] for name, data, kind in files])


def scored(page: Any, text: str) -> None:
    playwright.expect(page.get_by_role("status").first).to_have_text(text, timeout=60_000)


def figure(page: Any, name: str) -> None:
    """Write a screenshot of docs/page.md, if asked for, in 128 colours."""
    if not FIGURES:
        return
    from PIL import Image

    path = Path(__file__).resolve().parents[2] / FIGURES / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=path)
    with Image.open(path) as shot:
        shot.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


def test_dropped_images_are_scored_and_ranked_and_a_bad_file_is_named(opened: Any) -> None:
    page = opened(viewport={"width": 1060, "height": 900})
    alert = page.get_by_role("alert").first
    playwright.expect(alert).to_contain_text("first has random weights: its scores mean nothing.")
    start = time.monotonic()
    drop(page, *IMAGES, BAD)
    scored(page, "10 of 11 images scored; 1 could not be scored.")
    print(f"ten images by two nets: {time.monotonic() - start:.2f} s")
    bad = page.get_by_role("region", name="Not scored")
    playwright.expect(bad.get_by_role("listitem")).to_have_text(
        ["notes.txt: is not an image that can be decoded; give a JPEG or PNG"]
    )
    # A histogram per net, named in words.
    charts = page.get_by_role(
        "img", name=re.compile("^Histogram of 10 scores of (first|second) from 0 to 1: ")
    )
    playwright.expect(charts).to_have_count(2)
    # The ranking is by the first net, best first; a click on a head changes it.
    rows = page.get_by_role("table", name="Ranking").get_by_role("row")
    playwright.expect(rows).to_have_count(11)

    def column(number: int) -> list[float]:
        return [float(text) for text in page.locator(f"#rows td.net-{number} .number").all_inner_texts()]

    assert column(0) == sorted(column(0), reverse=True) and len(set(column(0))) > 5
    page.get_by_role("button", name="second").click()
    head = page.get_by_role("columnheader", name=re.compile("second"))
    playwright.expect(head).to_have_attribute("aria-sort", "descending")
    assert column(1) == sorted(column(1), reverse=True)
    page.get_by_role("button", name="second").click()
    playwright.expect(head).to_have_attribute("aria-sort", "ascending")
    assert column(1) == sorted(column(1))
    # Where the weights come from.
    nets = page.get_by_role("article")
    playwright.expect(nets.first).to_contain_text("random weights")
    playwright.expect(nets.nth(1)).to_contain_text("not a known release")
    page.get_by_role("button", name="first").click()
    page.evaluate("window.scrollTo(0, 0)")
    figure(page, "page_light")
    # One image: a heat map per net, at the blob that is chosen, and the best classes.
    page.get_by_role("button", name=re.compile("^Heat map and details of scene")).first.click()
    dialog = page.get_by_role("dialog")
    for pane in dialog.get_by_role("region").all():
        playwright.expect(pane.get_by_role("status")).to_contain_text("Grad-CAM at", timeout=30_000)
        playwright.expect(pane.locator("canvas")).to_have_count(1)
        playwright.expect(
            pane.get_by_role("list", name="best classes").get_by_role("listitem")
        ).to_have_count(5)
    pane = dialog.get_by_role("region", name="second")
    pane.get_by_label("Heat map at blob").select_option("fire9/concat")
    playwright.expect(pane.get_by_role("status")).to_contain_text("Grad-CAM at fire9/concat", timeout=30_000)
    figure(page, "page_heat")
    page.get_by_role("button", name="Close").click()
    page.get_by_role("button", name="Clear").click()
    playwright.expect(page.get_by_role("table")).to_be_hidden()


def test_the_page_by_keyboard(opened: Any) -> None:
    """Every step of the mouse: choosing files, sorting, one image, the next one, and back to where it was."""
    page = opened()
    page.on(
        "filechooser", lambda _: None
    )  # the browser is asked to leave choosers to the test before a key is pressed
    page.keyboard.press("Tab")
    playwright.expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    files = page.get_by_label("Choose images")
    files.focus()
    playwright.expect(files).to_be_focused()
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(
        [{"name": name, "buffer": data, "mimeType": kind} for name, data, kind in IMAGES[:2]]
    )
    scored(page, "2 of 2 images scored.")
    page.get_by_role("button", name="Image", exact=True).focus()
    page.keyboard.press("Enter")
    head = page.get_by_role("columnheader", name=re.compile("^Image"))
    playwright.expect(head).to_have_attribute("aria-sort", "ascending")
    playwright.expect(head.get_by_role("button")).to_be_focused()
    first = page.get_by_role("button", name="Heat map and details of scene0.png")
    first.focus()
    page.keyboard.press("Enter")
    title = page.locator("#detail-title")
    playwright.expect(title).to_have_text("scene0.png")
    page.keyboard.press("ArrowRight")
    playwright.expect(title).to_have_text("scene1.png")
    page.keyboard.press("ArrowLeft")
    playwright.expect(title).to_have_text("scene0.png")
    page.keyboard.press("Escape")
    playwright.expect(first).to_be_focused()


def test_a_folder_of_the_server_on_a_narrow_dark_screen(opened: Any) -> None:
    page = opened(viewport={"width": 420, "height": 860}, color_scheme="dark")
    page.get_by_role("button", name="Score folder").click()
    scored(page, "3 of 3 images scored.")
    playwright.expect(page.locator("#rows img")).to_have_count(3)
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    ground, ink = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ground, ink)]
    assert brightness[0] < 150 and brightness[1] > 600
    figure(page, "page_narrow")
    page.get_by_label("Folder below it").fill("../")
    page.get_by_role("button", name="Score folder").click()
    playwright.expect(page.get_by_role("status").first).to_have_text("../: is not below an allowed folder")
    page.get_by_role("button", name="Heat map and details of scene0.png").click()
    playwright.expect(page.get_by_role("dialog")).to_contain_text("Grad-CAM at", timeout=30_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    assert page.evaluate(
        "document.querySelector('#detail').scrollWidth <= document.querySelector('#detail').clientWidth"
    )


def test_every_control_has_a_name(opened: Any) -> None:
    page = opened()
    drop(page, IMAGES[0])
    scored(page, "1 of 1 image scored.")
    for role in ("button", "textbox", "combobox", "slider", "region", "table", "progressbar", "img", "link"):
        for one in page.get_by_role(role).all():
            name = one.evaluate(
                "(node) => node.getAttribute('aria-label') || node.labels?.[0]?.textContent || node.textContent"
                " || document.getElementById(node.getAttribute('aria-labelledby'))?.textContent"
            )
            assert (name or "").strip(), one.evaluate("(node) => node.outerHTML")
    assert page.locator("[aria-live]").count() >= 1 and page.locator("html").get_attribute("lang") == "en"
