"""The text reader: accepts what protobuf's own reader accepts, and refuses the rest with the position."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from google.protobuf import text_format

from ilgnet_repro.caffe.prototxt import format_message, parse_message, parse_net, read_net, read_solver
from ilgnet_repro.errors import FormatError, ParseError
from ilgnet_repro.schema import caffe_pb2

# Text that protobuf reads too: the expected message is protobuf's.
ACCEPTED = {
    "braces": 'layer { name: "a" type: "ReLU" }',
    "no space": 'layer{name:"a"relu_param{negative_slope:0.1}}',
    "angles": 'layer < name: "a" relu_param < negative_slope: .5 > >',
    "colon before brace": "input_shape: { dim: 1 dim: 3 }",
    "list of numbers": "input_dim: [1, 3, 227, 229]",
    "empty list": "input_dim: []",
    "list of messages": "input_shape [{dim: 1}, <dim: 2>]",
    "separators": 'name: "n"; input: "a", input: "b",',
    "comments": '# first\nname: "n" # "second" }\n#',
    "single quotes": "name: 'it\"s'",
    "joined strings": 'name: "a" \'b\'\n  "c"',
    "escapes": r'name: "\n\t\\\"\'\a\b\f\v\r\101\x41"',
    "utf-8": 'name: "文件 ä"',
    "octal escape of utf-8": r'name: "\303\244"',
    "hash in a string": 'name: "# no comment"',
    "carriage returns": 'name: "n"\r\ninput: "a"\r\n',
    "hexadecimal and octal": "input_dim: 0x1F input_dim: 017 input_dim: -0x10",
    "floats": "layer { loss_weight: 1. loss_weight: .5 loss_weight: 1e-4 loss_weight: [1.5f, -2E+3] }",
    "float extremes": "layer { loss_weight: inf loss_weight: -inf loss_weight: 1e30 loss_weight: 0 }",
    "int64": "input_shape { dim: -9223372036854775808 dim: 9223372036854775807 }",
    "bools": "layer { propagate_down: [true, false, True, False, t, f, 1, 0] }",
    "enum name": "state { phase: TEST }",
    "enum number": "layer { phase: 1 include { phase: 0 } }",
    "v1 enum": "layers { type: CONVOLUTION }",
    "required given": "layer { clip_param { min: -1 max: 1 } }",
    "empty": "",
    "only a comment": "# nothing",
}


@pytest.mark.parametrize("text", ACCEPTED.values(), ids=ACCEPTED)
def test_reads_as_protobuf(text):
    expected = text_format.Parse(text, caffe_pb2.NetParameter())
    assert parse_net(text) == expected
    assert parse_net(format_message(expected)) == expected
    assert text_format.Parse(format_message(expected), caffe_pb2.NetParameter()) == expected


# Text that Caffe's C++ reader accepts and the Python one does not.
CAFFE_ONLY = {
    "sign and space": ("input_dim: - 5", caffe_pb2.NetParameter(input_dim=[-5])),
    "characters by number": (r'name: "\u00e4\U0001F600"', caffe_pb2.NetParameter(name="ä😀")),
    "escaped question mark": (r'name: "\?"', caffe_pb2.NetParameter(name="?")),
}


@pytest.mark.parametrize(("text", "expected"), CAFFE_ONLY.values(), ids=CAFFE_ONLY)
def test_reads_as_caffe(text, expected):
    assert parse_net(text) == expected


def test_byte_order_mark_is_skipped(tmp_path):
    path = tmp_path / "n.prototxt"
    path.write_bytes(b'\xef\xbb\xbfname: "n" # \xff\xfe comment in another encoding\n')
    assert read_net(path).name == "n"


REFUSED = {
    "enum number": ("state { phase: 7 }", "1:16: phase: 7 is not a Phase; use TRAIN or TEST"),
    "enum number beyond 32 bits": (
        "state { phase: 4294967296 }",
        "1:16: phase: 4294967296 is not a Phase; use TRAIN or TEST",
    ),
    "quoted enum": ('state { phase: "TEST" }', '1:16: phase: "TEST" is not a Phase; use TRAIN or TEST'),
    "twice": ('name: "a"\nname: "b"', "2:1: name is given twice, first at line 1, column 1; keep one"),
    "message twice": (
        "layer { relu_param {} relu_param {} }",
        "1:23: relu_param is given twice, first at line 1, column 9; keep one",
    ),
    "list for a single": ("layer { phase: [TEST] }", "1:16: expected a value for phase, found [; write one"),
    "unsigned": ("layer { pooling_param { pad: -1 } }", "1:30: pad: -1 is out of range; use 0 to 4294967295"),
    "int32": (
        "input_dim: 2147483648",
        "1:12: input_dim: 2147483648 is out of range; use -2147483648 to 2147483647",
    ),
    "float for an int": ("input_dim: 1.5", "1:12: input_dim: 1.5 is not an integer; write one"),
    "name for an int": ("input_dim: many", "1:12: input_dim: many is not an integer; write one"),
    "octal that is none": ("input_dim: 09", "1:12: input_dim: 09 is not an integer; write one"),
    "hexadecimal float": (
        "layer { loss_weight: 0x1 }",
        "loss_weight: 0x1 is not a number; write one such as 0.5 or 1e-4",
    ),
    "string for a float": (
        'layer { loss_weight: "1" }',
        'loss_weight: "1" is not a number; write one such as 0.5 or 1e-4',
    ),
    "bool": ("force_backward: yes", "1:17: force_backward: yes is neither true nor false; write one of them"),
    "bare string": ("name: GoogleNet", '1:7: name: GoogleNet is not a string; put it in quotes: "GoogleNet"'),
    "V1 type in layer": (
        "layer { type: CONVOLUTION }",
        '1:15: type: CONVOLUTION is the spelling of `layers`; in `layer` write type: "Convolution"',
    ),
    "V2 type in layers": (
        'layers { type: "Convolution" }',
        '1:16: type: "Convolution" is the spelling of `layer`; '
        "write type: CONVOLUTION or call the layer `layer`",
    ),
    "V2 type with no V1 form": (
        'layers { type: "Scale" }',
        '1:16: type: "Scale" is the spelling of `layer`; write `layer` instead of `layers`',
    ),
    "V2 param in V1": (
        "layers { param { lr_mult: 1 } }",
        "1:16: expected : after param, found {; write param: VALUE",
    ),
    "required": (
        "layer { clip_param { min: 0 } }",
        "1:20: ClipParameter lacks its required field max; add it",
    ),
    "not closed": ('layer {\n name: "a"', "1:7: this bracket is never closed; add }"),
    "closed too often": ("layer { } }", "1:11: expected a field name, found }; check the brackets"),
    "wrong bracket": ("layer { >", "1:9: expected a field name, found >; check the brackets"),
    "no value": ("name:", "1:6: expected a value for name, found the end of the text; write one"),
    "no colon": ('name "n"', '1:6: expected : after name, found "n"; write name: VALUE'),
    "scalar for a message": ("layer: 3", "1:8: expected { after layer, found 3; layer contains fields"),
    "open list": ("input_dim: [1 2]", "1:15: expected , or ] in a list, found 2; close the list"),
    "open string": ('name: "abc\nlayer {}', '1:7: a string without its closing "; close it on its line'),
    "escape": (r'name: "C:\data"', r"1:7: name: unknown escape \d; write \\ for a backslash"),
    "character code": (
        r'name: "\U00110000"',
        r"1:7: name: \U00110000 is not a character; use one up to \U0010FFFF",
    ),
    "half a character": (r'name: "\377"', r'1:7: name: "\377" is not UTF-8 text; save the file as UTF-8'),
    "number and letters": ("input_dim: 3px", "1:12: 3p is not a number; add a space"),
    "character": ("name = 3", "1:6: unexpected character '='; remove it"),
    "C++ comment": ("// a net\nname: 'n'", "1:1: unexpected character '/'; a comment starts with #"),
    "C comment": ("name: 'n' /* a net */", "1:11: unexpected character '/'; a comment starts with #"),
    "plus": ("input_dim: +3", "1:12: unexpected character '+'; write the number without it"),
    "curly quotes": ("name: “n”", "1:7: unexpected character '“'; write \""),
    "wide colon": ("name： 'n'", "1:5: unexpected character '：'; write :"),
    "no-break space": ("name:\u00a0'n'", "1:6: unexpected character '\\xa0'; write a plain space"),
    "deep": ("a{" * 101 + "}" * 101, "nested deeper than 100 brackets; is this a prototxt?"),
    "too many messages": ("layer{}" * 250_001, "over 250,000 brackets; is this a prototxt?"),
    "long number": ("input_dim: " + "9" * 5000, "a number of 5,000 characters; use up to 256"),
    "unknown at the top of a message that keeps none": (None, "1:1: unknown field colour; remove it"),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_refuses(text, message):
    with pytest.raises(ParseError) as caught:
        if text is None:
            parse_message("colour: 1", caffe_pb2.FillerParameter)
        else:
            parse_net(text)
    assert message in str(caught.value)
    assert str(caught.value).startswith("<text>:")
    assert "\n" not in str(caught.value)


FILES = {
    "missing": (None, "cannot be read (No such file or directory); check the path"),
    "empty": (b"", "the file is empty; fetch it again"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a Git-LFS pointer"),
    "binary": (b"\n\x04net1\xa2\x06\x00", "is a Caffe weights file (.caffemodel), not a "),
    "unknown binary": (b"\0\1\2", "a binary file, not text; give the prototxt"),
    "utf-16": ('name: "n"'.encode("utf-16"), "text in UTF-16; save it as UTF-8"),
    "string not utf-8": (b'name: "\xd6\xd0"', "is not UTF-8 text; save the file as UTF-8"),
    "answer of a server": (
        b"404: Not Found",
        "x.prototxt: holds only '404: Not Found'; the server did not have the file; fetch it again",
    ),
    "link of Git": (
        b"../zoo/deploy.prototxt\n",
        "x.prototxt: holds only '../zoo/deploy.prototxt'; it is a link as Git stores it; give the file it names",
    ),
    "merge conflict": (
        b'name: "n"\n<<<<<<< HEAD\nlayer { name: "a" }\n=======\nlayer { name: "b" }\n>>>>>>> other\n',
        "x.prototxt: line 2 is the mark of a merge conflict; resolve it",
    ),
}


@pytest.mark.parametrize(("content", "message"), FILES.values(), ids=FILES)
@pytest.mark.parametrize("read", [read_net, read_solver])
def test_refuses_files(tmp_path, content, message, read):
    path = tmp_path / "x.prototxt"
    if content is not None:
        if read is read_solver:
            for encoding in ("utf-8", "utf-16-le"):
                content = content.replace("name".encode(encoding), "net".encode(encoding))
        path.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        read(path)
    assert message in str(caught.value)
    assert "x.prototxt" in str(caught.value)


def test_refuses_text_larger_than_any_net():
    with pytest.raises(ParseError, match="no prototxt has over"):
        parse_net("#" * (16 << 20) + "##")


def test_recorded_nets_are_read_as_caffe_read_them(golden):
    paths = sorted((golden / "layers").glob("*.npz"))
    assert len(paths) == 284
    for path in paths:
        with np.load(path) as case:
            text = str(case["prototxt"])
        expected = text_format.Parse(text, caffe_pb2.NetParameter())
        assert parse_net(text) == expected, path.name
        assert parse_net(format_message(expected)) == expected, path.name


def test_reading_is_linear_in_time():
    net = 'layer { name: "x" type: "ReLU" bottom: "a" top: "a" } # ' + "#" * 40 + "\n"
    assert len(parse_net(net * 2000).layer) == 2000
    for text in ("# " * 200_000, " \n" * 200_000 + "=", '"' + "\\a" * 100_000):
        with contextlib.suppress(ParseError):  # a pattern that backtracks would take hours here
            parse_net(text)
