"""``ilgnet caffe upgrade_net_proto_binary``: Caffe's tool for old weights files."""

from __future__ import annotations

import argparse
from typing import Any

from . import _upgrade


def add_parser(actions: Any) -> None:
    """Add ``upgrade_net_proto_binary`` to the actions of ``ilgnet caffe``."""
    _upgrade.add_parser(
        actions,
        "upgrade_net_proto_binary",
        "an old caffemodel in the form of Caffe 1.0",
        "old.caffemodel new.caffemodel",
    )


def run(args: argparse.Namespace) -> int:
    """Upgrade the file."""
    from ..caffe_tool.upgrade import upgrade_net_binary

    return _upgrade.run(args, upgrade_net_binary)
