"""Models of scores in the page of `ilgnet serve`: heat maps at their trunks, and the theme weights of TANet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ilgnet_repro as ir
from ilgnet_repro import opencv as cv2
from ilgnet_repro.aesthetics.models import create
from ilgnet_repro.cli.main import build_parser
from ilgnet_repro.cli.serve import load_nets
from ilgnet_repro.scoring import Scorer

testclient = pytest.importorskip("fastapi.testclient", reason="needs the extra serve")
from ilgnet_repro.web.app import create_app  # noqa: E402
from ilgnet_repro.web.service import open_served  # noqa: E402

PIXELS = np.random.default_rng(2).integers(0, 256, (40, 50, 3), np.uint8)
IMAGE = {"files": ("a.png", bytes(cv2.imencode(".png", PIXELS)[1]))}


def test_a_saved_model_is_served_by_the_command(tmp_path: Path) -> None:
    model = create("nima")
    (path,) = ir.save(model, tmp_path / "nima.safetensors")
    nets = load_nets(build_parser().parse_args(["serve", "--weights", str(path)]))
    with testclient.TestClient(create_app(nets), base_url="http://127.0.0.1") as client:
        (record,) = client.post("/api/score", files=IMAGE).json()
        assert client.get("/api/nets").json()[0]["blobs"] == ["backbone"]
        assert client.get("/api/view").json()["form"] == "torch model"
    (score,) = Scorer(model).score([PIXELS])
    assert record["score"] == pytest.approx(score.value, abs=1e-5)
    assert (record["meaning"], len(record["distribution"])) == ("mean score", 10)


def test_tanet_has_a_heat_map_per_trunk_and_the_weights_of_the_theme() -> None:
    model = create("tanet")
    app = create_app(open_served([("tanet", Scorer(model))]))
    with testclient.TestClient(app, base_url="http://127.0.0.1") as client:
        (facts,) = client.get("/api/nets").json()
        assert facts["blobs"] == ["places", "mobilenet"] and facts["parameters"] == 13_881_607
        (record,) = client.post("/api/score", files=IMAGE).json()
        heat = client.post("/api/heat", files=IMAGE).json()
        assert (heat["blob"], np.shape(heat["values"])) == ("mobilenet", (7, 7))
        assert heat["score"] == pytest.approx(record["score"], abs=1e-6)
        ((name, values),) = [one.values() for one in heat["bars"]]
        assert name == "weights of the theme"
        wanted = model.theme_weights(model.prepare([PIXELS]))[0].tolist()
        assert values == pytest.approx(wanted, abs=1e-5) and len(values) == 100
        theme = client.post("/api/heat?blob=places", files=IMAGE).json()
        assert theme["blob"] == "places"
        refused = client.post("/api/heat?blob=place", files=IMAGE)
    assert (refused.status_code, refused.json()) == (
        404, {"error": "model tanet: has no feature map 'place' (did you mean places?); it has places, mobilenet"},
    )  # fmt: skip
