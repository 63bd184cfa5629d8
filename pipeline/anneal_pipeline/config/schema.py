"""The base of every configuration model, and how raw data becomes one.

One class of rules holds for all of Anneal's configuration: models are frozen, an unknown key is an
error everywhere, YAML spells names in camelCase and Python in snake_case, and a wrong type is
refused instead of coerced ("3" is not 3), because the API server does not coerce either.

The docstring under a field is its description in the CRD, in `anneal explain` and in the docs.
"""

import json
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, ValidationError
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, ErrorDetails

from anneal_pipeline.config.expected import expected
from anneal_pipeline.config.spelling import meant


@dataclass(frozen=True, kw_only=True)
class CelRule:
    """A cross-field rule the API server checks (x-kubernetes-validations).

    Where the same rule also holds on a laptop, the model that carries it has a Python validator
    of the same meaning; tests/integration/api runs both over one corpus.
    """

    rule: str
    message: str


class Schema(BaseModel):
    """A frozen piece of configuration; see the module docstring."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    cel_rules: ClassVar[tuple[CelRule, ...]] = ()

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler.resolve_ref_schema(handler(core_schema))
        if cls.cel_rules:
            schema["x-kubernetes-validations"] = [
                {"rule": rule.rule, "message": rule.message} for rule in cls.cel_rules
            ]
        return schema

    @classmethod
    def parse(cls, data: object) -> Self:
        """Build the model from parsed YAML or JSON, or raise ConfigError naming every fault."""
        try:
            return cls.model_validate_json(
                json.dumps(data), strict=True, by_alias=True, by_name=False
            )
        except ValidationError as e:
            raise ConfigError(tuple(FieldFault.of(error, cls) for error in e.errors())) from None
        except (TypeError, ValueError) as e:
            raise ConfigError((FieldFault(path="", message=f"is not plain data: {e}"),)) from None

    def to_data(self) -> dict[str, Any]:
        """Return JSON-compatible data in camelCase, without the fields that are unset (None)."""
        data: dict[str, Any] = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        return data


@dataclass(frozen=True, kw_only=True)
class FieldFault:
    """One wrong field: its path as the user wrote it, and what is wrong with it."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message

    def under(self, prefix: str) -> "FieldFault":
        """Return the same fault seen from a parent, e.g. under('spec')."""
        joined = prefix if not self.path else f"{prefix}.{self.path}"
        return FieldFault(path=joined, message=self.message)

    @classmethod
    def of(cls, error: ErrorDetails, model: type[Schema]) -> "FieldFault":
        """Translate one pydantic error into the path and sentence a user can act on."""
        return cls(path=_path(error["loc"]), message=_message(error, model))


class ConfigError(Exception):
    """The configuration is wrong; `faults` lists every fault at once."""

    def __init__(self, faults: tuple[FieldFault, ...]) -> None:
        super().__init__("; ".join(str(fault) for fault in faults))
        self.faults = faults

    def under(self, prefix: str) -> "ConfigError":
        """Return the same error with every path seen from a parent."""
        return ConfigError(tuple(fault.under(prefix) for fault in self.faults))


def _path(loc: tuple[int | str, ...]) -> str:
    path = ""
    for part in loc:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path.removeprefix(".")


def _message(error: ErrorDetails, model: type[Schema]) -> str:
    match error["type"]:
        case "extra_forbidden":
            found = meant(model, error["loc"])
            hint = f"did you mean {found}?" if found else "remove it or correct its spelling"
            return f"unknown field; {hint} (`anneal explain` lists all fields)"
        case "missing":
            return "is required but missing"
        case "value_error":
            return str(error["ctx"]["error"])
    return f"got {_shown(error['input'])}, expected {expected(error)}"


def _shown(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."
