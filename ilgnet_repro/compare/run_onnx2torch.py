"""Script of the onnx2torch reference tool: converts an ONNX file, runs it and saves its values.

onnx2torch imports torchvision, whose compiled operators do not load with a CPU build of torch: the operators
that it looks up at import are declared first.  It supports opset 18 at most, so later files are read
as opset 18: our files do not use what changed since (more types, dilated average pooling).
Arguments: the model, the inputs (npz), the outputs (npz).
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from torch import fx

NEWEST_OPSET = 18


class _Watch(fx.Interpreter):
    """Runs a converted graph and keeps the values of the ONNX names wanted."""

    def __init__(self, module: fx.GraphModule, wanted: set[str]) -> None:
        super().__init__(module)
        self.wanted = wanted
        self.values: dict[str, np.ndarray] = {}

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        result = super().call_module(target, args, kwargs)
        names = self.fetch_attr(target).onnx_mapping.outputs
        for name, value in zip(names, result if len(names) > 1 else [result], strict=False):
            if name in self.wanted:
                self.values[name] = value.detach().numpy().copy()
        return result


def rename(graph: Any, renamed: dict[str, str] | None = None) -> dict[str, str]:
    """Number every name of an ONNX graph and of those inside its nodes; return what each became.

    onnx2torch uses them as names of modules and arguments, which torch writes into generated code unescaped.
    """
    renamed = {} if renamed is None else renamed

    def new(name: str) -> str:
        return renamed.setdefault(name, f"v{len(renamed)}") if name else ""

    for entry in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        entry.name = new(entry.name)
    for sparse in graph.sparse_initializer:
        sparse.values.name = new(sparse.values.name)
    for index, node in enumerate(graph.node):
        node.name = f"n{index}"
        node.input[:] = [new(name) for name in node.input]
        node.output[:] = [new(name) for name in node.output]
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                rename(inner, renamed)
    return renamed


def main(model: str, inputs: str, outputs: str) -> None:
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import onnx
    from onnx2torch import convert
    from onnx2torch.node_converters.registry import add_converter, get_converter

    # Pad of opset 18 is that of 13 plus an input for the axes, on which the module of 13 fails.
    add_converter("Pad", version=18)(get_converter("Pad", version=13))
    loaded = onnx.load(model, format="protobuf")
    for entry in loaded.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = min(entry.version, NEWEST_OPSET)
    renamed = rename(loaded.graph)
    names = [entry.name for entry in loaded.graph.input]
    with np.load(inputs) as file:
        given = {
            renamed[str(name)]: torch.from_numpy(file[f"value_{i}"]) for i, name in enumerate(file["names"])
        }
        wanted = [renamed.get(str(name), "") for name in file["wanted"]]
    # BatchNormalization of opset 13 follows the mode of the module.
    module = convert(loaded, attach_onnx_mapping=True).eval()
    watch = _Watch(module, set(wanted))
    with torch.no_grad():
        watch.run(*(given[name] for name in names))
    missing = [name for name in wanted if name not in watch.values]
    if missing:
        given_names = {new: old for old, new in renamed.items()}
        raise SystemExit(f"onnx2torch's module has no value {given_names.get(missing[0], '')}")
    results: dict[str, Any] = {f"value_{index}": watch.values[name] for index, name in enumerate(wanted)}
    np.savez(outputs, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
