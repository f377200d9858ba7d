"""Solver prototxts: what is read, what is refused by name; learning-rate policies by hand."""

from __future__ import annotations

import math

import pytest

from ilgnet_repro.caffe.prototxt import parse_solver
from ilgnet_repro.errors import IlgnetError, SolverError
from ilgnet_repro.train.policies import make_policy
from ilgnet_repro.train.solver import read_settings, solver_root

NET = """
layer { name: "x" type: "DummyData" top: "x" top: "y"
  dummy_data_param { shape { dim: 2 dim: 3 } shape { dim: 2 dim: 1 } } }
layer { name: "fc" type: "InnerProduct" bottom: "x" top: "fc" inner_product_param { num_output: 1 } }
layer { name: "loss" type: "EuclideanLoss" bottom: "fc" bottom: "y" top: "loss" }
layer { name: "extra" type: "Silence" bottom: "x" include { stage: "deep" } }
"""
NET_FIELD = 'net: "net.prototxt" '
BASE = 'base_lr: 0.1 lr_policy: "fixed" max_iter: 10\n'


@pytest.fixture
def read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("net.prototxt", "other.prototxt"):
        (tmp_path / name).write_text(f'name: "{name}"' + NET)

    def reader(text: str, **options):
        (tmp_path / "s.prototxt").write_text(BASE + text)
        return read_settings("s.prototxt", **options)

    return reader


@pytest.mark.parametrize(
    ("text", "train", "tests"),
    [
        ('net: "net.prototxt"', "from net file: net.prototxt", []),
        ('net: "net.prototxt" test_iter: 3 test_iter: 4 test_interval: 5', "from net file: net.prototxt",
         ["net file: net.prototxt", "net file: net.prototxt"]),
        ('train_net: "net.prototxt" test_net: "other.prototxt" test_iter: 2 test_interval: 5',
         "from train_net file: net.prototxt", ["test_net file: other.prototxt"]),
        ('net: "net.prototxt" test_net: "other.prototxt" test_iter: 2 test_iter: 7 test_interval: 5',
         "from net file: net.prototxt", ["test_net file: other.prototxt", "net file: net.prototxt"]),
        ("net_param {" + NET + "} test_iter: 1 test_interval: 5", "specified in net_param", ["net_param"]),
        ("train_net_param {" + NET + "} test_net_param {" + NET + "} test_iter: 1 test_interval: 1",
         "specified in train_net_param", ["test_net_param"]),
    ],
    ids=["net", "net-twice", "own-nets", "net-and-test_net", "net_param", "own-params"],
)  # fmt: skip
def test_nets(read, text, train, tests):
    settings = read(text)
    assert settings.train_net.label == train
    assert settings.train_net.graph.phase == "TRAIN"
    assert [test.source.label for test in settings.test_nets] == tests
    assert all(test.source.graph.phase == "TEST" for test in settings.test_nets)
    assert [test.test_iter for test in settings.test_nets] == list(parse_solver(text).test_iter)


def test_states_choose_layers(read):
    text = 'net: "net.prototxt" test_iter: 1 test_iter: 1 test_interval: 1 test_state { } '
    text += 'test_state { stage: "deep" }'
    settings = read(text, stages=("deep",))
    found = [settings.train_net.graph, *(test.source.graph for test in settings.test_nets)]
    assert [graph.node("extra") is not None for graph in found] == [True, False, True]


@pytest.mark.parametrize(
    ("text", "prefix"),
    [("", "s"), ('snapshot_prefix: "a/b"', "a/b"), ('snapshot_prefix: "folder"', "folder/s")],
    ids=["solver's-name", "stated", "folder"],
)
def test_snapshot_prefix(read, tmp_path, text, prefix):
    (tmp_path / "folder").mkdir()
    assert read('net: "net.prototxt" ' + text).snapshot_prefix == prefix


def test_older_and_unused_fields_are_noted(read):
    settings = read(NET_FIELD + "solver_type: ADAM momentum: 0.9 gamma: 0.5 layer_wise_reduce: false")
    assert settings.type == "Adam"
    assert settings.notes == (
        'solver: solver_type ADAM became type "Adam"',
        "gamma is not used by lr_policy fixed",
        "layer_wise_reduce: torch chooses how gradients are exchanged; the result is the same",
    )


def test_paths_are_relative_to_the_working_or_the_solvers_folder(read, tmp_path, monkeypatch):
    read('net: "net.prototxt"')
    assert str(solver_root("s.prototxt")) == "."
    monkeypatch.chdir(tmp_path.parent)
    assert solver_root(tmp_path / "s.prototxt") == tmp_path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no train net; give exactly one of net, net_param, train_net, train_net_param"),
        (NET_FIELD + 'train_net: "net.prototxt"', "has net and train_net; give exactly one of"),
        ('train_net: "net.prototxt" test_net: "net.prototxt"', "test_iter is stated 0 times for 1 test nets"),
        ('train_net: "net.prototxt" test_iter: 2', "test_iter is stated 1 times for 0 test nets"),
        (NET_FIELD + 'test_iter: 2', "test_interval is 0 with a test net; set it, or remove test_iter"),
        (NET_FIELD + 'test_iter: -1 test_interval: 1', "test_iter must be 0 or more for each test net"),
        (NET_FIELD + 'test_iter: 2 test_interval: 1 test_state { } test_state { }',
         "2 test_state for 1 test nets; give one per net"),
        (NET_FIELD + 'type: "LARS"', "type 'LARS' is unknown; use one of SGD, Nesterov, AdaGrad,"),
        (NET_FIELD + 'type: "AdaGrad" momentum: 0.9', "momentum 0.9 cannot be used with AdaGrad; remove it"),
        (NET_FIELD + 'type: "RMSProp" momentum: 0.5', "momentum 0.5 cannot be used with RMSProp; remove it"),
        (NET_FIELD + 'rms_decay: 1', "rms_decay 1 must be at least 0 and below 1"),
        (NET_FIELD + 'type: "Adam" momentum: 1', "momentum and momentum2 of Adam must be at least 0"),
        (NET_FIELD + 'regularization_type: "L3"', "regularization_type 'L3' is unknown; use L1 or L2"),
        (NET_FIELD + 'iter_size: 0', "iter_size 0 must be 1 or more"),
        (NET_FIELD + 'average_loss: 0', "average_loss 0 must be 1 or more"),
        (NET_FIELD + 'plateau_winsize: 3', "field plateau_winsize (line 2, column 21) is unknown to Caffe"),
    ],
    ids=lambda value: value.removeprefix(NET_FIELD)[:30],
)  # fmt: skip
def test_refused_by_name(read, text, message):
    with pytest.raises(SolverError) as raised:
        read(text)
    assert f"solver: {message}" in str(raised.value)


def test_a_missing_net_file(read):
    with pytest.raises(IlgnetError, match=r"absent\.prototxt"):
        read('net: "absent.prototxt"')


# Each policy's rate at iterations 0, 3 and 7, worked out by hand from the formulas in caffe.proto.
POLICIES = {
    'lr_policy: "fixed"': (0.5, 0.5, 0.5),
    'lr_policy: "step" gamma: 0.1 stepsize: 3': (0.5, 0.05, 0.005),
    'lr_policy: "exp" gamma: 0.5': (0.5, 0.0625, 0.00390625),
    'lr_policy: "inv" gamma: 1 power: 2': (0.5, 0.03125, 0.0078125),
    'lr_policy: "multistep" gamma: 0.1 stepvalue: 3 stepvalue: 8': (0.5, 0.05, 0.05),
    'lr_policy: "poly" power: 2 max_iter: 10': (0.5, 0.245, 0.045),
    'lr_policy: "sigmoid" gamma: 1 stepsize: 3': (0.5 / (1 + math.e**3), 0.25, 0.5 / (1 + math.e**-4)),
    'lr_policy: "sigmoid" gamma: 900 stepsize: 3': (0.0, 0.25, 0.5),
    # Beyond float32, as C++ computes it: infinite or 0, and NaN for the root of a negative number.
    'lr_policy: "exp" gamma: 1e30': (0.5, math.inf, math.inf),
    'lr_policy: "exp" gamma: 1e-30': (0.5, 0.0, 0.0),
    'lr_policy: "step" gamma: 1e30 stepsize: 2': (0.5, 5e29, math.inf),
    'lr_policy: "multistep" gamma: 3e38 stepvalue: 2 stepvalue: 6': (0.5, 1.5e38, math.inf),
    'lr_policy: "inv" gamma: 1 power: -60': (0.5, 0.5 * 4.0**60, math.inf),
    'lr_policy: "poly" power: 0.5 max_iter: 3': (0.5, 0.0, math.nan),
    'lr_policy: "poly" power: -1 max_iter: 3': (0.5, math.inf, 0.5 / (1 - 7 / 3)),
}


@pytest.mark.parametrize("text", POLICIES, ids=lambda text: text.split('"')[1])
def test_policies(text):
    policy = make_policy(parse_solver("base_lr: 0.5 " + text))
    rates, step = {}, 0
    for iteration in range(8):
        rates[iteration], step = policy.at(iteration, step)
    expected = pytest.approx(POLICIES[text], rel=1e-6, abs=0, nan_ok=True)
    assert [rates[iteration] for iteration in (0, 3, 7)] == expected


def test_a_rate_is_rounded_as_caffe_rounds_it():
    """1 - iter / max_iter is a difference of two floats: near the end its rounding is in the digits that are logged."""
    policy = make_policy(parse_solver('base_lr: 1 lr_policy: "poly" power: 1 max_iter: 450000'))
    assert f"{policy.at(449999).value:g}" == "2.20537e-06"  # 37 x 2^-24, where 1 / 450000 = 2.22222e-06
    assert make_policy(parse_solver('base_lr: 1e39 lr_policy: "fixed"')).at(0).value == math.inf
    assert make_policy(parse_solver('base_lr: 1e-46 lr_policy: "fixed"')).at(0).value == 0


def test_multistep_takes_at_most_one_step_per_iteration():
    policy = make_policy(
        parse_solver('base_lr: 1 lr_policy: "multistep" gamma: 0.5 stepvalue: 2 stepvalue: 2')
    )
    step, steps = 0, []
    for iteration in range(5):
        step = policy.at(iteration, step).current_step
        steps.append(step)
    assert steps == [0, 0, 1, 2, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('"cosine"', "lr_policy 'cosine' is unknown; use one of fixed, step, exp, inv,"),
        ('"step" gamma: 0.1', "lr_policy step needs stepsize; set it"),
        ('"step" gamma: 0.1 stepsize: 0', "stepsize 0 must be over 0"),
        ('"exp"', "lr_policy exp needs gamma; set it"),
        ('"exp" gamma: -1', "gamma -1 is negative; set 0 or more"),
        ('"inv" gamma: 1', "lr_policy inv needs power; set it"),
        ('"multistep" gamma: 1', "lr_policy multistep needs stepvalue; set it"),
        ('"multistep" gamma: 1 stepvalue: 5 stepvalue: 2', "stepvalue 5, 2 must increase"),
        ('"poly" power: 1', "lr_policy poly needs max_iter; set it"),
    ],
    ids=lambda value: value[:30],
)
def test_policies_refused(text, message):
    with pytest.raises(SolverError) as raised:
        make_policy(parse_solver(f"base_lr: 1 lr_policy: {text}"))
    assert f"solver: {message}" in str(raised.value)


def test_a_base_learning_rate_is_required():
    with pytest.raises(SolverError, match="solver: base_lr is missing; set the initial learning rate"):
        make_policy(parse_solver('lr_policy: "fixed"'))


def test_a_net_states_which_fork_its_layers_are_of(read, tmp_path):
    """As outside training: Python layers of R-FCN's net, and data layers that another layer replaces."""
    python = 'python_param { module: "rpn.proposal_target_layer" layer: "ProposalTargetLayer" }'
    (tmp_path / "net.prototxt").write_text(
        'layer { name: "a" type: "Data" top: "a" } layer { name: "b" type: "Data" top: "b" }'
        'layer { name: "d" type: "DetectNetTransformation" bottom: "a" bottom: "b" top: "x" top: "y" }'
        'layer { name: "p" type: "PSROIPooling" bottom: "x" bottom: "y" top: "p" }'
        f'layer {{ name: "t" type: "Python" bottom: "x" bottom: "y" top: "r" {python} }}'
    )
    graph = read(NET_FIELD).train_net.graph
    assert [node.name for node in graph.layers] == ["d", "p", "t"]
    assert graph.nodes[2].layer.python_param.of_rfcn
