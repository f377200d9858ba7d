"""The precisions of weights and of training, by name; this module does not import torch."""

from .errors import IlgnetError

# For large dense weights, in a fast net and in a saved file.
WEIGHTS = ("float32", "float16", "bfloat16", "int8")
# For the layers of a saved ONNX file.
ARITHMETIC = ("float32", "float16")
# For training; "caffe" sums in the order of Caffe's CPU code.
TRAINING = ("float32", "caffe", "float64", "bfloat16", "float16")


def check_weights_precision(precision: str) -> None:
    """Raise IlgnetError for a name that is not in `WEIGHTS`."""
    if precision not in WEIGHTS:
        raise IlgnetError(f"precision={precision!r}: choose one of {', '.join(WEIGHTS)}", option="precision")


# What may compute a fast net; "auto" is the fastest that is installed.
ENGINES = ("auto", "torch", "onnxruntime", "openvino")


def check_engine(engine: str) -> None:
    """Raise IlgnetError for a name that is not in `ENGINES`."""
    if engine not in ENGINES:
        raise IlgnetError(f"engine={engine!r}: choose one of {', '.join(ENGINES)}", option="engine")
