"""The MLflow run and the registered model that a job asks for.

The rules for names are MLflow's own (mlflow/utils/validation.py, 3.x), narrowed to ASCII; a unit
test puts whatever passes here before MLflow's validators. What MLflow would refuse is refused when
the job is applied, not after it has been trained.
"""

import re
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from anneal_pipeline.config.schema import CelRule, Schema

ModelName = Annotated[
    str, Field(min_length=1, max_length=256, pattern=r"^[A-Za-z0-9]([A-Za-z0-9 ._-]*[A-Za-z0-9])?$")
]
"""Name of a registered model: no slash, colon or quote, which MLflow URIs cannot carry."""

ExperimentName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=256,
        pattern=r"^[^\x00-\x20\x7f]([^\x00-\x1f\x7f]*[^\x00-\x20\x7f])?$",
    ),
]
"""Name of an experiment: no control characters and no outer blanks."""

TAG_KEY_CHARS_MAX = 250
TAG_KEY = "^[A-Za-z0-9_][A-Za-z0-9_.: -]*(/[A-Za-z0-9_][A-Za-z0-9_.: -]*)*$"
"""A tag's key must also be a path that normalises to itself, because MLflow may store it as one."""
RESERVED_TAG_PREFIXES = ("mlflow.", "anneal.")
RESERVED_ALIAS = "^([lL][aA][tT][eE][sS][tT]|[vV][0-9]+)$"
"""models:/NAME@ALIAS must not be mistaken for models:/NAME/latest or models:/NAME/3."""

_KEY_MESSAGE = (
    "may hold letters, digits, '_', '.', ':', '-' and spaces, in parts that a single slash "
    f"divides and that begin with a letter, digit or '_'; at most {TAG_KEY_CHARS_MAX} characters"
)
_RESERVED_KEY_MESSAGE = "must not begin with mlflow. or anneal., which are reserved"
_ALIAS_MESSAGE = "must not be latest or a version like v3, which MLflow reserves"


class GateSpec(Schema):
    """A condition on a final metric; the alias is set only when it holds."""

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule="has(self.max) || has(self.min) || (has(self.improvesBase) && self.improvesBase)",
            message="set at least one of max, min and improvesBase",
        ),
    )

    metric: str = Field(default="responsePerplexity", max_length=64)
    """The metric that decides."""
    max: float | None = None
    """Largest value that passes."""
    min: float | None = None
    """Smallest value that passes."""
    improves_base: bool | None = None
    """Whether the tuned model must be better than its base."""
    versus: Literal["base", "champion"] = "base"
    """What the tuned model is compared with."""


class TrackingSpec(Schema):
    """The MLflow run and the registered model."""

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule=f"!has(self.alias) || !self.alias.matches('{RESERVED_ALIAS}')",
            message=f"tracking.alias {_ALIAS_MESSAGE}",
        ),
        CelRule(
            rule="!has(self.tags) || self.tags.all(key, "
            f"key.size() <= {TAG_KEY_CHARS_MAX} && key.matches('{TAG_KEY}'))",
            message=f"a key of tracking.tags {_KEY_MESSAGE}",
        ),
        CelRule(
            rule="!has(self.tags) || self.tags.all(key, "
            + " && ".join(f"!key.startsWith('{prefix}')" for prefix in RESERVED_TAG_PREFIXES)
            + ")",
            message=f"a key of tracking.tags {_RESERVED_KEY_MESSAGE}",
        ),
    )

    experiment: ExperimentName | None = None
    """MLflow experiment. Default: the job's namespace."""
    registered_model: ModelName | None = None
    """Registered model that gets the new version. Default: the job's name."""
    alias: str = Field(default="candidate", max_length=64, pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")
    """Alias set on the new version, last of all. Not latest and not v1, v2 and so on, which
    MLflow reserves."""
    gate: GateSpec | None = None
    """Condition for setting the alias. Default: none."""
    tags: dict[str, Annotated[str, Field(max_length=1024)]] = Field(default={}, max_length=32)
    """Further tags of the run. Keys that begin with mlflow. or anneal. are reserved."""

    @field_validator("alias")
    @classmethod
    def _alias_is_free(cls, alias: str) -> str:
        if re.search(RESERVED_ALIAS, alias):
            raise ValueError(f"got {alias!r}, but it {_ALIAS_MESSAGE}")
        return alias

    @field_validator("tags")
    @classmethod
    def _keys_are_mlflows(cls, tags: dict[str, str]) -> dict[str, str]:
        for key in tags:
            if len(key) > TAG_KEY_CHARS_MAX or not re.fullmatch(TAG_KEY[1:-1], key):
                raise ValueError(f"got the key {key[:80]!r}; a key {_KEY_MESSAGE}")
            if key.startswith(RESERVED_TAG_PREFIXES):
                raise ValueError(f"got the key {key!r}; a key {_RESERVED_KEY_MESSAGE}")
        return tags
