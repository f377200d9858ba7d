"""What the audit says of nets whose sizes, data layers or phases are elsewhere: needed, not a problem."""

from __future__ import annotations

import pytest
from small_nets import FULLY_CONVOLUTIONAL, SMALL_TEXT, write_weights

import ilgnet_repro as ir
from ilgnet_repro.audit import audit, audit_files
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.cli.main import main
from ilgnet_repro.errors import GraphError

LAYERS = SMALL_TEXT[SMALL_TEXT.index('layer { name: "conv"') :]
LOSS = 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }'


def data(type_: str, more: str, tops: str = 'top: "data" top: "label"', name: str = "d") -> str:
    return f'layer {{ name: "{name}" type: "{type_}" {tops} {more} }}\n'


GIVE = "give the shape of "
# A text without sizes -> what is needed, and the shapes with which it has no needs.
NEEDED = {
    "database": (
        data("Data", 'data_param { source: "a/train_lmdb" batch_size: 2 }') + LAYERS,
        ("d (Data): " + GIVE + "'data', 'label'; it is known only from a/train_lmdb (input_shapes={'data': (N, C, H, W)})",),
        {"data": (2, 3, 9, 7)},
    ),
    "HDF5": (
        data("HDF5Data", 'hdf5_data_param { source: "l.txt" batch_size: 2 }') + LAYERS,
        ("d (HDF5Data): " + GIVE + "'data', 'label'; it is known only from l.txt (input_shapes={'data': (N, C, H, W)})",),
        {"data": (2, 3, 9, 7), "label": (2, 1)},
    ),
    "images": (
        data("ImageData", 'image_data_param { source: "l.txt" batch_size: 2 }') + LAYERS,
        ("d (ImageData): " + GIVE + "'data', 'label'; it is known only from l.txt (input_shapes={'data': (N, C, H, W)})",),
        {"data": (2, 3, 9, 7)},
    ),
    "an input without a shape": (
        'input: "data"\n' + LAYERS,
        ("input (Input): " + GIVE + "'data'; the text does not state it (input_shapes={'data': (N, C, H, W)})",),
        {"data": (2, 3, 9, 7)},
    ),
    "the data layer cut off": (
        LAYERS + LOSS,
        (
            "data (Input): " + GIVE + "'data'; no layer of phase TEST writes it (input_shapes={'data': (N, C, H, W)})",
            "label (Input): " + GIVE + "'label'; no layer of phase TEST writes it (input_shapes={'label': (N, C, H, W)})",
        ),
        {"data": (2, 3, 9, 7), "label": (2,)},
    ),
    "of the other phase": (
        data("Data", 'data_param { source: "db" batch_size: 2 } include { phase: TRAIN }', 'top: "data"') + LAYERS,
        ("d (Data): " + GIVE + "'data'; it is known only from db (input_shapes={'data': (N, C, H, W)})",),
        {"data": (2, 3, 9, 7)},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "needs", "shapes"), NEEDED.values(), ids=NEEDED)
def test_shapes_that_the_text_does_not_state_are_needed(text, needs, shapes) -> None:
    found = audit(parse_net(text))
    assert found.problems == ()
    assert found.needs == needs
    conv = next(row for row in found.layers if row.name == "conv")
    assert conv.note == "shapes unknown: give those that are needed"
    whole = audit(parse_net(text), input_shapes=shapes)
    assert (whole.problems, whole.needs) == ((), ())
    assert whole.parameters == 4 * 3 * 9 + 4 + 5 * 4 * 6 + 5


def test_the_layers_are_checked_all_the_same() -> None:
    text = 'input: "data"\n' + LAYERS.replace('"Softmax"', '"Soft"').replace(
        "kernel_size: 3 stride", "kernel: 3 stride"
    )
    assert [line.split(":")[0] for line in audit(parse_net(text)).problems] == [
        "pool (Pooling)",
        "prob (Soft)",
    ]


COMPUTED = 'layer { name: "r" type: "ReLU" bottom: "conv" top: "r" include { phase: TRAIN } }\n'


def test_a_blob_that_another_phase_computes_is_no_input() -> None:
    text = SMALL_TEXT + COMPUTED + 'layer { name: "s" type: "TanH" bottom: "r" top: "s" }'
    with pytest.raises(GraphError, match=r"s \(TanH\): bottom 'r' is written by no layer of this phase"):
        audit(parse_net(text))


def test_images_of_one_pixel_ask_for_a_size() -> None:
    """OpenPose's text states 1x1 and its users give the size."""
    text = FULLY_CONVOLUTIONAL.replace("dim: 21 dim: 26", "dim: 1 dim: 1").replace(
        "kernel_size: 3", "kernel_size: 3 pad: 1"
    )
    line = "data (Input): images of 'data' are 1x1 in the text; give their size (input_shapes={'data': (N, C, H, W)})"
    assert audit(parse_net(text)).needs == (line,)
    assert line in ir.load_net(parse_net(text), seed=1).about.notes
    assert audit(parse_net(text), input_shapes={"data": (1, 3, 21, 26)}).needs == ()
    vector = text.replace("dim: 3 dim: 1", "dim: 64 dim: 1")
    assert audit(parse_net(vector)).needs == ()


STAGED = data(
    "Input", 'input_param { shape { dim: [2, 3, 9, 7] } } include { stage: "deploy" stage: "b" }', 'top: "data"', "in"
)  # fmt: skip


def test_a_net_of_stages_asks_for_one() -> None:
    with pytest.raises(GraphError) as caught:
        ir.load_net(parse_net(STAGED + LAYERS), seed=1)
    where = "conv (Convolution): bottom 'data' is written by no layer of this phase, level and stages; in (Input) writes it"
    assert str(caught.value) == f"{where} in stage 'deploy': give stages=['deploy','b']"


def test_the_stages_of_a_rule_are_taken_together(tmp_path, capsys) -> None:
    found = audit(parse_net(STAGED + LAYERS))
    assert (found.problems, found.stages) == ((), ("deploy", "b"))
    assert found.upgrades == ("no stage is given: the layers are those of phase TEST, stages 'deploy', 'b'",)
    given = audit(parse_net(STAGED + LAYERS), stages=["deploy", "b"])
    assert (given.problems, given.upgrades, given.others) == ((), (), ())
    (tmp_path / "n.prototxt").write_text(STAGED + LAYERS)
    assert main(["audit", str(tmp_path / "n.prototxt"), "--stage", "deploy,b"]) == 0
    assert "net, phase TEST, stages 'deploy', 'b'" in " ".join(capsys.readouterr().out.split())


def staged(rule: str, *stages: str) -> str:
    return f"{rule} {{ {' '.join(f'stage: {chr(34)}{stage}{chr(34)}' for stage in stages)} }}"


def phased(phase: str, *stages: str) -> str:
    return staged("include", *stages).replace("{", f"{{ phase: {phase}", 1)


SIZES = "input_param { shape { dim: [2, 3, 9, 7] } }"
LABELS = f'top: "label" {SIZES.replace("[2, 3, 9, 7]", "2")} '
ACCURACY = 'layer {{ name: "acc" type: "Accuracy" bottom: "ip" bottom: "label" top: "acc" {} }}\n'


def feeds(rule: str, name: str) -> str:
    """An image and labels, in one state."""
    return data("Input", SIZES + rule, 'top: "data"', name) + data("Input", LABELS + rule, "", f"{name}_l")


# A text whose layers depend on the state -> the state that is audited, and the others: state, layers, problems, needs.
STATES = {
    "DIGITS": (
        feeds(staged("include", "train"), "t") + feeds(staged("include", "val"), "v")
        + data("Input", SIZES + staged("include", "deploy"), 'top: "data"', "in")
        + LAYERS + LOSS.replace(" }", " " + staged("exclude", "deploy") + " }") + ACCURACY.format(staged("include", "val")),
        (("TEST", ("deploy",)), "'train', 'val'", 6),
        [("TEST", ("train",), 8, 0, 0), ("TEST", ("val",), 9, 0, 0)],
    ),
    "tests on two sets": (
        feeds(phased("TRAIN"), "t") + feeds(phased("TEST", "on-train"), "a") + feeds(phased("TEST", "on-val"), "b")
        + LAYERS + LOSS,
        (("TEST", ("on-train",)), "'on-val'", 8),
        [("TEST", ("on-val",), 8, 0, 0), ("TRAIN", (), 8, 0, 0)],
    ),
    "a loss that is unknown in TRAIN": (
        SMALL_TEXT + LOSS.replace("SoftmaxWithLoss", "Other").replace(" }", " " + phased("TRAIN") + " }"),
        (("TEST", ()), None, 6),
        [("TRAIN", (), 7, 1, 1)],
    ),
    "a database for training alone": (
        data("Data", 'data_param { source: "db" batch_size: 2 } ' + phased("TRAIN"), 'top: "data"') + LAYERS,
        (("TRAIN", ()), None, 6),
        [("TEST", (), 5, 0, 1)],
    ),
    "no rules": (SMALL_TEXT, (("TEST", ()), None, 6), []),
}  # fmt: skip


@pytest.mark.parametrize(("text", "main_state", "others"), STATES.values(), ids=STATES)
def test_each_phase_and_stage_of_a_text_is_audited(text, main_state, others) -> None:
    state, also, layers = main_state
    found = audit(parse_net(text))
    assert ((found.phase, found.stages), found.problems, len(found.layers)) == (state, (), layers)
    notes = [note for note in found.upgrades if note.startswith("no stage is given")]
    named = f"phase {state[0]}, stage {state[1][0]!r}" if state[1] else ""
    assert notes == (
        [f"no stage is given: the layers are those of {named}; the text also names {also}"] if also else []
    )
    shown = [(one.phase, one.stages, one.layers, len(one.problems), len(one.needs)) for one in found.others]
    assert shown == others
    assert audit(parse_net(text), others=False).others == ()


TRAINED = data("Data", 'data_param { source: "db" batch_size: 2 } ' + phased("TRAIN"), 'top: "data"')
UNKNOWN_LOSS = (
    LOSS.replace("SoftmaxWithLoss", "Other")
    .replace('bottom: "label" ', "")
    .replace(" }", phased("TRAIN") + " }")
)


def test_the_phase_that_feeds_the_net_decides(tmp_path, capsys) -> None:
    note = "no layer of phase TEST feeds the net; the layers are those of phase TRAIN"
    found = audit(parse_net(TRAINED + LAYERS + UNKNOWN_LOSS))
    assert found.phase == "TRAIN" and note in found.upgrades
    assert [line.split(";")[0] for line in found.problems] == ["loss (Other): layer type is unknown"]
    (tmp_path / "n.prototxt").write_text(TRAINED + LAYERS + UNKNOWN_LOSS)
    assert main(["audit", str(tmp_path / "n.prototxt")]) == 1
    # With a shape it is an input in phase TEST; its layer has the blob's name, though one of the other phase has it too.
    for text in (TRAINED, TRAINED.replace('name: "d"', 'name: "data"')):
        given = audit(parse_net(text + LAYERS + UNKNOWN_LOSS), input_shapes={"data": (2, 3, 9, 7)})
        assert (given.phase, given.problems, given.layers[0].name) == ("TEST", (), "data")
        stated = audit(parse_net(text + LAYERS), phase="TEST")
        assert stated.needs == NEEDED["the data layer cut off"][1][:1]
    fed = audit(parse_net(feeds(phased("TEST"), "e") + TRAINED + LAYERS + UNKNOWN_LOSS))
    assert (fed.phase, fed.problems, len(fed.others[0].problems)) == ("TEST", (), 1)


def test_a_text_of_many_stages_is_tried_with_a_few() -> None:
    """Each further one would take an audit of the whole text."""
    many = "".join(feeds(staged("include", f"s{index}"), f"n{index}") for index in range(30))
    found = audit(parse_net(many + feeds(staged("include", "deploy"), "in") + LAYERS))
    assert (found.problems, found.stages) == ((), ("deploy",))
    assert [one.stages for one in found.others] == [(f"s{index}",) for index in range(7)]


def test_the_other_states_are_a_line_each(tmp_path, capsys) -> None:
    (tmp_path / "n.prototxt").write_text(STATES["a loss that is unknown in TRAIN"][0])
    assert main(["audit", str(tmp_path / "n.prototxt")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "also phase TRAIN: 7 layers, NOT SUPPORTED: loss (Other): layer type is unknown" in shown
    (tmp_path / "n.prototxt").write_text(STATES["DIGITS"][0])
    assert main(["audit", str(tmp_path / "n.prototxt")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "phase TEST, stage 'deploy'" in shown
    assert "also phase TEST, stage 'val': 9 layers, all supported" in shown


@pytest.mark.parametrize(("phase", "shown"), [(None, "TRAIN"), ("TRAIN", "TRAIN")])
def test_the_phase_that_has_layers_is_audited(phase, shown) -> None:
    text = parse_net(SMALL_TEXT)
    for layer in text.layer:
        layer.include.add(phase=0)
    found = audit(text, phase=phase)
    assert (found.phase, found.problems, len(found.layers)) == (shown, (), 6)
    note = "no layer is in phase TEST; the layers are those of phase TRAIN"
    assert (note in found.upgrades) == (phase is None)
    with pytest.raises(GraphError, match="has no layer in phase TEST"):
        audit(text, phase="TEST")


def test_weights_without_sizes_are_neither_fit_nor_misfit(tmp_path, capsys) -> None:
    write_weights(tmp_path / "n.caffemodel")
    (tmp_path / "n.prototxt").write_text('input: "data"\n' + LAYERS)
    assert audit_files(parse_net('input: "data"\n' + LAYERS), tmp_path / "n.caffemodel").fit is None
    assert main(["audit", str(tmp_path / "n.prototxt"), str(tmp_path / "n.caffemodel")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "weights: whether they fit is known once the shapes are given" in shown
    assert (
        "needed: input (Input): give the shape of 'data'; the text does not state it (--shape data=N,C,H,W)"
        in shown
    )
    assert main(["audit", str(tmp_path / "n.caffemodel"), "--shape", "data=2,3,9,7"]) == 0
    assert "2 layers fit, 0 missing" in capsys.readouterr().out
