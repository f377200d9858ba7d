"""A small, seeded part of what the attack scripts do by the hundred thousand: no group may find a defect."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

SCRIPT = Path(__file__).with_name("attack_fuzz.py")
ENDS = SCRIPT.with_name("attack_ends.py")


@pytest.mark.parametrize(("groups", "least"), [("formats,layers,lmdb,datum", 50), ("resumes", 10)])
def test_no_defects(groups, least):
    done = subprocess.run(
        [sys.executable, SCRIPT, "--only", groups, "--cases", "300", "--seconds", "5", "--seed", "3"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for group in groups.split(","):
        cases = re.search(rf"^{group}: ([\d,]+) cases, 0 defects", done.stdout, re.MULTILINE)
        assert cases and int(cases[1].replace(",", "")) >= least, done.stdout


def test_commands_under_bad_conditions():
    """Kills, limits on files, broken streams, wrong inputs and options out of range, one case of 150."""
    done = subprocess.run(
        [sys.executable, ENDS, "--every", "150", "--seed", "3"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"^([\d,]+) cases in 6 groups, 0 defects$", done.stdout, re.MULTILINE)[1]) >= 15
