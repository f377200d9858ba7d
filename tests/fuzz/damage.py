"""Damage to files, and well-formed files with random content."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from google.protobuf.message import DecodeError, Message

from ilgnet_repro.caffe import wire
from ilgnet_repro.caffe.prototxt import format_message, parse_net, parse_solver
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.schema import caffe_pb2

_CLASSES: dict[str, type[Message]] = {
    "caffemodel": caffe_pb2.NetParameter,
    "binaryproto": caffe_pb2.BlobProto,
    "solverstate": caffe_pb2.SolverState,
}
# fmt: off
_WORDS = [
    "{", "}", "[", "]", "<", ">", ":", ",", ";", "-", '"', "'", "#", "\\", "1e999", "-1", "4294967296", "0x",
    "077", "18446744073709551616", "nan", "inf", "1.0f", "t", "layer", "layers", "type", "BN", "DATA",
    "CONVOLUTION",
    "param", "input", "input_dim", "input_shape", "shape", "dim", "fork_field", "include", "phase", "1.5",
    "true",
    "pad", '"\\xff"', '"\\n"', "padding", "clip_param", "blobs", "data", "\ufeff", "\x00", "\x85",
]
# fmt: on
_TOKEN = re.compile(r'"[^"\n]*"|\w+|\s+|.', re.DOTALL)


def damage_bytes(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """One damage that suits any file."""
    out = bytearray(data)
    place = rng.randrange(len(out) + 1)
    kind = rng.randrange(6)
    if kind == 0:
        for _ in range(rng.choice((1, 1, 2, 8))):
            if out:
                # mostly near the start, where the headers are
                out[rng.randrange(min(len(out), rng.choice((64, 512, len(out)))))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del out[place:]
    elif kind == 2:
        out[place:] = other[rng.randrange(len(other) + 1) :]
    elif kind == 3:
        out[place : place + rng.randrange(16)] = rng.randbytes(rng.randrange(12))
    elif kind == 4:
        out[place:place] = out[rng.randrange(len(out) + 1) :][: rng.randrange(200)]
    else:
        del out[place : place + rng.randrange(1, 64)]
    return bytes(out)


def damage_lengths(data: bytes, rng: random.Random) -> bytes:
    """Another number in place of a varint: a length, a dimension, a count, an enum."""
    spots = list(_varints(data, 0, len(data), 0))
    if not spots:
        return data
    start, stop = rng.choice(spots[:2000])
    number = rng.choice((0, 1, 2, 127, 128, 2**31 - 1, 2**31, 2**32, 2**63, 2**64 - 1, rng.randrange(4096)))
    return data[:start] + wire.encode_varint(number) + data[stop:]


def _varints(data: bytes, start: int, stop: int, depth: int) -> Iterator[tuple[int, int]]:
    try:
        for item in wire.fields(data, start, stop, "seed"):
            if item.wire == wire.VARINT:
                yield item.start, item.stop
            elif item.wire == wire.BYTES:
                yield item.tag + 1 + (data[item.tag] > 0x7F), item.start
                if depth < 4 and item.stop - item.start < 4096:
                    yield from _varints(data, item.start, item.stop, depth + 1)
    except IlgnetError:
        return  # the bytes were not a message


def damage_words(data: bytes, rng: random.Random) -> bytes:
    """Words of a text swapped, doubled, dropped or replaced."""
    words = _TOKEN.findall(data.decode("utf-8", "replace"))
    for _ in range(rng.choice((1, 1, 2, 4))):
        first, second = rng.randrange(len(words)), rng.randrange(len(words))
        kind = rng.randrange(5)
        if kind == 0:
            words[first], words[second] = words[second], words[first]
        elif kind == 1:
            words[first] = rng.choice(_WORDS)
        elif kind == 2:
            words.insert(first, rng.choice(_WORDS) + rng.choice(("", " ")))
        elif kind == 3:
            words[first] = rng.choice(
                ("", "{" * rng.choice((3, 300)), "a{" * 200, "9" * rng.choice((20, 6000)))
            )
        else:
            words[first] *= 2
    return "".join(words).encode("utf-8", "surrogateescape")


def damage_fields(kind: str, data: bytes, rng: random.Random) -> bytes:
    """A well-formed file with odd content: fields set, added and cleared at random places."""
    try:
        if kind in ("net", "solver"):
            message: Message = (parse_net if kind == "net" else parse_solver)(data.decode("utf-8", "replace"))
        else:
            message = _CLASSES[kind].FromString(data)
    except (IlgnetError, DecodeError):
        return data
    for _ in range(rng.randrange(1, 6)):
        _set_any_field(message, rng)
    text = kind in ("net", "solver")
    return format_message(message).encode() if text else message.SerializePartialToString()


def _set_any_field(message: Message, rng: random.Random) -> None:
    while True:  # a nested message
        inner = []
        for field, value in message.ListFields():
            if field.message_type is not None and field.name != "fork_field":
                inner.extend([value] if isinstance(value, Message) else value)
        if not inner or rng.random() < 0.25:
            break
        message = rng.choice(inner)
    fields = [field for field in message.DESCRIPTOR.fields if field.name != "fork_field"]
    field = rng.choice([field for field, _ in message.ListFields() if field in fields] or fields)
    field = rng.choice((field, rng.choice(fields)))
    if rng.random() < 0.2:
        message.ClearField(field.name)
        return
    target = getattr(message, field.name)
    if field.message_type is not None:
        if isinstance(target, Message):
            target.SetInParent()
        else:
            target.add()
        return
    if field.enum_type is not None:
        value: object = rng.choice(field.enum_type.values).number
    elif isinstance(field.default_value, (str, list)) and field.cpp_type == field.CPPTYPE_STRING:
        value = rng.choice([*_WORDS, "data", "a\nb", 'c"\\']) if field.type == field.TYPE_STRING else b"\x80"
    elif field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        value = rng.choice((0.0, -1.0, 1e-30, 3e38, float("inf"), float("nan"), 0.1))
    elif field.cpp_type == field.CPPTYPE_BOOL:
        value = rng.random() < 0.5
    else:
        low = 0 if field.cpp_type in (field.CPPTYPE_UINT32, field.CPPTYPE_UINT64) else -(2**31)
        value = rng.choice((low, 0, 1, 2, 3, 2**31 - 1, rng.randrange(300)))
    if hasattr(target, "append"):
        target.append(value)
    else:
        setattr(message, field.name, value)


def damaged(kind: str, pool: list[bytes], rng: random.Random) -> bytes:
    """A seed of ``kind`` with one to three damages."""
    data = rng.choice(pool)
    if rng.random() < 0.4:
        data = damage_fields(kind, data, rng)
        if rng.random() < 0.7:
            return data
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if kind in ("net", "solver") and data and rng.random() < 0.7:
            data = damage_words(data, rng)
        elif kind not in ("net", "solver") and rng.random() < 0.4:
            data = damage_lengths(data, rng)
        else:
            data = damage_bytes(data, rng.choice(pool), rng)
    return data
