"""The generated module is that of caffe.proto, and caffe.proto is that of Caffe's own files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, unknown_fields

from ilgnet_repro.schema import caffe_pb2

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"


def compile_schema(out: Path, proto: Path, root: Path) -> descriptor_pb2.FileDescriptorProto:
    from grpc_tools import protoc

    code = protoc.main(["protoc", f"-I{root}", f"--descriptor_set_out={out}", str(proto)])
    assert code == 0
    return descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file[0]


def generated() -> descriptor_pb2.FileDescriptorProto:
    return descriptor_pb2.FileDescriptorProto.FromString(caffe_pb2.DESCRIPTOR.serialized_pb)


def comparable(file: descriptor_pb2.FileDescriptorProto) -> descriptor_pb2.FileDescriptorProto:
    """Without what depends on the version of protoc: JSON names, and the digits of a float default."""

    def normalise(message: descriptor_pb2.DescriptorProto) -> None:
        for field in message.field:
            field.ClearField("json_name")
            if field.type == field.TYPE_FLOAT and field.HasField("default_value"):
                field.default_value = str(np.float32(field.default_value))
        for nested in message.nested_type:
            normalise(nested)

    for message in file.message_type:
        normalise(message)
    return file


def test_generated_module_is_fresh(tmp_path):
    proto = ROOT / "ilgnet_repro" / "schema" / "caffe.proto"
    compiled = comparable(compile_schema(tmp_path / "set", proto, ROOT))
    assert comparable(generated()) == compiled


def test_a_changed_schema_is_noticed(tmp_path):
    proto = tmp_path / "ilgnet_repro" / "schema" / "caffe.proto"
    proto.parent.mkdir(parents=True)
    text = (ROOT / "ilgnet_repro" / "schema" / "caffe.proto").read_text()
    proto.write_text(
        text.replace("optional float dropout_ratio = 1 ", "optional float dropout_ratio = 2 ", 1)
    )
    compiled = comparable(compile_schema(tmp_path / "set", proto, tmp_path))
    assert comparable(generated()) != compiled


def unknown_numbers(message) -> list[str]:
    """Numbers that no field of the schema has, at any depth, as ``Message.number``."""
    found = [f"{message.DESCRIPTOR.name}.{f.field_number}" for f in unknown_fields.UnknownFieldSet(message)]
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            for inner in [value] if hasattr(value, "ListFields") else value:
                found += unknown_numbers(inner)
    return found


def recorded_files() -> list[tuple[type, bytes]]:
    files: list[tuple[type, bytes]] = []
    for path in sorted((GOLDEN / "layers").glob("*.npz")):
        with np.load(path) as case:
            if "caffemodel" in case:
                files.append((caffe_pb2.NetParameter, case["caffemodel"].tobytes()))
    pipeline = GOLDEN / "pipeline"
    files += [(caffe_pb2.NetParameter, p.read_bytes()) for p in sorted(pipeline.rglob("*.caffemodel"))]
    files += [(caffe_pb2.SolverState, p.read_bytes()) for p in sorted(pipeline.rglob("*.solverstate"))]
    files += [(caffe_pb2.BlobProto, p.read_bytes()) for p in sorted(pipeline.glob("*.binaryproto"))]
    return files


def test_files_of_caffe_hold_no_unknown_field_and_keep_their_bytes():
    files = recorded_files()
    assert len(files) > 150
    for message_class, data in files:
        message = message_class.FromString(data)
        assert unknown_numbers(message) == []
        assert message.SerializeToString(deterministic=True) == data


def test_an_unknown_field_is_noticed():
    layer = caffe_pb2.LayerParameter(name="x").SerializeToString() + b"\xaa\x4b\x00"  # field 1205
    net = caffe_pb2.NetParameter()
    net.layer.add().MergeFromString(layer)
    assert unknown_numbers(net) == ["LayerParameter.1205"]


# A sample of each generation and of the numbers a fork's file would read otherwise.  The recorded files
# do not use all of them; they were compared once with the descriptor inside the caffe2onnx 2.0.1 sdist.
FACTS = [
    ("LayerParameter", "embed_param", 137, None),
    ("LayerParameter", "input_param", 143, None),
    ("LayerParameter", "batch_norm_param", 139, None),
    ("LayerParameter", "clip_param", 148, None),
    ("ConvolutionParameter", "axis", 16, 1),
    ("ConvolutionParameter", "force_nd_im2col", 17, False),
    ("ConvolutionParameter", "dilation", 18, []),
    ("PoolingParameter", "round_mode", 13, 0),
    ("BatchNormParameter", "moving_average_fraction", 2, pytest.approx(0.999)),
    ("LRNParameter", "k", 5, 1.0),
    ("MVNParameter", "eps", 3, pytest.approx(1e-9)),
    ("SolverParameter", "solver_mode", 17, 1),
    ("SolverParameter", "delta", 31, pytest.approx(1e-8)),
    ("V1LayerParameter", "blobs_lr", 7, []),
    ("V1LayerParameter", "type", 5, 0),
    ("V0LayerParameter", "blobs", 50, []),
    ("BlobProto", "shape", 7, None),
    ("BlobProto", "double_data", 8, []),
    ("NetParameter", "layer", 100, []),
    ("NetParameter", "layers", 2, []),
]


@pytest.mark.parametrize(
    ("message", "field", "number", "default"), FACTS, ids=[f"{row[0]}.{row[1]}" for row in FACTS]
)
def test_number_and_default(message, field, number, default):
    descriptor = caffe_pb2.DESCRIPTOR.message_types_by_name[message].fields_by_name[field]
    assert descriptor.number == number
    assert descriptor.default_value == default
