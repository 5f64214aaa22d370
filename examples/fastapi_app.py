"""A FastAPI app that routes, scores and logs with driftloop: DRIFTLOOP_KAFKA=… uvicorn examples.fastapi_app:app."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from streamer.sdk import Client


def score(version: str, features: dict[str, float]) -> float:
    """Stand in for your models, by version; "_" is the one you serve before driftloop knows of any."""
    return min(1.0, features["months_late"] / (2 if version == "2" else 4))


client = Client.from_environment()  # DRIFTLOOP_KAFKA, DRIFTLOOP_REDIS__URL


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Send what is still queued when the app stops."""
    yield
    client.close()


app = FastAPI(lifespan=lifespan)


@app.post("/predict")
def predict(customer: str, features: dict[str, float]) -> dict[str, object]:
    """Answer a customer by the version that serves him, and log it."""
    choice = client.choose("churn", customer)  # champion or challenger, stable per customer
    probability = score(choice.version, features)
    prediction_id = client.log_prediction(
        model="churn",
        features=features,
        prediction=probability > 0.5,
        score=probability,
        entity_id=customer,
        choice=choice,
    )
    return {"prediction_id": prediction_id, "churns": probability > 0.5}


@app.post("/truth/{prediction_id}")
def truth(prediction_id: str, churned: bool) -> None:
    """Log what became of it, whenever it is known."""
    client.log_label(prediction_id, model="churn", label=churned)
