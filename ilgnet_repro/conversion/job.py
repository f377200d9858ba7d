"""One conversion in hand: the graph, the mapped arrays and what is known of them, for the writers to use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import strict_json
from ..data.manifest import Release
from ..data.preprocess import Preprocessing
from ..formats.prototxt import format_message
from ..graph.node import Graph
from ..layers.base import Shape
from ..loading import read_matrices
from ..net import CaffeNet
from ..plan import NetPlan
from ..schema import caffe_pb2 as pb
from ..version import __version__
from .precision import SCALE_SUFFIX, WEIGHT, Reduced, hold_reduced, reduce_dense

FORMAT = "1"
MEAN_TENSOR = "preprocessing/mean_image"


@dataclass(frozen=True)
class Source:
    """Where the weights came from; ``net`` is what the weights file itself calls its net."""

    file: str
    bytes: int
    sha256: str
    release: Release | None
    net: str = ""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        known = self.release.name if self.release else None
        return {
            "file": self.file,
            "bytes": self.bytes,
            "sha256": self.sha256,
            "release": known,
            "net": self.net,
        }


PENDING = Source("", 0, "0" * 64, None)


@dataclass(frozen=True)
class Options:
    """What the caller asked of the writers; each writer reads what concerns it."""

    fold: bool = False
    with_preprocessing: bool = False
    input_order: str = "RGB"
    precision: str = "float32"
    dynamic_size: bool = False
    fast_lrn: bool = False


@dataclass(frozen=True)
class Job:
    """Everything a writer needs; ``folder`` is where it puts its files, named from ``stem``.

    ``unfolded`` is the net as it was read, where the rest describes a folded one.
    """

    net_text: pb.NetParameter
    plan: NetPlan
    arrays: Mapping[str, list[np.ndarray]]
    source: Callable[[], Source]  # awaits the digest, which is computed while files are written
    preprocessing: Preprocessing | None
    input_shapes: Mapping[str, Shape]
    folder: Path
    stem: str
    options: Options
    progress: Callable[[int], None] | None = None
    unfolded: CaffeNet | None = None

    @property
    def graph(self) -> Graph:
        """The net's graph."""
        return self.plan.graph

    @cached_property
    def net(self) -> CaffeNet:
        """The net over the mapped arrays, for the writers that walk its layers."""
        return read_matrices(CaffeNet(self.plan, self.arrays))

    @property
    def original(self) -> CaffeNet:
        """The net as it was read, which every written file is held against."""
        return self.unfolded or self.net

    @cached_property
    def reduced(self) -> dict[str, Reduced]:
        """The dense weights in the precision asked for, by layer name; none for float32."""
        return reduce_dense(self.plan, self.arrays, self.options.precision)

    @cached_property
    def stored_net(self) -> CaffeNet:
        """The net over the weights as they are stored, dense ones reduced where that was asked for."""
        if not self.reduced:
            return self.net
        net = read_matrices(CaffeNet(self.plan, self.arrays))
        for name, reduced in self.reduced.items():
            hold_reduced(net.layer(name), reduced)
        return net

    def stored_tensors(self) -> dict[str, np.ndarray | torch.Tensor]:
        """As `named_arrays`, dense weights reduced: int8 ones are followed by their scales."""
        tensors: dict[str, np.ndarray | torch.Tensor] = {}
        for layer, blob, array in self._own_arrays():
            key, reduced = f"{layer}.{blob}", self.reduced.get(layer) if blob == WEIGHT else None
            tensors[key] = array if reduced is None else reduced.values
            if reduced is not None and reduced.scale is not None:
                tensors[key + SCALE_SUFFIX] = reduced.scale
        return tensors

    def named_arrays(self) -> dict[str, np.ndarray]:
        """Every blob once, as ``layer.blob``, float32, in Caffe's order; shared ones under their owner."""
        return {f"{layer}.{blob}": array for layer, blob, array in self._own_arrays()}

    def _own_arrays(self) -> Iterator[tuple[str, str, np.ndarray]]:
        """Layer, blob and values of every blob that is no other layer's."""
        for name, blobs in self.arrays.items():
            for index, (spec, array) in enumerate(zip(self.plan.blobs[name], blobs, strict=True)):
                if (name, index) not in self.plan.owners:
                    yield name, spec.name, array.astype(np.float32, copy=False)

    def metadata(self, source: Source | None = None) -> dict[str, str]:
        """What travels inside a converted file: the net's text, preprocessing and provenance.

        ``source`` stands in for the real one while its digest is still being computed.
        """
        return {
            "ilgnet_repro.format": FORMAT,
            "ilgnet_repro.version": __version__,
            "caffe.net": format_message(self.net_text),
            "caffe.phase": self.graph.phase,
            "caffe.input_shapes": strict_json.dumps(
                {name: list(shape) for name, shape in self.input_shapes.items()}
            ),
            "source": strict_json.dumps((source or self.source()).to_json()),
            **({"preprocessing": self.preprocessing.to_json()} if self.preprocessing else {}),
        }
