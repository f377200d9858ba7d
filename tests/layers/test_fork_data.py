"""Data layers of forks: inputs with the tops they declare, and unknown types without bottoms."""

from __future__ import annotations

import pytest

import ilgnet_repro as ir
from ilgnet_repro.audit import audit
from ilgnet_repro.caffe.prototxt import parse_net
from ilgnet_repro.errors import LayerError

RESIZE = "transform_param { mean_value: 104 resize_param { resize_mode: WARP height: 30 width: 20 } }"
SIZE, LARGE = "new_height: 8 new_width: 6", "new_height: 17 new_width: 26"
BATCH = "data_param { batch_size: 4 }"


def dense(fields: str) -> str:
    return f"dense_image_data_param {{ batch_size: 3 {fields} }}"


def video(fields: str, crop: str = "transform_param { crop_size: 9 }") -> str:
    return f"{crop} video_data_param {{ batch_size: 2 {fields} }}"


def boxes(fields: str) -> str:
    return f"{RESIZE} {BATCH} annotated_data_param {{ {fields} }}"


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
    "crop of the transformation": ("AnnotatedData", 1, f"{RESIZE[:-1]} crop_h: 9 crop_w: 7 }} {BATCH}",
               {"t0": (4, 3, 9, 7)}),
    "the first of several sizes": ("AnnotatedData", 1,
               "transform_param { resize_param { height: 8 width: 6 } resize_param { height: 16 width: 12 } }" + BATCH,
               {"t0": (4, 3, 8, 6)}),
    "lanes": ("LaneData", 3, boxes("seg_scales: 8"),
               {"t0": (4, 3, 30, 20), "t1": (4, 5, 64, 3), "t2": (4, 1, 3, 2)}),
    "mask of a stated size": ("AnnotatedData", 3,
               boxes("seg_resize_width: 5 seg_resize_height: 7 seg_scales: 8"),
               {"t0": (4, 3, 30, 20), "t1": (1, 1, 1, 8), "t2": (4, 1, 7, 5)}),
    "pixels, a fraction": ("DenseImageData", 2, dense(f"{LARGE} label_divide_factor: 8"),
               {"t0": (3, 3, 17, 26), "t1": (3, 1, 2, 3)}),
    "pixels, gray, cropped": ("DenseImageData", 2,
               dense(f"crop_height: 9 crop_width: 7 {LARGE} is_color: false label_divide_factor: 8"),
               {"t0": (3, 1, 9, 7), "t1": (3, 1, 9, 7)}),
    "DeepLab's crop": ("ImageSegData", 3,
               "transform_param { crop_height: 9 crop_width: 7 } image_data_param { batch_size: 3 is_color: false }",
               {"t0": (3, 1, 9, 7), "t1": (3, 1, 9, 7), "t2": (3, 1, 1, 2)}),
    "video of SSD": ("VideoData", 2, f"{RESIZE} data_param {{ batch_size: 2 }} video_data_param {{ video_type: WEBCAM }}",
               {"t0": (2, 3, 30, 20), "t1": (2,)}),
    "video of TSN": ("VideoData", 2,
               video("new_length: 5 num_segments: 4 modality: RGB"),
               {"t0": (2, 60, 9, 9), "t1": (2, 1, 1, 1)}),
    "flow of TSN": ("VideoData", 2,
               video(f"new_length: 5 num_segments: 4 modality: FLOW {SIZE}", crop=""),
               {"t0": (2, 40, 8, 6), "t1": (2, 1, 1, 1)}),
    "clips of C3D": ("VideoData", 2, f"image_data_param {{ batch_size: 2 new_length: 16 {SIZE} crop_size: 5 }}",
               {"t0": (2, 3, 16, 5, 5), "t1": (2, 1, 1, 1, 1)}),
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


ASKED = "op ({}): the size of 't0' is known only from its source; give its shape (input_shapes={{'t0': (N, C, H, W)}})"
REFUSED = {
    "no size": ("AnnotatedData", 1, "data_param { batch_size: 2 }", ASKED.format("AnnotatedData")),
    "a size that keeps the image's ratio": (
        "AnnotatedData", 1, RESIZE.replace("WARP", "FIT_SMALL_SIZE") + BATCH, ASKED.format("AnnotatedData"),
    ),
    "no width": ("DenseImageData", 2, dense("crop_height: 9"), ASKED.format("DenseImageData")),
    "a factor of 0": (
        "DenseImageData", 2, dense(f"{SIZE} label_divide_factor: 0"),
        "op (DenseImageData): dense_image_data_param.label_divide_factor 0 must be an integer over 0",
    ),
    "a factor too large": (
        "DenseImageData", 2, dense(f"{SIZE} label_divide_factor: 7"),
        "op (DenseImageData): label_divide_factor 7 leaves nothing of an image of 8×6",
    ),
    "no modality": (
        "VideoData", 2, video("new_length: 1 num_segments: 3"),
        "op (VideoData): video_data_param.modality is missing; state RGB or FLOW",
    ),
    "no segments": (
        "VideoData", 2, video("new_length: 1 modality: RGB"),
        "op (VideoData): video_data_param.num_segments is missing; state an integer over 0",
    ),
    "clips of no known fork": (
        "VideoData", 2, video("new_length: 16 new_height: 12 new_width: 11"),
        "op (VideoData): several forks have a layer of this name with other tops, and the text shows none of them "
        "(data_param: SSD; num_segments and modality: TSN; image_data_param.new_length: C3D); give the shapes of t0 and t1 "
        "(input_shapes={'t0': (N, C, H, W), 't1': (N,)})",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("type_", "tops", "fields", "message"), REFUSED.values(), ids=REFUSED)
def test_what_the_text_does_not_show_is_asked_for(type_, tops, fields, message):
    with pytest.raises(LayerError) as caught:
        ir.load_net(parse_net(text(type_, tops, fields)))
    assert str(caught.value) == message


GIVEN = {
    "a label as large as the image": ("DenseImageData", "", {"t0": (2, 3, 9, 7)}, {"t1": (2, 1, 9, 7)}),
    "a label of its fraction": (
        "DenseImageData", "dense_image_data_param { label_divide_factor: 4 }", {"t0": (2, 3, 9, 7)}, {"t1": (2, 1, 2, 1)},
    ),
    "clips": ("VideoData", "image_data_param { new_length: 4 }", {"t0": (2, 3, 4, 9, 7)}, {"t1": (2, 1, 1, 1, 1)}),
    "both tops of an unknown fork": ("VideoData", "", {"t0": (2, 3, 4, 9, 7), "t1": (2,)}, {}),
}  # fmt: skip


@pytest.mark.parametrize(("type_", "fields", "given", "others"), GIVEN.values(), ids=GIVEN)
def test_the_label_follows_a_given_size(type_, fields, given, others):
    assert audit(parse_net(text(type_, 2, fields)), input_shapes=given).inputs == given | others


def test_v1_text_of_c3d():
    fields = f"image_data_param {{ batch_size: 2 new_length: 16 {SIZE} }}"
    net = parse_net(f'layers {{ name: "op" type: VIDEO_DATA top: "t0" top: "t1" {fields} }}')
    assert audit(net).inputs == {"t0": (2, 3, 16, 8, 6), "t1": (2, 1, 1, 1, 1)}
