"""README's Python, run as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np

import ilgnet_repro as ir
from ilgnet_repro.zoo.squeezenet import deploy

README = Path(__file__).resolve().parent.parent / "README.md"


def test_the_python_of_the_readme(tmp_path, monkeypatch) -> None:
    """With SqueezeNet in the place of the reader's own files, and of ILGNet."""
    monkeypatch.chdir(tmp_path)
    net = ir.load_net(deploy(), seed=1)
    ir.save(net, "net.caffemodel")
    Path("net.prototxt").rename("deploy.prototxt")
    ir.save(ir.load("net.caffemodel"), "ilgnet.safetensors")
    for name in ("a.jpg", "b.jpg"):
        cv2.imwrite(name, np.random.default_rng(1).integers(0, 256, (31, 20, 3), np.uint8))
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)
    assert tuple(names["x"].shape) == (2, 3, 227, 227)
    assert {path.name for path in tmp_path.iterdir()} >= {"tuned.caffemodel", "tuned.prototxt", "net.onnx"}
