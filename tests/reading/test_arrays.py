"""Files of arrays: read whole, or refused in one line before memory is taken."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ilgnet_repro.errors import DataError
from ilgnet_repro.reading.arrays import load_npy, load_npz


def header(shape: str, kind: str = "<f4") -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def zipped(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.npy", data)
    return buffer.getvalue()


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_read_as_numpy_wrote_them(order: str, tmp_path: Path) -> None:
    expected = np.asarray(np.arange(24, dtype=np.float32).reshape(2, 3, 4), order=order)
    np.save(tmp_path / "a.npy", expected)
    np.savez(tmp_path / "a.npz", first=expected, second=np.int64(7))
    np.testing.assert_array_equal(load_npy(tmp_path / "a.npy"), expected)
    arrays = load_npz(tmp_path / "a.npz")
    assert list(arrays) == ["first", "second"] and arrays["second"] == 7
    np.testing.assert_array_equal(arrays["first"], expected)


DAMAGED = {
    "text": b"hello",
    "nothing": b"",
    "header alone": header("(2, 3)"),
    "too large": header("(40000, 40000, 10)") + bytes(64),
    "overflow": header("(4611686018427387904, 4)") + bytes(64),
    "negative": header("(-1, 3)") + bytes(64),
    "objects": header("(1,)", "|O") + bytes(64),
    "nested": b"\x93NUMPY\x01\x00" + (9000).to_bytes(2, "little") + b"(" * 9000,
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_damaged_files_are_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(data)
    (tmp_path / "a.npz").write_bytes(zipped(data))
    with pytest.raises(DataError, match=r"a\.npy: is not an npy file \(.+\); write it with numpy\.save$"):
        load_npy(tmp_path / "a.npy")
    with pytest.raises(DataError, match=r"a\.npz: is not an npz file \(.+\); write it with numpy\.savez$"):
        load_npz(tmp_path / "a.npz")
