"""Script that lets one consumer run an ONNX file: for `--verify CONSUMER` and the table of docs/consumers.md.

Arguments: the consumer, the model, the inputs (npz: ``names``, ``wanted``, ``value_0``...), the outputs (npz).
It imports nothing of this package, so that any Python with the consumer installed can run it, and it runs in its own
process, because a consumer may crash.  The last line on standard error says why it failed.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
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


CONSUMERS: dict[str, Callable[[str, Arrays, list[str]], tuple[str, Arrays]]] = {
    "onnxruntime": onnxruntime, "openvino": openvino, "opencv": opencv, "reference": reference, "onnxsim": onnxsim,
    "onnxslim": onnxslim, "dynamic": dynamic, "static": static, "float16": float16,
}  # fmt: skip


def main(consumer: str, model: str, inputs: str, outputs: str) -> None:
    """Run one consumer and write what it computed, with its version."""
    with np.load(inputs) as file:
        given = {str(name): file[f"value_{index}"] for index, name in enumerate(file["names"])}
        wanted = [str(name) for name in file["wanted"]]
    version, found = CONSUMERS[consumer](model, given, wanted)
    results: dict[str, Any] = {f"value_{index}": found[name] for index, name in enumerate(wanted)}
    np.savez(Path(outputs), version=version, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
