"""`import caffe`: one module under both names."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAMS = {
    "installed": (
        "from ilgnet_repro.pycaffe import alias; alias.install(); import caffe, caffe.phases;"
        "import ilgnet_repro.pycaffe as own;"
        "print(caffe is own, caffe.phases is own.phases, caffe.phases.__spec__.name, caffe.TRAIN, caffe.TEST)",
        "True True ilgnet_repro.pycaffe.phases 0 1",
    ),
    "put into sys.modules": (
        "import sys, ilgnet_repro.pycaffe as own; sys.modules['caffe'] = own; from caffe import phases; import caffe.alias;"
        "print(phases is own.phases, caffe.alias is own.alias)",
        "True True",
    ),
    "not asked for": (
        "import ilgnet_repro.pycaffe, importlib.util; print(importlib.util.find_spec('caffe'))",
        "None",
    ),
    "an unknown module": (
        "from ilgnet_repro.pycaffe import alias; alias.install()\n"
        "try: import caffe.nothing\n"
        "except ModuleNotFoundError as error: print(error)",
        "No module named 'caffe.nothing'",
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_name_caffe(name: str) -> None:
    program, expected = PROGRAMS[name]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == expected + "\n"
