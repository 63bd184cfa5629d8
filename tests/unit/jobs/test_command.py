"""The `anneal` command as typed, for all that needs neither torch nor MLflow."""

import io
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from anneal_jobs.cli.display import BarDisplay, LineDisplay
from anneal_jobs.cli.main import app
from anneal_pipeline.observer import EVENT_WARNING, EvaluationReport, StepReport

COMMIT = "12fd25f77366fa6b3b4b768ec3050bf629380bac"
JOB = """
apiVersion: anneal.dev/v1alpha1
kind: FineTuneJob
metadata: {name: tiny}
spec:
  model: {uri: MODEL}
  dataset: {uri: DATA}
"""


def anneal(folder: Path, *arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "anneal_jobs.cli.main", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def write_job(folder: Path, *, model: str, data: str) -> None:
    (folder / "job.yaml").write_text(JOB.replace("MODEL", model).replace("DATA", data))


def test_the_version_is_an_option_too(tmp_path: Path) -> None:
    assert anneal(tmp_path, "--version") == (0, f"{version('anneal')}\n", "")


@pytest.mark.parametrize(
    ("model", "data", "want"),
    [
        pytest.param(f"hf://o/m, revision: {COMMIT}", "s3://b/rows", "is valid\n", id="cluster"),
        pytest.param(
            "./model",
            "./rows.jsonl",
            "is valid for a local run; a cluster also needs spec.model.uri at s3://, hf:// or "
            "pvc:// (got ./model); spec.dataset.uri at s3://, hf:// or pvc:// (got ./rows.jsonl)\n",
            id="paths",
        ),
        pytest.param(
            "hf://o/m, revision: main",
            "s3://b/rows",
            "is valid for a local run; a cluster also needs the 40-digit commit hash in "
            "spec.model.revision (got main), unless its profile allows tags\n",
            id="tag",
        ),
    ],
)
def test_validate_says_what_a_cluster_needs(
    tmp_path: Path, model: str, data: str, want: str
) -> None:
    write_job(tmp_path, model=model, data=data)
    assert anneal(tmp_path, "validate", "-f", "job.yaml") == (0, f"finetunejob tiny {want}", "")


@pytest.mark.parametrize("command", [["run"], ["validate"], ["estimate"], ["data", "inspect"]])
@pytest.mark.parametrize(
    ("files", "want"),
    [
        pytest.param((), "there is none; name that of a FineTuneJob", id="none"),
        pytest.param(("a.yaml", "-f", "b.yaml"), "got a.yaml and -f b.yaml", id="two"),
        pytest.param(("gone.yaml",), "gone.yaml: cannot be read", id="as an argument"),
        pytest.param(("-f", "gone.yaml"), "gone.yaml: cannot be read", id="as an option"),
    ],
)
def test_a_job_is_named_by_an_argument_or_by_f(
    command: list[str], files: tuple[str, ...], want: str
) -> None:
    done = CliRunner().invoke(app, [*command, *files])
    assert done.exit_code == (65 if want.startswith("gone") else 2)
    assert want in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("options", "want"),
    [
        (["validate", "job.yaml", "--set", "training.maxSteps"], "expected FIELD=VALUE"),
        (["validate", "job.yaml", "--set", "=3"], "expected FIELD=VALUE"),
        (["estimate", "job.yaml", "--memory", "lots"], "expected a size such as 24Gi"),
    ],
)
def test_what_is_wrong_on_the_command_line_is_wrong_usage(
    tmp_path: Path, options: list[str], want: str
) -> None:
    write_job(tmp_path, model="./model", data="./rows.jsonl")
    code, _, errors = anneal(tmp_path, *options)
    assert code == 2
    assert want in " ".join(errors.split())
    assert "job.yaml:" not in errors


@pytest.mark.parametrize("missing", ["model", "dataset"])
def test_a_missing_path_is_met_before_anything_is_made(tmp_path: Path, missing: str) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    data = "rows.jsonl" if missing == "model" else "gone"
    write_job(tmp_path, model="gone", data=data)
    code = (
        "import sys, anneal_jobs.cli.main as c\n"
        "try: c.app(['run', '-f', 'job.yaml'])\n"
        "except SystemExit as end: code = end.code\n"
        "print(code, *{'torch', 'mlflow', 'bitsandbytes', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout == "65\n"
    assert f"no {missing} at gone" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"job.yaml", "rows.jsonl"}


def test_an_output_that_cannot_be_written_is_met_before_anything_is_imported(
    tmp_path: Path,
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama"}')
    for name in ("tokenizer.json", "model.safetensors"):
        (model / name).write_text("{}")
    write_job(tmp_path, model="./model", data="./rows.jsonl")
    code, stdout, stderr = anneal(tmp_path, "run", "-f", "job.yaml", "--output", "rows.jsonl")
    assert (code, stdout) == (65, "")
    assert stderr.startswith("error: The output folder ")
    assert "Not a directory" in stderr
    assert "--output" in stderr


@pytest.mark.parametrize(
    ("source", "part"),
    [
        pytest.param("nosuch", "or smollm2 for the model", id="missing"),
        pytest.param("README.md", "README.md is no GGUF file", id="another format"),
    ],
)
def test_what_is_no_gguf_file_is_one_sentence(tmp_path: Path, source: str, part: str) -> None:
    (tmp_path / "README.md").write_text("# words\n")
    code, stdout, stderr = anneal(tmp_path, "models", "import", source, "--output", "out")
    assert (code, stdout) == (65, "")
    assert stderr.startswith("error: ")
    assert part in stderr
    assert stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_bitsandbytes_does_not_offer_packages(tmp_path: Path) -> None:
    code = (
        "from anneal_jobs.quiet import quiet_libraries; quiet_libraries()\n"
        "import logging\n"
        "logging.getLogger('bitsandbytes.backends.cpu.ops').warning('pip install kernels')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_lines_tell_how_far_a_long_stage_is_and_mark_warnings() -> None:
    seconds = iter([0.0, 4.0, 11.0, 12.0, 30.0])
    page = io.StringIO()
    lines = LineDisplay(Console(file=page, width=80), clock=lambda: next(seconds))
    for done in (0, 1, 2, 3):
        lines.on_stage("evaluation", done=done, total=8, unit="batches")
    lines.on_stage("export", done=0, total=0, unit="batches")
    lines.on_event(EVENT_WARNING, "Only 9 rows", {})
    assert page.getvalue().splitlines() == [
        "measuring tuned model",
        "measuring tuned model 2/8 batches",
        "exporting",
        "warning: Only 9 rows",
    ]


def test_the_bar_is_back_at_training_after_an_evaluation() -> None:
    bar = BarDisplay(Console(quiet=True))
    bar.on_step(
        StepReport(
            step=3,
            total_steps=9,
            epoch=0.5,
            loss=1.0,
            learning_rate=2e-4,
            grad_norm=1.0,
            num_tokens=100,
            num_trained_tokens=50,
            step_seconds=1.0,
            data_seconds=0.1,
            gradient_seconds=0.8,
            update_seconds=0.1,
            tokens_per_second=100.0,
            eta_seconds=6.0,
            memory_bytes=1,
        )
    )
    bar.on_stage("training-evaluation", done=1, total=1, unit="batches")
    bar.on_evaluation(
        EvaluationReport(
            step=3, subject="tuned", split="test", metrics={}, num_rows=1, num_tokens=1, seconds=1.0
        )
    )
    [task] = bar._progress.tasks
    assert (task.description, task.completed, task.total) == ("training", 3, 9)
