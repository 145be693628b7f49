"""Serve a finished run over HTTP with FastAPI: POST rows to /predict and get classes with probabilities, or values.

    pip install fastapi uvicorn
    RUN=runs/mine uvicorn examples.serve:app
    curl localhost:8000/predict -H 'Content-Type: application/json' -d '{"rows": [{"age": 41, "plan": "gold"}]}'

The rows of a run on a table are records of its columns, those of a run on texts or prompts are texts. Images are
refused: a service must not read files that a caller names.
"""

import os
from threading import Lock
from typing import Any

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field

import selfdistill
from selfdistill import SelfdistillError


class Rows(BaseModel):
    """What a caller sends: at most 1,000 rows."""

    rows: list[dict[str, Any]] | list[str] = Field(min_length=1, max_length=1000)


def serve(run: str) -> FastAPI:
    """The service of a finished run, whose model is loaded once."""
    app, predictor, turn = FastAPI(title="selfdistill"), selfdistill.load(run), Lock()
    if (selfdistill.Run.open(run).result() or {})["data"]["kind"] == "image":
        raise ValueError("the paths of images are a caller's to name; this example serves tables, texts and prompts")

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"run": run}

    @app.post("/predict")
    def predict(asked: Rows) -> list[dict[str, Any]]:
        try:
            with turn:  # one model, and callers in many threads
                return predictor.predict(asked.rows).records()
        except SelfdistillError as error:
            raise HTTPException(422, str(error)) from error

    return app


if "RUN" in os.environ:
    app = serve(os.environ["RUN"])
