"""Folding: fewer layers, the same outputs, and no layer folded whose top others read."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from zoo_weights import drawn_net

import ilgnet_repro as ir
from ilgnet_repro.caffe.caffemodel import open_caffemodel, write_caffemodel
from ilgnet_repro.caffe.graph_build import build_graph
from ilgnet_repro.caffe.prototxt import format_message, parse_net
from ilgnet_repro.errors import GraphError
from ilgnet_repro.runtime.fold import fold
from ilgnet_repro.runtime.net import CaffeNet

INPUT = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 4 dim: 5 dim: 7 } } } '
CONV = (
    'layer {{ name: "c" type: "{type}" bottom: "x" top: "c" '
    "convolution_param {{ num_output: 6 kernel_size: 3 {more} }} }} "
)
DENSE = 'layer {{ name: "c" type: "InnerProduct" bottom: "x" top: "c" inner_product_param {{ num_output: 6 {more} }} }} '
SPLIT = 'layer { name: "s" type: "Split" bottom: "x" top: "s1" top: "s2" } '
NORM = 'layer { name: "bn" type: "BatchNorm" bottom: "c" top: "c" } '
SCALE = 'layer { name: "sc" type: "Scale" bottom: "c" top: "c" scale_param { bias_term: true } } '
APART = (
    'layer { name: "bn" type: "BatchNorm" bottom: "c" top: "n" } '
    'layer { name: "sc" type: "Scale" bottom: "n" top: "s" scale_param { bias_term: true } } '
)
RELU = 'layer { name: "r" type: "ReLU" bottom: "%s" top: "%s" } '
BIAS = 'layer { name: "bi" type: "Bias" bottom: "c" top: "c" } '
DROP = 'layer { name: "d" type: "Dropout" bottom: "%s" top: "%s" } '
FORK = (
    'layer { name: "bn" type: "BN" bottom: "c" top: "c" bn_param { slope_filler { type: "constant" value: 1 } '
    'bias_filler { type: "constant" value: 0 } frozen: true } } '
)

SHARED = CONV.format(type="Convolution", more="").replace(
    "convolution_param", 'param { name: "w" } convolution_param'
)

FOLDED = [  # text, layers folded, layers dropped, the outputs' names
    ("norm", CONV.format(type="Convolution", more="bias_term: false") + NORM, ["bn"], [], ["c"]),
    ("norm and scale", CONV.format(type="Convolution", more="") + NORM + SCALE, ["bn", "sc"], [], ["c"]),
    ("under other names", CONV.format(type="Convolution", more="") + APART + RELU % ("s", "s"), ["bn", "sc"], [], ["s"]),
    ("groups", CONV.format(type="Convolution", more="group: 2") + NORM + SCALE, ["bn", "sc"], [], ["c"]),
    ("by channel", CONV.format(type="ConvolutionDepthwise", more="") + NORM + SCALE, ["bn", "sc"], [], ["c"]),
    ("transposed", CONV.format(type="Deconvolution", more="group: 2") + NORM + SCALE, ["bn", "sc"], [], ["c"]),
    ("dense", DENSE.format(more="bias_term: false") + NORM + SCALE, ["bn", "sc"], [], ["c"]),
    ("dense, transposed", DENSE.format(more="transpose: true") + NORM + BIAS, ["bn", "bi"], [], ["c"]),
    ("a fork's BN", CONV.format(type="Convolution", more="") + FORK + SCALE, ["bn", "sc"], [], ["c"]),
    ("dropout in place", DENSE.format(more="") + DROP % ("c", "c") + RELU % ("c", "o"), [], ["d"], ["o"]),
    ("dropout", DENSE.format(more="") + DROP % ("c", "d") + RELU % ("d", "o"), [], ["d"], ["o"]),
    ("dropout twice", DENSE.format(more="") + DROP % ("c", "d") + (DROP % ("d", "e")).replace('name: "d"', 'name: "d2"')
     + RELU % ("e", "o"), [], ["d", "d2"], ["o"]),
    ("split", 'layer { name: "s" type: "Split" bottom: "x" top: "s1" top: "s2" } '
     'layer { name: "e" type: "Eltwise" bottom: "s1" bottom: "s2" top: "o" } ', [], ["s"], ["o"]),
    ("split, dropout in place, an output of it", SPLIT + DROP % ("s1", "s1") + RELU % ("s2", "o"), [], ["s"], ["o", "s1"]),
    ("split, dropout in place, read on", SPLIT + DROP % ("s1", "s1") + RELU % ("s2", "o")
     + (RELU % ("s1", "p")).replace('"r"', '"r2"'), [], ["s", "d"], ["o", "p"]),
    ("split, ReLU in place", SPLIT + RELU % ("s1", "s1") + DROP % ("s2", "o2") + (RELU % ("s1", "o")).replace('"r"', '"r2"'),
     [], [], ["o", "o2"]),
    ("split, ReLU in place, the other read before", SPLIT + (RELU % ("s2", "o")).replace('"r"', '"r2"')
     + RELU % ("s1", "s1"), [], ["s"], ["o", "s1"]),
]  # fmt: skip
NOT_FOLDED = [
    ("dropout that scales in phase TEST", DENSE.format(more="") + RELU % ("c", "c")
     + DROP.replace("type:", "dropout_param { scale_train: false } type:") % ("c", "o")),
    ("read by two", CONV.format(type="Convolution", more="") + APART + RELU % ("c", "o")),
    ("after a ReLU", CONV.format(type="Convolution", more="") + RELU % ("c", "c") + NORM),
    ("the batch's own statistics", CONV.format(type="Convolution", more="")
     + NORM.replace("}", "batch_norm_param { use_global_stats: false } }")),
    ("another axis", CONV.format(type="Convolution", more="")
     + SCALE.replace("bias_term", "axis: 2 num_axes: 1 bias_term")),
    ("two bottoms", INPUT.replace('"x"', '"y"').replace("dim: 4 dim: 5 dim: 7", "dim: 6")
     + CONV.format(type="Convolution", more="") + SCALE.replace('bottom: "c"', 'bottom: "c" bottom: "y"')
     .replace("bias_term: true", "axis: 0")),
    ("shared weights", SHARED + NORM + SHARED.replace('"c"', '"c2"')),
    ("an output dropped", DENSE.format(more="") + DROP % ("c", "d")),
    ("a dense layer over other axes", DENSE.format(more="axis: 2") + NORM),
]  # fmt: skip


def folded(text: str, inputs: str = INPUT):
    message = parse_net(inputs + text)
    net = drawn_net(message)
    arrays = {name: [blob.detach().numpy() for blob in blobs] for name, blobs in net.params.items()}
    return net, fold(net, message, arrays)


@pytest.mark.parametrize(
    ("text", "gone", "dropped", "outputs"), [row[1:] for row in FOLDED], ids=[row[0] for row in FOLDED]
)
def test_folded_nets_give_the_same_numbers(text, gone, dropped, outputs) -> None:
    net, result = folded(text)
    assert (list(result.folded), list(result.dropped)) == (gone, dropped)
    again = CaffeNet(result.graph, result.arrays)
    assert again.outputs == net.outputs == tuple(outputs)
    assert len(result.graph.layers) == len(net.graph.layers) - len(gone) - len(dropped)
    x = torch.randn(3, 4, 5, 7, generator=torch.Generator().manual_seed(2))
    for blob, wanted in net(x=x).items():
        torch.testing.assert_close(again(x=x)[blob], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("type_", ["Convolution3D", "Deconvolution3D"])
@pytest.mark.parametrize("bias", ["", "bias_term: false"])
def test_statistics_join_a_convolution_of_video(type_, bias) -> None:
    inputs = INPUT.replace("dim: 5 dim: 7", "dim: 3 dim: 5 dim: 7")
    text = (
        f'layer {{ name: "c" type: "{type_}" bottom: "x" top: "c" '
        f"convolution3d_param {{ num_output: 6 kernel_size: 3 kernel_depth: 2 {bias} }} "
        f"convolution_param {{ {bias} }} }} "
    )
    net, result = folded(text + NORM + SCALE, inputs)
    assert result.folded == ("bn", "sc")
    assert result.arrays["c"][1].shape == (1, 1, 1, 1, 6)
    x = torch.randn(2, 4, 3, 5, 7, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(
        CaffeNet(result.graph, result.arrays)(x=x)["c"], net(x=x)["c"], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("text", [row[1] for row in NOT_FOLDED], ids=[row[0] for row in NOT_FOLDED])
def test_values_that_other_layers_read_stay(text) -> None:
    net, result = folded(text)
    assert (result.folded, result.dropped) == ((), ())
    assert [node.name for node in result.graph] == [node.name for node in net.graph]


def test_a_name_used_again_is_refused() -> None:
    # Without the Dropout, the sum would read "c" after the in-place ReLU.
    text = DENSE.format(more="") + DROP % ("c", "d") + RELU % ("c", "c")
    text += 'layer { name: "e" type: "Eltwise" bottom: "c" bottom: "d" top: "o" }'
    with pytest.raises(
        GraphError, match=r"would read another blob once layers are folded.*without fold=True"
    ):
        folded(text)


def test_every_format_takes_a_folded_net(tmp_path) -> None:
    text = INPUT + CONV.format(type="Convolution", more="bias_term: false") + NORM + SCALE + RELU % ("c", "c")
    message = parse_net(text)
    net = drawn_net(message)
    arrays = {name: [blob.detach().numpy() for blob in blobs] for name, blobs in net.params.items()}
    write_caffemodel(tmp_path / "n.caffemodel", message, arrays)
    (tmp_path / "n.prototxt").write_text(format_message(message))
    out = tmp_path / "out"
    out.mkdir()
    report = ir.convert(
        tmp_path / "n.caffemodel", to=("safetensors", "onnx", "pt2", "python", "caffemodel"), out=out, verify=True,
        fold=True,
    )  # fmt: skip
    assert "2 layers folded into those before them, 0 dropped" in report.notes
    assert [check.is_equal for check in report.verified] == [True] * 5
    assert [layer.name for layer in open_caffemodel(out / "n.caffemodel").layers if layer.blobs] == ["c"]
    x = torch.randn(2, 4, 5, 7)
    again = ir.load_net(out / "n.prototxt", out / "n.caffemodel")
    np.testing.assert_allclose(again(x=x)["c"].detach(), net(x=x)["c"].detach(), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------- random nets

AFFINE = {
    "BatchNorm": "", "Scale": "scale_param { bias_term: true }", "Bias": "",
    "Dropout": "", "ReLU": "", "Power": "power_param { scale: 0.75 shift: 0.5 }",
}  # fmt: skip


def random_text(seed: int) -> str:
    """A net of layers that fold, do nothing or write in place; a blob is written in place if no layer has read it."""
    draw = random.Random(seed)
    lines, blobs, read = [INPUT], ["x"], set()
    for number in range(draw.randint(4, 11)):
        bottom, top = draw.choice(blobs[-3:]), f"t{number}"
        type_ = draw.choice(("Convolution", "Split", "Split", "Eltwise", *AFFINE, *AFFINE))
        if type_ == "Convolution":
            tops, more = [top], "convolution_param { num_output: 4 kernel_size: 1 }"
        elif type_ == "Split":
            tops, more = [top + "a", top + "b"], ""
        elif type_ == "Eltwise":
            tops, more = [top], ""
        else:
            tops, more = [bottom if bottom not in read and draw.random() < 0.6 else top], AFFINE[type_]
        bottoms = [bottom, draw.choice(blobs)] if type_ == "Eltwise" else [bottom]
        if draw.random() < 0.08 and type_ in ("Dropout", "Split", "BatchNorm"):
            more += f" loss_weight: 0.5 {'loss_weight: 0 ' if type_ == 'Split' else ''}"
        names = "".join(f' bottom: "{name}"' for name in bottoms) + "".join(
            f' top: "{name}"' for name in tops
        )
        lines.append(f'layer {{ name: "l{number}" type: "{type_}"{names} {more} }} ')
        read = (read | set(bottoms)) - set(tops)
        blobs += [name for name in tops if name not in blobs]
    return "".join(lines)


@pytest.mark.parametrize("seed", range(40))
def test_random_nets_fold_to_the_same_outputs(seed) -> None:
    message = parse_net(random_text(seed))
    net = drawn_net(message)
    arrays = {name: [blob.detach().numpy() for blob in blobs] for name, blobs in net.params.items()}
    result = fold(net, message, arrays)
    again = CaffeNet(build_graph(parse_net(format_message(result.net_text))), result.arrays)
    x = torch.randn(3, 4, 5, 7, generator=torch.Generator().manual_seed(seed))
    wanted, found = net.run({"x": x}), again.run({"x": x})
    assert list(found.blobs) == list(wanted.blobs)
    for blob, values in wanted.blobs.items():
        torch.testing.assert_close(found.blobs[blob], values, rtol=1e-4, atol=1e-4)
    assert (found.loss is None) == (wanted.loss is None)
    if wanted.loss is not None:
        torch.testing.assert_close(found.loss, wanted.loss, rtol=1e-4, atol=1e-3)
