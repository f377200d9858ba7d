"""``ilgnet caffe upgrade_net_proto_text``: Caffe's tool for the text of old nets."""

from __future__ import annotations

import argparse
from typing import Any

from . import _upgrade


def add_parser(actions: Any) -> None:
    """Add ``upgrade_net_proto_text`` to the actions of ``ilgnet caffe``."""
    _upgrade.add_parser(
        actions,
        "upgrade_net_proto_text",
        "an old prototxt in the form of Caffe 1.0",
        "old.prototxt new.prototxt",
    )


def run(args: argparse.Namespace) -> int:
    """Upgrade the file."""
    from ..caffe_tool.upgrade import upgrade_net_text

    return _upgrade.run(args, upgrade_net_text)
