"""The condition of a resource, as all of Kubernetes spells it."""

from datetime import datetime
from typing import Literal

from pydantic import Field, JsonValue

from anneal_operator.api.reasons import ConditionType
from anneal_pipeline.config.schema import Schema

LIST_MAP: dict[str, JsonValue] = {
    "x-kubernetes-list-type": "map",
    "x-kubernetes-list-map-keys": ["type"],
}
"""Schema of a list of conditions: one entry per type, merged by server-side apply."""


class Condition(Schema):
    """A metav1.Condition."""

    type: ConditionType
    """What the condition is about."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: str = Field(max_length=64, pattern=r"^[A-Z][A-Za-z0-9]*$")
    """PascalCase word for programs; see docs/reasons.md."""
    message: str = Field(max_length=4096)
    """A full sentence with the next step."""
    last_transition_time: datetime
    """When status last changed."""
    observed_generation: int = Field(ge=0)
    """Generation of the spec the condition belongs to."""
