"""Runs a command that must import neither torch nor modules that only reports, tables and progress bars need."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

CODE = """
import json, sys
from ilgnet_repro.cli.main import main
status = main(json.loads(sys.argv[1]))
heavy = {'torch', 'onnx', 'sklearn', 'scipy', 'matplotlib', 'jinja2', 'rich', *sys.argv[2:]} & set(sys.modules)
sys.exit(f'imported: {heavy}' if heavy else status)
"""


def run_light(arguments: list[str], folder: Path, *others: str) -> None:
    """Run ``ilgnet`` in a process of its own in ``folder``; assert that it ends with 0 and imports nothing heavy.

    ``others`` are further packages that it must not import.
    """
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(arguments), *others],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
