"""Errors that do not depend on the sizes of the inputs are found where these are not known."""

from __future__ import annotations

import pytest
from golden_cases import NAMES, read_case

from ilgnet_repro.audit import audit
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.caffe.upgrade import upgrade_net
from ilgnet_repro.cli.main import main

DATABASE = 'layer { name: "d" type: "Data" top: "x" top: "y" data_param { source: "db" batch_size: 2 } }\n'
FED = 'layer { name: "i" type: "Input" top: "x" }\nlayer { name: "j" type: "Input" top: "y" }\n'
HDF5 = (
    'layer { name: "h" type: "HDF5Data" top: "x" top: "y" hdf5_data_param { source: "l" batch_size: 2 } }\n'
)
BOXES = (
    'layer { name: "a" type: "AnnotatedData" top: "x" top: "y" data_param { source: "db" batch_size: 2 } }\n'
)
CUT = ""  # no layer writes them
SOURCES = {"database": DATABASE, "fed": FED, "HDF5": HDF5, "boxes": BOXES, "cut off": CUT}
LABELS = 'layer { name: "s" type: "Silence" bottom: "y" }\n'
IMAGES = {"x": (2, 6, 40, 56), "y": (2,)}
ROWS = {"x": (4, 6), "y": (4,)}


def layer(type_: str, fields: str = "", bottoms: str = "x", tops: str = "t", name: str = "op") -> str:
    ends = "".join(f' bottom: "{blob}"' for blob in bottoms.split())
    ends += "".join(f' top: "{blob}"' for blob in tops.split())
    return f'layer {{ name: "{name}" type: "{type_}"{ends} {fields} }}\n'


def conv(fields: str, **ends: str) -> str:
    return layer("Convolution", f"convolution_param {{ {fields} }}", **ends)


CONV = conv("num_output: 6 kernel_size: 3 pad: 1", tops="c", name="c")
PLANE = CONV.replace("kernel_size: 3", "kernel_size: [3, 3]")  # of blobs of four axes
POOL = layer("Pooling", "pooling_param { kernel_size: 3 }", bottoms="c", tops="p", name="p")
SAME = POOL.replace("kernel_size: 3", "kernel_size: 3 pad: 1")

# Layers that pass -> their twin that fails, its message, and shapes with which it is known.
NETS = {
    "a kernel": (
        conv("num_output: 6 kernel_size: 3"), conv("num_output: 6"), "op (Convolution): kernel_size is missing", IMAGES,
    ),
    "channels": (
        conv("num_output: 6 kernel_size: 3"), conv("kernel_size: 3"),
        "op (Convolution): num_output is 0 or absent; state how many channels to make", IMAGES,
    ),
    "groups": (
        conv("num_output: 6 kernel_size: 3 group: 2"), conv("num_output: 6 kernel_size: 3 group: 4"),
        "op (Convolution): num_output 6 is not a multiple of group 4", IMAGES,
    ),
    "channels of rows": (
        layer("InnerProduct", "inner_product_param { num_output: 5 }"), layer("InnerProduct"),
        "op (InnerProduct): num_output is 0 or absent", ROWS,
    ),
    "slices": (
        CONV + layer("Slice", "slice_param { slice_point: [2] }", "c", "t u"),
        CONV + layer("Slice", "slice_param { slice_point: [2, 4] }", "c", "t u"),
        "op (Slice): has 2 slice_points for 2 tops; state 1", IMAGES,
    ),
    "slices of computed channels": (
        CONV + layer("Slice", "slice_param { slice_point: [2] }", "c", "t u"),
        CONV + layer("Slice", "slice_param { slice_point: [7] }", "c", "t u"),
        "op (Slice): slice_points [7] must increase from 1 to 6 at most", IMAGES,
    ),
    "groups of computed channels": (
        CONV + conv("num_output: 6 kernel_size: 1 group: 3", bottoms="c"),
        CONV.replace("6", "7") + conv("num_output: 6 kernel_size: 1 group: 3", bottoms="c"),
        "op (Convolution): 7 input channels are not a multiple of group 3", IMAGES,
    ),
    "a pooling": (
        layer("Pooling", "pooling_param { kernel_size: 3 pad: 1 }"),
        layer("Pooling", "pooling_param { kernel_size: 3 pad: 3 }"),
        "op (Pooling): pad [3, 3] must be smaller than the kernel [3, 3]", IMAGES,
    ),
    "an axis": (
        PLANE + layer("Softmax", "softmax_param { axis: 3 }", "c"),
        PLANE + layer("Softmax", "softmax_param { axis: 4 }", "c"),
        "op (Softmax): axis 4 is outside a blob of 4 axes", IMAGES,
    ),
    "a permutation": (
        CONV + layer("Permute", "permute_param { order: [0, 2, 3, 1] }", "c"),
        CONV + layer("Permute", "permute_param { order: [0, 2, 2, 1] }", "c"), "op (Permute): ", IMAGES,
    ),
    "coefficients": (
        CONV + SAME + layer("Eltwise", "eltwise_param { coeff: [1, 2] }", "c p"),
        CONV + SAME + layer("Eltwise", "eltwise_param { coeff: 1 }", "c p"),
        "op (Eltwise): ", IMAGES,
    ),
    "a local size": (
        layer("LRN", "lrn_param { local_size: 5 }"), layer("LRN", "lrn_param { local_size: 4 }"), "op (LRN): local_size 4",
        IMAGES,
    ),
    "rows of param": (
        CONV + layer("ReLU", "", "c"), CONV + layer("ReLU", "param { lr_mult: 1 }", "c"),
        "op (ReLU): has 1 param rows for 0 blobs", IMAGES,
    ),
}  # fmt: skip


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize(("right", "wrong", "message", "shapes"), NETS.values(), ids=NETS)
def test_what_is_wrong_for_every_size(source, right, wrong, message, shapes) -> None:
    if source in (DATABASE, BOXES):  # which feed images
        shapes = {"x": IMAGES["x"]}
    text = source + LABELS + right
    assert audit(parse_net(text)).problems == ()
    assert audit(parse_net(text)).needs
    whole = audit(parse_net(text), input_shapes=shapes)
    assert (whole.problems, whole.needs) == ((), ())
    found = audit(parse_net(source + LABELS + wrong))
    assert [line[: len(message)] for line in found.problems] == [message]
    (known,) = audit(parse_net(source + LABELS + wrong), input_shapes=shapes).problems
    assert found.problems == (known,)


# Nets that some sizes suit: nothing is wrong with them as long as the sizes are not known.
OPEN = {
    "groups of the input": (conv("num_output: 14 kernel_size: 3 group: 7"), {"x": (2, 14, 9, 8), "y": (2,)}),
    "a group of unusual channels": (conv("num_output: 22 kernel_size: 3 group: 11"), {"x": (2, 11, 9, 8), "y": (2,)}),
    "a large kernel": (conv("num_output: 4 kernel_size: 800"), {"x": (2, 3, 900, 801), "y": (2,)}),
    "slices of the input": (
        layer("Slice", "slice_param { slice_point: [9, 30] }", tops="t u v"), {"x": (2, 40, 9, 8), "y": (2,)},
    ),
    "even slices of the batch": (
        layer("Slice", "slice_param { axis: 0 }", tops="t u v v1 v2"), {"x": (10, 3, 9, 8), "y": (10,)},
    ),
    "a reshape": (
        layer("Reshape", "reshape_param { shape { dim: 0 dim: 7 dim: 13 dim: -1 } }"), {"x": (2, 91, 9, 8), "y": (2,)},
    ),
    "a kernel of rows": (
        layer("InnerProduct", "inner_product_param { num_output: 5 }", tops="r", name="ip")
        + conv("num_output: 4", bottoms="r"),
        {"x": (2, 5), "y": (2,)},
    ),
    "sequences": (layer("LSTM", "recurrent_param { num_output: 3 }", "x y"), {"x": (5, 2, 4), "y": (5, 2)}),
    "volumes": (conv("num_output: 4 kernel_size: [2, 3, 3]"), {"x": (2, 3, 4, 9, 8), "y": (2,)}),
    "labels of a loss": (layer("SoftmaxWithLoss", "", "x y"), {"x": (2, 5), "y": (2,)}),
    "two blobs": (layer("EuclideanLoss", "", "x y"), {"x": (2, 5), "y": (2, 5)}),
    "a product": (layer("InnerProduct", "inner_product_param { num_output: 5 axis: 2 }"), {"x": (2, 3, 4), "y": (2,)}),
    "an axis": (layer("Softmax", "softmax_param { axis: 2 }"), {"x": (2, 3, 4), "y": (2,)}),
}  # fmt: skip


@pytest.mark.parametrize("source", [FED, CUT, HDF5], ids=["fed", "cut off", "HDF5"])
@pytest.mark.parametrize(("text", "shapes"), OPEN.values(), ids=OPEN)
def test_what_some_sizes_suit_is_no_error(source, text, shapes) -> None:
    text = source + (LABELS if 'bottom: "y"' not in text else "") + text
    found = audit(parse_net(text))
    assert found.problems == ()
    assert found.needs
    assert audit(parse_net(text), input_shapes=shapes).problems == ()


def test_no_net_that_caffe_ran_has_an_error_without_its_shapes() -> None:
    """One recorded net of each layer type."""
    checked = 0
    for name in {name.split("-")[0]: name for name in NAMES if not name.startswith("sweep")}.values():
        case = read_case(name)
        net = upgrade_net(parse_net(case.text))
        options = {"phase": case.phase, "others": False}
        if audit(net, **options).problems:  # the weights show the fork
            continue
        for layer in net.layer:
            if layer.type == "Input":
                layer.input_param.Clear()
        found = audit(net, **options)
        assert found.problems == (), name
        checked += bool(found.needs)
    assert checked > 40


def test_the_command_ends_with_1(tmp_path, capsys) -> None:
    path = tmp_path / "n.prototxt"
    for text, status in ((NETS["a kernel"][0], 0), (NETS["a kernel"][1], 1)):
        path.write_text(DATABASE + LABELS + text)
        assert main(["audit", str(path)]) == status
        assert main(["audit", str(tmp_path)]) == status
    assert "problem: op (Convolution): kernel_size is missing" in capsys.readouterr().out
