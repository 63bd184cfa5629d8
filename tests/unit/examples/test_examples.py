"""The examples are what a newcomer copies: they must be valid and what they claim."""

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from anneal_operator.api.spec import FineTuneJobSpec
from anneal_operator.api.unsupported import unsupported_fields

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
JOB_FILES = sorted(EXAMPLES.rglob("finetune-job.yaml"))


def read_yaml(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    return data


def read_spec(path: Path) -> FineTuneJobSpec:
    return FineTuneJobSpec.parse(read_yaml(path)["spec"])


def test_there_are_the_two_examples() -> None:
    assert [path.parent.name for path in JOB_FILES] == ["minimal", "python-help"]


@pytest.mark.parametrize("path", [pytest.param(p, id=p.parent.name) for p in JOB_FILES])
def test_job_is_valid_and_asks_only_for_what_exists(path: Path) -> None:
    data = read_yaml(path)

    assert (data["apiVersion"], data["kind"]) == ("anneal.dev/v1alpha1", "FineTuneJob")
    assert unsupported_fields(read_spec(path)) == ()


def test_smallest_job_has_five_lines_of_spec() -> None:
    lines = (EXAMPLES / "minimal/finetune-job.yaml").read_text().splitlines()

    assert len(lines[lines.index("spec:") + 1 :]) == 5


def test_demo_job_asks_for_what_the_demo_needs() -> None:
    spec = read_spec(EXAMPLES / "python-help/finetune-job.yaml")

    assert spec.tuning.method == "qlora"
    assert spec.tuning.quantization.type == "nf4"
    assert spec.training.learning_rate == pytest.approx(5e-4)
    assert len(spec.evaluation.prompts) == 3
    assert spec.evaluation.baseline
    assert spec.compute.gpus_per_worker == 0
