"""The parser of the commands: an error is one line, and says which option a file that was given belongs to."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from ..errors import FormatError, did_you_mean, printable
from ._gflags import from_gflags

WRONG_OPTION = 2
_CHOICE = re.compile(r"invalid choice: '(.*)' \(choose from (.*)\)$")
_NAME = re.compile(r"[\w.-]+")


def _is_word(value: str) -> bool:
    return not Path(value).suffix and len(Path(value).parts) == 1 and not Path(value).exists()


class CommandParser(argparse.ArgumentParser):
    """An `ArgumentParser` whose errors are one line; its subparsers are of the same class.

    ``switches`` are the flags without a value of a command that takes its flags as Caffe's tools do (`from_gflags`).
    ``optional_values`` are the flags whose value, a plain word, may be left out before a file.
    """

    given: Sequence[str] = ()
    switches: Collection[str] | None = None
    optional_values: Collection[str] = ()
    remedy: str = ""  # for an option that is missing

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Remember the arguments, for the message of an error."""
        self.given = list(sys.argv[1:] if args is None else args)
        typed = self.given if self.switches is None else from_gflags(self.given, self.switches)
        for index, (flag, value) in enumerate(pairwise([*typed, "-"])):
            if flag in self.optional_values and not value.startswith("-") and not _is_word(value):
                typed = [*typed[:index], f"{flag}=", *typed[index + 1 :]]
        return super().parse_known_args(typed, namespace)

    def error(self, message: str) -> NoReturn:
        """Print what is wrong, and end with status 2."""
        if choice := _CHOICE.search(message):
            message += did_you_mean(choice[1], _NAME.findall(choice[2]))
        hints = list(dict.fromkeys(self._hints()))
        # The parser of all commands reports the options that a command does not know.
        command = self.given[:1] if message.startswith("unrecognized") else []
        remedy = self.remedy if message.startswith("the following arguments are required") else ""
        help_ = remedy or f"`{' '.join([self.prog, *command])} --help` lists what it takes"
        print(printable(f"{self.prog}: {message}; {'; '.join(hints) or help_}"), file=sys.stderr)
        sys.exit(WRONG_OPTION)

    def _command_parser(self) -> argparse.ArgumentParser:
        """The parser of the command that was given; unknown options are reported by the one of all commands."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction) and self.given[:1]:
                command: argparse.ArgumentParser = action.choices.get(self.given[0], self)
                return command
        return self

    def _hints(self) -> Iterator[str]:
        """Yield the option of each file that was given without one, by the kind of the file."""
        from ..caffe.kinds import Kind, kind_of

        weights = dict.fromkeys(
            (Kind.CAFFEMODEL, Kind.CAFFEMODEL_H5, Kind.SAFETENSORS, Kind.ONNX, Kind.PT2), ("--weights",)
        )
        options: dict[Kind, tuple[str, ...]] = {
            **weights,
            Kind.PROTOTXT: ("--prototxt", "--model"),
            Kind.SOLVER: ("--solver",),
            Kind.SOLVERSTATE: ("--resume", "--snapshot"),
            Kind.SOLVERSTATE_H5: ("--resume", "--snapshot"),
            Kind.BINARYPROTO: ("--mean-file", "--mean"),
            Kind.LMDB: ("--lmdb",),
        }
        own = self._command_parser()._option_string_actions
        stated = {text.partition("=")[0] for text in self.given}
        for before, text in zip(("", *self.given), self.given, strict=False):
            is_known = before.startswith("-") and before in own
            if text.startswith("-") and len(text) > 1 and text not in own and Path(text).exists():
                yield f"{text} is a file here: give it as ./{text}"
            if text.startswith("-") or is_known:
                continue
            try:
                kind = kind_of(text)
            except FormatError:
                continue
            for option in options.get(kind, ()):
                if option in own and not stated & set(own[option].option_strings):
                    yield f"{text} is {kind.value}: give it as {option} {text}"
