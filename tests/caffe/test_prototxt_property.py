"""Any message of the schema is unchanged after writing and reading, and protobuf reads it equally."""

from __future__ import annotations

import math
import struct

from example_counts import examples
from google.protobuf import text_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from ilgnet_repro.caffe.prototxt import format_message, parse_message
from ilgnet_repro.schema import caffe_pb2

_SCALARS = {
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.TYPE_FLOAT: st.floats(width=32, allow_nan=False),
    FieldDescriptor.TYPE_DOUBLE: st.floats(allow_nan=False),
    FieldDescriptor.TYPE_STRING: st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=12),
}


@st.composite
def messages(draw: st.DrawFn, descriptor: Descriptor, depth: int = 0) -> Message:
    message = getattr(caffe_pb2, descriptor.name)()
    fields = [f for f in descriptor.fields if f.name != "fork_field"]
    required = [f for f in fields if f.name in ("min", "max") and descriptor.name == "ClipParameter"]
    chosen = draw(st.lists(st.sampled_from(fields), max_size=4, unique_by=lambda f: f.name))
    for field in {f.name: f for f in chosen + required}.values():
        target = getattr(message, field.name)
        if field.message_type is not None:
            if depth < 3:
                inner = draw(messages(field.message_type, depth + 1))
                if isinstance(target, Message):
                    target.CopyFrom(inner)
                else:
                    target.add().CopyFrom(inner)
            continue
        kind = _SCALARS.get(field.type)
        kind = kind if kind is not None else st.sampled_from([v.number for v in field.enum_type.values])
        if hasattr(target, "extend"):
            target.extend(draw(st.lists(kind, max_size=4)))
        else:
            setattr(message, field.name, draw(kind))
    return message


@settings(max_examples=examples(300), deadline=None)
@given(
    st.sampled_from(["NetParameter", "SolverParameter", "BlobProto", "Datum"]).flatmap(
        lambda name: messages(caffe_pb2.DESCRIPTOR.message_types_by_name[name])
    )
)
def test_written_and_read_again(message):
    text = format_message(message)
    assert parse_message(text, type(message)) == message
    assert text_format.Parse(text, type(message)()) == message


@settings(max_examples=examples(500), deadline=None)
@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_floats_are_written_in_the_fewest_digits(value):
    text = format_message(caffe_pb2.FillerParameter(value=value)).removeprefix("value: ").strip()
    assert struct.pack("<f", float(text)) == struct.pack("<f", value)
    digits = len(text.lstrip("-0.").split("e")[0].replace(".", ""))
    if digits > 6:  # one digit less is another number
        shorter = float(f"{value:.{digits - 2}e}")
        assert abs(shorter) > 3.4028235e38 or struct.pack("<f", shorter) != struct.pack("<f", value)


def test_nan_round_trips():
    message = caffe_pb2.FillerParameter(value=float("nan"))
    assert math.isnan(parse_message(format_message(message), caffe_pb2.FillerParameter).value)
