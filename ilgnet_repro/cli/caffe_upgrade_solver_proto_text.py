"""``ilgnet caffe upgrade_solver_proto_text``: Caffe's tool for the text of old solvers."""

from __future__ import annotations

import argparse
from typing import Any

from . import _upgrade


def add_parser(actions: Any) -> None:
    """Add ``upgrade_solver_proto_text`` to the actions of ``ilgnet caffe``."""
    _upgrade.add_parser(
        actions,
        "upgrade_solver_proto_text",
        "an old solver in the form of Caffe 1.0",
        "old_solver.prototxt solver.prototxt",
    )


def run(args: argparse.Namespace) -> int:
    """Upgrade the file."""
    from ..caffe_tool.upgrade import upgrade_solver_text

    return _upgrade.run(args, upgrade_solver_text)
