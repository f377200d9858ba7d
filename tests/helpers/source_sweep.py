"""Written Python under torch's own tools: nets of the zoo, deployed nets, and every layer that can be written.

    python tests/helpers/source_sweep.py [--only zoo layers deployed] [--tools trace half] [--again] [--write]

Each tool's result is compared with the written module itself, on other inputs than those that it traced.  Results are kept
in .make/sources.json, so that a run that was stopped continues where it was; a net whose source has changed, or --again, is
checked again.  With --write the table goes into docs/consumers.md, between the markers.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import io
import json
import re
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path

import torch
from deployed_nets import deployed_nets
from golden_cases import FORK_NAMES, NAMES, read_case
from places import ROOT
from torch import Tensor, nn
from zoo_weights import NETS, drawn_net, narrow_text

from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.export.source_writer import build_source
from ilgnet_repro.export.verify import seeded_inputs
from ilgnet_repro.runtime.net import CaffeNet

PAGE = ROOT / "docs" / "consumers.md"
RESULTS = ROOT / ".make" / "sources.json"
START, END = "<!-- sources:start -->", "<!-- sources:end -->"
Outputs = dict[str, Tensor]


@dataclass
class Written:
    """A written module, its inputs, and others that it must compute as well."""

    name: str
    module: nn.Module
    given: tuple[Tensor, ...]
    other: tuple[Tensor, ...]
    digest: str

    def fresh(self) -> nn.Module:
        return copy.deepcopy(self.module)


def written(name: str, net: CaffeNet, inputs: dict[str, Tensor]) -> Written:
    source = build_source(net, class_name="Written")
    scope: dict = {"__name__": "written"}
    # torch.compile reads the source through linecache, as of any file.
    place = Path(tempfile.gettempdir()) / f"written_{re.sub(r'[^a-z0-9]', '_', name.lower())}.py"
    place.write_text(source.text)
    exec(compile(source.text, str(place), "exec"), scope)
    with torch.device("meta"):
        module: nn.Module = scope["Written"]()
    module.load_state_dict({key: value.clone() for key, value in source.state.items()}, assign=True)
    given = tuple(inputs[key].float() for key in source.arguments)
    other = tuple(_other(value) for value in given)
    digest = hashlib.sha256(source.text.encode()).hexdigest()
    return Written(name, module.requires_grad_(False), given, other, digest)


def _other(value: Tensor) -> Tensor:
    """Other values of the same kind: integers stay what they are, which labels and indices are."""
    return value if torch.equal(value, value.round()) else value.flip(0) * 0.9


# ------------------------------------------------------------------ tools


def trace(one: Written) -> Outputs:
    return torch.jit.trace(one.fresh(), one.given, strict=False)(*one.other)


def compile_eager(one: Written) -> Outputs:
    torch._dynamo.reset()
    return torch.compile(one.fresh(), backend="aot_eager", fullgraph=True)(*one.other)


def inductor(one: Written) -> Outputs:
    torch._dynamo.reset()
    return torch.compile(one.fresh())(*one.other)


def export(one: Written) -> Outputs:
    return torch.export.export(one.fresh(), one.given, strict=False).module()(*one.other)


def export_strict(one: Written) -> Outputs:
    torch._dynamo.reset()
    return torch.export.export(one.fresh(), one.given, strict=True).module()(*one.other)


def symbolic(one: Written) -> Outputs:
    return torch.fx.symbolic_trace(one.fresh())(*one.other)


def quantized(one: Written) -> Outputs:
    """FX quantization to eight bits: that it runs and gives outputs of the same shapes."""
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    prepared = prepare_fx(one.fresh().eval(), get_default_qconfig_mapping("x86"), one.given)
    prepared(*one.given)
    return convert_fx(prepared)(*one.other)


def state_dict(one: Written) -> Outputs:
    buffer = io.BytesIO()
    torch.save(one.module.state_dict(), buffer)
    buffer.seek(0)
    fresh = type(one.module)()
    fresh.load_state_dict(torch.load(buffer, weights_only=True), strict=True)
    fresh.train(one.module.training)
    return fresh(*one.other)


def deep_copy(one: Written) -> Outputs:
    return copy.deepcopy(one.module)(*one.other)


def train_eval(one: Written) -> Outputs:
    """A pass in training mode, and back: statistics may have moved, so they are restored."""
    fresh = one.fresh()
    state = {key: value.clone() for key, value in fresh.state_dict().items()}
    mode = fresh.training
    fresh.train()
    fresh(*one.given)
    fresh.train(mode)
    fresh.load_state_dict(state)
    return fresh(*one.other)


def double(one: Written) -> Outputs:
    return one.fresh().double()(*(value.double() for value in one.other))


def half(one: Written) -> Outputs:
    """float16 throughout: that it runs and gives outputs of the same shapes."""
    return one.fresh().half()(*(value.half() for value in one.other))


def channels_last(one: Written) -> Outputs:
    kind = torch.channels_last
    given = (value.contiguous(memory_format=kind) if value.ndim == 4 else value for value in one.other)
    return one.fresh().to(memory_format=kind)(*given)


@dataclass(frozen=True)
class Tool:
    shown: str
    run: Callable[[Written], Outputs]
    allowed: float | None = 1e-4  # of the largest value; None where only the shapes are compared
    nets: tuple[str, ...] = ()  # those that it runs, where it takes long


# Each compiles C++ for a minute or more.
INDUCTOR_NETS = ("squeezenet", "mobilenet", "mobilenet_ssd", "omz_emotions", "LSTM-no_cont")

TOOLS = {
    "trace": Tool("`torch.jit.trace`", trace),
    "compile": Tool('`torch.compile`, "aot_eager", whole graph', compile_eager),
    "inductor": Tool("`torch.compile`, inductor, a few nets", inductor, nets=INDUCTOR_NETS),
    "export": Tool("`torch.export`", export),
    "strict": Tool("`torch.export`, strict", export_strict),
    "symbolic": Tool("`torch.fx.symbolic_trace`", symbolic),
    "quantized": Tool("FX quantization", quantized, None),
    "state_dict": Tool("`state_dict`, saved and loaded", state_dict),
    "deepcopy": Tool("`copy.deepcopy`", deep_copy),
    "train": Tool("`train()`, a pass, `eval()`", train_eval),
    "double": Tool("`double()`", double),
    "half": Tool("`half()`", half, None),
    "channels_last": Tool("`to(memory_format=torch.channels_last)`", channels_last),
}


# ------------------------------------------------------------------ nets


def zoo() -> Iterator[Written]:
    for name in NETS:
        net = drawn_net(narrow_text(name))
        inputs = {
            key: value / 50 if value.ndim == 4 else value for key, value in seeded_inputs(net, 2).items()
        }
        yield written(name, net, inputs)


def layers() -> Iterator[Written]:
    """The first recorded case of each layer type whose net can be written; random drawing is left out."""
    seen = set()
    for name in (*NAMES, *FORK_NAMES):
        kind = name.split("-")[-1] if name.startswith("sweep") else name.split("-")[0]
        if kind in seen:
            continue
        case = read_case(name)
        with tempfile.TemporaryDirectory() as folder:
            net = case.net(Path(folder))
        try:
            one = written(name, net, {key: torch.from_numpy(value) for key, value in case.inputs.items()})
        except IlgnetError as error:
            print(f"{name}: {error}")
            continue
        seen.add(kind)
        yield one


def deployed() -> Iterator[Written]:
    for name, net, inputs in deployed_nets():
        try:
            yield written(name, net, inputs)
        except IlgnetError as error:
            print(f"{name}: {error}")


SETS: dict[str, Callable[[], Iterator[Written]]] = {"zoo": zoo, "layers": layers, "deployed": deployed}


# ------------------------------------------------------------------ the check


def apart(found: Outputs, expected: Outputs) -> float:
    """The largest difference, relative to the output's largest value; inf for another shape or no number."""
    if list(found) != list(expected):
        return float("inf")
    most = 0.0
    for name, value in expected.items():
        one = found[name].double()
        wanted = value.double()
        if one.shape != wanted.shape or not torch.equal(one.isfinite(), wanted.isfinite()):
            return float("inf")
        finite = wanted.isfinite()
        difference = (one - wanted).abs()[finite]
        scale = float(wanted.abs()[finite].max()) if finite.any() else 0.0
        most = max(most, float(difference.max()) / max(scale, 1e-6) if difference.numel() else 0.0)
    return most


def check(one: Written, tool: Tool) -> str:
    """Return what is wrong; "" for nothing."""
    expected = one.fresh()(*one.other)
    again = one.fresh()(*one.other)
    if apart(again, expected) > 0:
        return ""  # it draws random numbers
    try:
        with redirect_stderr(io.StringIO()):
            found = tool.run(one)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {' '.join(str(error).split())[:220]} [{where.name}]"
    if tool.allowed is None:
        same = list(found) == list(expected) and all(found[key].shape == expected[key].shape for key in found)
        return "" if same else "other outputs"
    difference = apart(found, expected)
    return "" if difference <= tool.allowed else f"off by {difference:.2g}"


def table(kinds: list[str], found: dict[str, dict[str, dict[str, str]]]) -> str:
    """Return the table: for each tool, how many nets of each kind it computes as the module does."""
    lines = [f"| tool | {' | '.join(kinds)} |", f"|---|{'---|' * len(kinds)}"]
    for key, of in found.items():
        cells = (
            f"{sum(not wrong for wrong in of[kind].values())} of {len(of[kind])}" if of[kind] else ""
            for kind in kinds
        )
        lines.append(f"| {TOOLS[key].shown} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument(
        "--tools", nargs="+", choices=TOOLS, default=[key for key in TOOLS if key != "inductor"]
    )
    parser.add_argument("--names", nargs="+", default=[])
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() and not args.again else {}
    found: dict[str, dict[str, dict[str, str]]] = {
        key: {kind: {} for kind in args.only} for key in args.tools
    }
    with torch.no_grad():
        for kind in args.only:
            for one in SETS[kind]():
                if args.names and not any(name in one.name for name in args.names):
                    continue
                for key in args.tools:
                    if TOOLS[key].nets and one.name not in TOOLS[key].nets:
                        continue
                    what = f"{kind} {one.name} {key} {one.digest} {torch.__version__}"
                    if what not in results:
                        results[what] = check(one, TOOLS[key])
                        RESULTS.parent.mkdir(exist_ok=True)
                        RESULTS.write_text(json.dumps(results, indent=1))
                    found[key][kind][one.name] = results[what]
                    if results[what]:
                        print(f"{one.name}, {key}: {results[what]}", flush=True)
    text = table(args.only, found)
    print(text)
    if args.write:
        page = PAGE.read_text()
        before, _, rest = page.partition(START)
        PAGE.write_text(f"{before}{START}\n{text}\n{END}{rest.partition(END)[2]}")
    return int(any(wrong for of in found.values() for row in of.values() for wrong in row.values()))


if __name__ == "__main__":
    sys.exit(main())
