"""Detects the kind of a file by its content, whatever its suffix.

Only what is needed is read: signatures, the top level of a protobuf message (values are skipped by their length),
the names in an archive's directory, the first field names of a text. Every length in a file is checked.
"""

from __future__ import annotations

import codecs
import enum
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ..errors import FormatError, ParseError
from ..files import map_file
from ..schema import caffe_pb2
from . import wire
from .tokens import END, MARK, NAME, STRING, Tokens


class Kind(enum.Enum):
    """A kind of file; the value is what a message calls it."""

    CAFFEMODEL = "a Caffe weights file (.caffemodel)"
    CAFFEMODEL_H5 = "a Caffe weights file in HDF5 (.caffemodel.h5)"
    SAFETENSORS = "a safetensors file"
    ONNX = "an ONNX model"
    PT2 = "an exported PyTorch program (.pt2)"
    SOLVERSTATE = "a solver state (.solverstate)"
    SOLVERSTATE_H5 = "a solver state in HDF5 (.solverstate.h5)"
    BINARYPROTO = "a mean file (.binaryproto)"
    NPY = "a NumPy array (.npy)"
    PROTOTXT = "a net's prototxt"
    SOLVER = "a solver's prototxt"
    PYTHON = "Python source"
    LMDB = "an LMDB database"
    # Kinds that are only refused.
    EMPTY = "an empty file"
    LFS_POINTER = "a Git-LFS pointer"
    HTML = "a web page (HTML)"
    XML = "an XML page"
    JSON = "a JSON page"
    LABEL_MAP = "a label map"
    TEXT = "text"
    TORCH = "a PyTorch checkpoint, a pickle"
    PICKLE = "a Python pickle"
    NPZ = "a file of NumPy arrays (.npz)"
    HDF5 = "an HDF5 file without Caffe's weights or solver state"
    TENSORFLOW = "a TensorFlow graph (.pb)"
    TFLITE = "a TensorFlow Lite model"
    OPENVINO = "an OpenVINO model (.xml)"
    COREML = "a Core ML package (.mlpackage)"
    ZIP = "a zip archive"
    TAR = "a tar archive"
    GZIP = "a gzip archive"
    BZIP2 = "a bzip2 archive"
    XZ = "an xz archive"
    ZSTD = "a Zstandard archive"
    SEVEN_ZIP = "a 7z archive"
    RAR = "a RAR archive"
    PNG = "a PNG image"
    JPEG = "a JPEG image"
    GIF = "a GIF image"
    BMP = "a BMP image"
    TIFF = "a TIFF image"
    WEBP = "a WebP image"
    PDF = "a PDF document"
    ELF = "a compiled program or library"
    UNKNOWN = "a damaged or unknown file"


HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_TORCH_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # of torch.save before its zip form
_SIGNATURES = (
    (0, b"PK\x03\x04", Kind.ZIP), (0, b"PK\x05\x06", Kind.ZIP), (0, b"PK\x07\x08", Kind.ZIP),
    (0, HDF5_SIGNATURE, Kind.HDF5), (0, b"\x93NUMPY", Kind.NPY), (0, _TORCH_MAGIC, Kind.TORCH),
    *((0, b"\x80" + bytes((protocol,)), Kind.PICKLE) for protocol in range(2, 6)),
    *((0, start, Kind.PICKLE) for start in (b"(dp", b"(lp", b"ccopy_reg\n", b"cnumpy")),
    (0, b"\x1f\x8b", Kind.GZIP), (0, b"BZh", Kind.BZIP2), (0, b"\xfd7zXZ\0", Kind.XZ),
    (0, b"\x28\xb5\x2f\xfd", Kind.ZSTD), (0, b"7z\xbc\xaf\x27\x1c", Kind.SEVEN_ZIP), (0, b"Rar!\x1a\x07", Kind.RAR),
    (257, b"ustar", Kind.TAR), (0, b"\x89PNG\r\n\x1a\n", Kind.PNG), (0, b"\xff\xd8\xff", Kind.JPEG),
    (0, b"GIF87a", Kind.GIF), (0, b"GIF89a", Kind.GIF), (0, b"II*\0", Kind.TIFF), (0, b"MM\0*", Kind.TIFF),
    (0, b"%PDF-", Kind.PDF), (0, b"\x7fELF", Kind.ELF), (4, b"TFL3", Kind.TFLITE),
    (16, b"\xde\xc0\xef\xbe", Kind.LMDB),
)  # fmt: skip

_HEAD = 1024
_TEXT_HEAD = 1 << 18
_MAX_FIELDS = 4096
_MAX_TOKENS = 20_000
_MAX_SHAPE = 512  # bytes of a BlobShape: 32 axes of a varint each
_MAX_SAFETENSORS_HEADER = 100_000_000  # the format's own limit
_ZIP_TAIL = 1 << 20
_MAX_MEMBERS = 10_000
_MAX_MEMBER_NAME = 256

_TEXT_BYTES = b"\t\n\v\f\r" + bytes(range(0x20, 0x100))
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
_LFS = "version https://git-lfs"
_BLANKS = re.compile(r"\s*")
_BLANKS_AND_COMMENTS = re.compile(r"\s+|#[^\n]*")
_HTML = re.compile(r"<(?:!doctype\s+html|html|head|body|meta|script)\b", re.IGNORECASE)
_XML = re.compile(r"<[?!A-Za-z]")
_OPENVINO = re.compile(r"(?:<\?xml[^>]{0,200}\?>\s{0,20})?<net\s+name=")
_JSON = re.compile(r'\{\s*["}]|\[\s*[\[\]{"\d-]')
_PYTHON = re.compile(
    r"\"\"\"|'''|import [A-Za-z_]|from [\w.]+ import\b|(?:async )?def \w+\(|class \w+[(:]|@\w"
)
_PYTHON_SCRIPT = re.compile(r"#!.*python")
_NET_FIELDS = frozenset(caffe_pb2.NetParameter.DESCRIPTOR.fields_by_name)
_SOLVER_FIELDS = frozenset(caffe_pb2.SolverParameter.DESCRIPTOR.fields_by_name)


def kind_of(path: str | os.PathLike[str]) -> Kind:
    """Return the kind of a file, by its content only.

    A damaged file has the kind that its beginning shows, or UNKNOWN. Raises FormatError for a path that cannot be read, and
    for HDF5 without h5py.
    """
    if os.path.isdir(path) and os.path.isfile(os.path.join(path, "data.mdb")):
        return Kind.LMDB
    if os.path.isfile(os.path.join(path, "Manifest.json")) and os.path.isdir(os.path.join(path, "Data")):
        return Kind.COREML
    try:
        if os.path.isfile(path) and not os.path.getsize(path):
            return Kind.EMPTY
    except OSError:  # deleted meanwhile; map_file reports it
        pass
    buffer = map_file(path)
    kind = _kind_of_bytes(buffer)
    return _hdf5_kind(path) if kind is Kind.HDF5 else kind


def looks_like_text(head: bytes) -> bool:
    """Return whether bytes have no control characters except white space; binary protobuf always has some."""
    return bool(head) and not head.translate(None, _TEXT_BYTES)


def encoding_of(head: bytes) -> str:
    """Return the encoding of the byte order mark; UTF-8 without one."""
    return next((encoding for mark, encoding in _BOMS if head.startswith(mark)), "utf-8")


def _kind_of_bytes(buffer: memoryview) -> Kind:
    """Return the kind; any HDF5 file is HDF5."""
    head = bytes(buffer[:_HEAD])
    is_text = looks_like_text(head) or encoding_of(head) in ("utf-16", "utf-32")
    # Complete messages first: their first bytes (a net's name) may match any signature.
    message, is_whole = _protobuf_kind(buffer)
    if message and is_whole and not (message is Kind.BINARYPROTO and is_text):
        return message
    # Before the signatures: the length of the header (640 bytes: 80 02) may look like a pickle or an archive.
    if head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= _MAX_SAFETENSORS_HEADER:
        return Kind.SAFETENSORS
    for offset, signature, kind in _SIGNATURES:
        if head.startswith(signature, offset):
            return _zip_kind(buffer) if kind is Kind.ZIP else kind
    if head[:2] == b"BM" and head[6:10] == b"\0\0\0\0":
        return Kind.BMP
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return Kind.WEBP
    if is_text:
        return _text_kind(bytes(buffer[:_TEXT_HEAD]))
    return message or Kind.UNKNOWN


# ---------------------------------------------------------------------- protobuf


def _protobuf_kind(buffer: memoryview) -> tuple[Kind | None, bool]:
    """Return the kind of message by its top level, and whether all fields read were valid."""
    found: Counter[tuple[int, int]] = Counter()
    has_shape = False
    position = 0
    try:
        for item in wire.fields(buffer, 0, len(buffer), ""):
            found[item.number, item.wire] += 1
            position = item.stop
            if (item.number, item.wire) == (7, wire.BYTES):
                has_shape = has_shape or _is_shape(buffer, item)
            is_layer = (item.number, item.wire) == (100, wire.BYTES)
            if is_layer or found.total() == _MAX_FIELDS:
                break
    except FormatError:
        try:  # a truncated field still has its number
            key, _ = wire.read_varint(buffer, position, len(buffer), "")
            found[key >> 3, key & 7] += 1
        except FormatError:
            pass
        return _message_kind(found, has_shape), False
    return _message_kind(found, has_shape), True


def _message_kind(found: Counter[tuple[int, int]], has_shape: bool) -> Kind | None:
    varints = {number for number, kind in found if kind == wire.VARINT}
    chunks = {number for number, kind in found if kind == wire.BYTES}
    if 100 in chunks and 1 not in varints:
        return Kind.CAFFEMODEL
    if not chunks & {1, 2, 3, 4}:  # these fields of BlobProto are numbers
        # No other kind has unpacked values in these fields.
        if 5 in chunks or (5, wire.FIXED32) in found or (8, wire.FIXED64) in found:
            return Kind.BINARYPROTO
        if chunks & {8, 12} and (has_shape or varints & {2, 3, 4}):
            return Kind.BINARYPROTO
        if 6 in chunks and {4, 5} <= varints:  # C3D's BlobProto has five dimensions
            return Kind.BINARYPROTO
    if 7 in chunks and not has_shape and not varints & {2, 3, 4} and (1 in varints or 8 in chunks):
        return Kind.ONNX
    if 1 in varints:
        is_state = chunks & {2, 3} and all(number <= 4 for number, _ in found)
        return Kind.SOLVERSTATE if is_state else None
    if found[1, wire.BYTES] > 1 and 4 in chunks:
        return Kind.TENSORFLOW
    return Kind.CAFFEMODEL if 2 in chunks else None


def _is_shape(buffer: memoryview, item: wire.Field) -> bool:
    """Return whether a field is a BlobShape, which has only dimensions, rather than ONNX's graph."""
    if item.stop - item.start > _MAX_SHAPE:
        return False
    try:
        for inner in wire.fields(buffer, item.start, item.stop, ""):
            if inner.number != 1 or inner.wire not in (wire.VARINT, wire.BYTES):
                return False
            position = inner.start
            while position < inner.stop:
                _, position = wire.read_varint(buffer, position, inner.stop, "")
    except FormatError:
        return False
    return True


# ---------------------------------------------------------------------- archives


def _hdf5_kind(path: str | os.PathLike[str]) -> Kind:
    """Return the kind by its groups: weights have /data, solver states /history, /iter and /learned_net."""
    try:
        import h5py
    except ImportError as error:
        raise FormatError(
            f"{Path(path).name}: HDF5 weights need h5py; pip install 'ilgnet_repro[hdf5]'"
        ) from error

    try:
        with h5py.File(path, "r") as file:
            kinds = {
                name: file.get(name, getclass=True)
                for name in ("data", "history", "iter", "learned_net")
                if isinstance(file.get(name, getlink=True), h5py.HardLink)
            }
    except (OSError, RuntimeError, KeyError, ValueError, TypeError):
        return Kind.HDF5  # damaged
    if {kinds.get("iter"), kinds.get("learned_net")} == {h5py.Dataset} or kinds.get("history") is h5py.Group:
        return Kind.SOLVERSTATE_H5
    return Kind.CAFFEMODEL_H5 if kinds.get("data") is h5py.Group else Kind.HDF5


def _zip_kind(buffer: memoryview) -> Kind:
    names = list(_member_names(buffer))
    bases = {name.rpartition(b"/")[2] for name in names}
    if b"serialized_exported_program.json" in bases or any(
        name.endswith((b"/archive_format", b"/models/model.json")) for name in names
    ):
        return Kind.PT2
    if bases & {b"data.pkl", b"constants.pkl"}:
        return Kind.TORCH
    if names and all(name.endswith(b".npy") for name in names):
        return Kind.NPZ
    return Kind.ZIP


def _member_names(buffer: memoryview) -> Iterator[bytes]:
    """Yield the name of the first member and those in the directory at the end, without following offsets or sizes."""
    head = bytes(buffer[:_HEAD])
    if head.startswith(b"PK\x03\x04"):
        yield head[30:][: _name_length(head, 26)]
    tail = bytes(buffer[-_ZIP_TAIL:])
    position = 0
    for _ in range(_MAX_MEMBERS):
        position = tail.find(b"PK\x01\x02", position)
        if position < 0:
            return
        start = position + 46
        yield tail[start : start + _name_length(tail, position + 28)]
        position = start


def _name_length(data: bytes, offset: int) -> int:
    return min(int.from_bytes(data[offset : offset + 2], "little"), _MAX_MEMBER_NAME)


# ---------------------------------------------------------------------- text


def _text_kind(data: bytes) -> Kind:
    text = data.decode(encoding_of(data), errors="replace")
    if text.startswith(_LFS):
        return Kind.LFS_POINTER
    start = _after(_BLANKS, text, 0)
    if _XML.match(text, start):
        while text.startswith("<!--", start):
            end = text.find("-->", start)
            start = _after(_BLANKS, text, end + 3) if end >= 0 else len(text)
        if _OPENVINO.match(text, start):
            return Kind.OPENVINO
        return Kind.HTML if _HTML.search(text, start, start + _HEAD) else Kind.XML
    if _JSON.match(text, start):
        return Kind.JSON
    if _PYTHON_SCRIPT.match(text) or _PYTHON.match(text, _after(_BLANKS_AND_COMMENTS, text, 0)):
        return Kind.PYTHON
    return _prototxt_kind(text)


def _after(pattern: re.Pattern[str], text: str, start: int) -> int:
    """Return the end of consecutive matches from ``start``; a loop, because repetition in a pattern takes memory."""
    while (match := pattern.match(text, start)) and match.end() > start:
        start = match.end()
    return start


def _prototxt_kind(text: str) -> Kind:
    names = set()
    for name in _field_names(text):
        names.add(name)
        if name in ("layer", "layers"):
            return Kind.PROTOTXT
    if names & (_SOLVER_FIELDS - _NET_FIELDS):
        return Kind.SOLVER
    if names & _NET_FIELDS:
        return Kind.PROTOTXT
    return Kind.LABEL_MAP if names == {"item"} else Kind.TEXT


def _field_names(text: str) -> Iterator[str]:
    """Yield the names of a text's top-level fields, up to the first syntax error."""
    try:
        tokens = _Capped(text, "")
        while tokens.kind == NAME:
            name = tokens.text
            tokens.advance()
            if not tokens.is_mark(":{<"):
                return
            yield name
            if tokens.is_mark(":"):
                tokens.advance()
            tokens.skip_value()
            if tokens.is_mark(",;"):
                tokens.advance()
    except ParseError:
        return


class _Capped(Tokens):
    """Tokens limited to `_MAX_TOKENS`."""

    left = _MAX_TOKENS

    def advance(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise self.error("too long")
        super().advance()

    def is_mark(self, marks: str) -> bool:
        """Return whether the current token is one of these characters."""
        return self.kind == MARK and self.text in marks

    def skip_value(self) -> None:
        """Skip a number, word or string, or a whole block."""
        if self.is_mark("-"):
            self.advance()
        depth = 0
        while True:
            if self.is_mark("{<["):
                depth += 1
            elif self.is_mark("}>]"):
                depth -= 1
            is_string = self.kind == STRING
            if self.kind == END:
                return
            self.advance()
            if depth <= 0 and not (is_string and self.kind == STRING):
                return
