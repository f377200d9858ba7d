#!/usr/bin/env python3
"""Every net of the zoo, in every form that we write, beside an oracle; writes docs/zoo.md.

    python benchmarks/zoo_agreement.py [NET ...]        measure (all nets: about 20 minutes), then write the page
    python benchmarks/zoo_agreement.py --write          write the page from docs/zoo.json

The oracle of the zoo's nets is OpenCV 4's own Caffe reader, with the same drawn weights.  Where the recorded nets that
people deployed are present (../shared/golden/deployed), theirs is what was recorded: from Caffe, from OpenCV, or from
formulas of the fork.  Each net runs in a process of its own; docs/zoo.json keeps the figures between runs.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

FIGURES, PAGE = ROOT / "docs" / "zoo.json", ROOT / "docs" / "zoo.md"
DEPLOYED = ROOT.parent / "shared" / "golden" / "deployed"
CHECK = ROOT.parent / "shared" / "tools" / "check_deployed.py"
FORMS = {
    "torch": "`ir.load`, the exact net",
    "fast": "`ir.fast`",
    "safetensors": "converted and loaded again",
    "caffemodel": "converted (`--to caffemodel`) and loaded again",
    "onnx": "converted, in ONNX Runtime",
    "fold": "converted with `--fold`, in ONNX Runtime",
    "python": "written source",
    "pt2": "exported program",
}
ROWS = "detection_out"  # rows of (image, class, score, box), in any order
INTRODUCTION = """# Nets run against an oracle

Each net below ran in every form that this package writes, beside an oracle: OpenCV 4's own Caffe reader with the same
drawn weights, or outputs recorded from Caffe 1.0, OpenCV, or a formula of the fork's code. The figures are the
largest difference of an output, as a share of its largest value. The zoo's nets that end in probabilities run without
their last Softmax, because probabilities of 0 and 1 hide differences. Made by `benchmarks/zoo_agreement.py`.
"""

# Nets that are not in the table because two nearly equal scores decide the number of rows of an output.
NEAR_TIES = {
    "textboxes_opencv": (
        "`torch`, `python` and `safetensors` give 177 boxes for the drawn weights, OpenCV 176; the 176 agree. Its "
        "`top_k` of 400 cuts between two boxes whose float32 scores are 0.92244869 and 0.92244858, two steps of a "
        "float32 apart, and oneDNN's 3x3 convolution rounds them into the other order: with oneDNN switched off, and "
        "in float64, the net gives OpenCV's 176"
    )
}


# ---------------------------------------------------------------------- one net


def difference(found: np.ndarray, wanted: np.ndarray, blob: str) -> float:
    """The largest difference as a share of the largest value; infinity for other shapes."""
    if blob == ROWS:
        return row_difference(*(rows.reshape(-1, 7)[rows.reshape(-1, 7).any(1)] for rows in (found, wanted)))
    if found.shape != wanted.shape:
        return float("inf")
    return float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-12))


def row_difference(found: np.ndarray, wanted: np.ndarray) -> float:
    """As `difference`, each row beside the nearest of its image and class: equal scores come in any order."""
    if found.shape != wanted.shape:
        return float("inf")
    worst = 0.0
    for rows, others in ((found, wanted), (wanted, found)):
        for row in rows:
            near = others[(others[:, :2] == row[:2]).all(1)]
            worst = max(worst, np.abs(near - row).max(1).min() if len(near) else float("inf"))
    return float(worst / max(np.abs(wanted[:, 2:]).max(), 1e-12))


def zoo_names() -> list[str]:
    """The nets of the zoo that take an image: not those that read their own data."""
    from ilgnet_repro.zoo.catalogue import builders

    return [name for name in builders() if not {"train", "val"} & set(name.split("_"))]


def zoo_text(name: str):
    """A net of the zoo with a batch of 2 and without its last Softmax."""
    from ilgnet_repro.zoo.catalogue import build

    text = type(build(name)).FromString(build(name).SerializeToString())
    if text.layer[-1].type == "Softmax":
        del text.layer[-1]
    for layer in text.layer:
        for shape in layer.input_param.shape:
            shape.dim[0] = min(shape.dim[0], 2)
    for shape in text.input_shape:
        shape.dim[0] = min(shape.dim[0], 2)
    return text


def opencv_outputs(prototxt: Path, weights: Path, inputs: dict[str, np.ndarray], net) -> dict:
    import cv2

    read = cv2.dnn.readNetFromCaffe(str(prototxt), str(weights))
    for name, value in inputs.items():
        read.setInput(value, name)
    makers = {blob: node.name for node in net.graph.layers for blob in node.top_names}
    return dict(zip(net.outputs, read.forward([makers[blob] for blob in net.outputs]), strict=True))


def run_forms(weights: Path, prototxt: Path, inputs: dict[str, np.ndarray]) -> dict[str, dict | str]:
    """The outputs of every form, or why a form was refused."""
    import torch

    import ilgnet_repro as ir

    tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}

    def of(net) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            return {name: value.numpy() for name, value in net(tensors).items()}

    exact = ir.load(weights, prototxt=prototxt)
    found = {"torch": of(exact), "fast": of(ir.fast(exact))}
    with tempfile.TemporaryDirectory() as folder:
        for form in list(FORMS)[2:]:
            out = Path(folder) / form
            out.mkdir()
            to = "onnx" if form == "fold" else form
            try:
                ir.convert(weights, prototxt=prototxt, to=(to,), out=out, fold=form == "fold")
            except ir.IlgnetError as error:
                found[form] = str(error)
                continue
            if form == "python":
                found[form] = run_source(out, inputs, exact)
            else:
                found[form] = of(ir.load(next(out.rglob(f"*.{to}"))))
    return found


def run_source(out: Path, inputs: dict[str, np.ndarray], net) -> dict[str, np.ndarray]:
    import torch
    from safetensors.torch import load_file

    spec = importlib.util.spec_from_file_location("written_net", next(out.rglob("*.py")))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    cls = next(v for v in vars(module).values() if isinstance(v, type) and v.__module__ == "written_net")
    with torch.device("meta"):
        written = cls()
    written.load_state_dict(load_file(next(out.rglob("*.safetensors"))), assign=True)
    with torch.inference_mode():
        found = written(*(torch.from_numpy(inputs[name]) for name in net.inputs))
    return {name: value.numpy() for name, value in found.items()}


def measure_zoo(name: str) -> dict:
    import cv2
    from zoo_weights import drawn_net

    from ilgnet_repro.caffe.caffemodel import write_caffemodel
    from ilgnet_repro.caffe.prototxt import format_message

    text = zoo_text(name)
    net = drawn_net(text)
    random = np.random.default_rng(3)
    # Drawn detectors with the values of pixels have scores that are all 1, and boxes of any size.
    low, high = (-0.4, 0.5) if ROWS in net.outputs else (-110, 130)
    inputs = {blob: random.uniform(low, high, net.shapes[blob]).astype(np.float32) for blob in net.inputs}
    with tempfile.TemporaryDirectory() as folder:
        prototxt, weights = Path(folder) / f"{name}.prototxt", Path(folder) / f"{name}.caffemodel"
        prototxt.write_text(format_message(text))
        write_caffemodel(weights, text, {k: [b.detach().numpy() for b in v] for k, v in net.params.items()})
        found = run_forms(weights, prototxt, inputs)
        oracle = f"OpenCV {cv2.__version__}"
        try:
            wanted = opencv_outputs(prototxt, weights, inputs, net)
        except cv2.error:  # a layer of a fork
            wanted, oracle = found["torch"], "the exact net (OpenCV does not read it)"
    figures = {
        form: values
        if isinstance(values, str)
        else max(difference(values[blob], wanted[blob], blob) for blob in net.outputs)
        for form, values in found.items()
    }
    shapes = {blob: list(net.shapes[blob]) for blob in net.inputs}
    return {
        "oracle": oracle,
        "inputs": shapes,
        "outputs": list(net.outputs),
        "forms": figures,
    }


def measure_deployed(name: str) -> dict:
    """As the reviewers' own check does, with its inputs and weights."""
    spec = importlib.util.spec_from_file_location("check_deployed", CHECK)
    check = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check)
    forms = [form for form in FORMS if form != "caffemodel"]
    about, result = check.check(DEPLOYED / name, forms, 1e-3)
    with np.load(DEPLOYED / name / "golden.npz") as golden:
        case = json.loads(str(golden["cases"]))[0]
    figures = {form: worst if worst is not None else why for form, (_, worst, why) in result.items()}
    oracle = {"caffe": "Caffe 1.0 (recorded)", "opencv": "OpenCV (recorded)"}.get(
        about["oracle"], about["oracle"]
    )
    return {"oracle": oracle, "inputs": case["shapes"], "outputs": case["outputs"], "forms": figures}


# ---------------------------------------------------------------------- the page


def page(figures: dict[str, dict]) -> str:
    lines = [INTRODUCTION, "| form | is |", "|---|---|"]
    lines += [f"| {form} | {what} |" for form, what in FORMS.items()]
    for title, group in (("Nets of the zoo", "zoo"), ("Nets that people deployed", "deployed")):
        rows = {name: row for name, row in sorted(figures.items()) if row["group"] == group}
        if not rows:
            continue
        lines += [
            "",
            f"## {title}",
            "",
            f"| net | oracle | input | {' | '.join(FORMS)} |",
            "|---|---|---|" + "---|" * len(FORMS),
        ]
        for name, row in rows.items():
            shapes = ", ".join("x".join(map(str, shape)) for shape in row["inputs"].values())
            cells = " | ".join(shown(row["forms"].get(form)) for form in FORMS)
            lines.append(f"| {name} | {row['oracle']} | {shapes} | {cells} |")
        reasons = [f"- {name}, {form}: {value}" for name, row in rows.items()
                   for form, value in row["forms"].items() if isinstance(value, str)]  # fmt: skip
        lines += ["", *reasons] if reasons else []
        if group == "deployed":
            lines += ["", *(f"- {name}, not in the table: {why}" for name, why in NEAR_TIES.items())]
    return "\n".join(lines) + "\n"


def shown(value: float | str | None) -> str:
    if value is None:
        return ""
    return "refused" if isinstance(value, str) else f"{value:.1e}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("nets", nargs="*", metavar="NET")
    parser.add_argument("--write", action="store_true", help="write the page only")
    parser.add_argument("--one", metavar="GROUP:NET", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.one:
        group, name = arguments.one.split(":", 1)
        row = measure_zoo(name) if group == "zoo" else measure_deployed(name)
        print(json.dumps({"group": group, **row}))
        return 0
    figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    if not arguments.write:
        todo = dict.fromkeys(zoo_names(), "zoo")
        if DEPLOYED.is_dir():
            todo |= {path.name: "deployed" for path in sorted(DEPLOYED.iterdir()) if path.is_dir()}
        for name, group in todo.items():
            if arguments.nets and name not in arguments.nets:
                continue
            done = subprocess.run(
                [sys.executable, __file__, "--one", f"{group}:{name}"],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            figures[name] = json.loads(done.stdout.splitlines()[-1])
            FIGURES.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")
            print(
                name,
                *(f"{form} {shown(value)}" for form, value in figures[name]["forms"].items()),
                file=sys.stderr,
            )
    PAGE.write_text(page(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
