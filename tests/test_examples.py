"""The examples, at a small size."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

import selfdistill
from examples.serve import serve
from tests.terminal import passed, write_tables


def test_a_run_is_served_with_the_numbers_of_predict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_tables(tmp_path)
    made = ("t.csv", "--target", "outcome", "--model", "mlp", "--method", "plain()", "--steps", 2, "--no-control")
    passed("run", *made, "--quiet", "--out", "r")
    client = TestClient(serve("r"))
    assert client.get("/health").json() == {"run": "r"}
    import pandas

    rows = pandas.read_csv("more.csv").to_dict("records")
    answer = client.post("/predict", json={"rows": rows})
    assert answer.status_code == 200, answer.text
    assert answer.json() == selfdistill.load("r").predict(rows).records()
    refused = client.post("/predict", json={"rows": [{"nothing": 1}]})
    assert refused.status_code == 422
    assert "is missing" in refused.json()["detail"]
    assert client.post("/predict", json={"rows": []}).status_code == 422
    assert client.post("/predict", json={"rows": ["more.csv"]}).status_code == 422, "no file is read for a caller"
