"""What a field should have held, in the words of who writes YAML instead of pydantic's."""

from __future__ import annotations

from pydantic_core import ErrorDetails

_KINDS = {
    "bool_type": "true or false",
    "dict_type": "fields below it, as in name: value",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "list_type": "a list",
    "model_type": "fields below it, as in name: value",
    "string_type": "text",
    "tuple_type": "a list",
}
_BOUNDS = {
    "greater_than": "more than {gt:.12g}",
    "greater_than_equal": "at least {ge:.12g}",
    "less_than": "less than {lt:.12g}",
    "less_than_equal": "at most {le:.12g}",
    "literal_error": "{expected}",
    "string_pattern_mismatch": "text that matches {pattern}",
    "string_too_long": "at most {max_length} characters",
    "string_too_short": "at least {min_length} characters",
    "too_long": "at most {max_length} entries",
    "too_short": "at least {min_length} entries",
}


def expected(error: ErrorDetails) -> str:
    """What was expected where `error` is, and how to write it if only the spelling is wrong."""
    kind, value = error["type"], error["input"]
    if kind in ("string_too_short", "too_short") and error["ctx"]["min_length"] == 1:
        return "something in it"
    if kind in _BOUNDS:
        return _BOUNDS[kind].format(**error["ctx"])
    words = _KINDS.get(kind, error["msg"][0].lower() + error["msg"][1:])
    if kind == "string_type" and isinstance(value, bool | int | float):
        return f"{words}; put it in quotes"
    if kind in ("int_type", "float_type", "bool_type") and _is_quoted(value):
        return f"{words}; remove the quotes"
    return words


def _is_quoted(value: object) -> bool:
    """True if the text would be a number or a truth value without its quotes."""
    if not isinstance(value, str):
        return False
    if value in ("true", "false"):
        return True
    try:
        float(value)
    except ValueError:
        return False
    return True
