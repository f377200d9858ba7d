"""Where the recorded cases are, and a single torch thread so that parallel runs stay fast."""

import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import GOLDEN, SHARED

# torch is not imported here: the process that starts the workers needs none.
# Inductor compiles in this process: a pool of others would import torch in each.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
# What collection makes stays until the end: the garbage collector need not search it while it grows, nor later.
gc.disable()
# What `fast` measures is kept apart from the user's own.
_cache = tempfile.TemporaryDirectory(prefix="ilgnet-tests-")
os.environ["XDG_CACHE_HOME"] = _cache.name


def pytest_collection_finish() -> None:
    import torch

    torch.set_num_threads(1)
    gc.freeze()
    gc.enable()


@pytest.fixture
def golden() -> Path:
    """The cases recorded from Caffe."""
    return GOLDEN


@pytest.fixture
def authors() -> Path:
    """The authors' own files, which carry no licence and are never part of this repository."""
    folder = SHARED / "ilgnet"
    if not folder.is_dir():
        pytest.skip("the authors' files (../shared/ilgnet) are not on this machine")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small net with weights as a Caffe user has it on disk: small.caffemodel and deploy.prototxt."""
    from small_nets import SMALL_TEXT, write_weights

    write_weights(tmp_path / "small.caffemodel")
    (tmp_path / "deploy.prototxt").write_text(SMALL_TEXT)
    return tmp_path


@pytest.fixture
def own_layer_types(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layer types that a test registers are removed after it."""
    from ilgnet_repro.layers.support import registry

    registry.layer_types()
    monkeypatch.setattr(registry, "_classes", dict(registry._classes))


@pytest.fixture(scope="session")
def two_workers() -> Iterator[None]:
    """A local Ray of two processors, started once: it takes long to start, so that only ``make cluster`` does it."""
    if not os.environ.get("SLOW_CLUSTER"):
        pytest.skip("starts a Ray: `make cluster` runs it")
    ray = pytest.importorskip("ray", reason="pip install 'ilgnet_repro[ray]'")
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()
