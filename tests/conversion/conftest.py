"""A small net with weights, as a Caffe user would have it on disk."""

from pathlib import Path

import pytest
from small_nets import SMALL_TEXT, write_weights


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with small.caffemodel and deploy.prototxt."""
    write_weights(tmp_path / "small.caffemodel")
    (tmp_path / "deploy.prototxt").write_text(SMALL_TEXT)
    return tmp_path
