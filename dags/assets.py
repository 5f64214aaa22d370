"""The assets that tie the DAGs to the stream: requests that arrive, challengers that leave."""

from __future__ import annotations

from airflow.sdk import Asset, AssetWatcher

from dags.triggers import RetrainRequestTrigger
from streamer.settings import load_settings

KAFKA_CONNECTION = "kafka_drift"
_settings = load_settings()

REQUESTS = Asset(
    "retrain-requests",
    watchers=[
        AssetWatcher(
            name="kafka",
            trigger=RetrainRequestTrigger(
                topics=[_settings.topic("retrain-requests")],
                kafka_config_id=KAFKA_CONNECTION,
                poll_timeout=0.2,
                dlq_topic=_settings.topic("dead-letters"),
            ),
        )
    ],
)
CHALLENGERS = Asset("challengers")
