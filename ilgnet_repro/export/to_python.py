"""The format python: one readable file that needs only torch, and its weights as safetensors."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from textwrap import wrap
from types import CodeType

import torch
from torch import Tensor, nn

from ..about import About
from ..errors import IlgnetError
from ..files import atomic_file
from ..runtime.python_names import class_name, module_name, plain
from ..runtime.runnable import FileNet, Runnable
from ..runtime.safetensors_file import open_safetensors, write_safetensors
from ..version import __version__
from .formats import Format
from .saving import Saving
from .source_writer import build_source


def write(saving: Saving, path: Path) -> list[Path]:
    """``STEM.py`` and ``STEM.weights.safetensors``."""
    code, weights = path, path.with_name(f"{path.stem}.weights.safetensors")
    name = class_name(saving.graph.name)
    source = build_source(
        saving.net, class_name=name, comment=_comment(saving.graph.name, name, weights.name, saving.about)
    )
    write_safetensors(weights, source.state, saving.metadata(), progress=saving.progress)
    with atomic_file(code, "w") as file:
        file.write(source.text)
    return [code, weights]


def _comment(net: str, name: str, weights: str, about: About) -> str:
    """Return the file's docstring: where it came from and how to use it."""
    lines = [
        f"{plain(net or 'A Caffe net', 60)} in PyTorch, written by ilgnet_repro {__version__}.",
        *(line for note in about.random_notes for line in wrap(plain(note), 100)),
        "",
        "    from safetensors.torch import load_file",
        "",
        '    with torch.device("meta"):',
        f"        net = {name}()",
        f'    net.load_state_dict(load_file("{weights}"), assign=True)',
        "",
    ]
    return "\n".join(lines)


class _SourceLoader(SourceFileLoader):
    """Compiles the file without reading or writing ``__pycache__``."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def load_module(code: Path, weights: Path, name: str) -> nn.Module:
    """Import a written file and load its weights.  Raises IlgnetError where they do not fit."""
    label = f"ilgnet_repro_written_{code.stem}"
    loader = _SourceLoader(label, str(code))
    spec = importlib.util.spec_from_file_location(label, code, loader=loader)
    if spec is None:
        raise IlgnetError(f"{code}: is not a Python file")
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    with torch.device("meta"):
        net: nn.Module = getattr(module, name)()
    try:
        net.load_state_dict(open_safetensors(weights).tensors, assign=True)
    except RuntimeError as error:
        raise IlgnetError(
            f"{weights}: does not fit {code.name} ({str(error).splitlines()[-1].strip()})"
        ) from error
    return net.requires_grad_(False)


def reopen(paths: Sequence[Path], saving: Saving) -> Runnable:
    """Import what was written."""
    net, name = saving.net, class_name(saving.graph.name)
    module = load_module(paths[0], paths[1], name)
    inputs = net.inputs_for(net.outputs)

    def run(given: dict[str, Tensor]) -> Mapping[str, Tensor]:
        found: Mapping[str, Tensor] = module(*(given[name] for name in inputs))
        return found

    # No shapes: the module checks them itself.
    return FileNet(paths[0].name, "Python source", saving.about, inputs, net.outputs, {}, run)


# The stem becomes an identifier, so that the file can be imported.
FORMAT = Format("python", ".py", write, reopen, stem=module_name)
