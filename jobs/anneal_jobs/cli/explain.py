"""`anneal explain`: the fields of a FineTuneJob with type, default and meaning, from the models."""

from __future__ import annotations

import textwrap
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from anneal_operator.api.spec import FineTuneJobSpec
from anneal_pipeline.config.spelling import child_model, closest

_NARROWEST = 40


@dataclass(frozen=True, kw_only=True)
class FieldDoc:
    path: str
    type_name: str
    default: str
    """Empty where there is none to print."""
    is_required: bool
    description: str


def field_docs(
    model: type[BaseModel] = FineTuneJobSpec, *, prefix: str = "spec"
) -> Iterator[FieldDoc]:
    """All fields below a model, parents before children."""
    for name, field in model.model_fields.items():
        path = f"{prefix}.{field.alias or name}"
        child = child_model(field.annotation)
        yield FieldDoc(
            path=path,
            type_name=type_name(field.annotation),
            default="" if child is not None else _default(field),
            is_required=field.is_required(),
            description=" ".join((field.description or "").split()),
        )
        if child is not None:
            yield from field_docs(child, prefix=path)


def select(path: str) -> list[FieldDoc]:
    """The field at `path` and everything below it; `spec.` in front may be left out."""
    wanted = path if path == "spec" or path.startswith("spec.") else f"spec.{path}"
    docs = list(field_docs())
    if wanted == "spec":
        return docs
    return [doc for doc in docs if doc.path == wanted or doc.path.startswith(f"{wanted}.")]


def type_name(annotation: Any) -> str:
    """The type as a person who writes YAML calls it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_name(arguments[0])
    if origin is Literal:
        return " | ".join(str(value) for value in arguments)
    if origin in (Union, types.UnionType):
        return " | ".join(type_name(a) for a in arguments if a is not type(None))
    if origin in (tuple, list):
        return f"list of {type_name(arguments[0])}"
    if origin is dict:
        return f"map of {type_name(arguments[1])}"
    names = {str: "string", int: "integer", float: "number", bool: "boolean"}
    return names.get(annotation, "object")


def similar(path: str) -> str | None:
    """The field that a path that names none was meant to be."""
    wanted = path.removeprefix("spec.")
    paths = [doc.path.removeprefix("spec.") for doc in field_docs()]
    ends = {path.rpartition(".")[2]: path for path in reversed(paths)}
    found = closest(wanted, paths)
    return found or ends.get(closest(wanted.rpartition(".")[2], ends) or "")


def lines_of(doc: FieldDoc, *, width: int | None) -> Iterator[str]:
    """A field as a person reads it: name, type and default, then what it means.

    Names are never broken; descriptions are wrapped to `width` where there is one.
    """
    default = "required" if doc.is_required else f"default {doc.default}" if doc.default else ""
    yield "  ".join(filter(None, (doc.path, f"<{doc.type_name}>", default)))
    if width is None:
        yield f"    {doc.description}"
        return
    yield from textwrap.wrap(
        doc.description,
        width=max(width, _NARROWEST),
        initial_indent="    ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is PydanticUndefined or value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)
