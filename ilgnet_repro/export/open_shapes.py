"""The open axes of a net's blobs in an exported file, and their symbols.

The net is planned for several lengths of its inputs.  An axis whose length never changes is fixed, one that
always has the length of an input's axis has that axis's symbol, and any other is open without a name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import combinations

from ..errors import IlgnetError
from ..layers.support.base import Shape
from ..runtime.net import CaffeNet

# Symbols of open input axes; a second one with another length gets its input's name as suffix.  Where a recurrent layer
# reads steps x streams, these are T and N.
SYMBOLS = {0: "N", 2: "H", 3: "W"}
BATCH = SYMBOLS[0]
STEPS = "T"
IMAGE_AXES = 4

Dim = int | str | None
Dims = dict[str, tuple[Dim, ...]]
Axis = tuple[str, int]  # an input's name, and which of its axes
Rounds = tuple[tuple[int, ...], ...]
Lengths = Callable[[int], Rounds]


def open_shapes(
    net: CaffeNet, wanted: tuple[str, ...], *, batch: bool = True, dynamic_size: bool = False
) -> Dims:
    """Return the shape of every blob that ``wanted`` depends on, open axes as symbols or None.

    ``batch`` opens the first axis of every input, and the streams of recurrent layers, ``dynamic_size`` height and width
    of images, wherever the layers and their weights accept other lengths.  Raises IlgnetError, by layer, where neither
    side can be open.
    """
    plans = _Plans(net, wanted)
    images = [name for name, shape in plans.inputs.items() if len(shape) == IMAGE_AXES]
    sides = [(name, axis) for axis in (2, 3) for name in images]
    others = [axis for axis in plans.axes() if axis not in sides]
    if batch:
        plans.open_axes([axis for axis in others if axis[1] == 0 or axis in plans.streams], others, _batches)
    if dynamic_size:
        if not images:
            raise IlgnetError(
                f"net {net.graph.name!r}: no input is an image (N, C, H, W); drop dynamic_size=True",
                option="dynamic_size",
            )
        closed = plans.open_axes(sides, [*sides, *others], _sides)
        if closed:
            closed = plans.open_axes(closed, [*closed, *others], _stepped_sides)
        if closed:
            plans.at({side: _sides(plans.length(side))[0][side[1] - 2] for side in sides})  # raises, by layer
            raise IlgnetError(
                f"input {closed[0][0]!r} takes images of one size only; drop dynamic_size=True",
                option="dynamic_size",
            )
    plans.vary_counts()
    return plans.dims()


# Lengths to try instead of one, by rounds; all lengths of a round must work.  Odd and even, so that rounding
# hides no dependence; multiples for nets that accept only these; shorter ones as the last resort.
def _batches(length: int) -> Rounds:
    return (length + 1,), (2 * length, 3 * length), (length - 1, length // 2)


def _sides(length: int) -> Rounds:
    return (length + 37, length + 58), (2 * length, 3 * length), (length - 1, length // 2)


# Steps between the sizes that a net takes, where it takes none of `_sides`: 8 for nets of 8 k + 1, as PSPNet's 713.
_STEPS = (2, 4, 8, 16, 32, 64, 128)


def _stepped_sides(length: int) -> Rounds:
    return tuple((length + step, length + 2 * step) for step in _STEPS)


def size_step(net: CaffeNet, wanted: tuple[str, ...]) -> int:
    """Return the step between the image sizes that a net takes; 1 where it takes any, 0 where none was found."""
    plans = _Plans(net, wanted)
    images = [name for name, shape in plans.inputs.items() if len(shape) == IMAGE_AXES]
    sides = [(name, axis) for axis in (2, 3) for name in images]
    for step in (1, *_STEPS):
        try:
            for count in (1, 2, 3):
                plans.at({side: plans.length(side) + count * step for side in sides})
        except IlgnetError:
            continue
        return step
    return 0


def other_shapes(net: CaffeNet, dims: Dims, fixed: Collection[str] = ()) -> list[dict[str, Shape]]:
    """Return input shapes that the net takes besides its own, with the open axes of ``dims`` (except ``fixed``) longer."""
    wanted = net.outputs
    plans = _Plans(net, wanted)
    has_sides = any(dim in (SYMBOLS[2], SYMBOLS[3]) for name in plans.inputs for dim in dims[name])
    step = size_step(net, wanted) if has_sides else 1
    found = []
    for times, height, width in ((2, 1, 2), (3, 2, 1), (2, 3, 3), (4, 5, 4), (3, 36, 37), (2, 1, 1)):
        longer = {}
        for name, axis in plans.axes():
            dim, length = dims[name][axis], plans.length((name, axis))
            if not isinstance(dim, str) or dim in fixed:
                continue
            if dim[:1] in (SYMBOLS[2], SYMBOLS[3]):
                longer[name, axis] = length + step * (height if dim[:1] == SYMBOLS[2] else width)
            else:
                longer[name, axis] = length * times
        try:
            plans.at(longer)
        except IlgnetError:
            continue
        found.append(
            {
                name: tuple(longer.get((name, axis), length) for axis, length in enumerate(shape))
                for name, shape in plans.inputs.items()
            }
        )
    return found


def batched_shapes(net: CaffeNet, batch: int) -> dict[str, Shape]:
    """Return the input shapes of a net for a batch of that size; inputs with rows of their own keep these.

    Raises IlgnetError where the net does not take that batch.
    """
    wanted = net.outputs
    shapes = {name: net.shapes[name] for name in net.inputs_for(wanted)}
    dims = open_shapes(net, wanted)
    tied = {name: [axis for axis, dim in enumerate(dims[name]) if dim == BATCH] for name in shapes}
    if not any(tied.values()) and any(shape[:1] == (batch,) for shape in shapes.values()):
        return {}
    if not any(tied.values()):
        fixed = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())
        raise IlgnetError(
            f"batch={batch}: net {net.graph.name!r} takes one batch only ({fixed}); omit it", option="batch"
        )
    given = {
        name: tuple(batch if axis in axes else length for axis, length in enumerate(shapes[name]))
        for name, axes in tied.items()
    }
    try:
        net.blob_shapes(given)
    except IlgnetError as error:
        raise IlgnetError(f"batch={batch}: {error}", option="batch") from error
    return given


def size_notes(net: CaffeNet) -> tuple[str, ...]:
    """Return the sizes that a file with open height and width takes, where the net does not take any."""
    step = size_step(net, net.outputs)
    if step <= 1:
        return ()
    shapes = [net.shapes[name] for name in net.inputs_for(net.outputs) if len(net.shapes[name]) == IMAGE_AXES]
    sizes = " and ".join(dict.fromkeys(f"{shape[2]}x{shape[3]}" for shape in shapes))
    return (
        f"height and width are open: the net takes sizes that differ from {sizes} by multiples of {step}",
    )


class _Plans:
    """The shapes of a net's blobs for all lengths tried; the first are its own."""

    def __init__(self, net: CaffeNet, wanted: tuple[str, ...]) -> None:
        steps = net.steps(wanted)
        self._plan = net.plan.part([node for node, _ in steps])
        self._has_counts = any(layer.sized_by_values for _, layer in steps)
        self.inputs: dict[str, Shape] = {name: net.shapes[name] for name in net.inputs_for(wanted)}
        self._kept = [self.at({})]
        # What recurrent layers read: steps x streams x values.
        self._sequences = [net.graph.names[node.bottoms[0]] for node, layer in steps if layer.is_unrolled]
        lengths = {net.shapes[name][1] for name in self._sequences if len(net.shapes[name]) > 1}
        self.streams = [axis for axis in self.axes() if axis[1] == 1 and self.length(axis) in lengths]

    def length(self, axis: Axis) -> int:
        return self.inputs[axis[0]][axis[1]]

    def axes(self) -> list[Axis]:
        """Return all axes of all inputs, ordered by axis."""
        most = max(map(len, self.inputs.values()), default=0)
        return [
            (name, axis) for axis in range(most) for name, shape in self.inputs.items() if axis < len(shape)
        ]

    def at(self, lengths: Mapping[Axis, int], counts: int = 1) -> dict[str, Shape]:
        """Plan the net for other input lengths; lengths that depend on values are multiplied by ``counts``.

        Raises LayerError for a layer that does not accept them, or whose weights would change.
        """
        given = {
            name: tuple(lengths.get((name, axis), length) for axis, length in enumerate(shape))
            for name, shape in self.inputs.items()
        }
        plan = self._plan.at(given, counts)
        for name, specs in plan.blobs.items():
            if [spec.shape for spec in specs] != [spec.shape for spec in self._plan.blobs[name]]:
                raise plan.layers[name].error(
                    "its weights fit one size of image only; export without dynamic_size=True",
                    option="dynamic_size",
                )
        return dict(plan.shapes)

    def open_axes(self, starts: list[Axis], others: list[Axis], lengths: Lengths) -> list[Axis]:
        """Open each of ``starts``: separately, or with those of ``others`` of the same length that must change with it.

        Returns those that stay fixed.
        """
        done: set[Axis] = set()
        for start in starts:
            if start not in done:
                free = [axis for axis in others if axis != start and axis not in done]
                alike = [axis for axis in free if self.length(axis) == self.length(start)]
                done.update(next((g for g in _groups(start, alike) if self._open(g, lengths)), ()))
        # The others may change together by one factor, such as an input with six rows for each two of another.
        left = [start for start in starts if start not in done]
        return [] if len(left) > 1 and self._open(left, lengths) else left

    def _open(self, group: Sequence[Axis], lengths: Lengths) -> bool:
        """Add the plans with other lengths of these axes; return whether the net accepts any."""
        kept: list[dict[str, Shape]] = []
        for rows in zip(*(lengths(self.length(axis)) for axis in group), strict=True):
            tried = [dict(zip(group, row, strict=True)) for row in zip(*rows, strict=True)]
            shrinks = any(row[group[0]] < self.length(group[0]) for row in tried)
            if shrinks and (kept or min(min(row.values()) for row in tried) < 1):
                continue
            try:
                kept += [self.at(row) for row in tried]
            except IlgnetError:
                continue
        self._kept += kept
        return bool(kept)

    def vary_counts(self) -> None:
        """Open the axes whose lengths depend on values, and those that follow from them."""
        for counts in (2, 3) if self._has_counts else ():
            try:
                self._kept.append(self.at({}, counts))
            except IlgnetError:
                continue

    def dims(self) -> Dims:
        """Return every blob's shape; axes with equal lengths in all plans share one symbol."""
        symbols: dict[Shape, str] = {}
        for name in self._sequences:
            for axis, stem in enumerate((STEPS, BATCH)[: len(self._kept[0][name])]):
                lengths = self._lengths(name, axis)
                if lengths in self._input_lengths() and stem not in symbols.values():
                    symbols.setdefault(lengths, stem)
        for name, axis in self.axes():
            lengths = self._lengths(name, axis)
            if len(set(lengths)) > 1 and lengths not in symbols:
                stem = SYMBOLS.get(axis, f"D{axis}")
                symbols[lengths] = stem if stem not in symbols.values() else f"{stem}_{name}"
        return {
            name: tuple(self._dim(self._lengths(name, axis), symbols) for axis in range(len(shape)))
            for name, shape in self._kept[0].items()
        }

    def _input_lengths(self) -> set[Shape]:
        """The lengths of the inputs' open axes in all plans."""
        every = (self._lengths(name, axis) for name, axis in self.axes())
        return {lengths for lengths in every if len(set(lengths)) > 1}

    def _lengths(self, name: str, axis: int) -> Shape:
        return tuple(shapes[name][axis] for shapes in self._kept)

    @staticmethod
    def _dim(lengths: Shape, symbols: Mapping[Shape, str]) -> Dim:
        return lengths[0] if len(set(lengths)) == 1 else symbols.get(lengths)


def _groups(start: Axis, alike: list[Axis]) -> Iterator[tuple[Axis, ...]]:
    """Yield an axis by itself, with one or two others, and with all others of the same axis number and up to two more."""
    for count in range(3):
        yield from ((start, *others) for others in combinations(alike, count))
    same = [axis for axis in alike if axis[1] == start[1]]
    for count in range(3):
        yield from (
            (start, *same, *more)
            for more in combinations([axis for axis in alike if axis not in same], count)
        )
