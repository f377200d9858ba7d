"""Flags in the style of Caffe's tools (gflags), rewritten for argparse."""

from __future__ import annotations

from collections.abc import Collection, Sequence

_YES, _NO = ("true", "t", "yes", "y", "1"), ("false", "f", "no", "n", "0")

# glog's switches, which scripts pass: our log goes to stderr in any case.
_LOGGING = ("logtostderr", "alsologtostderr", "colorlogtostderr")


def from_gflags(arguments: Sequence[str], switches: Collection[str]) -> list[str]:
    """Rewrite ``-flag``, ``--switch=true``, ``--switch=false`` and ``--noswitch`` for argparse.

    ``switches`` are the names of the flags without a value, all off by default. glog's switches are dropped;
    unknown arguments are passed on, for argparse to refuse by name.
    """
    rewritten: list[str] = []
    for position, argument in enumerate(arguments):
        if argument == "--":
            return [*rewritten, *arguments[position:]]
        name, equals, value = argument.lstrip("-").partition("=")
        if not argument.startswith("-") or not name or argument == "-h" or name[0].isdigit():
            rewritten.append(argument)
        elif name in _LOGGING:
            continue
        elif name in switches and (not equals or value.lower() in _YES):
            rewritten.append(f"--{name}")
        elif (name in switches and value.lower() in _NO) or (name.startswith("no") and name[2:] in switches):
            continue
        else:
            rewritten.append(f"--{name}{equals}{value}")
    return rewritten
