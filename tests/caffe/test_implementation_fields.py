"""Fields of forks that choose an implementation: left out with a note; what changes a result stays refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from ilgnet_repro.audit import audit
from ilgnet_repro.caffe.prototxt import format_message, parse_net
from ilgnet_repro.caffe.upgrade import upgrade_net
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.reading.sources import ImageSource
from ilgnet_repro.runtime.load import load_graph, load_net

INPUT = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 5 dim: 4 } } }\n'
NOTE = "ignored, since it chooses an implementation in a fork of Caffe: "


def layer(type_: str, more: str, top: str = "y") -> str:
    return f'layer {{ name: "{top}" type: "{type_}" bottom: "x" top: "{top}" {more} }}\n'


def conv(more: str) -> str:
    return layer("Convolution", f"convolution_param {{ num_output: 2 kernel_size: 3 {more} }}")


# What Intel's and NVIDIA's texts state -> how the note names it.
PASSES = {
    "a layer's engine": (layer("ReLU", 'engine: "MKLDNN:CPU"'), "engine"),
    "engine of a message without one": (layer("Concat", "concat_param { engine: MKL2017 }"), "concat_param.engine"),
    "engine of an unknown message": (layer("Split", "split_param { engine: MKL2017 }"), "split_param.engine"),
    "engine of Eltwise": (layer("Eltwise", "eltwise_param { engine: MKLDNN }").replace('"x" top', '"x" bottom: "x" top'),
                          "eltwise_param.engine"),
    "engine of Dropout": (layer("Dropout", "dropout_param { engine: CAFFE }"), "dropout_param.engine"),
    "engine of InnerProduct": (layer("InnerProduct", "inner_product_param { num_output: 3 engine: MKLDNN }"),
                               "inner_product_param.engine"),
    "an engine that Caffe lacks": (conv("engine: MKL2017"), "convolution_param.engine"),
    "engine of BatchNorm": (layer("BatchNorm", "batch_norm_param { engine: CUDNN }"), "batch_norm_param.engine"),
    "algorithms": (conv('conv_algos_override: "1,-1,-1" cudnn_convolution_algo_seeker: GET cudnn_math_override: 0'),
                   "convolution_param.conv_algos_override, convolution_param.cudnn_convolution_algo_seeker, "
                   "convolution_param.cudnn_math_override"),
    "types": (layer("ReLU", "forward_type: FLOAT16 backward_type: FLOAT16 forward_math: FLOAT backward_math: FLOAT"),
              "backward_math, backward_type, forward_math, forward_type"),
    "of the net": ("default_forward_type: FLOAT16 default_conv_algos_override: \"0,0,0\" global_grad_scale: 1000\n"
                   "compile_net_state { bn_scale_merge: true is_init: false }\n" + layer("ReLU", ""),
                   "compile_net_state, default_conv_algos_override, default_forward_type, global_grad_scale"),
    "Intel's fillers": (layer("BatchNorm", "batch_norm_param { filler { value: 1 } bias_filler { value: 0 } }"),
                        "batch_norm_param.filler"),
    "a filler of one field": (layer("BatchNorm", "batch_norm_param { filler {} }"), "batch_norm_param.filler"),
    "two layers": (layer("ReLU", "engine: \"CAFFE\"", "r") + layer("TanH", "engine: \"CAFFE\"", "t"), "engine (2 layers)"),
    "V1": ('layers { name: "c" type: CONVOLUTION bottom: "x" top: "c" convolution_param { num_output: 2 kernel_size: 3 '
           "engine: CUDNN_NHWC } }", "convolution_param.engine"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "named"), PASSES.values(), ids=PASSES)
def test_left_out_with_a_note(text: str, named: str) -> None:
    is_v1 = "layers {" in text
    net = parse_net(('input: "x" input_dim: [2, 3, 5, 4]\n' if is_v1 else INPUT) + text)
    found = audit(net)
    assert found.problems == ()
    assert NOTE + named in found.upgrades
    graph = load_graph(net)
    assert not any(node.layer.fork_field for node in graph)
    # The text that is written has none of them, so that Caffe 1.0 reads it.
    assert "MKL" not in format_message(graph.text)


INT8 = layer("ReLU", "quantization_param { bw_layer_in: 8 scale_in: 2.5 }")
RISTRETTO = layer("ReLU", "quantization_param { precision: MINIFLOAT mant_bits: 2 }")


def test_intels_int8_has_no_effect_in_phase_train() -> None:
    note = "ignored in phase TRAIN, since Intel's Caffe reads it in phase TEST only: quantization_param"
    found = audit(parse_net(INPUT + INT8), phase="TRAIN")
    assert found.problems == () and note in found.upgrades
    net = load_net(parse_net(INPUT + INT8 + INT8.replace('"y"', '"z"')), phase="TRAIN")
    assert f"{note} (2 layers)" in net.about.notes
    assert "quantization" not in format_message(net.graph.text)
    for text, phase in ((INT8, "TEST"), (RISTRETTO, "TRAIN"), (RISTRETTO, "TEST")):
        with pytest.raises(
            IlgnetError, match=r"y \(ReLU\): field quantization_param.*ignore_fields=\['quantization_param'\]"
        ):
            load_net(parse_net(INPUT + text), phase=phase)


def test_intel_and_nvidia_batchnorm_differ_in_their_blobs() -> None:
    """Intel's `filler` shows whose `bias_filler` it is: alone it is NVIDIA's, whose layer has five blobs."""
    for fields, blobs in (("filler {} bias_filler { value: 1 }", 7), ("bias_filler { value: 1 }", 13)):
        net = parse_net(INPUT + layer("BatchNorm", f"batch_norm_param {{ {fields} }}"))
        assert audit(net).parameters == blobs


REFUSED = {
    "a fused ReLU": (conv("relu: true"), "y (Convolution): field convolution_param.relu (line 2, column 109) is unknown"),
    "statistics of a smaller batch": (
        layer("BatchNorm", "batch_norm_param { statistics_batch_size: 2 }"),
        "y (BatchNorm): field batch_norm_param.statistics_batch_size (line 2, column 77) is unknown",
    ),
    "int8": (
        layer("ReLU", "quantization_param { bw_layer_in: 8 }"),
        "y (ReLU): field quantization_param.bw_layer_in (line 2, column 74) is unknown",
    ),
    "a misspelt engine": (conv("enigne: CAFFE"), "y (Convolution): field convolution_param.enigne (line 2, column 109) is"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_what_may_change_a_result_is_refused(text: str, message: str) -> None:
    with pytest.raises(IlgnetError) as caught:
        load_net(parse_net(INPUT + text))
    assert str(caught.value).startswith(message)


# ---------------------------------------------------------------------- net-level inputs

READ_AS_CAFFE = {
    "input beside an Input layer": (
        'input: "x"\n' + INPUT,
        "net-level input x has no shape and a layer writes it; left out, as in Caffe",
        [["x"]],
    ),
    "one of two": (
        'input: "w" input: "x"\n' + INPUT,
        "net-level input x has no shape and a layer writes it; left out, as in Caffe",
        [["w"], ["x"]],
    ),
    "both kinds of shape": (
        'input: "x" input_shape { dim: 2 dim: 3 dim: 5 dim: 4 } input_dim: [1, 2, 3, 4]',
        "net-level input_shape and input_dim are both given; Caffe reads input_shape",
        [["x"]],
    ),
    "a size without input": (
        "input_dim: [1, 2, 3, 4]\n" + INPUT,
        "net-level input_dim without input is not read; x states its own shape",
        [["x"]],
    ),
}


@pytest.mark.parametrize(("text", "note", "tops"), READ_AS_CAFFE.values(), ids=READ_AS_CAFFE)
def test_inputs_are_read_as_in_caffe(text: str, note: str, tops: list[list[str]]) -> None:
    notes: list[str] = []
    net = upgrade_net(parse_net(text + layer("ReLU", "")), notes)
    assert note in notes
    assert [list(one.top) for one in net.layer if one.type == "Input"] == tops
    (shape,) = [one.input_param.shape[0].dim for one in net.layer if list(one.top) == ["x"]]
    assert list(shape) == [2, 3, 5, 4]


def test_an_input_with_a_shape_beside_an_input_layer_is_written_twice() -> None:
    with pytest.raises(IlgnetError, match=r"x \(Input\): top 'x' is already written by another layer"):
        load_graph(parse_net('input: "x" input_dim: [2, 3, 5, 4]\n' + INPUT + layer("ReLU", "")))


# ---------------------------------------------------------------------- V1 types of forks, transformations


def test_a_v1_type_that_nobody_knows_is_reported_as_a_layer() -> None:
    text = 'input: "x" input_dim: [2, 3, 5, 4]\nlayers { name: "c" type: CONVOLUTON bottom: "x" top: "c" }'
    assert audit(parse_net(text)).problems == (
        "c (CONVOLUTON): layer type is unknown (did you mean CONVOLUTION?); register a class for it (docs/layers.md)",
    )


def test_transformations_of_forks_do_not_matter_to_a_net_that_is_fed() -> None:
    text = (
        'layer { name: "x" type: "Data" top: "x" data_param { batch_size: 2 source: "s" }\n'
        "transform_param { crop_size: 4 distort_param { hue_prob: 0.5 } noise_param { prob: 1 } } }"
        + layer("ReLU", "")
    )
    found = audit(parse_net(text))
    assert found.problems == ()
    note = "transform_param.distort_param, transform_param.noise_param: a fork's, not applied to what the caller feeds"
    assert note in found.layers[0].note
    node = next(iter(load_graph(parse_net(text))))
    with pytest.raises(IlgnetError) as caught:  # a row of its database would be transformed
        ImageSource(node, Path(), ())
    place = "x (Data): field transform_param.distort_param.hue_prob (line 2, column 48) is unknown to Caffe"
    assert str(caught.value).startswith(place)
