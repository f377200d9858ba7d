"""`Runnable`, the protocol of Caffe nets, fast nets, and the files of other engines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, Unpack

import torch
from torch import Tensor, nn

from ..about import About
from ..caffe.param_sharing import show_shape
from ..errors import GraphError, IlgnetError, did_you_mean
from ..prepare_images import PrepareOptions, prepare
from ..signatures import shows_options
from .calls import as_tensor, names, refuse_meta, wanted_blobs

OpenShape = tuple[int | None, ...]  # None where the length is open


class Runnable(Protocol):
    """A net, whatever computes it: blobs in and out by Caffe's names."""

    @property
    def name(self) -> str:
        """The net's name, or that of its file."""

    @property
    def form(self) -> str:
        """What computes it, in a few words."""

    @property
    def about(self) -> About:
        """What is known of it besides its layers."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """The blobs that the caller feeds."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """The blobs that a call returns."""

    @property
    def shapes(self) -> Mapping[str, OpenShape]:
        """The shapes of its inputs, and of other blobs where they are known."""

    @property
    def fixed_batch(self) -> int | None:
        """The only batch size that it takes, or None where it takes any."""

    def inputs_for(self, wanted: Iterable[str]) -> tuple[str, ...]:
        """Return the inputs that the given blobs depend on."""

    def image_input(self) -> str:
        """Return the one input that the outputs depend on.  Raises GraphError unless there is exactly one."""

    def __call__(
        self, given: Any = None, *, blobs: Iterable[str] | None = None, **inputs: Any
    ) -> dict[str, Tensor]:
        """Run it and return its outputs, or the requested blobs."""


@dataclass(frozen=True)
class FileNet:
    """A file that another engine runs: ONNX Runtime, torch.export, or the generated Python source.

    Every input is required, and only the outputs are returned.
    """

    name: str
    form: str
    about: About
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shapes: Mapping[str, OpenShape]
    engine: Callable[[dict[str, Tensor]], Mapping[str, Tensor]] = field(repr=False)

    @property
    def fixed_batch(self) -> int | None:
        """The batch size that the file states for its only input."""
        shape = self.shapes.get(self.inputs[0], ()) if len(self.inputs) == 1 else ()
        return shape[0] if shape else None

    def inputs_for(self, wanted: Iterable[str]) -> tuple[str, ...]:
        """Return the inputs that the given blobs depend on: all of them."""
        self._wanted(wanted)
        return self.inputs

    def image_input(self) -> str:
        """Return the only input.  Raises GraphError where there are several, or none."""
        if len(self.inputs) != 1:
            raise GraphError(
                f"{self.name}: takes {len(self.inputs)} inputs ({names(self.inputs)}); images fit only a net with one"
            )
        return self.inputs[0]

    @shows_options(PrepareOptions, prepare)
    def prepare(self, images: Any, **options: Unpack[PrepareOptions]) -> Tensor:
        """Prepare images as the file takes them; see `prepare_images.prepare`."""
        return torch.from_numpy(prepare(self.about, images, net=self.name, **options))

    def as_tensor(self, blob: str | None = None) -> TensorNet:
        """Return a module from the file's one input to one output, as `CaffeNet.as_tensor`."""
        return tensor_net(self, blob, self._wanted)

    def __copy__(self) -> FileNet:
        return self  # it never changes

    def __deepcopy__(self, memo: Any) -> FileNet:
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise GraphError(
            f"{self.name}: a net that {self.form} runs cannot be pickled; load its file in each process"
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise NotOfFileError(
            f"{self.name}: a net that {self.form} runs has no {name!r}; load the Caffe net (prototxt and weights) for it"
        )

    def __call__(
        self, given: Any = None, *more: Any, blobs: Iterable[str] | None = None, **inputs: Any
    ) -> dict[str, Tensor]:
        """Run the file and return its outputs, or the requested ones.

        Inputs are given by name, or several by position, in the order of ``inputs``.
        Raises IlgnetError for an input that is missing, unknown, or not accepted by the engine.
        """
        if more:
            if len(more) >= len(self.inputs):
                raise GraphError(
                    f"{self.name}: {1 + len(more)} inputs by position; it takes {len(self.inputs)} ({names(self.inputs)})"
                )
            given = dict(zip(self.inputs, (given, *more), strict=False))
        if torch.compiler.is_exporting():
            raise GraphError(
                f"{self.name}: a net that {self.form} runs cannot be exported; save the Caffe net"
            )
        if torch.compiler.is_compiling():  # the engine is opaque to torch.compile
            torch._dynamo.graph_break(msg="a net that another engine runs is not compiled")
            found: dict[str, Tensor] = torch.compiler.disable(self._run)(given, blobs, inputs)
            return found
        return self._run(given, blobs, inputs)

    def _run(self, given: Any, blobs: Iterable[str] | None, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        wanted = self.outputs if blobs is None else self._wanted(blobs)
        tensors = {name: as_tensor(name, value) for name, value in self._named(given, inputs).items()}
        if torch.is_grad_enabled() and any(value.requires_grad for value in tensors.values()):
            raise GraphError(
                f"{self.name}: a net that {self.form} runs has no gradients; load the Caffe net (prototxt and weights) "
                "for them, or call it under torch.no_grad()"
            )
        is_empty = any(value.shape[:1] == (0,) for value in tensors.values())
        for name, value in tensors.items():
            refuse_meta(name, value)
            if not (is_empty and self.fixed_batch):
                self._check_shape(name, value)
        found = self._run_empty(tensors) if is_empty else self.engine(tensors)
        return {name: found[name] for name in wanted}

    def _run_empty(self, tensors: dict[str, Tensor]) -> Mapping[str, Tensor]:
        """Run a batch of no images: images of zeros, without their results.

        Neither reshapes of ONNX nor those of torch infer a length of an empty batch.  Where the results are not one
        row per image, the engine runs the empty batch itself.
        """
        rows = self.fixed_batch or 2
        filled = {
            name: value if len(value) else value.new_zeros(rows, *value.shape[1:])
            for name, value in tensors.items()
        }
        for name, value in filled.items():
            self._check_shape(name, value)
        found = self.engine(filled)
        others = [name for name, value in found.items() if value.shape[:1] != (rows,)]
        if not others:
            return {name: value[:0] for name, value in found.items()}
        if self.fixed_batch is None:
            return self.engine(tensors)
        raise GraphError(
            f"{self.name}: takes {rows} images at a time, and output {others[0]!r} does not have one row per image, "
            "so an empty batch has no result"
        )

    def _named(self, given: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        if given is None:
            given = {}
        elif not isinstance(given, Mapping):
            if len(self.inputs) != 1:
                raise GraphError(f"{self.name}: has {len(self.inputs)} inputs; give each by its name")
            given = {self.inputs[0]: given}
        merged = {**given, **inputs}
        for name in merged:
            if name not in self.inputs:
                hint = did_you_mean(name, self.inputs) if isinstance(name, str) else ""
                raise GraphError(f"{self.name}: has no input {name!r}{hint}; it has {names(self.inputs)}")
            if name in given and name in inputs:
                raise GraphError(f"input {name!r} is given twice; give it once")
        for name in self.inputs:
            if name not in merged:
                raise IlgnetError(f"{self.name}: input {name!r} is missing; it takes {names(self.inputs)}")
        return merged

    def _check_shape(self, name: str, value: Tensor) -> None:
        stated = (
            self.shapes.get(name) or ()
        )  # no shape is known where the engine leaves the number of axes open
        given = tuple(value.shape)
        fits = len(given) == len(stated) and all(b in (None, a) for a, b in zip(given, stated, strict=True))
        if stated and not fits:
            wanted = "x".join("any" if length is None else str(length) for length in stated)
            raise GraphError(
                f"{self.name}: input {name!r} takes {wanted}, and is given {show_shape(given)}; give it in that shape"
            )

    def _wanted(self, blobs: Iterable[str]) -> tuple[str, ...]:
        return wanted_blobs(
            blobs, self.outputs, self.name, "no output of", "a file returns only its outputs:"
        )


class NotOfFileError(GraphError, AttributeError):
    """An attribute of `CaffeNet` was asked of a net that another engine runs."""


class TensorNet(nn.Module):
    """A net as a module from tensor to tensor, for tools that do not use blob names."""

    def __init__(self, net: Runnable, blob: str) -> None:
        super().__init__()
        found = net.inputs_for((blob,))
        if len(found) != 1:
            raise GraphError(
                f"net {net.name!r}: {blob!r} depends on {len(found)} inputs ({names(found)}); call the net by names"
            )
        self.net, self.blob, self.input = net, blob, found[0]
        self.training = isinstance(net, nn.Module) and net.training

    def forward(self, x: Tensor) -> Tensor:
        """Return the blob for this input."""
        found: Tensor = self.net({self.input: x}, blobs=(self.blob,))[self.blob]
        return found


def tensor_net(
    net: Runnable, blob: str | None, check: Callable[[tuple[str, ...]], tuple[str, ...]]
) -> TensorNet:
    """Return a net's `as_tensor`; ``check`` refuses a blob that the net does not return."""
    if blob is None and len(net.outputs) != 1:
        raise GraphError(
            f"net {net.name!r} has {len(net.outputs)} outputs ({names(net.outputs)}); name the blob"
        )
    return TensorNet(net, *check((net.outputs[0] if blob is None else blob,)))


def run_rows(net: Runnable, name: str, rows: Tensor, blobs: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Run a net on independent rows (images), in batches of the size that it takes, for some blobs (default: outputs).

    Where a file has a fixed batch size, the last batch is padded with its last row.  Raises GraphError where
    an output of such a file does not have one row per image.
    """
    size, count = net.fixed_batch, len(rows)
    if size is None or count in (0, size):
        return net({name: rows}, blobs=blobs)
    parts: list[dict[str, Tensor]] = []
    for start in range(0, count, size):
        part = rows[start : start + size]
        missing = size - len(part)
        parts.append(net({name: torch.cat([part, part[-1:].expand(missing, *part.shape[1:])])}, blobs=blobs))
    for blob, value in parts[0].items():
        if value.dim() == 0 or value.shape[0] != size:
            raise GraphError(
                f"{net.name}: takes {size} images at a time, and output {blob!r} ({show_shape(tuple(value.shape))}) "
                "does not have one row per image"
            )
    return {blob: torch.cat([part[blob] for part in parts])[:count] for blob in parts[0]}
