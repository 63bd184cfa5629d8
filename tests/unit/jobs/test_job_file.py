from pathlib import Path

import pytest

from anneal_jobs.cli.job_file import JobFileError, read_job_file

SMALLEST = """
apiVersion: anneal.dev/v1alpha1
kind: FineTuneJob
metadata: {name: support-bot}
spec:
  model: {uri: ./model}
  dataset: {uri: ./rows.jsonl}
"""


@pytest.fixture
def write(tmp_path: Path):  # type: ignore[no-untyped-def]
    def write(text: str) -> str:
        path = tmp_path / "job.yaml"
        path.write_text(text)
        return str(path)

    return write


@pytest.mark.parametrize(
    ("text", "want"), [("2e-4", 2e-4), ("2.0e-4", 2e-4), ("0.0002", 2e-4), ("1e-3", 1e-3)]
)
def test_numbers_are_read_as_kubectl_reads_them(write, text: str, want: float) -> None:  # type: ignore[no-untyped-def]
    job = read_job_file(write(f"{SMALLEST}  training: {{learningRate: {text}}}\n"))
    assert job.spec.training.learning_rate == want


def test_every_mistake_is_named_at_once_with_its_path(write) -> None:  # type: ignore[no-untyped-def]
    text = f"""{SMALLEST}  training: {{epohcs: 3, batchSize: "16"}}
  tuning: {{lora: {{rank: 1.5}}}}
"""
    with pytest.raises(JobFileError) as e:
        read_job_file(write(text))
    paths = [fault.split(":")[0] for fault in e.value.faults]
    assert sorted(paths) == [
        "spec.training.batchSize",
        "spec.training.epohcs",
        "spec.tuning.lora.rank",
    ]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        pytest.param(("kind: FineTuneJob", "kind: Job"), "exactly one FineTuneJob", id="kind"),
        pytest.param(("v1alpha1", "v1"), "expected anneal.dev/v1alpha1", id="version"),
        pytest.param(("name: support-bot", "labels: {}"), "metadata.name: is required", id="name"),
        pytest.param(("metadata:", "metadat:"), "metadat: unknown field", id="envelope"),
        pytest.param(("spec:\n", "spec: [\n"), "is not valid YAML", id="syntax"),
        pytest.param(("uri: ./model", "name: x"), "spec.model.uri: is required", id="missing"),
    ],
)
def test_a_file_that_is_no_job_is_refused(write, change: tuple[str, str], fault: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(JobFileError, match=fault):
        read_job_file(write(SMALLEST.replace(*change)))


def test_what_is_not_implemented_is_refused(write) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(JobFileError, match=r"spec\.export.*not implemented"):
        read_job_file(write(f"{SMALLEST}  export: {{formats: [gguf]}}\n"))


def test_assignments_change_fields_and_are_checked_like_the_file(write) -> None:  # type: ignore[no-untyped-def]
    path = write(SMALLEST)
    job = read_job_file(path, assignments=("training.maxSteps=20", "spec.model.uri=./other"))
    assert job.spec.training.max_steps == 20
    assert job.spec.model.uri == "./other"
    with pytest.raises(JobFileError, match=r"spec\.training\.maxSteps"):
        read_job_file(path, assignments=("training.maxSteps=many",))
    with pytest.raises(JobFileError, match="must be path=value"):
        read_job_file(path, assignments=("training.maxSteps",))


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(JobFileError, match=r"nowhere\.yaml.*cannot be read"):
        read_job_file("nowhere.yaml")
