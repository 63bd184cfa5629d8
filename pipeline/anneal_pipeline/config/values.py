"""Value types that several configuration models share, with the bounds that keep CEL cheap."""

from typing import Annotated

from pydantic import Field

Uri = Annotated[str, Field(min_length=1, max_length=1024)]
"""hf://, s3:// or pvc:// in a cluster; a local run also takes a path."""

Revision = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9._/-]+$")]
"""A commit hash, tag or branch of a hub repository."""

Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]

Share = Annotated[float, Field(ge=0.0, le=1.0)]
"""A part of a whole, 0 to 1."""

ColumnName = Annotated[str, Field(min_length=1, max_length=128)]

ModuleName = Annotated[str, Field(min_length=1, max_length=256)]

Rank = Annotated[int, Field(ge=1, le=1024)]
"""Of an adapter's two matrices."""

NUM_STEPS_MAX = 10_000_000
"""More optimiser steps than any fine-tuning run; bounds every step-valued field."""

NumSteps = Annotated[int, Field(ge=1, le=NUM_STEPS_MAX)]
