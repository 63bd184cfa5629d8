"""What a name that is no field was meant to be."""

import difflib
from collections.abc import Iterable, Iterator
from typing import Any, get_args

from pydantic import BaseModel

_ALIKE = 0.7


def closest(name: str, names: Iterable[str]) -> str | None:
    """Return the name that is spelt most like this one, whatever its case and underscores."""
    by_letters = {_letters(known): known for known in names}
    found = difflib.get_close_matches(_letters(name), by_letters, n=1, cutoff=_ALIKE)
    return by_letters[found[0]] if found else None


def meant(model: type[BaseModel], loc: tuple[int | str, ...]) -> str | None:
    """Return the field that an unknown one at `loc` may stand for.

    One beside it, or else one of the same name elsewhere, with its path.
    """
    *parents, name = (part for part in loc if isinstance(part, str))
    beside: type[BaseModel] | None = model
    for parent in parents:
        beside = _fields(beside).get(parent) if beside is not None else None
    found = closest(name, _fields(beside)) if beside is not None else None
    if found is not None:
        return found
    elsewhere = (
        path for path in _paths(model) if _letters(path.rpartition(".")[2]) == _letters(name)
    )
    return next(elsewhere, None)


def child_model(annotation: Any) -> type[BaseModel] | None:
    """Return the model in a field's type: itself, optional, or in a list."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _fields(model: type[BaseModel]) -> dict[str, type[BaseModel] | None]:
    return {
        field.alias or name: child_model(field.annotation)
        for name, field in model.model_fields.items()
    }


def _paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, child in _fields(model).items():
        yield prefix + name
        if child is not None:
            yield from _paths(child, f"{prefix}{name}.")


def _letters(name: str) -> str:
    return name.replace("_", "").replace("-", "").casefold()
