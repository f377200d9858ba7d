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
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(simple, f"{folder}/m.onnx")
        return str(tool.__version__), onnxruntime(f"{folder}/m.onnx", inputs, wanted)[1]


def onnxslim(model: str, inputs: Arrays, wanted: list[str]) -> tuple[str, Arrays]:
    """onnxslim's slimmed model, in ONNX Runtime."""
    import onnx
    import onnxslim as tool

    slim = tool.slim(onnx.load(model))
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(slim, f"{folder}/m.onnx")
        return str(tool.__version__), onnxruntime(f"{folder}/m.onnx", inputs, wanted)[1]


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


def coremltools(model: str, inputs: Arrays, wanted: list[str]) -> tuple[str, Arrays]:
    """coremltools' ML program from torch.jit.trace of the written module; it runs on macOS only."""
    import coremltools as tool
    import torch

    module = runpy.run_path(str(Path(model).with_name("net.py")))["load"](
        Path(model).with_name("net.safetensors")
    )

    class ByPosition(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(self.module(*values).values())

    given = tuple(map(torch.from_numpy, inputs.values()))
    traced = torch.jit.trace(ByPosition().eval(), given)
    types = [tool.TensorType(name=f"input_{index}", shape=value.shape) for index, value in enumerate(given)]
    made = tool.convert(
        traced, inputs=types, convert_to="mlprogram", compute_precision=tool.precision.FLOAT32
    )
    if sys.platform != "darwin":
        return version("coremltools"), {}
    found = made.predict({f"input_{index}": value for index, value in enumerate(inputs.values())})
    return version("coremltools"), dict(zip(wanted, found.values(), strict=True))


def tflite(model: str, inputs: Arrays, wanted: list[str]) -> tuple[str, Arrays]:
    """The TensorFlow Lite file that onnx2tf makes, in LiteRT; its images have their channels last."""
    from ai_edge_litert.interpreter import Interpreter

    with tempfile.TemporaryDirectory() as folder:
        # onnx2tf downloads images to compare with, unless they are there.
        np.save(
            f"{folder}/calibration_image_sample_data_20x128x128x3_float32.npy",
            np.zeros((20, 128, 128, 3), "f"),
        )
        command = [str(Path(sys.executable).with_name("onnx2tf")), "-i", model, "-o", "tf", "-b", "1", "-n"]
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", check=False
        )
        made = list(Path(folder, "tf").glob("*_float32.tflite"))
        if not made:
            raise SystemExit(f"onnx2tf writes no file: {(done.stdout or done.stderr).strip()[-200:]}")
        interpreter = Interpreter(str(made[0]))
        interpreter.allocate_tensors()
        for entry, value in zip(interpreter.get_input_details(), inputs.values(), strict=True):
            is_image = value.ndim == 4 and tuple(entry["shape"]) != value.shape
            interpreter.set_tensor(entry["index"], value.transpose(0, 2, 3, 1) if is_image else value)
        interpreter.invoke()
        found = [interpreter.get_tensor(entry["index"]) for entry in interpreter.get_output_details()]
    arrays = [value.transpose(0, 3, 1, 2) if value.ndim == 4 else value for value in found]
    return f"onnx2tf {version('onnx2tf')}", dict(zip(wanted, arrays, strict=True))


CONSUMERS: dict[str, Callable[[str, Arrays, list[str]], tuple[str, Arrays]]] = {
    "onnxruntime": onnxruntime, "openvino": openvino, "opencv": opencv, "reference": reference, "onnxsim": onnxsim,
    "onnxslim": onnxslim, "dynamic": dynamic, "static": static, "float16": float16, "onnx2torch": onnx2torch,
    "pnnx": pnnx, "coremltools": coremltools, "tflite": tflite,
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
