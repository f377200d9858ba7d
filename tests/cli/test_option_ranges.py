"""Numbers that options take: each in a range that the error states."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import pytest

from ilgnet_repro.cli._options import Real, Whole
from ilgnet_repro.cli.main import build_parser, main

# The range of these is checked where it is known: by the Python API, in its words.
CHECKED = {"--size", "--resize", "--resize-height", "--resize-width", "--opset"}


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from parsers(child)


NUMBERS = [
    (parser.prog, action)
    for parser in parsers(build_parser())
    for action in parser._actions
    if action.type in (int, float) or isinstance(action.type, (Whole, Real))
]


@pytest.mark.parametrize(
    ("command", "option"),
    NUMBERS,
    ids=[f"{command} {[option.dest, *option.option_strings][-1]}" for command, option in NUMBERS],
)
def test_every_number_has_a_range(command, option) -> None:
    if CHECKED & set(option.option_strings):
        return
    assert isinstance(option.type, (Whole, Real))
    for text in ("nan", "inf", "-inf", "9" * 5000, "1e999", "", "x", "10000000000000000"):
        with pytest.raises(argparse.ArgumentTypeError):
            option.type(text) if not (
                isinstance(option.type, Real) and text == "10000000000000000"
            ) else option.type("nan")
    if option.default is not None and option.nargs is None:
        assert option.type(str(option.default)) == option.default


REFUSED = {
    "workers": (["mean", "db", "--workers", "-1"], "--workers: '-1': give an integer from 0 to 1024"),
    "huge": (["score", "x.png", "--batch=99999999999"], "--batch: '99999999999': give an integer from 1 to 65536"),
    "batch": (["convert", "x", "--batch=70000"], "--batch: '70000': give an integer from 1 to 65536"),
    "tolerance": (["compare", "a", "b", "--tolerance=nan"], "--tolerance: 'nan': give a number from 0 to 3.4e+38"),
    "delta": (["partition", "ava1", "AVA.txt", "--delta=inf"], "--delta: 'inf': give a number from 0 to 10"),
    "iterations": (["caffe", "test", "-model", "x", "-iterations", "0"],
                   "--iterations: '0': give an integer from 1 to 2147483647"),
    "level": (["audit", "x", "--level=-2147483649"],
              "--level: '-2147483649': give an integer from -2147483648 to 2147483647"),
    "escape": (["sheet", "x", "--seed=\x1b[31m"], r"--seed: '\\x1b[31m': give an integer from 0 to 4294967295"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_a_number_out_of_range(capsys, arguments, message) -> None:
    assert main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
