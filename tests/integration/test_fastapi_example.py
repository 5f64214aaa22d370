"""The example app, as a user copies it, against a real Kafka and Valkey."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import redis
from fastapi.testclient import TestClient

from streamer.decode import decode
from streamer.events import Deployment, encode
from streamer.kafka.reader import read_to_end
from streamer.settings import Settings
from streamer.state import Keys
from tests.integration.running import environment

pytestmark = pytest.mark.integration


@pytest.fixture
def example(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    path = Path(__file__).parents[2] / "examples" / "fastapi_app.py"
    spec = importlib.util.spec_from_file_location("fastapi_app", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_app_routes_scores_and_logs(settings: Settings, example: ModuleType) -> None:
    split = Deployment(model="churn", model_epoch=1, epoch=1, champion="2")
    redis.Redis.from_url(settings.redis.url).set(Keys(settings.namespace).split("churn"), encode(split))
    with TestClient(example.app) as http:
        answer = http.post("/predict", params={"customer": "c1"}, json={"months_late": 1.5}).json()
        assert answer["churns"] is True
        assert http.post(f"/truth/{answer['prediction_id']}", params={"churned": False}).status_code == 200
    # Leaving the block ends the app, whose lifespan sends what is queued.
    (prediction,) = (decode(m.value(), "predictions") for m in read_to_end(settings, settings.topic("predictions")))
    (label,) = (decode(m.value(), "labels") for m in read_to_end(settings, settings.topic("labels")))
    assert prediction.prediction_id == label.prediction_id == answer["prediction_id"]
    assert (prediction.version, prediction.entity_id, prediction.features) == ("2", "c1", {"months_late": 1.5})
    assert (prediction.prediction, prediction.score, label.label) == (True, 0.75, False)
