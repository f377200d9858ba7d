"""The table of formats that a net is saved in; each entry is defined in the file that writes it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import IlgnetError, did_you_mean
from ..precisions import ARITHMETIC, WEIGHTS, check_weights_precision
from ..runtime.calls import check_batch
from ..runtime.net import CaffeNet
from ..runtime.runnable import Runnable
from .saving import Options, SaveOptions, Saving

Inputs = Mapping[str, Tensor]
# The options that change the net itself, in every format; the order of channels stands without preprocessing.
GENERAL = ("outputs", "inputs", "batch", "states", "fold", "input_order")


@dataclass(frozen=True)
class Format:
    """One format: its name, suffix, writer, reader and options.

    ``write`` takes the path of its main file and returns all paths written, that one first.  ``reopen`` returns the
    files as a runnable net, for verification; ``feed`` turns seeded inputs into those of the file and of the net.
    ``made_of`` is the format whose file is turned into this one, which therefore has its options.
    ``notes`` returns how the file differs from the net.  ``not_run`` returns why the files cannot be run on this machine;
    they are compared with the net as far as they can be read.  ``precisions`` are those of the option ``precision``, where
    the format has it, and ``reduced`` returns the net with its weights as the file stores them.
    """

    name: str
    suffix: str
    write: Callable[[Saving, Path], list[Path]]
    reopen: Callable[[Sequence[Path], Saving], Runnable]
    options: Collection[str] = ()
    made_of: str = ""
    stem: Callable[[str], str] = str
    feed: Callable[[Saving, Inputs], tuple[Inputs, Inputs]] = lambda saving, inputs: (inputs, inputs)
    notes: Callable[[Saving], Sequence[str]] = lambda saving: ()
    not_run: Callable[[Sequence[Path], Saving], str] = lambda paths, saving: ""
    precisions: Collection[str] = WEIGHTS
    reduced: Callable[[Saving], CaffeNet] = lambda saving: (
        saving.net if saving.is_quantized else saving.original
    )

    def takes(self, option: str, value: Any) -> bool:
        """Whether the format has an option, and can do what this value of it asks."""
        return option in self.options and (option != "precision" or value in self.precisions)

    def reference(self, saving: Saving) -> CaffeNet:
        """Return the net that the file must agree with."""
        return self.reduced(saving) if "precision" in self.options else saving.original

    def path(self, folder: Path, stem: str) -> Path:
        """Return the main file's path in a folder, for results named after ``stem``."""
        return folder / f"{self.stem(stem)}{self.suffix}"


# Format -> suffix and module of its entry, imported when used: importing onnx takes a third of a second.
_MODULES = {
    "safetensors": (".safetensors", "to_safetensors:FORMAT"),
    "onnx": (".onnx", "to_onnx:FORMAT"),
    "pt2": (".pt2", "to_pt2:FORMAT"),
    "python": (".py", "to_python:FORMAT"),
    "caffemodel": (".caffemodel", "to_caffe:FORMAT"),
    "hdf5": (".caffemodel.h5", "to_caffe:HDF5"),
    "openvino": (".xml", "to_openvino:FORMAT"),
    "tflite": (".tflite", "to_tflite:FORMAT"),
    "coreml": (".mlpackage", "to_coreml:FORMAT"),
}
NAMES = tuple(_MODULES)


def find_format(name: str) -> Format:
    """Return the format of that name.  Raises IlgnetError where there is none."""
    if name not in _MODULES:
        raise IlgnetError(f"format {name!r} is unknown{did_you_mean(name, NAMES)}; use {', '.join(NAMES)}")
    module, _, entry = _MODULES[name][1].partition(":")
    found: Format = getattr(import_module(f"{__package__}.{module}"), entry)
    return found


def format_of(path: Path) -> Format:
    """Return the format of a file's suffix.  Raises IlgnetError for an unknown suffix."""
    name = path.name.lower()
    # The longest first: .caffemodel.h5 is more than .h5.
    for format_, (suffix, _) in sorted(_MODULES.items(), key=lambda entry: -len(entry[1][0])):
        if name.endswith(suffix) and name != suffix:
            return find_format(format_)
    known = ", ".join(suffix for suffix, _ in _MODULES.values())
    raise IlgnetError(f"{path}: its suffix names no format; end it in {known}")


def read_options(given: SaveOptions) -> Options:
    """Return the options.  Raises IlgnetError for an unknown option or a value that it does not accept."""
    known = [field.name for field in fields(Options)]
    for name in given:
        if name not in known:
            raise IlgnetError(
                f"option {name!r} is unknown{did_you_mean(name, known)}; use {', '.join(known)}"
            )
    options = Options(**given)
    options = replace(
        options, outputs=_blob_names(options.outputs, "outputs"), inputs=_blob_names(options.inputs, "inputs")
    )
    if options.batch is not None:
        check_batch(options.batch)
    if options.precision is not None:
        check_weights_precision(options.precision)
    if options.arithmetic not in ARITHMETIC:
        raise IlgnetError(
            f"arithmetic={options.arithmetic!r}: choose one of {', '.join(ARITHMETIC)}", option="arithmetic"
        )
    if options.arithmetic == "float16" and options.precision not in (None, "float16"):
        raise IlgnetError(
            f"arithmetic='float16' takes weights in float16, not {options.precision}; omit precision=",
            option="precision",
        )
    if options.opset is not None:
        import_module(f"{__package__}.onnx_opsets").check_opset(options.opset)
    if options.with_preprocessing and options.dynamic_size:
        raise IlgnetError(
            "dynamic_size=True: the preprocessing resizes every image to one size; leave one of the two out",
            option="dynamic_size",
        )
    return options


def _blob_names(given: Any, option: str) -> tuple[str, ...]:
    """Return names of blobs, one or several, each once.  Raises IlgnetError for anything else."""
    names = (given,) if isinstance(given, str) else given
    try:
        found = tuple(names)
    except TypeError:
        found = (None,)
    for name in found:
        if not isinstance(name, str) or not name:
            raise IlgnetError(f"{option}={given!r}: give names of blobs", option=option)
        if found.count(name) > 1:
            raise IlgnetError(f"{option}: blob {name!r} is given twice; give it once", option=option)
    return found


def check_options(formats: Sequence[Format], options: Options) -> None:
    """Raise IlgnetError where a format cannot do what an option asks; it names the formats that can."""
    default = Options()
    for field in fields(Options):
        asked: Any = getattr(options, field.name)
        if field.name in GENERAL or asked == getattr(default, field.name):
            continue
        if field.name == "precision" and asked == "float32":
            continue
        for format_ in formats:
            if not format_.takes(field.name, asked):
                others = [other for other in map(find_format, NAMES) if not other.made_of]
                takers = [other.name for other in others if other.takes(field.name, asked)]
                if not takers:
                    raise IlgnetError(
                        f"{field.name}={asked!r}: no format takes it; leave it out", option=field.name
                    )
                capable = f"{', '.join(takers[:-1])} and {takers[-1]}" if takers[1:] else takers[0]
                raise IlgnetError(
                    f"{field.name}= is for {capable} files, not {format_.name}; convert to that separately",
                    option=field.name,
                )
