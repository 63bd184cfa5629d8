"""The data of examples/python-help: the same bytes every time, and rows as they are claimed."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ruamel.yaml import YAML

EXAMPLE = Path(__file__).resolve().parents[3] / "examples/python-help"
SCRIPT = EXAMPLE / "build_dataset.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_dataset", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows(script: ModuleType) -> list[dict[str, Any]]:
    built: list[dict[str, Any]] = script.build_rows(num_rows=100_000)
    return built


def question(row: dict[str, Any]) -> str:
    return str(row["messages"][0]["content"])


def answer(row: dict[str, Any]) -> str:
    return str(row["messages"][1]["content"])


def write(path: Path, *, hash_seed: str, num_rows: int) -> bytes:
    subprocess.run(
        [sys.executable, SCRIPT, "--rows", str(num_rows), "--output", path],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        check=True,
        capture_output=True,
    )
    return path.read_bytes()


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    first = write(tmp_path / "first.jsonl", hash_seed="1", num_rows=300)
    second = write(tmp_path / "second.jsonl", hash_seed="2", num_rows=300)

    assert first == second
    assert len([json.loads(line) for line in first.splitlines()]) == 300


def test_there_are_thousands_of_rows_on_request(rows: list[dict[str, Any]]) -> None:
    assert len(rows) > 2000


def test_fewer_rows_are_the_beginning_of_more(
    script: ModuleType, rows: list[dict[str, Any]]
) -> None:
    assert script.build_rows(num_rows=200) == rows[:200]


def test_every_row_is_one_question_and_one_answer_in_prose(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        assert question(row).count("`") == 2
        assert answer(row)[0].isupper()
        assert answer(row).endswith(".")
        assert 4 <= len(answer(row).split()) <= 60


def test_no_answer_stands_twice_so_that_held_out_rows_are_unseen(
    rows: list[dict[str, Any]],
) -> None:
    assert len({answer(row) for row in rows}) == len(rows)


def test_prompts_of_the_job_are_not_in_the_data(
    script: ModuleType, rows: list[dict[str, Any]]
) -> None:
    job = YAML(typ="safe").load((EXAMPLE / "finetune-job.yaml").read_text(encoding="utf-8"))
    asked = {prompt.split("`")[1] for prompt in job["spec"]["evaluation"]["prompts"]}
    known = {question(row).split("`")[1] for row in rows}

    assert asked == script.HELD_BACK
    assert not asked & known
    assert "random.Random.shuffle" not in known


def test_number_of_rows_must_be_positive(tmp_path: Path) -> None:
    refused = subprocess.run(
        [sys.executable, SCRIPT, "--rows", "0", "--output", tmp_path / "rows.jsonl"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert refused.returncode == 2
    assert "expected a number of rows of at least 1, got 0" in refused.stderr
