"""A pt2 file as a net: its operators are called one by one, and nothing in it is run as code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..about import About
from ..errors import FormatError
from .pt2_file import read_pt2
from .runnable import FileNet


def open_net(path: Path) -> FileNet:
    """Open a pt2 file written by `save`.  Raises IlgnetError for one that is damaged or not known to be safe."""
    program = read_pt2(path)

    def run(given: dict[str, Tensor]) -> Mapping[str, Tensor]:
        return program.run(given)

    try:
        stated = dict(program.metadata)
        if json.loads(stated.get("preprocessing", "{}")).get("has_mean_image"):
            del stated["preprocessing"]  # the mean image is not stored in the file
        about = About.from_metadata(stated)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"{path}: its metadata are not as this package writes them ({error})") from error
    return FileNet(
        path.name, "torch.export", about, tuple(program.inputs), program.outputs, program.inputs, run
    )
