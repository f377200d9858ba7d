"""Runs a script written for pycaffe, as it is: `import caffe` in it, and in what it imports, leads to this package."""

from __future__ import annotations

import os
import runpy
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..errors import IlgnetError, printable_lines
from . import alias
from .failures import Failure


def run_script(path: str, arguments: Sequence[str] = ()) -> int:
    """Run a script as ``python PATH ARGUMENTS`` would, and return its exit status."""
    if not os.path.isfile(path):
        raise Failure(f"{path}: no such script; check the path")
    return _run([path, *arguments], os.path.dirname(os.path.abspath(path)), is_module=False)


def run_module(name: str, arguments: Sequence[str] = ()) -> int:
    """Run a module as ``python -m NAME ARGUMENTS`` would, such as a test runner, and return its exit status."""
    return _run([name, *arguments], os.getcwd(), is_module=True)


def _run(command: Sequence[str], folder: str, *, is_module: bool) -> int:
    with alias.installed(), _arguments(command, folder):
        try:
            if is_module:
                runpy.run_module(command[0], run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(command[0], run_name="__main__")
        except SystemExit as stop:
            if stop.code is None or isinstance(stop.code, int):
                return stop.code or 0
            print(stop.code, file=sys.stderr)
            return 1
        except IlgnetError as error:
            raise Failure(f"{_line_of(error, folder)}{error}") from error
        except (KeyboardInterrupt, BrokenPipeError):
            raise
        except BaseException as error:
            _print(error)
            return 1
    return 0


@contextmanager
def _arguments(command: Sequence[str], folder: str) -> Iterator[None]:
    """Set the arguments and the folder of modules as Python does for a script, and restore them."""
    arguments, path = sys.argv, list(sys.path)
    sys.argv = list(command)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.argv, sys.path[:] = arguments, path


def _print(error: BaseException) -> None:
    """Print a traceback as Python does, of the script's own lines."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_ours(frame.filename)]
    lines = [
        "Traceback (most recent call last):\n",
        *traceback.format_list(own),
        *traceback.format_exception_only(error),
    ]
    print(printable_lines("".join(lines)), end="", file=sys.stderr)


def _is_ours(file: str) -> bool:
    return file == __file__ or file.startswith("<frozen runpy")


def _line_of(error: BaseException, folder: str) -> str:
    """Return ``FILE:LINE: `` of the last line of the script's own files that an exception passed."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__)
        if os.path.abspath(frame.filename).startswith(os.path.join(folder, "")) and not _is_ours(frame.filename)
    ]  # fmt: skip
    return f"{os.path.relpath(frames[-1].filename)}:{frames[-1].lineno}: " if frames else ""
