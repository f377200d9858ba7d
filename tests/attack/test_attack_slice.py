"""A small, seeded part of what the attack scripts do by the hundred thousand: no group may find a defect."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from places import ROOT

FOLDER = Path(__file__).parent
LEAST = {"formats": 50, "layers": 50, "lmdb": 10, "datum": 50, "resumes": 10}
FUZZ = ["attack_fuzz.py", "--only", ",".join(LEAST), "--cases", "100", "--seconds", "3", "--seed", "3"]
ENDS = ["attack_ends.py", "--every", "400", "--seed", "3", "--light"]  # one case of 400
SEVERE = ["attack_severe.py", "--every", "30", "--seed", "3"]

# In one process: what the scripts import takes longer than these cases.
RUN = """
import json, runpy, sys
for words in json.loads(sys.argv[1]):
    sys.argv = words
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        print(f"{words[0]} ends with {end.code}", flush=True)
"""


def attack(*command: str | Path, **variables: str) -> str:
    """Run a command; return what it prints."""
    done = subprocess.run(
        [sys.executable, *command], env={**os.environ, **variables},
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_no_defects():
    """Damaged inputs; kills, limits on files, broken streams, wrong inputs, options; no command is missing."""
    scripts = [[os.fspath(FOLDER / script), *options] for script, *options in (FUZZ, ENDS, SEVERE)]
    out = attack("-c", RUN, json.dumps(scripts), PYTHONPATH=os.fspath(FOLDER))
    for script, *_ in scripts:
        assert re.search(rf"^{re.escape(script)} ends with (0|False)$", out, re.MULTILINE), out
    for group, least in LEAST.items():
        cases = re.search(rf"^{group}: ([\d,]+) cases, 0 defects", out, re.MULTILINE)
        assert cases and int(cases[1].replace(",", "")) >= least, out
    assert int(re.search(r"^([\d,]+) cases in 6 groups, 0 defects$", out, re.MULTILINE)[1]) >= 10
    assert re.search(r"^severe cases: (\d+) of \1 hold$", out, re.MULTILINE), out


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
    out = attack(FOLDER / "attack_kill.py", *options)
    assert re.search(r"^1 jobs, 2 signals .* 0 hidden left-overs, .* 0 defects$", out, re.MULTILINE), out
