"""A small, seeded part of what the attack scripts do by the hundred thousand: no group may find a defect."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from places import ROOT

FOLDER = Path(__file__).parent
LEAST = {"formats": 50, "layers": 50, "lmdb": 10, "datum": 50, "resumes": 10}


def attack(script: str, *options: str) -> str:
    """Run a script; return what it prints."""
    done = subprocess.run(
        [sys.executable, FOLDER / script, *options],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_no_defects():
    out = attack(
        "attack_fuzz.py", "--only", ",".join(LEAST), "--cases", "150", "--seconds", "3", "--seed", "3"
    )
    for group, least in LEAST.items():
        cases = re.search(rf"^{group}: ([\d,]+) cases, 0 defects", out, re.MULTILINE)
        assert cases and int(cases[1].replace(",", "")) >= least, out


def test_commands_under_bad_conditions():
    """Kills, limits on files, broken streams, wrong inputs, options out of range: a case of 400; no command is missing."""
    out = attack("attack_ends.py", "--every", "400", "--seed", "3", "--light")
    assert int(re.search(r"^([\d,]+) cases in 6 groups, 0 defects$", out, re.MULTILINE)[1]) >= 10


def test_processes_that_are_killed():
    """Two kill -9 of a command in a process of its own, and a run to the end."""
    ilgnet = Path(sys.executable).with_name("ilgnet")
    options = [
        "--ilgnet",
        str(ilgnet),
        "--small",
        "--only",
        "mean",
        "--rounds",
        "2",
        "--seed",
        "3",
        "--leftovers-fail",
    ]
    out = attack("attack_kill.py", *options)
    assert re.search(r"^1 jobs, 2 signals .* 0 hidden left-overs, .* 0 defects$", out, re.MULTILINE), out


def test_severe_faults_of_before():
    out = attack("attack_severe.py", "--every", "30", "--seed", "3")
    assert re.search(r"^severe cases: (\d+) of \1 hold$", out, re.MULTILINE), out
