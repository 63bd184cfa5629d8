"""The `anneal` command. Exit codes: 0 done, 1 failure, 2 usage, 65 your input; `run` also 75
(interrupted after a checkpoint, run again to go on)."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from anneal_jobs.cli import terminal
from anneal_jobs.cli.cluster_needs import cluster_needs
from anneal_jobs.cli.explain import lines_of, select, similar
from anneal_jobs.cli.job_file import JobFile, JobFileError, read_job_file
from anneal_jobs.cli.local_job import LocalOptions, check_before_first_run
from anneal_jobs.cli.options import (
    FileArgument,
    FileOption,
    OutputForm,
    S3EndpointOption,
    SetOption,
    one_file,
)
from anneal_jobs.cli.quantity import option_bytes
from anneal_jobs.errors import JobsError
from anneal_pipeline.errors import PipelineError, UserError

_EXIT_SIGINT = 130

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Fine-tune language models from the FineTuneJob that a cluster would run.",
    epilog="Example:  anneal run -f finetune-job.yaml --set dataset.uri=rows.jsonl",
)
models_app = typer.Typer(
    no_args_is_help=True, help="Bring in base models: from GGUF to a folder that can be tuned."
)
app.add_typer(models_app, name="models")
data_app = typer.Typer(no_args_is_help=True, help="Look at data before it is trained on.")
app.add_typer(data_app, name="data")


def _print_version_and_exit(wanted: bool) -> None:
    if wanted:
        terminal.print_data(_version())
        raise typer.Exit


@app.callback()
def options_of_all(
    _version_wanted: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version_and_exit,
            is_eager=True,
            help="Print the version and exit.",
        ),
    ] = False,
) -> None:
    """Options before any command."""


@app.command(
    epilog="Example:  anneal run -f job.yaml --set model.uri=./smollm2 --output ./runs",
)
def run(
    file: FileArgument = None,
    named: FileOption = None,
    assignments: SetOption = None,
    output: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE",
            help="Folder or s3:// address for the job's folder. Default: output.uri of the job, "
            "else ./anneal-runs",
        ),
    ] = None,
    tracking: Annotated[
        str | None,
        typer.Option(
            metavar="URI",
            help="MLflow server or database. Default: MLFLOW_TRACKING_URI, else SQLite beside the "
            "output.",
        ),
    ] = None,
    s3_endpoint: S3EndpointOption = None,
) -> None:
    """Run a FineTuneJob here, without a cluster. Ctrl-C saves a checkpoint; run again to go on."""
    job = _read(one_file(file, named), assignments)
    options = LocalOptions(output=output, tracking_uri=tracking, s3_endpoint=s3_endpoint)
    with terminal.one_sentence_errors(UserError):
        check_before_first_run(job, options)
    # torch, transformers and MLflow take seconds to import: only where they are needed.
    from anneal_jobs.quiet import quiet_libraries

    quiet_libraries()
    from anneal_jobs.cli.run import run_job

    raise typer.Exit(run_job(job, options))


@app.command(epilog="Example:  anneal validate -f job.yaml && kubectl apply -f job.yaml")
def validate(
    file: FileArgument = None, named: FileOption = None, assignments: SetOption = None
) -> None:
    """Check a FineTuneJob without running it; all faults are listed at once."""
    job = _read(one_file(file, named), assignments)
    needs = cluster_needs(job.spec)
    if not needs:
        terminal.print_data(f"finetunejob {job.name} is valid")
        return
    terminal.print_data(
        f"finetunejob {job.name} is valid for a local run; a cluster also needs {'; '.join(needs)}"
    )


@app.command(
    epilog="Examples:\n\nanneal estimate job.yaml\n\n"
    "anneal estimate job.yaml --memory 24Gi\n\n"
    "anneal estimate job.yaml --gpu-memory 24Gi --max-rank\n\n"
    "anneal estimate job.yaml --gpu-memory 24Gi --output json",
)
def estimate(
    file: FileArgument = None,
    named: FileOption = None,
    assignments: SetOption = None,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory of a pod, e.g. 24Gi. Default: the job's, else this machine's.",
        ),
    ] = None,
    gpu_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory of a GPU, e.g. 24Gi. Default: that of the GPU here, if any.",
        ),
    ] = None,
    max_rank: Annotated[
        bool,
        typer.Option(
            "--max-rank", help="Find the highest rank that memory allows, and name usual ones."
        ),
    ] = False,
    output: Annotated[OutputForm, typer.Option(help="table or json.")] = OutputForm.TABLE,
    s3_endpoint: S3EndpointOption = None,
) -> None:
    """Tell what loading and training need in memory, from the model's config.json alone.

    Exit code 65 with the nearest setting that fits, where the job does not.
    """
    job = _read(one_file(file, named), assignments)
    with terminal.one_sentence_errors(JobsError):
        room = option_bytes(memory, option="--memory")
        gpu_room = option_bytes(gpu_memory, option="--gpu-memory")
    from anneal_jobs.quiet import quiet_libraries

    quiet_libraries()
    with terminal.stderr().status("importing libraries") as status:
        from anneal_jobs.cli import estimate as estimating

        options = estimating.EstimateOptions(
            memory=room, gpu_memory=gpu_room, s3_endpoint=s3_endpoint
        )
        status.update("going through a step without weights")
        with terminal.one_sentence_errors(PipelineError, JobsError, OSError):
            if max_rank:
                limit = estimating.limit_rank(job, options)
            else:
                found = estimating.estimate_job(job, options)
    if max_rank:
        from anneal_jobs.cli.rank_limit import show

        return show(limit, output=output)
    estimating.show(found, output=output)
    if not found.fits:
        terminal.fail(found.refusal())
        raise typer.Exit(terminal.EXIT_USER)


@app.command(epilog="Example:  anneal explain training.learningRate")
def explain(
    path: Annotated[
        str,
        typer.Argument(
            metavar="FIELD", show_default=False, help="A field, e.g. tuning.lora. Default: all."
        ),
    ] = "spec",
) -> None:
    """Print the fields of a FineTuneJob with type, default and description."""
    docs = select(path)
    if not docs:
        found = similar(path)
        hint = f"did you mean {found}? " if found else ""
        terminal.fail(f"there is no field {path}; {hint}`anneal explain` lists all")
        raise typer.Exit(terminal.EXIT_FAILURE)
    for doc in docs:
        for line in lines_of(doc, width=terminal.width()):
            terminal.print_data(line)


@data_app.command("inspect", epilog="Example:  anneal data inspect job.yaml")
def inspect(
    file: FileArgument = None,
    named: FileOption = None,
    assignments: SetOption = None,
    output: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Folder for page and rows. Default: NAME-data"),
    ] = None,
    s3_endpoint: S3EndpointOption = None,
) -> None:
    """Prepare a job's data without training: what is read, dropped, split, and trained on."""
    job = _read(one_file(file, named), assignments)
    from anneal_jobs.quiet import quiet_libraries

    quiet_libraries()
    from anneal_jobs.cli.data_inspect import inspect_data

    with terminal.one_sentence_errors(PipelineError, JobsError, OSError):
        for line in inspect_data(job, output=output, s3_endpoint=s3_endpoint):
            terminal.print_data(line)


@models_app.command("import", epilog="Example:  anneal models import smollm2 --output ./smollm2")
def import_model(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="smollm2, or the path of a GGUF file.")
    ],
    output: Annotated[
        str, typer.Option(metavar="PLACE", help="Folder or s3:// address to write to.")
    ],
    s3_endpoint: S3EndpointOption = None,
) -> None:
    """Turn a GGUF file into a safetensors folder that can be tuned."""
    from anneal_jobs.quiet import quiet_libraries

    quiet_libraries()
    from anneal_jobs.cli.model_import import import_to

    with (
        terminal.one_sentence_errors(PipelineError, JobsError, OSError),
        terminal.stderr().status("reading the weights and writing them as safetensors"),
    ):
        address = import_to(source, output, s3_endpoint=s3_endpoint)
    terminal.print_data(address)


@app.command(epilog="Example:  anneal upload rows.jsonl s3://team-data/rows.jsonl")
def upload(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A file or a folder.")],
    target: Annotated[
        str,
        typer.Argument(
            metavar="ADDRESS", help="An s3:// address; with a / at its end a file keeps its name."
        ),
    ],
    s3_endpoint: S3EndpointOption = None,
) -> None:
    """Copy files to S3 and verify them there."""
    from anneal_jobs.cli.model_import import upload_to

    with terminal.one_sentence_errors(PipelineError, JobsError, OSError):
        terminal.print_data(upload_to(source, target, s3_endpoint=s3_endpoint))


@app.command("version")
def print_version() -> None:
    """Print the version."""
    terminal.print_data(_version())


def _version() -> str:
    try:
        return version("anneal")
    except PackageNotFoundError:
        return "unknown (not installed)"


def main() -> None:
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(_EXIT_SIGINT)


def _read(file: str, assignments: list[str] | None) -> JobFile:
    try:
        return read_job_file(file, assignments=tuple(assignments or ()))
    except JobFileError as error:
        for fault in error.faults:
            terminal.fail(f"{error.source}: {fault}")
        raise typer.Exit(terminal.EXIT_USER) from None


if __name__ == "__main__":
    main()
