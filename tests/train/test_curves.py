"""Curves of a run: blob names are text on the chart, whatever they hold."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest

from ilgnet_repro.train.curves import TEST, TRAIN, _escape_mathtext, draw_curves


@pytest.mark.parametrize("name", [r"$\bad{$", "$x^$loss", "a$b", "loss\x1b[31m", "_loss", "\\", "x\ny"])
def test_a_name_is_not_evaluated(name: str, tmp_path: Path) -> None:
    (tmp_path / TRAIN).write_text("iteration,learning_rate,loss,smoothed_loss\n0,0.1,2,2\n1,0.1,1,1.5\n")
    quoted = '"' + name.replace('"', '""') + '"'
    (tmp_path / TEST).write_text(f"iteration,{quoted},accuracy\n0,2,0.5\n1,1,0.75\n", newline="")
    draw_curves(tmp_path, tmp_path / "curves.png", title=f"net {name}")
    assert cv2.imread(str(tmp_path / "curves.png")).shape[1] == 880
    assert "$" not in _escape_mathtext(name).replace("\\$", "")
    assert _escape_mathtext(name).isprintable()
