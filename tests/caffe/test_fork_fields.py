"""Fields that no schema lists, anywhere in a text: refused by name and position, or ignored by name."""

from __future__ import annotations

import pytest
from layer_nets import draw

import ilgnet_repro as ir
from ilgnet_repro.audit import audit
from ilgnet_repro.caffe.fork_fields import drop_fields
from ilgnet_repro.caffe.prototxt import parse_net, parse_solver
from ilgnet_repro.cli._options import for_command
from ilgnet_repro.cli.main import main
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.runtime.load import load_graph
from ilgnet_repro.runtime.net import CaffeNet
from ilgnet_repro.train.solver import read_settings

INPUT = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 5 dim: 4 } } }\n'
UNKNOWN = "is unknown to Caffe and to this package"


def remedy(path: str) -> str:
    return f"; remove it, or ignore it with ignore_fields=['{path}'] if it does not affect the result"


REFUSED = {
    "a misspelt block": (
        INPUT + 'lyaer {\n  name: "s" type: "Sigmoid" bottom: "x" top: "x" }',
        f"net '': field lyaer.name (line 3, column 3) {UNKNOWN} (did you mean layer?)" + remedy("lyaer"),
        "lyaer",
    ),
    # Forks add names to Caffe's enums: like their fields they are kept, and refused where they are read.
    "a fork's value of an enum": (
        INPUT
        + 'layer { name: "p" type: "Pooling" bottom: "x" top: "p" pooling_param { pool: AVG kernel_size: 2 } }',
        "p (Pooling): field pooling_param.pool (line 2, column 78) is AVG, which is unknown to Caffe and to this package "
        "(did you mean AVE?); use MAX, AVE or STOCHASTIC",
        "pooling_param.pool",
    ),
    "a value of an enum in a rule": (
        INPUT + 'layer { name: "r" type: "ReLU" bottom: "x" top: "r" include { phase: TESTING } }',
        "r (ReLU): field include[0].phase (line 2, column 70) is TESTING, which is unknown to Caffe and to this package "
        "(did you mean TEST?); use TRAIN or TEST",
        "include.phase",
    ),
    "a capital": (
        INPUT + 'Layer { name: "s" }',
        f"net '': field Layer.name (line 2, column 9) {UNKNOWN} (did you mean layer?)" + remedy("Layer"),
        "Layer",
    ),
    "an empty block": (
        INPUT + "foo {}",
        f"net '': field foo (line 2, column 1) {UNKNOWN}" + remedy("foo"),
        "foo",
    ),
    "a field of a fork": (
        'name: "n" ' + INPUT + "optimize_mem: TRAIN_OPTIM",
        f"net 'n': field optimize_mem (line 2, column 1) {UNKNOWN}" + remedy("optimize_mem"),
        "optimize_mem",
    ),
    "in the net's state": (
        INPUT + 'state { stge: "a" }',
        f"net '': field state.stge (line 2, column 9) {UNKNOWN} (did you mean stage?)" + remedy("state.stge"),
        "state.stge",
    ),
    "an include rule": (
        INPUT + 'layer { name: "r" type: "ReLU" bottom: "x" top: "r" include { phas: TRAIN } }',
        f"r (ReLU): field include[0].phas (line 2, column 63) {UNKNOWN} (did you mean phase?)"
        + remedy("include.phas"),
        "include.phas",
    ),
    # An empty exclude rule matches every state: the layer itself would be excluded.
    "an exclude rule": (
        INPUT + 'layer { name: "r" type: "ReLU" bottom: "x" top: "r" exclude { phas: TRAIN } }',
        f"r (ReLU): field exclude[0].phas (line 2, column 63) {UNKNOWN} (did you mean phase?)"
        + remedy("exclude.phas"),
        None,
    ),
    "a param": (
        INPUT + 'layer { name: "r" type: "PReLU" bottom: "x" top: "r" param { nmae: "w" } }',
        f"r (PReLU): field param[0].nmae (line 2, column 62) {UNKNOWN} (did you mean name?)"
        + remedy("param.nmae"),
        "param[0].nmae",
    ),
    "a whole message of a layer": (
        INPUT + 'layer { name: "r" type: "ReLU" bottom: "x" top: "r" quantization_param { bits: 8 } }',
        f"r (ReLU): field quantization_param.bits (line 2, column 74) {UNKNOWN}"
        + remedy("quantization_param"),
        "quantization_param",
    ),
    "a layer's transformation": (
        'layer { name: "d" type: "Data" top: "x" data_param { batch_size: 2 source: "s" }\n'
        "transform_param { crop_size: 4 cropsize: 5 } }",
        f"d (Data): field transform_param.cropsize (line 2, column 32) {UNKNOWN} (did you mean crop_size?)"
        + remedy("transform_param.cropsize"),
        "transform_param",
    ),
    "V1": (
        'input: "x" input_dim: [2, 3, 5, 4]\nlayers { name: "r" type: RELU bottom: "x" top: "r" prelu_param { foo: 1 } }',
        f"r (ReLU): field prelu_param.foo (line 2, column 66) {UNKNOWN}" + remedy("prelu_param.foo"),
        "prelu_param.foo",
    ),
    "V0 padding, folded away": (
        'input: "x" input_dim: [2, 3, 5, 4]\n'
        'layers { layer { name: "p" type: "padding" pad: 1 foo: 2 } bottom: "x" top: "p" }\n'
        'layers { layer { name: "c" type: "conv" num_output: 2 kernelsize: 3 } bottom: "p" top: "c" }',
        f"c (Convolution): field foo (line 2, column 51) {UNKNOWN}" + remedy("foo"),
        "foo",
    ),
}


@pytest.mark.parametrize(("text", "message", "path"), REFUSED.values(), ids=REFUSED)
def test_an_unknown_field_is_refused_by_name_and_place(text, message, path) -> None:
    with pytest.raises(IlgnetError) as caught:
        ir.load_net(parse_net(text))
    assert str(caught.value) == message
    if path is not None:
        assert ir.load_net(parse_net(text), ignore_fields=[path]).inputs == ("x",)


POOL = 'layer { name: "p" type: "Pooling" bottom: "x" top: "p" pooling_param { kernel_size: 2 %s } }'
# An ignored value of an enum leaves the default, which is said.
IGNORED = {
    "a pooling": (POOL % "pool: AVG", "pooling_param.pool", "p: pooling_param.pool has its default MAX: AVG is ignored"),
    "its whole message": (POOL % "pool: AVG", "pooling_param", "p: pooling_param.pool has its default MAX: AVG is ignored"),
    "V1": (
        'layers { name: "p" type: POOLING bottom: "x" top: "p" pooling_param { kernel_size: 2 pool: AVG } }',
        "pooling_param.pool", "p: pooling_param.pool has its default MAX: AVG is ignored",
    ),
    "no enum": (POOL % "pol: AVE", "pooling_param.pol", None),
}  # fmt: skip


@pytest.mark.parametrize(("text", "path", "note"), IGNORED.values(), ids=IGNORED)
def test_what_an_ignored_value_is_instead_is_noted(text, path, note, tmp_path) -> None:
    first = 'input: "x" input_dim: [2, 3, 5, 4]\n' if "layers {" in text else INPUT
    net = parse_net(first + text)
    expected = [note] if note else []
    loaded = ir.load_net(net, ignore_fields=[path]).about.notes
    for notes in (audit(net, ignore_fields=[path]).upgrades, loaded):
        assert [line for line in notes if "is ignored" in line] == expected
    (tmp_path / "n.prototxt").write_text(first + text)
    (tmp_path / "s.prototxt").write_text('net: "n.prototxt" lr_policy: "fixed" base_lr: 0.5')
    settings = read_settings(tmp_path / "s.prototxt", tmp_path, ignore_fields=[path])
    assert [line for line in settings.notes if "is ignored" in line] == expected


def test_candidates_have_the_notes_of_a_load(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    dense = 'layer { name: "ip" type: "InnerProduct" bottom: "p" top: "ip" inner_product_param { num_output: 2 } }'
    (tmp_path / "n.prototxt").write_text(INPUT + POOL % "pool: MAX" + dense)
    ir.save(ir.load_net("n.prototxt", seed=1), "n.caffemodel")
    dropped = ' input_dim: 1 layer { name: "d" type: "Dropout" bottom: "p" top: "p" dropout_param { dropout_ratio: 0 } }'
    (tmp_path / "old.prototxt").write_text(INPUT + POOL % "pool: AVG" + dropped + dense)
    (tmp_path / "bad.prototxt").write_text(INPUT + POOL % "pol: AVE" + dense)
    ignored = ["--ignore-field", "pooling_param.pool"]
    loaded = ir.load("n.caffemodel", "old.prototxt", ignore_fields=ignored[1:]).about.notes
    assert "p: pooling_param.pool has its default MAX: AVG is ignored" in loaded and len(loaded) > 1
    assert main(["audit", "n.caffemodel", "--candidates", "bad.prototxt", "old.prototxt", *ignored]) == 0
    out, err = capsys.readouterr()
    assert err.splitlines() == [f"note: old.prototxt: {note}" for note in loaded]
    assert out.splitlines()[0].startswith("bad.prototxt: p (Pooling): field pooling_param.pol ")
    assert out.splitlines()[1] == "old.prototxt: fits"


def test_the_remedy_of_a_command_is_its_option(tmp_path, capsys) -> None:
    path = tmp_path / "n.prototxt"
    path.write_text(INPUT + REFUSED["a whole message of a layer"][0].removeprefix(INPUT))
    for audited in (path, tmp_path):
        assert main(["audit", str(audited)]) == 1
        shown = " ".join("".join(capsys.readouterr()).replace("│", " ").split())
        assert "--ignore-field quantization_param" in shown
        assert "ignore_fields" not in shown
    assert main(["audit", str(path), "--ignore-field", "quantization_param"]) == 0
    with pytest.raises(IlgnetError) as caught:
        ir.load_net(path)
    assert "ignore it with --ignore-field quantization_param if" in for_command(caught.value)


def test_blobs_in_the_text_are_refused() -> None:
    text = INPUT + 'layer { name: "p" type: "PReLU" bottom: "x" top: "p" blobs { data: 0.5 } }'
    with pytest.raises(IlgnetError) as caught:
        ir.load_net(parse_net(text))
    assert str(caught.value) == "p (PReLU): blobs in a prototxt are not read; put them in a caffemodel"


def test_stages_of_the_text_are_added_to_those_given() -> None:
    one, two = (
        f'layer {{ name: "{s}" type: "ReLU" bottom: "x" top: "{s}" include {{ stage: "{s}" }} }}'
        for s in ("deploy", "other")
    )
    net = parse_net(INPUT + one + two + 'state { stage: "deploy" }')
    assert load_graph(net).outputs == ("deploy",)
    assert load_graph(net, stages=["other"]).outputs == ("deploy", "other")


TEXTS_WITHOUT_LAYERS = {
    "unknown": (
        "rate",
        "{path}: has no layers but field rate (line 2, column 1); is it a solver or another kind of text?",
    ),
    "solver": (
        "base_lr",
        "x.prototxt: is a solver's prototxt, not a net's prototxt; give the file that its `net` or `train_net` names",
    ),
}


@pytest.mark.parametrize(("field", "message"), TEXTS_WITHOUT_LAYERS.values(), ids=TEXTS_WITHOUT_LAYERS)
def test_a_text_of_only_unknown_fields_is_refused_by_name(tmp_path, field, message) -> None:
    path = tmp_path / "x.prototxt"
    path.write_text(f"\n{field}: 0.1")
    with pytest.raises(IlgnetError) as caught:
        ir.load_net(path)
    assert str(caught.value) == message.format(path=path)


def test_audit_lists_every_unknown_block_and_continues() -> None:
    net = parse_net(
        INPUT
        + 'lyaer { name: "a" } lyaer { name: "b" } mode: 2\nlayer { name: "b" type: "Foo" bottom: "x" top: "b" }'
    )
    found = audit(net)
    assert [problem.split(";")[0] for problem in found.problems] == [
        f"net '': field lyaer.name (line 2, column 9) {UNKNOWN} (did you mean layer?)",
        f"net '': field mode (line 2, column 41) {UNKNOWN}",
        "b (Foo): layer type is unknown",
    ]
    assert len(net.fork_field) == 3
    assert audit(net, ignore_fields=["lyaer", "mode"]).problems == found.problems[2:]


IN_SOLVERS = {
    "a misspelt field": (
        'net: "n.prototxt"\nbas_lr: 0.1',
        f"solver: field bas_lr (line 2, column 1) {UNKNOWN} (did you mean base_lr?)" + remedy("bas_lr"),
        "bas_lr",
    ),
    "a block": (
        'net: "n.prototxt"\nbn { a: 1 }',
        f"solver: field bn.a (line 2, column 6) {UNKNOWN}" + remedy("bn"),
        "bn",
    ),
    "a state": (
        'net: "n.prototxt"\ntrain_state { levl: 1 }',
        f"solver: field train_state.levl (line 2, column 15) {UNKNOWN} (did you mean level?)"
        + remedy("train_state.levl"),
        "train_state.levl",
    ),
    "a net inside": (
        "net_param {\n" + INPUT + 'lyaer { name: "s" } }',
        f"net '': field lyaer.name (line 3, column 9) {UNKNOWN} (did you mean layer?)" + remedy("lyaer"),
        "lyaer",
    ),
    "a test net inside": (
        'net: "n.prototxt" test_iter: 1 test_interval: 1 test_net_param {\n' + INPUT + "foo: 1 }",
        f"net '': field foo (line 3, column 1) {UNKNOWN}" + remedy("foo"),
        "foo",
    ),
}


@pytest.mark.parametrize(("text", "message", "path"), IN_SOLVERS.values(), ids=IN_SOLVERS)
def test_of_a_solver(text, message, path, tmp_path) -> None:
    (tmp_path / "n.prototxt").write_text(INPUT)
    solver = tmp_path / "s.prototxt"
    solver.write_text(f'{text}\nlr_policy: "fixed" base_lr: 0.5')
    with pytest.raises(IlgnetError) as caught:
        read_settings(solver, tmp_path)
    assert str(caught.value) == message
    assert read_settings(solver, tmp_path, ignore_fields=[path]).train_net.graph.outputs == ("x",)


def test_of_a_net_that_a_solver_names(tmp_path) -> None:
    (tmp_path / "n.prototxt").write_text(INPUT + "foo: 1")
    solver = tmp_path / "s.prototxt"
    solver.write_text('net: "n.prototxt" lr_policy: "fixed" base_lr: 0.5')
    with pytest.raises(IlgnetError, match="field foo"):
        read_settings(solver, tmp_path)
    assert read_settings(solver, tmp_path, ignore_fields=["foo"]).train_net.graph.outputs == ("x",)


def test_dropped_fields_leave_the_callers_message() -> None:
    solver = parse_solver(
        "a: 1 net_param { b: 2 layer { c { d: 3 } include { e: 4 } } layers { layer { f: 5 } } }"
    )
    dropped = drop_fields(solver, ["a", "b", "c", "include.e", "f"])
    assert "fork_field" not in str(dropped)
    assert str(solver).count("fork_field") == 5
    assert drop_fields(solver, ["c.e", "include[1].e", "d"]) == solver


FILLED = (
    INPUT
    + 'layer { name: "c" type: "Convolution" bottom: "x" top: "c" convolution_param { num_output: 2 kernel_size: 1'
    ' weight_filler { type: "msra" alpha: 0.25 } bias_filler { type: "constant" value: 2 } } }'
)


def test_a_field_of_a_filler_matters_where_initial_values_are_drawn() -> None:
    """happynear's msra has alpha, the slope of the next ReLU; with weights it changes nothing."""
    net = parse_net(FILLED)
    assert not audit(net).problems
    graph = load_graph(net)
    weights = [draw(2, 3, 1, 1), draw(2, seed=1)]
    assert CaffeNet(graph, {"c": weights}).params["c"][0].shape == (2, 3, 1, 1)
    with pytest.raises(IlgnetError) as caught:
        CaffeNet(graph)
    assert str(caught.value) == (
        "c (Convolution): weight filler: field convolution_param.weight_filler.alpha is unknown to Caffe and to this "
        "package; give weights, or ignore it with ignore_fields=['convolution_param.weight_filler.alpha'] if the initial "
        "values may differ"
    )
    filled = ir.load_net(net, ignore_fields=["convolution_param.weight_filler.alpha"])
    assert filled.params["c"][1].tolist() == [2, 2]


@pytest.mark.parametrize("field", ["tpye: 'x'", "varianec_norm: AVERAGE"])
def test_a_misspelt_field_of_a_filler_is_refused(field) -> None:
    net = parse_net(FILLED.replace("alpha: 0.25", field))
    (problem,) = audit(net).problems
    assert "did you mean" in problem
