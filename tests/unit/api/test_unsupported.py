"""Fields of features that do not exist yet are refused, never ignored."""

from typing import Any

import pytest

from anneal_operator.api.spec import FineTuneJobSpec
from anneal_operator.api.unsupported import unsupported_fields

SMALLEST: dict[str, Any] = {
    "model": {"uri": "s3://models/smollm2"},
    "dataset": {"uri": "s3://team-data/support.jsonl"},
}


def test_every_compute_type_is_admitted() -> None:
    """Whether the hardware has it is found out there, and told."""
    for compute in ("auto", "bfloat16", "float16", "float32"):
        tuning = {"quantization": {"computeDtype": compute}}
        assert unsupported_fields(FineTuneJobSpec.parse({**SMALLEST, "tuning": tuning})) == ()


def test_the_smallest_job_asks_for_nothing_unsupported() -> None:
    assert unsupported_fields(FineTuneJobSpec.parse(SMALLEST)) == ()


@pytest.mark.parametrize(
    ("section", "value", "want"),
    [
        pytest.param(
            "retry",
            {"excludeFailedNodes": True},
            "spec.retry.excludeFailedNodes: true is not implemented in this release; remove the "
            "field",
            id="a switch",
        ),
        pytest.param(
            "export",
            {"formats": ["adapter", "gguf", "onnx"]},
            "spec.export.formats: gguf, onnx is not implemented in this release; use adapter",
            id="values of a list",
        ),
        pytest.param(
            "export",
            {"gguf": {}},
            "spec.export.gguf: this setting is not implemented in this release; remove the field",
            id="an object, even empty",
        ),
        pytest.param(
            "compute",
            {"workers": 2},
            "spec.compute.workers: 2 is not implemented in this release; use 1",
            id="a number",
        ),
        pytest.param(
            "compute",
            {"gpusPerWorker": 2},
            "spec.compute.gpusPerWorker: 2 is not implemented in this release; use 0 or 1",
            id="GPUs, each of which would be a rank",
        ),
        pytest.param(
            "queue",
            {"name": "team-a"},
            "spec.queue.name: team-a is not implemented in this release; remove the field",
            id="a name",
        ),
    ],
)
def test_an_unsupported_value_is_named_with_its_remedy(
    section: str, value: dict[str, Any], want: str
) -> None:
    found = unsupported_fields(FineTuneJobSpec.parse({**SMALLEST, section: value}))
    assert [str(field) for field in found] == [want]


def test_all_unsupported_fields_are_listed_at_once() -> None:
    spec = {
        **SMALLEST,
        "compute": {"engine": "RayJob", "workers": 4},
        "queue": {"name": "team-a"},
    }
    found = unsupported_fields(FineTuneJobSpec.parse(spec))
    assert [field.path for field in found] == [
        "compute.workers",
        "compute.engine",
        "queue.name",
    ]
