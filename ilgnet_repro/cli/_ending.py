"""How a command ends: errors, signals and streams that cannot be written become one line and an exit status."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO, Any, NoReturn

from ..errors import IlgnetError, excerpt
from ..staging import discard_staged

DONE, WRONG_INPUT, INTERNAL_ERROR, INTERRUPTED = 0, 1, 3, 130
BY_SIGNAL = 128  # plus the number, as shells report it

# What a system that is short of something, or a path that leads nowhere, raises in whatever is called.
_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "raise the limit on the size of files",
    errno.EMFILE: "raise the limit on open files",
    errno.ENFILE: "raise the limit on open files",
    errno.ENOMEM: "use a machine with more memory",
    errno.EAGAIN: "raise the limit on processes",
    errno.EROFS: "give another folder",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "check the path",
    errno.ENOTDIR: "check the path",
    errno.EACCES: "check its permissions",
    errno.EPERM: "check its permissions",
    errno.EIO: "check the disk",
}
_catching: list[int] = []  # the processes that began to catch signals, of nested calls
_IMPORTING = "<frozen importlib._bootstrap>"


class Terminated(BaseException):
    """The process was asked to end by SIGTERM or SIGHUP."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def guarded(work: Callable[[], int]) -> int:
    """Run ``work`` and return its status, or the one for the exception it raised, which is reported in a line."""
    try:
        with _caught_signals():
            status = work()
            if sys.stdout is not None:
                sys.stdout.flush()
            return status
    except IlgnetError as error:
        from ._options import for_command

        return _ended(for_command(error), WRONG_INPUT)
    except KeyboardInterrupt:
        discard_staged()
        return _ended("interrupted", INTERRUPTED)
    except Terminated as request:
        discard_staged()
        return _ended(f"ended by {signal.Signals(request.number).name}", BY_SIGNAL + request.number)
    except BrokenPipeError:  # the reader closed the pipe, as `| head` does
        _discard_broken(sys.stdout)
        return DONE
    except OSError as error:
        if error.errno not in _REMEDIES:
            return _internal_error()
        # Files are written under their names (`files.writing`): what has none is what is printed.
        where = error.filename or "standard output: cannot be written"
        return _ended(f"{where} ({error.strerror}); {_REMEDIES[error.errno]}", WRONG_INPUT)
    except MemoryError as error:
        reason = excerpt(str(error).partition("\n")[0], 200)
        return _ended(
            f"out of memory{f' ({reason})' if reason else ''}; use a machine with more memory", WRONG_INPUT
        )
    except Exception:
        return _internal_error()


def _ended(message: str, status: int) -> int:
    _discard_broken(sys.stdout)
    with suppress(OSError):  # stderr itself may be full
        print(f"ilgnet: {message}", file=sys.stderr)
    _discard_broken(sys.stderr)
    return status


def _internal_error() -> int:
    import traceback

    with suppress(OSError):
        traceback.print_exc()
    return _ended("internal error; please report it with the lines above", INTERNAL_ERROR)


def _discard_broken(stream: IO[str] | None) -> None:
    """Discard what is written to a stream from now on, if it cannot be written."""
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        with suppress(OSError, ValueError):  # a stream of tests has no descriptor
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            stream.flush()


# ---------------------------------------------------------------------- streams


@contextmanager
def usable_streams() -> Iterator[None]:
    """Make stdout and stderr accept whatever is written, and exist.

    Characters that their encoding lacks are escaped. A descriptor that was closed (``>&-``) is opened on the null
    device: otherwise the next file opened would get its number, and what is printed.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - lives as long as the process
    streams: list[Any] = [stream for stream in (sys.stdout, sys.stderr) if hasattr(stream, "reconfigure")]
    before = [stream.errors for stream in streams]
    try:
        for stream in streams:
            stream.reconfigure(errors="backslashreplace")
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            with suppress(OSError):
                stream.reconfigure(errors=errors)


# ---------------------------------------------------------------------- signals


@contextmanager
def _caught_signals() -> Iterator[None]:
    """Raise an exception on the signals that end a process, so that what it has staged is removed.

    Signals that are ignored, as under nohup, or that the caller handles are left as they are.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    plain = {"SIGINT": signal.default_int_handler, "SIGTERM": signal.SIG_DFL, "SIGHUP": signal.SIG_DFL}
    before = {}
    _catching.append(os.getpid())
    for name, handler in plain.items():
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is handler:
            before[number] = signal.signal(number, _raise)
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is _raise:
                signal.signal(number, handler)
        _catching.pop()


def interrupts_end_quietly() -> None:
    """Let SIGINT end the process from now on, as while Python itself is closing it."""
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _raise(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _catching[-1]:  # forked: ends as if nothing had been set
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    # Extension modules do not survive an exception while they are imported: nothing is staged then but the import.
    while frame is not None and frame.f_code is not guarded.__code__:
        if frame.f_code.co_filename == _IMPORTING:
            _leave("interrupted" if number == signal.SIGINT else "terminated", BY_SIGNAL + number)
        frame = frame.f_back
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)


def _leave(message: str, status: int) -> NoReturn:
    """End the process at once."""
    discard_staged()
    with suppress(OSError):
        os.write(2, f"ilgnet: {message}\n".encode(errors="backslashreplace"))
    os._exit(status)


# ---------------------------------------------------------------------- mapped files


@contextmanager
def cut_files_reported() -> Iterator[None]:
    """End with one line where a file that is mapped into memory is cut short while it is used.

    The kernel's sign for that is SIGBUS, at whatever instruction reads the missing page. There is nothing to return
    to: the handler names the file and ends the process. Python's own handlers run after the instruction, which
    would fail again and again, so this one is set by the C library.
    """
    if sys.platform != "linux" or threading.current_thread() is not threading.main_thread():
        yield
        return
    import ctypes

    set_handler = ctypes.CDLL(None).signal
    set_handler.restype = ctypes.c_void_p
    set_handler.argtypes = ctypes.c_int, ctypes.c_void_p
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(_report_cut_file)
    before = set_handler(signal.SIGBUS, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        set_handler(signal.SIGBUS, before)


def _report_cut_file(number: int) -> None:
    names = " and ".join(_cut_files(Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines()))
    _leave(
        f"{excerpt(names or 'a mapped file', 300)}: was cut short while it was read; run again with the whole file",
        WRONG_INPUT,
    )


def _cut_files(lines: list[str]) -> list[str]:
    """Return the files of which more is mapped than there is, from the lines of /proc/self/maps."""
    found = []
    for line in lines:
        addresses, rights, offset, _, _, *name = line.split(None, 5)
        start, end = (int(address, 16) for address in addresses.split("-"))
        if name and name[0].startswith("/") and rights.startswith("r"):
            with suppress(OSError):
                last = int(offset, 16) + end - start - os.sysconf("SC_PAGE_SIZE")
                if os.stat(name[0]).st_size <= last:
                    found.append(name[0])
    return list(dict.fromkeys(found))
