"""Function calling in rows: definitions, calls and results, whichever way the file writes them.

Rows that came through Arrow or CSV often hold JSON as text, others hold objects; chat templates
take objects. Everything is brought into the form of the Hugging Face templates.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from anneal_pipeline.data.row_error import INVALID_TOOLS, RowError

_CALL_FIELDS = ("id", "type")


def tool_definitions(value: object) -> tuple[Mapping[str, Any], ...]:
    """The `tools` of a row: a list of definitions, each an object or JSON, or JSON of the list."""
    tools = _parsed(value, what="its tools")
    if tools is None or tools == "":
        return ()
    if not isinstance(tools, list):
        tools = [tools]
    return tuple(
        _definition(_parsed(tool, what="a tool"), number=n + 1) for n, tool in enumerate(tools)
    )


def _definition(tool: object, *, number: int) -> Mapping[str, Any]:
    if not isinstance(tool, dict):
        raise RowError(INVALID_TOOLS, f"has no object as tool {number}")
    definition = tool if isinstance(tool.get("function"), dict) else {"function": tool}
    function = dict(definition["function"])
    if not isinstance(function.get("name"), str):
        raise RowError(INVALID_TOOLS, f"has no name in tool {number}")
    if isinstance(function.get("parameters"), str):
        function["parameters"] = _parsed(
            function["parameters"], what=f"parameters of tool {number}"
        )
    return {**definition, "type": definition.get("type", "function"), "function": function}


def tool_calls(value: object, *, number: int) -> list[dict[str, Any]]:
    """The calls of message `number`; arguments written as JSON become objects."""
    calls = _parsed(value, what=f"the tool calls of message {number}")
    if calls is None or calls == "":
        return []
    if not isinstance(calls, list):
        calls = [calls]
    return [_call(_parsed(call, what="a tool call"), number=number) for call in calls]


def _call(call: object, *, number: int) -> dict[str, Any]:
    if not isinstance(call, dict):
        raise RowError(INVALID_TOOLS, f"has no object as tool call in message {number}")
    function = call["function"] if isinstance(call.get("function"), dict) else call
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise RowError(INVALID_TOOLS, f"has a tool call without a name in message {number}")
    arguments = _parsed(function.get("arguments", {}), what=f"the arguments of {name}")
    if not isinstance(arguments, dict):
        raise RowError(
            INVALID_TOOLS,
            f"has arguments of {name} in message {number} that are no object "
            f"(got {type(arguments).__name__})",
        )
    kept = {key: call[key] for key in _CALL_FIELDS if isinstance(call.get(key), str)}
    return {"type": "function", **kept, "function": {"name": name, "arguments": arguments}}


def _parsed(value: Any, *, what: str) -> Any:
    """JSON text as what it stands for; anything else as it is."""
    if not isinstance(value, str) or not value.strip():
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise RowError(INVALID_TOOLS, f"has no valid JSON in {what} ({error})") from error
