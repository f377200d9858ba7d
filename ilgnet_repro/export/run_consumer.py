"""Script that lets a consumer run ONNX files: for `--verify CONSUMER` and the table of docs/consumers.md.

Arguments: the consumer, then for each file the model, the inputs (npz: ``names``, ``wanted``, ``value_0``...) and the
outputs (npz), in whose place ``OUTPUTS.failed`` has the reason where the consumer fails.  It imports nothing of this
package, so that any Python with the consumer installed can run it; a consumer that crashes takes only this process.
"""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]


def onnxruntime(model: str, inputs: Arrays, wanted: list[str]) -> tuple[str, Arrays]:
    """ONNX Runtime on the CPU."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return ort.__version__, dict(zip(wanted, session.run(wanted, inputs), strict=True))


def openvino(model: str, inputs: Arrays, wanted: list[str]) -> tuple[str, Arrays]:
    """OpenVINO on the CPU, in float32 (its default on some processors is less)."""
    import openvino as ov

    read = ov.Core().read_model(model)
    compiled = ov.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(inputs)
    return str(ov.__version__), {name: np.array(found[name]) for name in wanted}


def opencv(model: str, inputs: Arrays, wanted: list[str]) -> tuple[str, Arrays]:
    """OpenCV's dnn module; version 5 by its new engine."""
    import cv2

    engine = [cv2.dnn.ENGINE_NEW] if hasattr(cv2.dnn, "ENGINE_NEW") else []
    net = cv2.dnn.readNetFromONNX(model, *engine)
    for name, value in inputs.items():
        net.setInput(value, name)
    return cv2.__version__, dict(zip(wanted, map(np.array, net.forward(wanted)), strict=True))


def reference(model: str, inputs: Arrays, wanted: list[str]) -> tuple[str, Arrays]:
    """The reference implementation of the onnx package, in NumPy."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    found = ReferenceEvaluator(model).run(wanted, inputs)
    return onnx.__version__, dict(zip(wanted, found, strict=True))


def onnxsim(model: str, inputs: Arrays, wanted: list[str]) -> tuple[str, Arrays]:
    """onnxsim's simplified model, in ONNX Runtime."""
    import onnx
    import onnxsim as tool

    simple, _ = tool.simplify(onnx.load(model))
    _check_ends(onnx.load(model), simple)
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(simple, f"{folder}/m.onnx")
        return str(tool.__version__), onnxruntime(f"{folder}/m.onnx", inputs, wanted)[1]


def onnxslim(model: str, inputs: Arrays, wanted: list[str]) -> tuple[str, Arrays]:
    """onnxslim's slimmed model, in ONNX Runtime."""
    import onnx
    import onnxslim as tool

    slim = tool.slim(onnx.load(model))
    _check_ends(onnx.load(model), slim)
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(slim, f"{folder}/m.onnx")
        return str(tool.__version__), onnxruntime(f"{folder}/m.onnx", inputs, wanted)[1]


def _check_ends(model: Any, changed: Any) -> None:
    """Stop where a model's inputs or outputs have no longer their names or types, or its inputs their lengths."""
    for what in ("input", "output"):
        before, after = ({one.name: one for one in getattr(each.graph, what)} for each in (model, changed))
        for name in {**before, **after}:
            if name not in after:
                raise SystemExit(f"it leaves out {what} {name}")
            if name not in before:
                raise SystemExit(f"it adds {what} {name}")
            own, other = before[name].type.tensor_type, after[name].type.tensor_type
            if own.elem_type != other.elem_type:
                raise SystemExit(f"it changes the type of {what} {name}")
            if what == "input" and _lengths(own) != _lengths(other):
                raise SystemExit(
                    f"it changes the lengths of input {name}, {_lengths(own)}, to {_lengths(other)}"
                )


def _lengths(tensor: Any) -> list[int | str]:
    """Return the lengths of a model's input, "open" for those that are not stated."""
    return [axis.dim_value if axis.HasField("dim_value") else "open" for axis in tensor.shape.dim]


def dynamic(model: str, inputs: Arrays, wanted: list[str]) -> tuple[str, Arrays]:
    """ONNX Runtime's dynamic quantization."""
    import onnxruntime as ort
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        quantize_dynamic(model, f"{folder}/m.onnx", weight_type=QuantType.QUInt8)
        return ort.__version__, onnxruntime(f"{folder}/m.onnx", inputs, wanted)[1]


class _Once:
    """Calibration data: one batch."""

    def __init__(self, inputs: Arrays) -> None:
        self.left = [inputs]

    def get_next(self) -> Arrays | None:
        return self.left.pop() if self.left else None


def static(model: str, inputs: Arrays, wanted: list[str]) -> tuple[str, Arrays]:
    """ONNX Runtime's static quantization (QDQ), calibrated on the inputs."""
    import onnxruntime as ort
    from onnxruntime.quantization import quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        quant_pre_process(model, f"{folder}/p.onnx", skip_symbolic_shape=True)
        quantize_static(f"{folder}/p.onnx", f"{folder}/m.onnx", _Once(inputs), per_channel=True)
        return ort.__version__, onnxruntime(f"{folder}/m.onnx", inputs, wanted)[1]


def float16(model: str, inputs: Arrays, wanted: list[str]) -> tuple[str, Arrays]:
    """onnxconverter-common's float16 model with float32 inputs and outputs, in ONNX Runtime."""
    import onnx
    import onnxconverter_common as tool

    half = tool.float16.convert_float_to_float16(onnx.load(model), keep_io_types=True)
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(half, f"{folder}/m.onnx")
        return str(tool.__version__), onnxruntime(f"{folder}/m.onnx", inputs, wanted)[1]


def onnx2torch(model: str, inputs: Arrays, wanted: list[str]) -> tuple[str, Arrays]:
    """onnx2torch's module, in torch."""
    script = Path(__file__).parents[1] / "compare" / "run_onnx2torch.py"
    with tempfile.TemporaryDirectory() as folder:
        values = {f"value_{index}": value for index, value in enumerate(inputs.values())}
        save_arrays(f"{folder}/in.npz", {"names": list(inputs), "wanted": wanted, **values})
        command = [sys.executable, str(script), model, f"{folder}/in.npz", f"{folder}/out.npz"]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            raise SystemExit(done.stderr.strip().splitlines()[-1])
        with np.load(f"{folder}/out.npz") as file:
            return version("onnx2torch"), {name: file[f"value_{index}"] for index, name in enumerate(wanted)}


def pnnx(model: str, inputs: Arrays, wanted: list[str]) -> tuple[str, Arrays]:
    """pnnx's ncnn model of the ONNX file, in ncnn; it has no batch and numbers its inputs and outputs."""
    import ncnn

    if any(len(value) != 1 for value in inputs.values()):
        raise SystemExit("ncnn has no batch")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(model, f"{folder}/m.onnx")
        shapes = ",".join(f"[{','.join(map(str, value.shape))}]" for value in inputs.values())
        command = [str(Path(sys.executable).with_name("pnnx")), "m.onnx", f"inputshape={shapes}", "fp16=0"]
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", check=False
        )
        if not Path(folder, "m.ncnn.param").is_file():
            raise SystemExit(f"pnnx writes no ncnn model: {(done.stderr or done.stdout).strip()[-200:]}")
        net = ncnn.Net()
        net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = net.opt.use_fp16_packed = False
        if net.load_param(f"{folder}/m.ncnn.param") or net.load_model(f"{folder}/m.ncnn.bin"):
            raise SystemExit("ncnn does not load what pnnx wrote")
        extractor = net.create_extractor()
        for name, value in zip(net.input_names(), inputs.values(), strict=True):
            extractor.input(name, ncnn.Mat(np.ascontiguousarray(value[0])))
        found = [extractor.extract(name) for name in net.output_names()]
        if any(code for code, _ in found):
            raise SystemExit("ncnn does not run what pnnx wrote")
        arrays = [np.array(value)[None] for _, value in found]
    return f"pnnx {version('pnnx')}, ncnn {version('ncnn')}", dict(zip(wanted, arrays, strict=True))


def _written(model: str) -> Any:
    """Return the written module beside a model, with its weights; called with its inputs by position."""
    import torch
    from safetensors.torch import load_file

    place = Path(model).with_name("net.py")
    if not place.is_file():
        raise SystemExit("the net cannot be written as Python")
    classes = [value for value in runpy.run_path(str(place)).values() if isinstance(value, type)]
    (made,) = [value for value in classes if issubclass(value, torch.nn.Module)]
    module = made()
    module.load_state_dict(load_file(place.with_name("net.weights.safetensors")))
    return module.requires_grad_(False)


def coremltools(model: str, inputs: Arrays, wanted: list[str]) -> tuple[str, Arrays]:
    """coremltools' ML program of the exported module; elsewhere than on macOS its shapes and types only.

    Of torch.jit.trace's programs it fails where a size is an array of one value (NumPy 2.4).
    """
    import coremltools as tool
    import torch

    module = _written(model)

    class Tuple(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(self.module(*values).values())

    given = tuple(map(torch.from_numpy, inputs.values()))
    program = torch.export.export(Tuple().eval(), given, strict=False).run_decompositions()
    for node in list(program.graph.nodes):  # coremltools 9.0 knows no alias
        if node.target == torch.ops.aten.alias.default:
            node.replace_all_uses_with(node.args[0])
            program.graph.erase_node(node)
    made = tool.convert(program, convert_to="mlprogram", compute_precision=tool.precision.FLOAT32)
    described = made.get_spec().description
    if sys.platform == "darwin":
        names = [one.name for one in described.input]
        found = made.predict(dict(zip(names, inputs.values(), strict=True)))
        values = [found[one.name] for one in described.output]
        return version("coremltools"), dict(zip(wanted, values, strict=True))
    shapes = [tuple(one.type.multiArrayType.shape) for one in described.output]
    expected = [tuple(value.shape) for value in Tuple()(*given)]
    if any(shape != other for shape, other in zip(shapes, expected, strict=True) if shape):
        raise SystemExit(f"its outputs are {shapes}, not {expected}")
    kinds = [one.type.multiArrayType.dataType for one in described.output]
    if any(kind != tool.proto.FeatureTypes_pb2.ArrayFeatureType.FLOAT32 for kind in kinds):
        raise SystemExit("its outputs are not float32")
    return version("coremltools"), {}


def litert(model: str, inputs: Arrays, wanted: list[str]) -> tuple[str, Arrays]:
    """litert-torch's file of the written module, in LiteRT."""
    import litert_torch as tool
    import torch

    given = tuple(map(torch.from_numpy, inputs.values()))
    made = tool.convert(_written(model).eval(), given)
    found = made(*inputs.values())
    return version("litert-torch"), {name: np.array(found[name]) for name in wanted}


def onnx2tf(model: str, inputs: Arrays, wanted: list[str]) -> tuple[str, Arrays]:
    """The TensorFlow Lite file that onnx2tf makes, in LiteRT.

    Its images have their channels last, its inputs and outputs an order of their own; -coion keeps their names, which
    the signature of -osd maps to tensors.
    """
    import onnx
    from ai_edge_litert.interpreter import Interpreter

    with tempfile.TemporaryDirectory() as folder:
        # onnx2tf downloads images to compare with, unless they are there.
        np.save(
            f"{folder}/calibration_image_sample_data_20x128x128x3_float32.npy",
            np.zeros((20, 128, 128, 3), "f"),
        )
        # Names of TensorFlow: letters, digits and a few signs.
        plain = onnx.load(model)
        renamed = {name: f"input{index}" for index, name in enumerate(inputs)}
        renamed |= {name: f"output{index}" for index, name in enumerate(wanted) if name not in renamed}
        _rename(plain.graph, renamed)
        onnx.save(plain, f"{folder}/m.onnx")
        shapes = [f"{renamed[name]}:{','.join(map(str, value.shape))}" for name, value in inputs.items()]
        command = [
            str(Path(sys.executable).with_name("onnx2tf")),
            "-i",
            "m.onnx",
            "-o",
            "tf",
            "-n",
            "-osd",
            "-coion",
        ]
        command += ["-ois", *shapes]
        others = [renamed[name] for name, value in inputs.items() if value.ndim != 4]
        command += ["-kat", *others] if others else []
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", check=False
        )
        made = list(Path(folder, "tf").glob("*_float32.tflite"))
        if not made:
            raise SystemExit(f"onnx2tf writes no file: {_last_error(done.stdout + done.stderr)}")
        named = {renamed[name]: value for name, value in inputs.items()}
        found = _run_tflite(Interpreter(str(made[0])), named, [renamed[name] for name in wanted])
    stated = {one.name: one.type.tensor_type.shape.dim for one in plain.graph.output}
    arrays = {}
    for name in wanted:
        value, axes = np.array(found[renamed[name]]), stated[renamed[name]]
        # Some outputs of four axes stay as they are in the ONNX file.
        is_same = [axis.dim_value for axis in axes[1:]] == list(value.shape[1:]) if value.ndim == 4 else True
        arrays[name] = value if is_same else value.transpose(0, 3, 1, 2)
    return f"onnx2tf {version('onnx2tf')}", arrays


def _run_tflite(interpreter: Any, inputs: Arrays, wanted: list[str]) -> Arrays:
    """Run a TensorFlow Lite file that has images with their channels last.

    Where TensorFlow does not convert the Keras model of onnx2tf, onnx2tf converts its concrete function, and such a file has
    no signature: its inputs have names, its outputs have none.
    """
    has_signature = bool(interpreter.get_signature_list())
    if has_signature:
        runner = interpreter.get_signature_runner()
        details = runner.get_input_details()
    else:
        details = {one["name"]: one for one in interpreter.get_input_details()}
        if len(wanted) > 1:
            raise SystemExit("onnx2tf writes no signature, so that its outputs have no names")
    given = {}
    for name, value in inputs.items():
        is_image = value.ndim == 4 and tuple(details[name]["shape"]) != value.shape
        given[name] = np.ascontiguousarray(value.transpose(0, 2, 3, 1)) if is_image else value
    if has_signature:
        return dict(runner(**given))
    for name, value in given.items():
        interpreter.resize_tensor_input(details[name]["index"], value.shape)
    interpreter.allocate_tensors()
    for name, value in given.items():
        interpreter.set_tensor(details[name]["index"], value)
    interpreter.invoke()
    (output,) = interpreter.get_output_details()
    return {wanted[0]: interpreter.get_tensor(output["index"])}


def _rename(graph: Any, renamed: dict[str, str]) -> None:
    for entry in (*graph.input, *graph.output):
        entry.name = renamed.get(entry.name, entry.name)
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]


def _last_error(text: str) -> str:
    """Return the last line of a log that names an error, or its end."""
    lines = [line for line in text.splitlines() if "Error" in line or "ERROR" in line]
    return lines[-1].strip()[-200:] if lines else text.strip()[-200:]


CONSUMERS: dict[str, Callable[[str, Arrays, list[str]], tuple[str, Arrays]]] = {
    "onnxruntime": onnxruntime, "openvino": openvino, "opencv": opencv, "reference": reference, "onnxsim": onnxsim,
    "onnxslim": onnxslim, "dynamic": dynamic, "static": static, "float16": float16, "onnx2torch": onnx2torch,
    "pnnx": pnnx, "coremltools": coremltools, "litert": litert, "onnx2tf": onnx2tf,
}  # fmt: skip


def save_arrays(path: str, arrays: dict[str, Any]) -> None:
    """Write an npz file."""
    np.savez(path, **arrays)


def run(consumer: str, model: str, inputs: str, outputs: str) -> None:
    """Let one consumer run one model, and write what it computed, with its version."""
    with np.load(inputs) as file:
        given = {str(name): file[f"value_{index}"] for index, name in enumerate(file["names"])}
        wanted = [str(name) for name in file["wanted"]]
    of, found = CONSUMERS[consumer](model, given, wanted)
    for name, value in found.items():
        if (
            not isinstance(value, np.ndarray) or value.dtype.hasobject
        ):  # OpenCV 5 returns None for an empty one
            raise SystemExit(f"no array for output {name}")
    values = {f"value_{index}": found[name] for index, name in enumerate(wanted) if name in found}
    save_arrays(outputs, {"version": of, **values})


def main(consumer: str, *files: str) -> None:
    """Run one model after another; a failure of one is written down."""
    for model, inputs, outputs in zip(files[::3], files[1::3], files[2::3], strict=True):
        try:
            run(consumer, model, inputs, outputs)
        except (Exception, SystemExit) as error:  # each consumer has its own
            Path(f"{outputs}.failed").write_text(f"{type(error).__name__}: {error}", errors="replace")


if __name__ == "__main__":
    main(*sys.argv[1:])
