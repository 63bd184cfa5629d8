"""From pydantic's JSON schema to the structural schema a CustomResourceDefinition accepts.

The API server takes a dialect of OpenAPI 3.0: no $ref, no anyOf with null, exclusive bounds as
booleans (KEP-1693 structural schemas). Defaults follow contracts.md: only scalars that hold without
condition have one, and every parent object has `default: {}`; the default of a list is said in its
description instead.
"""

from typing import Any

from anneal_pipeline.config.schema import Schema

Json = dict[str, Any]

_KEPT = (
    "type",
    "format",
    "enum",
    "pattern",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "maxProperties",
    "minimum",
    "maximum",
    "x-kubernetes-validations",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
)


def structural_schema(model: type[Schema]) -> Json:
    """Return the structural schema of a model, with camelCase names."""
    schema = model.model_json_schema(by_alias=True)
    return _convert(schema, definitions=schema.get("$defs", {}))


def _convert(schema: Json, *, definitions: Json) -> Json:
    resolved = _resolve(schema, definitions=definitions)
    out: Json = {key: resolved[key] for key in _KEPT if key in resolved}
    if "const" in resolved:
        out["enum"] = [resolved["const"]]
    _convert_exclusive(resolved, out)
    if "properties" in resolved:
        out["properties"] = {
            name: _convert(child, definitions=definitions)
            for name, child in resolved["properties"].items()
        }
        if resolved.get("required"):
            out["required"] = resolved["required"]
    elif out.get("type") == "object":
        out["additionalProperties"] = _values(resolved, definitions=definitions)
    if "items" in resolved:
        out["items"] = _convert(resolved["items"], definitions=definitions)
    description = resolved.get("description", "")
    _convert_default(resolved, out)
    text = _description(description, resolved=resolved, out=out)
    if text:
        out["description"] = text
    return out


def _resolve(schema: Json, *, definitions: Json) -> Json:
    """Follow $ref and drop the null of an optional field; keys beside them win."""
    beside = {key: value for key, value in schema.items() if key not in ("$ref", "anyOf", "allOf")}
    if "$ref" in schema:
        target = definitions[schema["$ref"].removeprefix("#/$defs/")]
        return {**_resolve(target, definitions=definitions), **beside}
    if "anyOf" in schema:
        branches = [branch for branch in schema["anyOf"] if branch.get("type") != "null"]
        if len(branches) != 1:
            raise ValueError(f"a union has no structural schema: {schema}")
        return {**_resolve(branches[0], definitions=definitions), **beside}
    return schema


def _convert_exclusive(resolved: Json, out: Json) -> None:
    for exclusive, inclusive in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if exclusive in resolved:
            out[inclusive] = resolved[exclusive]
            out[exclusive] = True


def _values(resolved: Json, *, definitions: Json) -> Json:
    """Schema of a map's values; the API server has no rule for its keys."""
    values = resolved.get("additionalProperties")
    if not isinstance(values, dict):
        patterns = resolved.get("patternProperties")
        if not patterns:
            raise ValueError(f"a map without a type for its values: {resolved}")
        values = next(iter(patterns.values()))
    return _convert(values, definitions=definitions)


def _convert_default(resolved: Json, out: Json) -> None:
    default = resolved.get("default")
    if isinstance(default, dict):
        if "properties" in out:
            out["default"] = {}
    elif default is not None and not isinstance(default, list):
        out["default"] = default


def _description(description: str, *, resolved: Json, out: Json) -> str:
    text = " ".join(description.split())
    default = resolved.get("default")
    if isinstance(default, list) and default and "Default:" not in text:
        text = f"{text} Default: {', '.join(map(str, default))}."
    return text
