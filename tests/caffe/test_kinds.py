"""The kind of a file is detected by its content, not its suffix, and the wrong kind is refused by name."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import resource
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import h5py
import numpy as np
import onnx
import pytest
import safetensors.numpy
import torch
from wire_bytes import blob, chunk, floats, layer, number, shape, varint

from ilgnet_repro.caffe.blob import read_blob
from ilgnet_repro.caffe.caffemodel import open_caffemodel
from ilgnet_repro.caffe.expected_kind import expect, refusal
from ilgnet_repro.caffe.kinds import Kind, kind_of
from ilgnet_repro.caffe.prototxt import read_net, read_solver
from ilgnet_repro.caffe.solverstate import write_solverstate
from ilgnet_repro.compare.openers import open_backend
from ilgnet_repro.errors import DataError, FormatError, IlgnetError
from ilgnet_repro.reading.mean import read_mean, write_mean
from ilgnet_repro.runtime.load import load_net
from ilgnet_repro.runtime.onnx_net import read_model
from ilgnet_repro.runtime.pt2_file import read_pt2
from ilgnet_repro.runtime.safetensors_file import open_safetensors
from ilgnet_repro.train.snapshot import read_state

FIVE = floats(1, 2, 3, 4, 5)
NET = 'name: "n"\nlayer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 } } }\n'
OLD_NET = 'input: "x"\ninput_dim: 1\nlayers { name: "r" type: RELU bottom: "x" top: "y" }\n'
SOLVER = 'net: "net.prototxt"\nbase_lr: 0.1\nlr_policy: "fixed"\nsolver_mode: GPU\n'
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
PAGE = b"<!DOCTYPE html>\n<html><head><title>x.caffemodel at master</title></head><body></body></html>\n"


def bytes_of(write: Callable[[io.BytesIO], object]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def safetensors_of_header(length: int) -> bytes:
    """A file whose header has this many bytes."""
    for padding in range(length):
        data = safetensors.numpy.save({"w": np.ones(5, np.float32)}, {"note": "-" * padding})
        if int.from_bytes(data[:8], "little") == length:
            return data
    raise AssertionError(f"no header of {length} bytes")


def hdf5(**members: object) -> bytes:
    def write(file: io.BytesIO) -> None:
        with h5py.File(file, "w") as root:
            for name, value in members.items():
                root[name.replace("__", "/")] = value

    return bytes_of(write)


def archive(*names: str) -> bytes:
    def write(file: io.BytesIO) -> None:
        with zipfile.ZipFile(file, "w") as members:
            for name in names:
                members.writestr(name, b"{}")

    return bytes_of(write)


def tar(name: str) -> bytes:
    def write(file: io.BytesIO) -> None:
        with tarfile.open(fileobj=file, mode="w") as members:
            members.addfile(tarfile.TarInfo(name))

    return bytes_of(write)


def image(suffix: str) -> bytes:
    return cv2.imencode(suffix, np.full((5, 7, 3), 90, np.uint8))[1].tobytes()


def onnx_model() -> bytes:
    value = onnx.helper.make_tensor_value_info
    nodes = [onnx.helper.make_node("Relu", ["x"], ["y"])]
    ends = ([value("x", 1, [2, 3])], [value("y", 1, [2, 3])])
    return onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", *ends)).SerializeToString()


def without_version(model: bytes) -> bytes:
    assert model[0] == 8  # ir_version comes first
    return model[2:]


STATE_H5 = {
    "iter": [7],
    "learned_net": np.bytes_(b"x.caffemodel.h5"),
    "current_step": [0],
    "history__0": np.ones(5),
}
TORCH_FILES = [
    bytes_of(lambda file, new=new: torch.save({"w": torch.ones(5)}, file, _use_new_zipfile_serialization=new))
    for new in (True, False)
]

FILES: dict[str, tuple[Kind, bytes]] = {
    "caffemodel": (Kind.CAFFEMODEL, chunk(1, "net") + layer("ip", blob(FIVE, 5))),
    "caffemodel-nameless": (Kind.CAFFEMODEL, layer("ip", blob(FIVE, 5))),
    "caffemodel-v1": (Kind.CAFFEMODEL, chunk(1, "n") + chunk(2, chunk(4, "ip") + chunk(6, blob(FIVE, 5)))),
    "caffemodel-with-input": (
        Kind.CAFFEMODEL,
        chunk(3, "data") + number(4, 1) + number(5, 1) + number(7, 0) + chunk(8, chunk(1, b"\1")) + layer("ip"),
    ),
    "caffemodel-h5": (Kind.CAFFEMODEL_H5, hdf5(data__ip__0=np.ones(5, np.float32))),
    "safetensors": (Kind.SAFETENSORS, safetensors.numpy.save({"w": np.ones(5, np.float32)})),
    "safetensors-empty": (Kind.SAFETENSORS, safetensors.numpy.save({})),
    "safetensors-as-pickle": (Kind.SAFETENSORS, safetensors_of_header(0x280)),  # bytes 80 02: a pickle's first two
    "safetensors-as-pickle-4": (Kind.SAFETENSORS, safetensors_of_header(0x480)),
    "onnx": (Kind.ONNX, onnx_model()),
    "onnx-without-version": (Kind.ONNX, without_version(onnx_model())),
    "pt2": (Kind.PT2, archive("net/archive_format", "net/models/model.json", "net/data/weights/weight_0")),
    "pt2-old": (Kind.PT2, archive("serialized_exported_program.json", "version")),
    "solverstate": (Kind.SOLVERSTATE, number(1, 9) + chunk(2, "x.caffemodel") + chunk(3, blob(FIVE, 5)) + number(4, 0)),
    "solverstate-bare": (Kind.SOLVERSTATE, number(1, 9) + chunk(2, "x.caffemodel")),
    "solverstate-h5": (Kind.SOLVERSTATE_H5, hdf5(**STATE_H5)),
    "mean": (Kind.BINARYPROTO, number(1, 1) + number(2, 1) + number(3, 1) + number(4, 5) + chunk(5, FIVE)),
    "mean-modern": (Kind.BINARYPROTO, blob(FIVE, 5)),
    "mean-double": (Kind.BINARYPROTO, shape(1) + chunk(8, b"\0" * 8)),
    "mean-unpacked": (Kind.BINARYPROTO, number(1, 1) + (varint(5 * 8 + 5) + b"\0\0\0\0") * 9000),
    "mean-nvidia": (Kind.BINARYPROTO, shape(5) + number(10, 2) + chunk(12, b"\0" * 10)),
    "mean-of-video": (Kind.BINARYPROTO, b"".join(number(i, 1) for i in range(1, 6)) + chunk(6, floats(1))),
    "npy": (Kind.NPY, bytes_of(lambda file: np.save(file, np.ones((3, 4, 5), np.float32)))),
    "npz": (Kind.NPZ, bytes_of(lambda file: np.savez(file, a=np.ones(5)))),
    "prototxt": (Kind.PROTOTXT, NET.encode()),
    "prototxt-v1": (Kind.PROTOTXT, OLD_NET.encode()),
    "prototxt-name-only": (Kind.PROTOTXT, b'name: "n"'),
    "solver": (Kind.SOLVER, SOLVER.encode()),
    "python": (Kind.PYTHON, b'#!/usr/bin/env python3\n"""A net."""\n\nimport torch\n'),
    "python-docstring": (Kind.PYTHON, b'# made by hand\n"""A net."""\nimport torch\n'),
    "html": (Kind.HTML, PAGE),
    "html-after-spaces": (Kind.HTML, b"\xef\xbb\xbf\n\n <!-- saved from -->\n<HTML lang=en></HTML>"),
    "xhtml": (Kind.HTML, b'<?xml version="1.0"?>\n<html xmlns="http://www.w3.org/1999/xhtml"></html>'),
    "xml": (Kind.XML, b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>'),
    "json": (Kind.JSON, b'{"message": "Not Found"}'),
    "json-list": (Kind.JSON, b"[\n  {}]"),
    "label-map": (Kind.LABEL_MAP, b'item { name: "none" label: 0 display_name: "background" }'),
    "list": (Kind.TEXT, b"cat.jpg 0\ndog.jpg 1\n"),
    "plain-words": (Kind.TEXT, b"404: Not Found"),
    "lfs-pointer": (Kind.LFS_POINTER, POINTER),
    "torch": (Kind.TORCH, TORCH_FILES[0]),
    "torch-legacy": (Kind.TORCH, TORCH_FILES[1]),
    **{f"pickle-{n}": (Kind.PICKLE, pickle.dumps({"w": [1.0]}, protocol=n)) for n in (0, 2, 3, 4, 5)},
    "hdf5-keras": (Kind.HDF5, hdf5(model_weights__dense__kernel=np.ones(5))),
    "hdf5-data": (Kind.HDF5, hdf5(data=np.ones((2, 5)), label=np.ones(2))),
    "tensorflow": (Kind.TENSORFLOW, chunk(1, chunk(1, "a")) + chunk(1, chunk(1, "b")) + chunk(4, number(1, 27))),
    "tflite": (Kind.TFLITE, b"\x1c\0\0\0TFL3" + b"\0" * 40),
    "openvino": (Kind.OPENVINO, b'<?xml version="1.0"?>\n<net name="n" version="11">\n<layers></layers></net>'),
    "openvino-bare": (Kind.OPENVINO, b'<net name="n" version="11"></net>'),
    "zip": (Kind.ZIP, archive("net.caffemodel", "deploy.prototxt")),
    "tar": (Kind.TAR, tar("net.caffemodel")),
    "gzip": (Kind.GZIP, gzip.compress(b"net")),
    "bzip2": (Kind.BZIP2, b"BZh91AY&SY\0\0"),
    "xz": (Kind.XZ, b"\xfd7zXZ\0\0\4"),
    "zstd": (Kind.ZSTD, b"\x28\xb5\x2f\xfd\x04\0"),
    "7z": (Kind.SEVEN_ZIP, b"7z\xbc\xaf\x27\x1c\0\4"),
    "rar": (Kind.RAR, b"Rar!\x1a\x07\x01\0"),
    "png": (Kind.PNG, image(".png")),
    "jpeg": (Kind.JPEG, image(".jpg")),
    "bmp": (Kind.BMP, image(".bmp")),
    "tiff": (Kind.TIFF, image(".tiff")),
    "webp": (Kind.WEBP, image(".webp")),
    "gif": (Kind.GIF, b"GIF89a\5\0\7\0\0\0\0;"),
    "pdf": (Kind.PDF, b"%PDF-1.5\n%\xbf\xf7\xa2\xfe\n"),
    "elf": (Kind.ELF, b"\x7fELF\2\1\1\0"),
    "lmdb": (Kind.LMDB, b"\0" * 16 + b"\xde\xc0\xef\xbe\1\0\0\0" + b"\0" * 64),
    "empty": (Kind.EMPTY, b""),
    "noise": (Kind.UNKNOWN, b"\x07\x01\x02\x03"),
}  # fmt: skip
SUFFIXES = (
    ".caffemodel", ".caffemodel.h5", ".safetensors", ".onnx", ".pt2", ".solverstate", ".solverstate.h5", ".binaryproto",
    ".npy", ".prototxt", ".py", ".json", ".pth", ".txt", "",
)  # fmt: skip


def write(folder: Path, data: bytes, name: str = "x.caffemodel") -> Path:
    (folder / name).write_bytes(data)
    return folder / name


@pytest.mark.parametrize(("kind", "data"), FILES.values(), ids=FILES)
def test_kind_by_content_whatever_the_suffix(tmp_path, kind, data) -> None:
    for suffix in SUFFIXES:
        assert kind_of(write(tmp_path, data, f"x{suffix}")) is kind, suffix


def test_every_kind_is_in_the_table() -> None:
    assert {kind for kind, _ in FILES.values()} == set(Kind) - {Kind.COREML}  # a folder, see below


def long_name(text: str) -> bytes:
    """A caffemodel whose first thousand bytes are a name that reads as something else."""
    name = text.ljust(1152)
    assert varint(len(name)) == b"\x80\x09"
    return chunk(1, name) + layer("ip", blob(FIVE, 5))


LOOK_ALIKES: dict[str, tuple[Kind, bytes]] = {
    "a net named as a page": (Kind.CAFFEMODEL, long_name("<!DOCTYPE html><html>")),
    "a net named as a prototxt": (Kind.CAFFEMODEL, long_name(NET.strip())),
    "a net whose name has the length of a space": (Kind.CAFFEMODEL, chunk(1, "<html>".ljust(32)) + layer("ip")),
    "a prototxt after comments": (Kind.PROTOTXT, b"# <html>\n# import torch\n# base_lr: 1\n" + NET.encode()),
    "a prototxt with a mark": (Kind.PROTOTXT, b"\xef\xbb\xbf" + NET.encode()),
    "a prototxt in UTF-16": (Kind.PROTOTXT, NET.encode("utf-16")),
    "a prototxt in Latin-1": (Kind.PROTOTXT, b"# r\xe9seau\n" + NET.encode()),
    "a prototxt with Windows lines": (Kind.PROTOTXT, NET.replace("\n", "\r\n").encode()),
    "a prototxt that breaks off": (Kind.PROTOTXT, NET.encode() + b"layer { name: 'x"),
    "a net with a solver's word in a layer": (Kind.PROTOTXT, b'layer { name: "a" type: "ReLU" } # base_lr: 1'),
    "a net after a fork's solver-like field": (Kind.PROTOTXT, b"snapshot: 1\n" + NET.encode()),
    "a net after an unknown block": (Kind.PROTOTXT, b"engine { layer_net: 1 base_lr: 2 }\n" + OLD_NET.encode()),
    "a solver that holds its net": (Kind.SOLVER, b"net_param { " + NET.encode() + b"} max_iter: 5"),
    "a solver after a fork's field": (Kind.SOLVER, b'eval_type: "detection"\n' + SOLVER.encode()),
    "a text that begins with a bracket": (Kind.TEXT, b"{ name: no JSON"),
    "only spaces": (Kind.TEXT, b" \n\t\n"),
    "a page after a comment without end": (Kind.XML, b"<!-- <html>"),
    "only brackets": (Kind.TEXT, b"{{{{ }}}}"),
    "words about importing": (Kind.TEXT, b"How to use the net:\nimport caffe\n"),
    "a page in UTF-16": (Kind.HTML, PAGE.decode().encode("utf-16")),
    "a list of the length of a blob": (Kind.TEXT, b"*" + bytes((40,)) + b"a" * 40),
    "a mean of one number of axes": (Kind.BINARYPROTO, chunk(5, floats(7))),
    "a version and a shape": (Kind.BINARYPROTO, number(1, 1) + shape(1) + chunk(8, b"\0" * 8)),
    "an ONNX file cut off in its graph": (Kind.ONNX, onnx_model()[:-20]),
    "a caffemodel cut off in its first layer": (Kind.CAFFEMODEL, FILES["caffemodel"][1][:-9]),
    "a mean cut off": (Kind.BINARYPROTO, FILES["mean"][1][:-3]),
    "safetensors cut off in the header": (Kind.SAFETENSORS, FILES["safetensors"][1][:12]),
    "a header longer than any": (Kind.UNKNOWN, (1 << 60).to_bytes(8, "little") + b"{}"),
    "a torch file cut off": (Kind.TORCH, TORCH_FILES[0][:200]),
    "a zip cut off": (Kind.ZIP, FILES["zip"][1][:40]),
    "a net without layers": (Kind.UNKNOWN, chunk(1, "net")),
    "CoreML": (Kind.UNKNOWN, number(1, 1) + chunk(2, chunk(1, "x")) + chunk(500, chunk(1, "y"))),
    "a datum": (Kind.UNKNOWN, number(1, 1) + number(2, 1) + number(3, 5) + chunk(4, b"01234") + number(5, 1)),
    "groups of an old protobuf": (Kind.UNKNOWN, b"\x0b\x08\x01\x0c"),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "data"), LOOK_ALIKES.values(), ids=LOOK_ALIKES)
def test_look_alikes(tmp_path, kind, data) -> None:
    assert kind_of(write(tmp_path, data)) is kind


def test_links_in_hdf5_are_not_followed(tmp_path) -> None:
    write(tmp_path, FILES["caffemodel-h5"][1], "secret.h5")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["data"] = h5py.ExternalLink("secret.h5", "/data")
    assert kind_of(tmp_path / "x.h5") is Kind.HDF5


def test_a_database_is_recognized_by_its_folder(tmp_path) -> None:
    write(tmp_path, FILES["lmdb"][1], "data.mdb")
    with pytest.raises(FormatError, match="is an LMDB database, not weights; give the weights file"):
        open_caffemodel(tmp_path)


def test_a_core_ml_package_is_recognized_by_its_folder(tmp_path) -> None:
    (tmp_path / "Data").mkdir()
    write(tmp_path, b"{}", "Manifest.json")
    with pytest.raises(FormatError, match="is a Core ML package") as caught:
        open_caffemodel(tmp_path)
    assert str(caught.value).endswith(
        "; give the .caffemodel, .caffemodel.h5 or .safetensors file that it was made from"
    )
    (tmp_path / "Data").rmdir()
    with pytest.raises(FormatError, match=r"cannot be read \(Is a directory\)"):
        open_caffemodel(tmp_path)


READERS: dict[str, tuple[Callable[[Path], object], set[Kind], str]] = {
    "weights": (open_caffemodel, {Kind.CAFFEMODEL, Kind.CAFFEMODEL_H5}, "weights"),
    "net": (read_net, {Kind.PROTOTXT}, "a net's prototxt"),
    "solver": (read_solver, {Kind.SOLVER}, "a solver's prototxt"),
    "mean": (read_blob, {Kind.BINARYPROTO}, "a mean file"),
    "snapshot": (read_state, {Kind.SOLVERSTATE, Kind.SOLVERSTATE_H5}, "a solver state"),
    "safetensors": (open_safetensors, {Kind.SAFETENSORS}, "a safetensors file"),
    "onnx": (read_model, {Kind.ONNX}, "an ONNX model"),
    "pt2": (read_pt2, {Kind.PT2}, "an exported PyTorch program"),
}
# Files that the readers accept first, to report the fault with its position.
OWN_WORDS = {
    "weights": {Kind.HDF5},
    "net": {Kind.TEXT},
    "solver": {Kind.TEXT},
    "snapshot": {Kind.HDF5},
    "safetensors": {Kind.EMPTY},
    "pt2": {Kind.EMPTY, Kind.ZIP, Kind.TORCH},
}


@pytest.mark.parametrize(("read", "own", "what"), READERS.values(), ids=READERS)
def test_each_reader_refuses_the_other_kinds_as_what_they_are(tmp_path, request, read, own, what) -> None:
    reader = request.node.callspec.id
    for name, (kind, data) in FILES.items():
        path = write(tmp_path, data, "x.bin")
        if kind in own:
            continue
        with pytest.raises(IlgnetError) as caught:
            read(path)
        message = str(caught.value)
        assert "\n" not in message, name
        if kind in OWN_WORDS.get(reader, ()) or kind is Kind.UNKNOWN:
            continue
        special = {Kind.EMPTY: "x.bin: the file is empty; fetch it again"}
        special[Kind.LFS_POINTER] = "x.bin: is a Git-LFS pointer, not the file itself; run `git lfs pull` or "
        assert message.startswith(special.get(kind, f"x.bin: is {kind.value}, not {what}; ")), name


LOADED = {
    "weights": ["caffemodel", "caffemodel-nameless", "caffemodel-v1", "caffemodel-h5"],
    "net": ["prototxt", "prototxt-v1", "prototxt-name-only"],
    "solver": ["solver"],
    "mean": ["mean", "mean-modern", "mean-double"],
    "snapshot": ["solverstate", "solverstate-bare", "solverstate-h5"],
    "safetensors": ["safetensors", "safetensors-empty", "safetensors-as-pickle", "safetensors-as-pickle-4"],
    "onnx": ["onnx", "onnx-without-version"],
}


@pytest.mark.parametrize(("reader", "names"), LOADED.items(), ids=LOADED)
def test_each_reader_accepts_its_own_kinds_under_any_name(tmp_path, reader, names) -> None:
    for name in names:
        for suffix in SUFFIXES:
            READERS[reader][0](write(tmp_path, FILES[name][1], f"x{suffix}"))


MESSAGES = {
    "page": ("html", "weights", "is a web page (HTML), not weights; download the file itself, not a web "
             "page about it"),
    "archive": ("gzip", "weights", "is a gzip archive, not weights; unpack it first"),
    "checkpoint": ("torch", "weights", "is a PyTorch checkpoint, a pickle, not weights; pickles are never read; give the "
                   "Caffe file"),
    "swapped": ("prototxt", "weights", "is a net's prototxt, not weights; give the weights file here and this one as "
                "prototxt=; the arguments may be swapped"),
    "swapped too": ("caffemodel", "a net's prototxt", "is a Caffe weights file (.caffemodel), not a net's prototxt; give "
                    "the net's text as prototxt= and this file as the weights; the arguments may be swapped"),
    "solver": ("solver", "weights", "is a solver's prototxt, not weights; give the weights file here, not the "
               "solver"),
    "solver as net": ("solver", "a net's prototxt", "is a solver's prototxt, not a net's prototxt; give the file that "
                      "its `net` or `train_net` names"),
    "net as solver": ("prototxt", "a solver's prototxt", "is a net's prototxt, not a solver's prototxt; give the solver "
                      "that names this net"),
    "snapshot": ("solverstate", "weights", "is a solver state (.solverstate), not weights; give the .caffemodel of the "
                 "same snapshot"),
    "mean": ("mean", "weights", "is a mean file (.binaryproto), not weights; give the weights file here and this one "
             "as the mean"),
    "image": ("png", "a mean file", "is a PNG image, not a mean file; give the .binaryproto"),
    "own phrase": ("png", "a cat", "is a PNG image, not a cat; give a cat"),
    "noise": ("noise", "weights", "is a damaged or unknown file, not weights; fetch it again or give another"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "what", "message"), MESSAGES.values(), ids=MESSAGES)
def test_refusals(tmp_path, name, what, message) -> None:
    path = write(tmp_path, FILES[name][1], "x.bin")
    with pytest.raises(FormatError) as caught:
        expect(path, what=what)
    assert str(caught.value) == f"x.bin: {message}" == str(refusal(path, FILES[name][0], what))


def test_expect_returns_which_of_the_kinds_it_is(tmp_path) -> None:
    path = write(tmp_path, FILES["caffemodel-h5"][1])
    assert expect(path, Kind.CAFFEMODEL, Kind.CAFFEMODEL_H5) is Kind.CAFFEMODEL_H5


def test_swapped_arguments_of_load_net(tmp_path) -> None:
    text, weights = write(tmp_path, NET.encode(), "n.prototxt"), write(tmp_path, FILES["caffemodel"][1])
    with pytest.raises(
        FormatError, match=r"^n\.prototxt: is a net's prototxt, not weights; .* may be swapped$"
    ):
        load_net(weights, text)
    with pytest.raises(FormatError, match=r"^x\.caffemodel: is a Caffe weights .* may be swapped$"):
        load_net(weights)


NOT_COMPARED = {
    name: row for name, row in FILES.items() if name in ("prototxt", "solver", "html", "zip", "mean", "png")
}


@pytest.mark.parametrize(("kind", "data"), NOT_COMPARED.values(), ids=NOT_COMPARED)
def test_compare_refuses_files_without_a_net(tmp_path, kind, data) -> None:
    path = write(tmp_path, data, "x.onnx")
    with pytest.raises(IlgnetError) as caught:
        open_backend(str(path))
    assert str(caught.value).startswith(
        f"x.onnx: is {kind.value}, not a net that can be compared (.caffemodel, "
    )


@pytest.mark.parametrize("suffix", [".npy", ".binaryproto", ".txt"])
def test_mean_files_by_content(tmp_path, suffix) -> None:
    mean = np.random.default_rng(3).normal(size=(3, 4, 5)).astype(np.float32)
    for name in ("m.npy", "m.binaryproto"):
        write_mean(tmp_path / name, mean)
        np.testing.assert_array_equal(read_mean((tmp_path / name).rename(tmp_path / f"n{suffix}")), mean)
    with pytest.raises(FormatError, match=r"^p.npy: is a web page \(HTML\), not a mean file; download"):
        read_mean(write(tmp_path, PAGE, "p.npy"))
    with pytest.raises(DataError, match="is not an npy file"):
        read_mean(write(tmp_path, b"\1\2", "q.npy"))


def test_snapshots_by_content(tmp_path) -> None:
    path = tmp_path / "x_iter_9.solverstate.h5"
    write_solverstate(path, 9, "x.caffemodel", [np.ones((2, 5), np.float32)], 3)
    state = read_state(path)
    assert (state.iter, state.current_step, state.history[0].shape) == (9, 3, (2, 5))


# ---------------------------------------------------------------------- damaged and hostile files


@pytest.mark.parametrize("name", ["caffemodel", "caffemodel-v1", "onnx", "solverstate", "mean", "prototxt", "safetensors",
                                  "zip", "html", "lfs-pointer", "torch-legacy", "png"])  # fmt: skip
def test_every_prefix_of_a_file_has_a_kind(tmp_path, name) -> None:
    data = FILES[name][1]
    for length in range(0, min(len(data), 300), 1 if len(data) < 150 else 3):
        kind_of(write(tmp_path, data[:length]))


@pytest.mark.parametrize("name", ["caffemodel-h5", "solverstate-h5", "pt2", "torch"])
def test_parts_of_a_file_have_a_kind(tmp_path, name) -> None:
    data = FILES[name][1]
    for length in range(0, len(data), 37):
        kind_of(write(tmp_path, data[:length]))
        kind_of(write(tmp_path, data[:length] + bytes(len(data) - length)))


def test_changed_bytes_raise_no_exception(tmp_path) -> None:
    rng = np.random.default_rng(11)
    for _, data in FILES.values():
        for _ in range(3 if data else 0):
            changed = bytearray(data)
            for place in rng.integers(0, min(len(data), 200), 3):
                changed[place] = rng.integers(256)
            kind_of(write(tmp_path, bytes(changed)))


HOSTILE = {
    "fields without end": number(9, 1) * 500_000,
    "layers without end": b"\x12\x00" * 500_000,
    "brackets without end": b"a{" * 500_000,
    "millions of spaces": b" " * 3_000_000,
    "comments without end": b"<!---->" * 300_000,
    "an open comment": b"<!--" * 300_000,
    "lines of a comment": b"#\n" * 700_000,
    "members without end": b"PK\3\4" + b"PK\1\2" * 300_000,
    "a name of the longest length": b"\x0a" + varint(2**63) + b"x" * 2_000_000,
    "a text in UTF-32": ("#" * 500_000).encode("utf-32"),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_take_little_memory_and_time(tmp_path, data) -> None:
    path = write(tmp_path, data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    kind_of(path)
    assert time.process_time() - started < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10  # KiB


def test_a_large_file_is_not_read(tmp_path) -> None:
    path = tmp_path / "x.caffemodel"
    weights = chunk(1, "net") + b"\xa2\x06"
    with open(path, "wb") as file:  # a sparse file of 5 GB, which takes no space on disk
        file.write(weights + varint(5 << 30))
        file.truncate(6 << 30)
    assert kind_of(path) is Kind.CAFFEMODEL


def test_a_pipe_is_refused_without_waiting(tmp_path) -> None:
    os.mkfifo(tmp_path / "x.caffemodel")
    with pytest.raises(
        FormatError, match=r"x\.caffemodel: is not a plain file \(a pipe or device\); save its"
    ):
        kind_of(tmp_path / "x.caffemodel")


def test_index_of_shards_is_json(tmp_path) -> None:
    path = write(tmp_path, json.dumps({"metadata": {"total_size": 5}}).encode(), "x.safetensors.index.json")
    with pytest.raises(FormatError, match="is a JSON page, not a safetensors file"):
        open_safetensors(path)
