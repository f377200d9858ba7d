"""`ilgnet serve` as a command: how it starts, what it refuses in one line, what it serves, and how it ends."""

from __future__ import annotations

import builtins
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from small_nets import SMALL_TEXT, write_net

import ilgnet_repro as ir
from ilgnet_repro import opencv as cv2
from ilgnet_repro.cli import serve as command
from ilgnet_repro.cli.main import build_parser, main

testclient = pytest.importorskip("fastapi.testclient", reason="needs the extra serve")
from ilgnet_repro.web.app import create_app  # noqa: E402

HOW = ("--mean-value", "104,117,123")
PIXELS = np.random.default_rng(7).integers(0, 256, (11, 13, 3), np.uint8)
IMAGE = {"files": ("a.png", bytes(cv2.imencode(".png", PIXELS)[1]))}
TEN = SMALL_TEXT.replace("num_output: 5", "num_output: 10")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("serve_command")
    for name, text in (("small", SMALL_TEXT), ("ten", TEN)):
        write_net(made, name, text)
    (made / "labels.txt").write_text("".join(f"class {number}\n" for number in range(10)))
    return made


def test_at_any_address_it_needs_its_token_and_ctrl_c_ends_it(folder: Path) -> None:
    served = subprocess.Popen(
        [
            sys.executable, "-m", "ilgnet_repro", "serve", "--weights", str(folder / "small.caffemodel"), *HOW,
            "--host", "0.0.0.0", "--port", "0",
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert served.stdout is not None
        address, token = served.stdout.readline().strip(), served.stdout.readline().split()[1]
        assert address.endswith(f"/#token={token}") and len(token) >= 32
        site = f"http://127.0.0.1:{address.partition('/#')[0].rpartition(':')[2]}"
        statuses = {
            given: httpx.post(
                f"{site}/api/score",
                files=IMAGE,
                headers={"authorization": given} if given else {},
                timeout=60,
            ).status_code
            for given in ("", "Bearer wrong", f"Basic {token}", f"Bearer {token}")
        }
        assert list(statuses.values()) == [401, 401, 401, 200]
        served.send_signal(signal.SIGINT)
        out, err = served.communicate(timeout=60)
    finally:
        served.kill()
    assert (served.returncode, out, err) == (130, "", "ilgnet: interrupted\n")


REFUSED = {
    "a port in use": ([], "ilgnet: --port {port}: is in use on 127.0.0.1; give another, or 0 for a free one"),
    "another machine's address": (
        ["--host", "203.0.113.1"],
        "ilgnet: --host 203.0.113.1 --port {port}: cannot listen there (Cannot assign requested address); give another",
    ),
    "a weak token": (
        ["--token", "secret"],
        "ilgnet: --token: is too weak or not plain; give at least 8 letters, digits or signs of ASCII",
    ),
    "a net too few": (
        ["--prototxt", "{folder}/small.prototxt", "--prototxt", "{folder}/ten.prototxt"],
        "ilgnet: --prototxt: given 2 times for 1 weights files; give one per file",
    ),
}


@pytest.mark.parametrize(("options", "line"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_in_one_line(folder: Path, capsys: Any, options: list[str], line: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        given = [one.format(folder=folder) for one in options]
        assert (
            main(["serve", "--weights", str(folder / "small.caffemodel"), "--port", str(port), *given]) != 0
        )
    assert capsys.readouterr().err.splitlines() == [line.format(port=port)]


def test_without_its_extra_it_names_it(folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def imported(name: str, *args: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "uvicorn":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", imported)
    assert main(["serve", "--weights", str(folder / "small.caffemodel")]) != 0
    assert capsys.readouterr().err == (
        "ilgnet: serve: needs uvicorn; pip install 'ilgnet_repro[serve]' brings it\n"
    )


HOSTS = {
    "loopback": (None, True, ""),
    "another": (None, False, "made"),
    "a stated one": ("token-1x", True, "token-1x"),
}


@pytest.mark.parametrize(("given", "is_local", "wanted"), HOSTS.values(), ids=HOSTS)
def test_which_addresses_need_a_token(given: str | None, is_local: bool, wanted: str) -> None:
    token = command.read_token(given, is_local)
    assert len(token) >= 32 if wanted == "made" else token == wanted


def scored(arguments: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The facts of the first net that the options load, and its record of the image."""
    args = build_parser().parse_args(["serve", *arguments])
    with testclient.TestClient(create_app(command.load_nets(args)), base_url="http://127.0.0.1") as client:
        (facts,) = client.get("/api/nets").json()
        (record,) = client.post("/api/score", files=IMAGE).json()
        heat = client.post("/api/heat", files=IMAGE)
    assert (heat.status_code == 200) == bool(facts["blobs"])
    return facts, record


def test_any_saved_form_and_engine_is_served_with_one_score(folder: Path) -> None:
    net = ir.load(folder / "small.caffemodel", folder / "small.prototxt")
    (wanted,) = ir.score(
        [PIXELS], net, preprocessing=ir.Preprocessing((9, 7), mean_value=(104.0, 117.0, 123.0))
    )
    best = max(wanted.outputs["prob"])
    forms = {
        "caffemodel": [str(folder / "small.caffemodel")],
        "fast": [str(folder / "small.caffemodel"), "--engine", "torch"],
        "onnx": [str(ir.save(net, folder / "small.onnx")[0])],
        "pt2": [str(ir.save(net, folder / "small.pt2")[0])],
    }
    for name, given in forms.items():
        facts, record = scored(["--weights", *given, *HOW])
        assert record["score"] == pytest.approx(best, abs=1e-5), name
        assert bool(facts["blobs"]) == (name in ("caffemodel", "fast")), name


@pytest.mark.parametrize("option", ["", "--labels", "--no-distribution"])
def test_ten_values_are_votes_for_serve_where_they_are_for_score(
    folder: Path, capsys: Any, option: str
) -> None:
    options = {"--labels": ["--labels", str(folder / "labels.txt")], "": []}.get(option, [option])
    given = [
        "--weights",
        str(folder / "ten.caffemodel"),
        "--prototxt",
        str(folder / "ten.prototxt"),
        *HOW,
        *options,
    ]
    _, record = scored(given)
    (folder / "a.png").write_bytes(IMAGE["files"][1])
    assert main(["score", str(folder / "a.png"), "--json", *given]) == 0
    shown = capsys.readouterr().out
    assert ("deviation" in record, '"deviation"' in shown) == (not option, not option)
