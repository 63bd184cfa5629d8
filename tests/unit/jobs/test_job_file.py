import json
import re
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
        pytest.param(
            ("kind: FineTuneJob", "kind: Job"),
            "exactly one FineTuneJob, found kind Job; ",
            id="kind",
        ),
        pytest.param(("v1alpha1", "v1"), "expected anneal.dev/v1alpha1", id="version"),
        pytest.param(("name: support-bot", "labels: {}"), "metadata.name: is required", id="name"),
        pytest.param(("metadata:", "metadat:"), "metadat: unknown field", id="envelope"),
        pytest.param(("metadata:", "metadat:"), "did you mean metadata?", id="misspelt"),
        pytest.param(("spec:\n", "training: {}\nspec:\n"), "indent it below spec", id="indent"),
        pytest.param(
            ("{name: support-bot}", "\n  name: support: bot"),
            "line 5, column 16 is not valid YAML: mapping values are not allowed here; "
            "the line is: name: support: bot",
            id="syntax",
        ),
        pytest.param(("spec:\n", "spec: [\n"), "is not valid YAML", id="bracket"),
        pytest.param(
            ("{name: support-bot}", "\n\tname: x"), "indent with spaces, not tabs", id="tab"
        ),
        pytest.param(("uri: ./model", "name: x"), "spec.model.uri: is required", id="missing"),
    ],
)
def test_a_file_that_is_no_job_is_refused(write, change: tuple[str, str], fault: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(JobFileError, match=fault):
        read_job_file(write(SMALLEST.replace(*change)))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        pytest.param("", "the file is empty", id="empty"),
        pytest.param("# nothing yet\n---\n", "the file is empty", id="comment"),
        pytest.param("- kind: FineTuneJob\n", "found a list", id="list"),
        pytest.param("hello", "found plain text", id="text"),
        pytest.param("spec: {}", "found an object without `kind`", id="no kind"),
        pytest.param(f"{SMALLEST}\n---\n{SMALLEST}", "found 2; split the file", id="two"),
    ],
)
def test_what_stands_there_instead_is_named(write, text: str, found: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(JobFileError) as e:
        read_job_file(write(text))
    [fault] = e.value.faults
    assert fault.startswith("expected exactly one FineTuneJob, ")
    assert found in fault


@pytest.mark.parametrize(
    "name",
    [
        *("../../evil", "Bad_Name", "a/b", "/etc", "..", "-a", "a-", "a..b", "a.-b", "ä"),
        pytest.param("a\n", id="newline"),
        pytest.param("a" * 254, id="long"),
        pytest.param(17, id="number"),
    ],
)
def test_a_name_that_the_api_server_rejects_is_refused(write, name: object) -> None:  # type: ignore[no-untyped-def]
    text = SMALLEST.replace("support-bot", json.dumps(name))
    with pytest.raises(JobFileError) as e:
        read_job_file(write(text))
    [fault] = e.value.faults
    assert fault.startswith("metadata.name: got ")
    assert fault.isprintable()
    assert "choose another name" in fault


@pytest.mark.parametrize("namespace", ["Team", "a.b", "../x", "a" * 64, 3])
def test_a_namespace_that_the_api_server_rejects_is_refused(write, namespace: object) -> None:  # type: ignore[no-untyped-def]
    text = SMALLEST.replace("support-bot", f"x, namespace: {json.dumps(namespace)}")
    with pytest.raises(JobFileError) as e:
        read_job_file(write(text))
    [fault] = e.value.faults
    assert fault.startswith("metadata.namespace: got ")


@pytest.mark.parametrize("name", ["a", "0", "support-bot", "v1.2-rc", "a" * 253])
def test_names_of_the_cluster_pass(write, name: str) -> None:  # type: ignore[no-untyped-def]
    job = read_job_file(write(SMALLEST.replace("support-bot", f"'{name}', namespace: team-a")))
    assert (job.name, job.namespace) == (name, "team-a")


def test_epochs_give_way_to_steps_as_the_message_says(write) -> None:  # type: ignore[no-untyped-def]
    path = write(f"{SMALLEST}  training: {{epochs: 1}}\n")
    with pytest.raises(
        JobFileError, match=r"exclude each other; remove one.*--set training\.epochs=null"
    ):
        read_job_file(path, assignments=("training.maxSteps=20",))
    job = read_job_file(path, assignments=("training.epochs=null", "training.maxSteps=20"))
    assert (job.spec.training.epochs, job.spec.training.max_steps) == (None, 20)


def test_more_ranks_than_a_batch_has_rows_are_refused_with_the_remedy(write) -> None:  # type: ignore[no-untyped-def]
    path = write(f"{SMALLEST}  compute: {{ranksPerWorker: 3}}\n")
    with pytest.raises(JobFileError) as e:
        read_job_file(path, assignments=("training.batchSize=2",))
    [fault] = e.value.faults
    assert fault == (
        "spec: compute.ranksPerWorker (3) times compute.workers (1) must not be greater than "
        "training.batchSize (2), or ranks would have no rows; lower ranksPerWorker or raise "
        "batchSize"
    )
    assert read_job_file(path, assignments=("training.batchSize=3",)).spec.compute == (
        read_job_file(path).spec.compute
    )


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


@pytest.mark.parametrize("text", ["*.jsonl", "@rows", "#12", " "])
def test_what_yaml_has_no_value_for_is_set_as_text(write, text: str) -> None:  # type: ignore[no-untyped-def]
    job = read_job_file(write(SMALLEST), assignments=(f"dataset.uri={text}",))
    assert job.spec.dataset.uri == text


def test_a_field_below_an_empty_section_can_be_set(write) -> None:  # type: ignore[no-untyped-def]
    path = write(f"{SMALLEST}  training:\n")
    assert read_job_file(path, assignments=("training.maxSteps=4",)).spec.training.max_steps == 4


def test_a_mistake_of_the_command_line_is_told_from_one_of_the_file(write) -> None:  # type: ignore[no-untyped-def]
    path = write(f"{SMALLEST}  tuning: {{lora: {{rank: 2000}}}}\n")
    with pytest.raises(JobFileError) as refused:
        read_job_file(path, assignments=("trainning.epochs=1", "training.batchSize=abc"))
    by_field = {fault.partition(": ")[0]: fault for fault in refused.value.faults}
    assert by_field["spec.trainning"].endswith("(from --set trainning.epochs=1)")
    assert by_field["spec.training.batchSize"].endswith("(from --set training.batchSize=abc)")
    assert "--set" not in by_field["spec.tuning.lora.rank"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        pytest.param(
            "  training:\n    epochs: 2\n    batchSize: many\n",
            r"spec\.training\.batchSize: .*\(line 10\)$",
            id="wrong",
        ),
        pytest.param(
            "  training:\n    # none\n    epohcs: 2\n",
            r"spec\.training\.epohcs: .*\(line 10\)$",
            id="unknown",
        ),
        pytest.param(
            "  evaluation:\n    prompts:\n      - Hello\n      - 17\n",
            r"spec\.evaluation\.prompts\[1\]: .*\(line 11\)$",
            id="item",
        ),
        pytest.param("extra: 1\n", r"extra: .*\(line 8\)$", id="outermost"),
        pytest.param(
            "  tuning:\n    lora: {rank: 2000}\n---\nkind: Secret\n",
            r"spec\.tuning\.lora\.rank: .*\(line 9\)$",
            id="another document",
        ),
    ],
)
def test_the_line_of_a_mistake_is_named(write, text: str, fault: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(JobFileError) as refused:
        read_job_file(write(f"{SMALLEST}{text}"))
    [found] = refused.value.faults
    assert re.match(fault, found)


def test_the_line_counts_through_all_documents_of_the_file(write) -> None:  # type: ignore[no-untyped-def]
    text = f"# first\n---\nkind: Secret\n---{SMALLEST}  training: {{batchSize: 0}}\n"
    with pytest.raises(JobFileError, match=r"batchSize: .*\(line 11\)"):
        read_job_file(write(text))


def test_of_a_field_that_is_missing_the_one_above_is_named(write) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(JobFileError, match=r"spec\.model\.uri: is required.*\(line 6\)"):
        read_job_file(write(SMALLEST.replace("{uri: ./model}", "{}")))
    with pytest.raises(JobFileError) as refused:
        read_job_file(write(SMALLEST.replace("apiVersion: anneal.dev/v1alpha1\n", "")))
    [fault] = refused.value.faults
    assert fault.startswith("apiVersion: ")
    assert "line" not in fault


def test_a_merged_field_has_the_line_that_it_is_written_in(write) -> None:  # type: ignore[no-untyped-def]
    text = f"{SMALLEST}  tuning:\n    lora: &lora\n      rank: 4\n      alpah: 8\n"
    evaluation = "  training:\n    <<: *lora\n    epochs: 1\n"
    with pytest.raises(JobFileError) as refused:
        read_job_file(write(f"{text}{evaluation}"))
    lines = {fault.partition(": ")[0]: fault for fault in refused.value.faults}
    assert lines["spec.tuning.lora.alpah"].endswith("(line 11)")
    assert lines["spec.training.alpah"].endswith("(line 11)")


def test_an_item_of_the_command_line_is_not_looked_for_in_the_file(write) -> None:  # type: ignore[no-untyped-def]
    path = write(f"{SMALLEST}  evaluation:\n    prompts:\n      - Hello\n      - World\n")
    with pytest.raises(JobFileError) as refused:
        read_job_file(path, assignments=("evaluation.prompts=[Hello, 17]",))
    [fault] = refused.value.faults
    assert fault.endswith("(from --set evaluation.prompts=[Hello, 17])")


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(JobFileError, match=r"nowhere\.yaml.*cannot be read"):
        read_job_file("nowhere.yaml")
