"""Files of any name, and `decode_file` compared with OpenCV's own file reader."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from places import ROOT

from ilgnet_repro.errors import printable, printable_lines
from ilgnet_repro.files import utf8_path
from ilgnet_repro.pages import environment
from ilgnet_repro.reading.images import decode_file

NAME = os.fsdecode(b"caf\xe9\x1b[31m")  # Latin-1 on a disk that holds UTF-8, and a terminal's colour code
FLAGS = {"colour": cv2.IMREAD_COLOR, "grey": cv2.IMREAD_GRAYSCALE, "unchanged": cv2.IMREAD_UNCHANGED}


def smooth(height: int = 37, width: int = 52) -> np.ndarray:
    pixels = np.random.default_rng(5).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.GaussianBlur(pixels, (5, 5), 0)


def encoded(suffix: str, *options: int) -> bytes:
    return cv2.imencode(suffix, smooth(), options)[1].tobytes()


def turned(orientation: int) -> bytes:
    """A JPEG whose EXIF states the camera's orientation."""
    tiff = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x112, 3, 1, orientation, 0, 0)
    segment = b"Exif\0\0" + tiff
    return b"\xff\xd8\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + encoded(".jpg")[2:]


FILES = {
    "jpeg": encoded(".jpg"),
    "progressive": encoded(".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    "restarts": encoded(".jpg", cv2.IMWRITE_JPEG_RST_INTERVAL, 2),
    **{f"exif-{orientation}": turned(orientation) for orientation in (3, 6, 8)},
    "png": encoded(".png"),
    "bmp": encoded(".bmp"),
    "webp": encoded(".webp"),
    "tiff": encoded(".tif"),
    "text": b"no image\n",
    "empty": b"",
}


@pytest.mark.parametrize("flag", FLAGS.values(), ids=FLAGS)
@pytest.mark.parametrize("data", FILES.values(), ids=FILES)
def test_decoded_as_by_opencv(tmp_path, data, flag) -> None:
    for cut in {len(data), len(data) - 1, len(data) // 2, len(data) // 3, 5}:
        plain, odd = tmp_path / "plain", tmp_path / NAME
        for path in (plain, odd):
            path.write_bytes(data[:cut])
        expected = cv2.imread(str(plain), flag)
        for path in (plain, odd):
            found = decode_file(path, flag)
            if expected is None:
                assert found is None
            else:
                np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: None], ids=["folder", "pipe", "absent"])
def test_a_missing_file_is_no_image(tmp_path, make) -> None:
    make(tmp_path / NAME)
    assert decode_file(tmp_path / NAME, cv2.IMREAD_COLOR) is None
    assert decode_file(f"{tmp_path}/a\0b", cv2.IMREAD_COLOR) is None


def test_a_name_in_utf8_is_kept_and_another_is_linked(tmp_path) -> None:
    with utf8_path(tmp_path / "é.npy") as name:
        assert name == str(tmp_path / "é.npy")
    (tmp_path / NAME).write_bytes(b"held")
    with utf8_path(tmp_path / NAME) as name:
        assert name.isascii() and Path(name).read_bytes() == b"held"
    assert not os.path.lexists(name)


@pytest.mark.parametrize(
    ("text", "line", "lines", "page"),
    [
        ("é a<b", "é a<b", "é a<b", "é a&lt;b"),
        (NAME, r"caf\udce9\x1b[31m", r"caf\udce9\x1b[31m", r"caf\udce9\x1b[31m"),
        ("a\tb\nc\r", r"a\tb\nc\r", "a\tb\nc\\r", r"a\tb\nc\r"),
        ("\x9b1m\u202e", r"\x9b1m\u202e", r"\x9b1m\u202e", r"\x9b1m\u202e"),
    ],
    ids=["plain", "bytes-and-colour", "breaks", "c1-and-direction"],
)
def test_escaped(text, line, lines, page) -> None:
    html = environment("ilgnet_repro").from_string("{{ text }}").render(text=text)
    assert (printable(text), printable_lines(text), html) == (line, lines, page)


# Commands run in a folder with NAME.png, 1.png and their list; DB and others are outputs of earlier ones.
COMMANDS = [
    ("make", ["lmdb", "make", "./", "l.txt", f"{NAME}_db"], 0),
    ("info", ["lmdb", "info", f"{NAME}_db"], 0),
    ("export", ["lmdb", "export", f"{NAME}_db", f"{NAME}_out"], 0),
    ("mean", ["mean", f"{NAME}_db", f"{NAME}.npy"], 0),
    ("sheet", ["sheet", "l.txt", "--out", f"{NAME}.html", "--out", f"{NAME}_sheet.png"], 0),
    ("convert", ["convert", f"{NAME}.caffemodel", "--to", "safetensors,onnx,pt2,python", "--verify", "--order", "BGR"], 0),
    ("compare", ["compare", f"{NAME}.safetensors", f"{NAME}.onnx"], 0),
    ("compare-pt2", ["compare", f"{NAME}.caffemodel", f"{NAME}.pt2"], 0),
    ("score", ["score", ".", "--weights", f"{NAME}.safetensors"], 0),
    ("audit", ["audit", f"{NAME}.prototxt", f"{NAME}.caffemodel"], 0),
    ("time", ["caffe", "time", "-model", f"{NAME}.prototxt", "-iterations", "1"], 0),
]  # fmt: skip

# One process for all of them: a name that crashes a command would end it.
SCRIPT = """
import json, os, sys
from ilgnet_repro.cli.main import main
for arguments in json.loads(sys.argv[1]):
    print("status", main(arguments), flush=True)
"""


def test_commands_take_names_of_any_bytes(tmp_path) -> None:
    import json

    from small_nets import SMALL_TEXT, write_weights

    write_weights(tmp_path / f"{NAME}.caffemodel")
    (tmp_path / f"{NAME}.prototxt").write_text(SMALL_TEXT)
    for name in (NAME, "1"):
        (tmp_path / f"{name}.png").write_bytes(encoded(".png"))
    (tmp_path / "l.txt").write_bytes(os.fsencode(f"{NAME}.png 1\n1.png 0\nno{NAME}.png 1\n"))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps([arguments for _, arguments, _ in COMMANDS])],
        cwd=tmp_path, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}, check=False,
    )  # fmt: skip
    out, err = done.stdout.decode(), done.stderr.decode()  # both are UTF-8
    found = [int(line.split()[1]) for line in out.splitlines() if line.startswith("status ")]
    assert dict(zip([name for name, _, _ in COMMANDS], found, strict=False)) == {
        name: status for name, _, status in COMMANDS
    }, err[-500:]
    assert "\x1b" not in out + err
    assert r"caf\udce9\x1b[31m" in out
    page = (tmp_path / f"{NAME}.html").read_bytes().decode()
    assert "\x1b" not in page and r"caf\udce9\x1b[31m.png" in page
    assert (tmp_path / f"{NAME}_out" / f"{NAME}.png").exists()
