"""How the files of this folder were made. It is a record and is not run by the tests: see README.md.

    OMP_NUM_THREADS=1 python tests/compat/make.py

It uses the package as it was at the commit that README.md names, private modules included, and writes
``files/``, ``expected.npz`` (inputs, outputs and parameters) and ``expected.json`` (everything else).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from small_nets import SHARED_TEXT, write_weights  # noqa: E402

import ilgnet_repro as ir  # noqa: E402
from ilgnet_repro.cli.main import main  # noqa: E402

PHOTO = """
name: "photo"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 6 dim: 6 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param {
  num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } bias_filler { type: "constant" value: 0.1 } } }
layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "bn" }
layer { name: "scale" type: "Scale" bottom: "bn" top: "bn" scale_param { bias_term: true
  filler { type: "uniform" min: 0.5 max: 1.5 } bias_filler { type: "uniform" min: -0.2 max: 0.2 } } }
layer { name: "relu" type: "ReLU" bottom: "bn" top: "bn" }
layer { name: "pool" type: "Pooling" bottom: "bn" top: "pool" pooling_param { kernel_size: 3 stride: 2 } }
layer { name: "norm" type: "LRN" bottom: "pool" top: "norm" lrn_param { local_size: 3 alpha: 0.1 } }
layer { name: "ip" type: "InnerProduct" bottom: "norm" top: "ip"
  inner_product_param { num_output: 2 weight_filler { type: "gaussian" std: 0.15 } } }
layer { name: "prob" type: "Softmax" bottom: "ip" top: "prob" }
"""
OPEN = """
name: "open"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 9 dim: 7 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param {
  num_output: 4 kernel_size: 3 pad: 1 weight_filler { type: "xavier" } } }
layer { name: "prelu" type: "PReLU" bottom: "conv" top: "conv" }
layer { name: "map" type: "Convolution" bottom: "conv" top: "map" convolution_param {
  num_output: 2 kernel_size: 1 weight_filler { type: "xavier" } } }
"""
RECURRENT = """
name: "recurrent"
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 4 dim: 2 dim: 3 } } }
layer { name: "cont" type: "Input" top: "cont" input_param { shape { dim: 4 dim: 2 } } }
layer { name: "lstm" type: "LSTM" bottom: "x" bottom: "cont" top: "lstm" recurrent_param { num_output: 5
  weight_filler { type: "uniform" min: -0.4 max: 0.4 } bias_filler { type: "constant" value: 0.1 } } }
"""
NETS = {"photo": PHOTO, "open": OPEN, "shared": SHARED_TEXT, "recurrent": RECURRENT}
MEANS = ["--mean-value", "104,117,123", "--scale", "0.05"]
# folder of files/, net, options of `ilgnet convert`, formats
CONVERSIONS = [
    ("plain", "photo", [], "safetensors,onnx,pt2,python"),
    ("prepared", "photo", MEANS, "safetensors"),
    ("mean_image", "photo", ["--mean-file", "mean.binaryproto", "--resize", "8", "--order", "RGB"], "safetensors"),
    ("folded", "photo", ["--fold", *MEANS], "safetensors"),
    ("int8", "photo", ["--precision", "int8", *MEANS], "safetensors,onnx"),
    ("float16", "photo", ["--precision", "float16", *MEANS], "safetensors"),
    ("bfloat16", "photo", ["--precision", "bfloat16", *MEANS], "safetensors"),
    ("preprocessing", "photo", ["--with-preprocessing", *MEANS], "onnx"),
    ("saved", "photo", ["--phase", "TRAIN"], "caffemodel"),
    ("plain", "open", [], "safetensors"),
    ("sized", "open", ["--shape", "data=2,3,10,12"], "safetensors"),
    ("dynamic", "open", ["--dynamic-size"], "onnx"),
    ("plain", "shared", [], "safetensors,python"),
    ("plain", "recurrent", [], "safetensors,onnx"),
]  # fmt: skip
TRAIN_NET = """
name: "trained"
layer { name: "data" type: "Data" top: "data" top: "label" transform_param { scale: 0.01 }
  data_param { source: "db" batch_size: 6 backend: LMDB } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" param { lr_mult: 1 } param { lr_mult: 2 }
  convolution_param { num_output: 3 kernel_size: 5 stride: 2 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "fc" type: "InnerProduct" bottom: "conv" top: "fc"
  inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }
layer { name: "accuracy" type: "Accuracy" bottom: "fc" bottom: "label" top: "accuracy" include { phase: TEST } }
"""
# The batch is the whole database, so that the row at which a resumed run continues does not matter.
SOLVER = """net: "net.prototxt"
random_seed: 3
test_iter: 1
test_interval: 3
max_iter: 12
snapshot: 4
snapshot_prefix: "{name}/net"
solver_mode: CPU
"""
SOLVERS = {
    "sgd": 'base_lr: 0.05 momentum: 0.9 weight_decay: 0.001\n'
           'lr_policy: "multistep" gamma: 0.5 stepvalue: 3 stepvalue: 7 stepvalue: 10\n',
    "adam": 'type: "Adam" base_lr: 0.01 momentum: 0.9 momentum2: 0.99 lr_policy: "fixed"\nsnapshot_format: HDF5\n',
}  # fmt: skip
KILLED = 9  # the status of a process that `killed` ended


def run(*arguments: str) -> str:
    """Run a command of the package; return what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = main(list(arguments))
    assert status == 0, (arguments, printed.getvalue())
    return printed.getvalue()


def killed(arguments: list[str], prepare: Callable[[Callable[[], None]], None]) -> None:
    """Run a command in a process that ends at once when it calls the function given to ``prepare``."""
    child = os.fork()
    if not child:
        try:
            prepare(lambda: os._exit(KILLED))
            main(arguments)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == KILLED


def after(function: Callable, number: int, then: Callable[[], None]) -> Callable:
    """A function that, called for the ``number``-th time, does its work and then ``then``."""
    calls = iter(range(1, number + 1))

    def replacement(*args: Any, **options: Any) -> Any:
        result = function(*args, **options)
        if next(calls) == number:
            then()
        return result

    return replacement


def write_images(folder: Path, count: int, seed: int, side: int = 8) -> list[str]:
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    names = [f"{index * 7 % count:06d}.png" for index in range(count)]
    for name in names:
        # A gradient with some noise: every image differs, and compresses.
        image = random.integers(0, 200, (1, 1, 3)) + random.integers(0, 55, (side, side + 1, 3))
        cv2.imwrite(str(folder / name), image.astype(np.uint8))
    return names


def make_nets(files: Path, arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
    """Conversions of small nets; their inputs and outputs."""
    os.chdir(files)
    write_images(files / "images", 3, seed=1)
    random = np.random.default_rng(2)
    from ilgnet_repro.caffe.blob import write_blob

    write_blob(files / "mean.binaryproto", random.uniform(90, 130, (1, 3, 8, 8)).astype(np.float32))
    for name, text in NETS.items():
        (files / f"{name}.prototxt").write_text(text.lstrip())
        net = write_weights(files / f"{name}.caffemodel", text)
        if name == "photo":  # statistics as a trained net has them
            rewrite_statistics(files / "photo.caffemodel", net, text)
            net = ir.load_net("photo.prototxt", "photo.caffemodel")
        for blob in net.inputs:
            values = random.standard_normal(net.shapes[blob]).astype(np.float32)
            if blob == "cont":
                values = np.array([[0, 0], [1, 1], [1, 0], [1, 1]], np.float32)
            arrays[f"{name}/in/{blob}"] = values
        keep(arrays, name, net(inputs_of(arrays, name)))
    arrays["sized/open/in/data"] = random.standard_normal((2, 3, 10, 12)).astype(np.float32)
    for folder, net_name, options, formats in CONVERSIONS:
        (files / folder).mkdir(exist_ok=True)
        run("convert", f"{net_name}.caffemodel", "--to", formats, "--out", folder, "--verify", *options)
    for path in sorted(files.glob("*/*.safetensors")):
        if path.name.endswith(".weights.safetensors"):
            continue
        name = path.relative_to(files).as_posix()
        key = "sized/open" if path.parent.name == "sized" else path.stem
        net = ir.load(name)
        keep(arrays, name, net(inputs_of(arrays, key)))
        if net.about.preprocessing is not None:
            printed = run("score", "images", "--weights", name, "--json")
            facts["scores"][name] = [json.loads(line) for line in printed.splitlines()]
    for path in sorted(files.glob("*/*.onnx")):
        name = path.relative_to(files).as_posix()
        session = onnxruntime.InferenceSession(name)
        if path.parent.name == "preprocessing":
            images = [cv2.imread(str(p))[..., ::-1] for p in sorted((files / "images").iterdir())]
            feeds = {"picture": np.stack(images)}
            arrays[f"{name}/in/picture"] = feeds["picture"]
        else:
            key = "sized/open" if path.parent.name == "dynamic" else path.stem
            feeds = {k: v.numpy() for k, v in inputs_of(arrays, key).items()}
        results = session.run(None, feeds)
        outputs = {o.name: torch.tensor(v) for o, v in zip(session.get_outputs(), results, strict=True)}
        keep(arrays, name, outputs)
    exported = torch.export.load("plain/photo.pt2").module()
    keep(arrays, "plain/photo.pt2", flat(exported(**inputs_of(arrays, "photo")), "prob"))


def flat(result: Any, name: str) -> dict[str, torch.Tensor]:
    if isinstance(result, dict):
        return result
    return {name: result[0] if isinstance(result, tuple | list) else result}


def rewrite_statistics(path: Path, net: Any, text: str) -> None:
    from ilgnet_repro.caffe.caffemodel import write_caffemodel
    from ilgnet_repro.caffe.prototxt import parse_net

    random = np.random.default_rng(4)
    blobs = {name: [blob.detach().numpy() for blob in own] for name, own in net.params.items()}
    blobs["bn"] = [
        random.uniform(-1, 1, 4).astype(np.float32), random.uniform(1, 3, 4).astype(np.float32),
        np.array([1.5], np.float32),
    ]  # fmt: skip
    write_caffemodel(path, parse_net(text), blobs)


def inputs_of(arrays: dict[str, np.ndarray], name: str) -> dict[str, torch.Tensor]:
    start = f"{name}/in/"
    return {k.removeprefix(start): torch.from_numpy(v) for k, v in arrays.items() if k.startswith(start)}


def keep(arrays: dict[str, np.ndarray], name: str, outputs: dict[str, torch.Tensor]) -> None:
    for blob, values in outputs.items():
        arrays[f"{name}/out/{blob}"] = values.detach().float().numpy()


def make_test(folder: Path, facts: dict[str, Any]) -> None:
    """`ilgnet test`: whole runs, runs killed on the way, and a log of `caffe test` for the report."""
    from ilgnet_repro.aesthetics.journal import Journal

    names = write_images(folder / "images", 23, seed=5)
    random = np.random.default_rng(6)
    labels = random.integers(0, 2, len(names))
    os.chdir(folder)
    for name in (names[4], names[17]):
        (folder / "images" / name).unlink()
    (folder / "images" / names[17]).write_bytes(b"\x89PNG\r\n\x1a\n, cut short")
    (folder / "val.txt").write_text("".join(f"{n} {k}\n" for n, k in zip(names, labels, strict=True)))
    with open(folder / "AVA.txt", "w") as file:
        for number, name in enumerate(names):
            votes = random.multinomial(200, random.dirichlet(np.ones(10)))
            file.write(f"{number + 1} {int(name[:-4])} {' '.join(map(str, votes))} 0 0 1\n")
    facts["partition"] = ["partition", "ava1", "AVA.txt", "--seed", "3", "--val-sizes", "3", "4", "--out"]
    run(*facts["partition"], "lists", "--scores", "lists/scores.csv")
    shutil.copy("../mean.binaryproto", "mean.binaryproto")
    shutil.copy("../plain/photo.safetensors", "photo.safetensors")
    base = ["test", "own", "--pictures", "images", "--list", "val.txt", "--weights", "photo.safetensors",
            "--mean", "mean.binaryproto", "--resize", "8", "--batch-size", "4"]  # fmt: skip
    runs = {
        "full": ["--scores", "lists/scores.csv"],
        "published": ["--protocol", "published", "--batches", "3"],
        "tencrop": ["--protocol", "tencrop"],
        "fast": ["--fast"],
    }
    for name, options in runs.items():
        command = [*base, *options, "--out", name]
        run(*command)
        facts["test"][name] = command
        killed(
            [*base, *options, "--out", f"{name}_killed"],
            lambda end: setattr(Journal, "append", after(Journal.append, 2, end)),
        )
    # Killed while it wrote: the last row is cut short, and its batch is run again.
    journal = folder / "full_killed" / "journal.csv"
    journal.write_bytes(journal.read_bytes()[:-11])
    (folder / "bvlc.prototxt").write_text(
        'name: "list" layer { name: "data" type: "ImageData" top: "data" top: "label"\n'
        '  transform_param { mean_file: "mean.binaryproto" crop_size: 6 }\n'
        '  image_data_param { source: "good.txt" root_folder: "images/" batch_size: 4 new_height: 8 new_width: 8 } }\n'
        + "".join(PHOTO.partition("layer { name: \"conv\"")[1:])
        + 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }\n'
        'layer { name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy" }\n'
    )  # fmt: skip
    rows = (folder / "val.txt").read_text().splitlines(keepends=True)
    (folder / "good.txt").write_text("".join(row for i, row in enumerate(rows) if i not in (4, 17)))
    with open(folder / "caffe_test.log", "w") as log, contextlib.redirect_stderr(log):
        run("caffe", "test", "-model", "bvlc.prototxt", "-weights", "../photo.caffemodel", "-iterations", "3")
    reports = {
        "full": ["full/run.json", "--other", "tencrop/run.json", "--pictures", "images"],
        "published": ["published/run.json", "--log", "caffe_test.log"],
        "fast": ["fast/run.json"],
    }
    for name, options in reports.items():
        command = ["report", *options, "--out", "r.html"]
        run(*command)
        facts["report"][name] = {"command": command, "values": json.loads((folder / "r.json").read_text())}
    for name in ("r.html", "r.json", "bvlc.prototxt", "good.txt"):
        (folder / name).unlink()


def make_lmdb(folder: Path, facts: dict[str, Any]) -> None:
    """A complete database, one that only lacks its final name, and one whose build was killed."""
    from ilgnet_repro.reading import lmdb_build as build
    from ilgnet_repro.reading.lmdb_write import LmdbWriter

    folder.mkdir()
    os.chdir(folder)
    shutil.copy("../test/val.txt", "val.txt")
    base = ["lmdb", "make", "--resize_height=4", "--resize_width=5", "--shuffle", "--seed", "7",
            "../test/images/", "val.txt"]  # fmt: skip
    run(*base, "whole")
    facts["lmdb"] = base
    build.BATCH_ROWS = 5

    def midway(end: Callable[[], None]) -> None:
        LmdbWriter.write = after(LmdbWriter.write, 3, end)

    killed([*base, "half"], midway)
    for lock in folder.rglob("lock.mdb"):
        lock.unlink()


def make_training(folder: Path, arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
    """Runs killed in their ninth iteration, and their uninterrupted results."""
    from ilgnet_repro.train.curves import CsvLog

    folder.mkdir()
    os.chdir(folder)
    (folder / "net.prototxt").write_text(TRAIN_NET.lstrip())
    names = sorted(p.name for p in Path("../test/images").iterdir() if p.stat().st_size > 100)[:6]
    (folder / "list.txt").write_text("".join(f"{n} {i % 2}\n" for i, n in enumerate(names)))
    run("lmdb", "make", "--resize_height=9", "--resize_width=7", "../test/images/", "list.txt", "db")
    (folder / "list.txt").unlink()
    for name, text in SOLVERS.items():
        (folder / f"{name}.prototxt").write_text(SOLVER.format(name=name) + text)
        (folder / name).mkdir()
        command = ["train", "--solver", f"{name}.prototxt", *(["--best-by", "loss"] if name == "sgd" else [])]
        run(*command)
        end = ".h5" if name == "adam" else ""
        for which in ("iter_8", "iter_12"):
            weights = f"{name}/net_{which}.caffemodel{end}"
            net = ir.load_net("net.prototxt", weights, phase="TRAIN", input_shapes={"data": (6, 3, 9, 7)})
            for layer, blobs in net.params.items():
                for index, blob in enumerate(blobs):
                    arrays[f"{name}/{which}/{layer}/{index}"] = blob.detach().numpy()
        best = json.loads((folder / name / "net_best.json").read_text())
        tables = {t: (folder / name / "net_log" / t).read_text() for t in ("train.csv", "test.csv")}
        facts["train"][name] = {"command": command, "best": best, **tables}
        shutil.rmtree(folder / name)
        (folder / name).mkdir()

        def midway(end: Callable[[], None]) -> None:
            CsvLog.on_update = after(CsvLog.on_update, 10, end)

        killed(command, midway)
    for lock in folder.rglob("lock.mdb"):
        lock.unlink()


def make() -> None:
    """Write everything again."""
    torch.set_num_threads(1)
    files = HERE / "files"
    shutil.rmtree(files, ignore_errors=True)
    files.mkdir()
    arrays: dict[str, np.ndarray] = {}
    facts: dict[str, Any] = {"scores": {}, "test": {}, "report": {}, "train": {}}
    make_nets(files, arrays, facts)
    make_test(files / "test", facts)
    make_lmdb(files / "lmdb", facts)
    make_training(files / "train", arrays, facts)
    np.savez_compressed(HERE / "expected.npz", **arrays)
    (HERE / "expected.json").write_text(json.dumps(facts, indent=1) + "\n")
    # Git must not change the line ends of files that have checksums.
    (files / ".gitattributes").write_text("* -text\n")


if __name__ == "__main__":
    make()
