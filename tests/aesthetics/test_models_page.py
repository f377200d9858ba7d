"""Models of scores in the page of `ilgnet serve`: heat maps at their trunks, and the theme weights of TANet."""

from __future__ import annotations

import numpy as np
import pytest

from ilgnet_repro import opencv as cv2
from ilgnet_repro.aesthetics.models import create
from ilgnet_repro.scoring import Scorer

testclient = pytest.importorskip("fastapi.testclient", reason="needs the extra serve")
from ilgnet_repro.web.app import create_app  # noqa: E402
from ilgnet_repro.web.service import open_served  # noqa: E402


def test_tanet_has_a_heat_map_per_trunk_and_the_weights_of_the_theme() -> None:
    model = create("tanet")
    pixels = np.random.default_rng(2).integers(0, 256, (40, 50, 3), np.uint8)
    image = {"files": ("a.png", bytes(cv2.imencode(".png", pixels)[1]))}
    app = create_app(open_served([("tanet", Scorer(model))]))
    with testclient.TestClient(app, base_url="http://127.0.0.1") as client:
        (facts,) = client.get("/api/nets").json()
        assert facts["blobs"] == ["places", "mobilenet"] and facts["parameters"] == 13_881_607
        (record,) = client.post("/api/score", files=image).json()
        heat = client.post("/api/heat", files=image).json()
        assert (heat["blob"], np.shape(heat["values"])) == ("mobilenet", (7, 7))
        assert heat["score"] == pytest.approx(record["score"], abs=1e-6)
        ((name, values),) = [one.values() for one in heat["bars"]]
        assert name == "weights of the theme"
        wanted = model.theme_weights(model.prepare([pixels]))[0].tolist()
        assert values == pytest.approx(wanted, abs=1e-5) and len(values) == 100
        theme = client.post("/api/heat?blob=places", files=image).json()
        assert theme["blob"] == "places"
        refused = client.post("/api/heat?blob=place", files=image)
    assert (refused.status_code, refused.json()) == (
        404, {"error": "model tanet: has no feature map 'place' (did you mean places?); it has places, mobilenet"},
    )  # fmt: skip
