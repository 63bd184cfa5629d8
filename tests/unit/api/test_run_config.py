"""job.json outlives the release that wrote it."""

import json
from pathlib import Path

import pytest

from anneal_jobs.errors import InfrastructureError
from anneal_jobs.train import read_config

FIRST_FORM = {
    "schemaVersion": 1,
    "job": {"namespace": "team-a", "name": "bot", "uid": "1f2e3d4c"},
    "pipeline": {
        "model": {"uri": "hf://org/model", "revision": "0" * 40},
        "dataset": {"uri": "s3://team-data/support.jsonl"},
        "tuning": {"method": "lora", "lora": {"rank": 8}},
    },
    "outputUri": "s3://models/team-a/bot-1f2e3d4c",
    "tracking": {
        "uri": "http://mlflow:5000",
        "experiment": "team-a",
        "registeredModel": "bot",
        "alias": "candidate",
    },
}
"""The least that any release has written: a field that came later must have a default."""


def test_a_newer_trainer_reads_what_an_older_operator_wrote(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    path.write_text(json.dumps(FIRST_FORM))
    config = read_config(path)
    assert config.pipeline.tuning.lora.rank == 8
    assert config.output_uri == FIRST_FORM["outputUri"]


def test_a_form_of_the_future_is_the_services_fault_and_said_so(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    path.write_text(json.dumps({**FIRST_FORM, "schemaVersion": 2}))
    with pytest.raises(InfrastructureError, match="schemaVersion") as caught:
        read_config(path)
    assert caught.value.reason == "RunConfigInvalid"
