"""Options that several commands share, each with one name and one help text."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class OutputForm(StrEnum):
    TABLE = "table"
    JSON = "json"


def _require_assignments(assignments: list[str] | None) -> list[str] | None:
    for assignment in assignments or ():
        path, separator, _ = assignment.partition("=")
        if not separator or not path:
            raise typer.BadParameter(
                f"got {assignment}, expected FIELD=VALUE, as in model.uri=DIR", param_hint="--set"
            )
    return assignments


FileArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="FILE",
        help="FineTuneJob as YAML; - reads standard input.",
        show_default=False,
    ),
]
FileOption = Annotated[
    str | None,
    typer.Option("--file", "-f", metavar="FILE", help="The same file, named as kubectl takes it."),
]
S3EndpointOption = Annotated[
    str | None,
    typer.Option(metavar="URL", help="URL of the S3 server. Default: AWS_ENDPOINT_URL, else AWS."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Change a field below spec, as in training.learningRate=1e-4, or remove it with "
        "null; may be repeated.",
        callback=_require_assignments,
    ),
]


def one_file(argument: str | None, option: str | None) -> str:
    """The FineTuneJob of a command that takes it as an argument or by -f."""
    if argument is None and option is None:
        raise typer.BadParameter(
            "there is none; name that of a FineTuneJob, as in job.yaml", param_hint="FILE"
        )
    if argument is not None and option is not None:
        raise typer.BadParameter(
            f"got {argument} and -f {option}, expected one of them", param_hint="FILE"
        )
    return argument or option or ""
