"""Flags in the style of Caffe's tools (gflags), rewritten for argparse."""

from __future__ import annotations

from collections.abc import Collection, Sequence

_YES, _NO = ("true", "t", "yes", "y", "1"), ("false", "f", "no", "n", "0")

# glog's flags, which scripts pass: our log goes to stderr in any case. The second kind takes a value.
_LOGGING = ("logtostderr", "alsologtostderr", "colorlogtostderr", "log_prefix", "stop_logging_if_full_disk")
_LOGGING_VALUES = (
    "log_dir", "log_link", "logbufsecs", "logbuflevel", "max_log_size", "minloglevel", "stderrthreshold", "v",
    "vmodule",
)  # fmt: skip


def from_gflags(arguments: Sequence[str], switches: Collection[str]) -> list[str]:
    """Rewrite ``-flag``, ``--switch=true``, ``--switch=0`` and ``--noswitch`` for argparse.

    ``switches`` are the names of the flags without a value, all off by default; the last one given counts. glog's
    flags are dropped; unknown arguments are passed on, for argparse to refuse by name.
    """
    rewritten: list[str] = []
    remaining = iter(enumerate(arguments))
    for position, argument in remaining:
        if argument == "--":
            return [*rewritten, *arguments[position:]]
        name, equals, value = argument.lstrip("-").partition("=")
        if not argument.startswith("-") or not name or argument == "-h" or name[0].isdigit():
            rewritten.append(argument)
        elif name in _LOGGING or name.removeprefix("no") in _LOGGING:
            continue
        elif name in _LOGGING_VALUES:
            if not equals:
                next(remaining, None)
        elif name in switches and (not equals or value.lower() in _YES):
            rewritten.append(f"--{name}")
        elif name in switches and value.lower() in _NO:
            rewritten = [other for other in rewritten if other != f"--{name}"]
        elif name.startswith("no") and name[2:] in switches and not equals:
            rewritten = [other for other in rewritten if other != f"--{name[2:]}"]
        else:
            rewritten.append(f"--{name}{equals}{value}")
    return rewritten
