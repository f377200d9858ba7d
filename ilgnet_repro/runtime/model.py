"""`Model`: a net that is a torch module and no Caffe graph, called and described like every other net."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn

from ..about import About
from ..caffe.param_sharing import show_shape
from ..errors import GraphError, IlgnetError, did_you_mean
from ..prepare_images import PrepareOptions, prepare
from ..signatures import shows_options
from .calls import as_tensor, refuse_meta, wanted_blobs
from .drawn import DrawnWeights, about_now, drawn_modules
from .origin import Origin
from .runnable import OpenShape, TensorNet, tensor_net

IMAGE_AXES = 3


class FeatureMap(nn.Identity):
    """Marks a feature map, N x C x H x W, that a heat map can be taken at; it is called by the name of its parent."""


class Model(nn.Module):
    """A net of named outputs, one row for each row of its one input.

    A subclass states its `name`, its input, its `outputs` and their `widths`, and passes the options that make the same
    model again to `__init__`; its file stores them (`model_file.py`).  ``about`` is what is known of it,
    ``extra_metadata`` what its file says besides, such as how it was trained.
    """

    name: ClassVar[str]
    form: ClassVar[str] = "torch"
    input_name: ClassVar[str] = "data"
    least_side: ClassVar[int] = 32  # pixels of an image
    fixed_batch: ClassVar[None] = None

    def __init__(self, about: About, row: tuple[int, ...], widths: Mapping[str, int], **options: Any) -> None:
        """``row`` is the shape of an input row as the model was trained on it, ``widths`` the length of each output's."""
        super().__init__()
        self.about, self.options = about, options
        self.extra_metadata: dict[str, str] = {}
        self.origin: Origin | None = None
        self.drawn = DrawnWeights()  # compared when the model is saved
        self._row, self._widths = row, dict(widths)

    def mark_drawn(self) -> None:
        """State that the weights are drawn at random, as long as they are what they are now."""
        self.drawn = drawn_modules(self)
        self.about = about_now(self)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The blob that the caller feeds."""
        return (self.input_name,)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The blobs that a call returns in evaluation mode."""
        return tuple(self._widths)

    @property
    def row(self) -> tuple[int, ...]:
        """The shape of an input row: of an image, as it is prepared for the model."""
        how = self.about.preprocessing
        return self._row if how is None or len(self._row) != IMAGE_AXES else (self._row[0], *how.size)

    @property
    def shapes(self) -> dict[str, OpenShape]:
        """The shapes of its input and outputs; images may have other sizes."""
        return {
            self.input_name: (None, *self.row),
            **{name: (None, width) for name, width in self._widths.items()},
        }

    def for_inference(self) -> Model:
        """Return the model without what only training needs: itself, unless a subclass has such parts."""
        return self

    def explained(self, x: Tensor) -> dict[str, Tensor]:
        """Return values of each row that explain its outputs, by name; none unless a subclass has such values."""
        return {}

    def inputs_for(self, wanted: Iterable[str]) -> tuple[str, ...]:
        """Return the inputs that the given blobs depend on."""
        self._wanted(wanted)
        return self.inputs

    def image_input(self) -> str:
        """Return the input.  Raises GraphError where it takes no images."""
        if len(self._row) != IMAGE_AXES:
            raise GraphError(
                f"model {self.name}: takes {self.input_name} ({show_shape(self._row)} per row), not images; give it "
                "what another net computes from them"
            )
        return self.input_name

    @shows_options(PrepareOptions, prepare)
    def prepare(self, images: Any, **options: Unpack[PrepareOptions]) -> Tensor:
        """Prepare images as the model takes them; see `prepare_images.prepare`."""
        return torch.from_numpy(prepare(self.about, images, net=self.name, **options))

    def as_tensor(self, blob: str | None = None) -> TensorNet:
        """Return a module from the input to one output, as `CaffeNet.as_tensor`."""
        return tensor_net(self, blob, self._wanted)

    def __call__(
        self, given: Any = None, *more: Any, blobs: Iterable[str] | None = None, **inputs: Any
    ) -> dict[str, Tensor]:
        """Return the outputs, or the requested ones, for an input given by itself or by its name.

        Raises IlgnetError for an input that is missing, unknown, or of another shape.
        """
        if more:
            raise GraphError(
                f"model {self.name}: {1 + len(more)} inputs by position; it takes 1 ({self.input_name!r})"
            )
        wanted = None if blobs is None else self._wanted(blobs)
        found: dict[str, Tensor] = super().__call__(self._read(given, inputs))
        return found if wanted is None else {name: found[name] for name in wanted}

    def _read(self, given: Any, inputs: Mapping[str, Any]) -> Tensor:
        """Return the input as a tensor of the model's type, where it is."""
        name = self.input_name
        named = dict(given) if isinstance(given, Mapping) else {} if given is None else {name: given}
        for key in inputs:
            if key in named:
                raise GraphError(f"input {key!r} is given twice; give it once")
        named |= inputs
        for key in named:
            if key != name:
                hint = did_you_mean(key, self.inputs) if isinstance(key, str) else ""
                raise GraphError(f"model {self.name}: has no input {key!r}{hint}; it has {name!r}")
        if name not in named:
            raise IlgnetError(f"model {self.name}: input {name!r} is missing; give it")
        value = as_tensor(name, named[name])
        parameter = next(self.parameters())
        if not parameter.is_meta:
            refuse_meta(name, value)
        self.check_shape(tuple(value.shape))
        return value.to(parameter.device, parameter.dtype)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise GraphError for an input of a shape that the model does not take."""
        if len(self._row) == IMAGE_AXES:
            fits = len(shape) == 1 + IMAGE_AXES and shape[1] == self._row[0]
            if fits and min(shape[2:]) < self.least_side:
                raise GraphError(
                    f"model {self.name}: images are {shape[2]}x{shape[3]}; give at least "
                    f"{self.least_side}x{self.least_side}"
                )
            wanted = f"Nx{self._row[0]}xHxW"
        else:
            fits = shape[1:] == self._row and len(shape) == 1 + len(self._row)
            wanted = f"Nx{show_shape(self._row)}"
        if not fits:
            raise GraphError(
                f"model {self.name}: input {self.input_name!r} takes {wanted}, and is given {show_shape(shape)}; "
                "give it in that shape"
            )

    def _wanted(self, blobs: Iterable[str]) -> tuple[str, ...]:
        return wanted_blobs(
            blobs, self.outputs, self.name, "no output of", "a model returns only its outputs:"
        )
