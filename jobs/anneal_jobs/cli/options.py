"""Options that several commands share, each with one name and one help text."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class OutputForm(StrEnum):
    TABLE = "table"
    JSON = "json"


FileOption = Annotated[
    str,
    typer.Option(
        "--file", "-f", metavar="FILE", help="FineTuneJob as YAML; - reads standard input."
    ),
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
        help="Change a field below spec, as in training.maxSteps=20; may be repeated.",
    ),
]
