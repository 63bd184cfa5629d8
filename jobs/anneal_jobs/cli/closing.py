"""The last page of `anneal run`: is it better, what does it say now, and how to use it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from anneal_jobs.loading_code import from_folder, from_registry
from anneal_jobs.storage.access import s3_settings_of
from anneal_jobs.storage.places import open_folder
from anneal_jobs.storage.uri import parse_uri
from anneal_operator.api.outcome import Outcome
from anneal_operator.api.run_config import RunConfig

_ANSWERS_MAX = 3
_ANSWER_CHARS = 400
_MLFLOW_DEFAULT = "http://127.0.0.1:5000"
"""Where `mlflow server` listens unless it is told otherwise."""


def print_closing(
    console: Console, config: RunConfig, outcome: Outcome, *, page: str | None = None
) -> None:
    """`page` is the path of the run's page below the address of MLflow, where that is known."""
    report = _read_report(config)
    console.print()
    console.print(f"[bold]{config.job.name}[/bold]: {outcome.step} steps")
    console.print(_metrics_table(report))
    for pair in report.get("answers", [])[:_ANSWERS_MAX]:
        console.print(_answers(pair))
    console.print(Text(f"model     {outcome.model_version} (alias {config.tracking.alias})"))
    console.print(Text(f"files     {config.output_uri}"))
    console.print(Text(f"report    {config.output_uri}/evaluation/report.html"))
    for line in _mlflow_lines(config, page=page):
        console.print(Text(line))
    console.print(Text(f"load it   in {sys.executable}"))
    for line in _loading_code(config):
        console.print(Text(f"    {line}".rstrip()))


def _read_report(config: RunConfig) -> dict[str, Any]:
    settings = s3_settings_of(config)
    data = open_folder(parse_uri(config.output_uri), settings).read("evaluation/report.json")
    report: dict[str, Any] = json.loads(data) if data else {}
    return report


def _metrics_table(report: dict[str, Any]) -> Table:
    table = Table("metric", "base", "tuned", "change")
    base, tuned, change = (report.get(key, {}) for key in ("base", "tuned", "change"))
    for name, value in tuned.items():
        table.add_row(
            name,
            f"{base[name]:.4g}" if name in base else "-",
            f"{value:.4g}",
            f"{change[name]:+.1%}" if change.get(name) is not None else "-",
        )
    return table


def _answers(pair: dict[str, Any]) -> Text:
    text = Text()
    text.append(f"> {_cut(pair['prompt'])}\n", style="bold")
    if pair.get("base") is not None:
        text.append("base   ", style="dim").append(f"{_cut(pair['base'])}\n")
    text.append("tuned  ", style="green").append(f"{_cut(pair['tuned'])}\n")
    return text


def _cut(answer: str) -> str:
    line = " ".join(answer.split())
    return line if len(line) <= _ANSWER_CHARS else f"{line[:_ANSWER_CHARS]}..."


def _mlflow_lines(config: RunConfig, *, page: str | None) -> Iterator[str]:
    uri = config.tracking.uri
    if uri.startswith(("http://", "https://")):
        yield f"MLflow    {uri.rstrip('/')}{page or ''}"
        return
    program = Path(sys.executable).with_name("mlflow")
    command = str(program) if program.is_file() else "mlflow"
    yield f"MLflow    {shlex.join([command, 'server', '--backend-store-uri', uri])}"
    yield f"          and then {_MLFLOW_DEFAULT}{page or ''}"


def _loading_code(config: RunConfig) -> list[str]:
    if "://" in config.output_uri:
        return from_registry(config, tracking_uri=config.tracking.uri)
    return from_folder(config.pipeline, f"{config.output_uri}/artifacts/adapter")
