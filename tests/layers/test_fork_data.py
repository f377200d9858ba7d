"""Data layers of forks: inputs with the tops they declare, and unknown types without bottoms."""

from __future__ import annotations

import pytest

import ilgnet_repro as ir
from ilgnet_repro.audit import audit
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.errors import LayerError

RESIZE = "transform_param { mean_value: 104 resize_param { resize_mode: WARP height: 30 width: 20 } }"
FED = {
    "boxes": ("AnnotatedData", 2, f"{RESIZE} data_param {{ batch_size: 4 }} annotated_data_param {{ label_map_file: 'x' }}",
              {"t0": (4, 3, 30, 20), "t1": (1, 1, 1, 8)}),
    "boxes of YOLO": ("AnnotatedData", 2,
              f"{RESIZE} data_param {{ batch_size: 4 }} annotated_data_param {{ yolo_data_type : 1 }}",
              {"t0": (4, 3, 30, 20), "t1": (4, 1, 300, 5)}),
    "video": ("VideoData", 1, "transform_param { crop_size: 9 } data_param { batch_size: 2 } video_data_param { skip: 0 }",
              {"t0": (2, 3, 9, 9)}),
    "pixels": ("DenseImageData", 2, "dense_image_data_param { source: 'x' batch_size: 3 new_height: 8 new_width: 6 }",
               {"t0": (3, 3, 8, 6), "t1": (3, 1, 8, 6)}),
}  # fmt: skip


def text(type_: str, tops: int, fields: str) -> str:
    names = " ".join(f'top: "t{index}"' for index in range(tops))
    return f'layer {{ name: "op" type: "{type_}" {names} {fields} }}'


@pytest.mark.parametrize(("type_", "tops", "fields", "shapes"), FED.values(), ids=FED)
def test_declared_tops_are_inputs(type_, tops, fields, shapes):
    found = audit(parse_net(text(type_, tops, fields)))
    assert not found.problems
    assert found.inputs == shapes


def test_an_unknown_type_without_bottoms_is_fed():
    net = parse_net(text("FooData", 1, "foo_param { bar: 1 }"))
    assert audit(net, input_shapes={"t0": (2, 5)}).inputs == {"t0": (2, 5)}
    with pytest.raises(LayerError) as caught:
        ir.load_net(net)
    assert str(caught.value) == (
        "op (FooData): layer type is unknown; register a class for it (docs/layers.md) or, if it reads data, give the "
        "shapes of t0 (input_shapes={'t0': (N, C, H, W)})"
    )


def test_a_size_that_only_the_source_knows_is_asked_for():
    with pytest.raises(LayerError) as caught:
        ir.load_net(parse_net(text("AnnotatedData", 1, "data_param { batch_size: 2 }")))
    assert str(caught.value) == (
        "op (AnnotatedData): the size of 't0' is known only from its source; give its shape "
        "(input_shapes={'t0': (N, C, H, W)})"
    )
