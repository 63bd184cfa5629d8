"""Where a field stands in a YAML text, so that a sentence about it can name the line."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

_MERGE = "<<"


def parts_of(path: str) -> tuple[str, ...]:
    """Of a field such as `spec.evaluation.prompts[0]`."""
    return tuple(re.findall(r"[^.\[\]]+", path))


@dataclass(frozen=True, kw_only=True)
class YamlLines:
    """The lines of one document of a text that is known to be valid YAML."""

    root: Node | None

    @classmethod
    def of(cls, text: str, *, document: int) -> YamlLines:
        """`document` counts from 0, the empty ones included."""
        return cls(root=list(YAML(typ="safe", pure=True).compose_all(text))[document])

    def line(self, path: str) -> int | None:
        """The line (from 1) of a field such as `spec.evaluation.prompts[0].text`.

        Of a field that is not there it is the line of the innermost one above it that is, which
        lacks it. None where not even the first part of the path is there.
        """
        node, found = self.root, None
        for part in parts_of(path):
            below = _below(node, part)
            if below is None:
                break
            found, node = below
        return found


def _mappings(merged: Node) -> list[Node]:
    """Of a merge key: one mapping, or a list of them."""
    return list(merged.value) if isinstance(merged, SequenceNode) else [merged]


def _below(node: Node | None, part: str) -> tuple[int, Node] | None:
    """The line on which a key or an item begins, and its value."""
    if isinstance(node, MappingNode):
        for key, value in node.value:
            if key.value == part:
                return key.start_mark.line + 1, value
        merged = [value for key, value in node.value if key.value == _MERGE]
        found = (_below(value, part) for node in merged for value in _mappings(node))
        return next((below for below in found if below is not None), None)
    if isinstance(node, SequenceNode) and part.isdecimal() and int(part) < len(node.value):
        item = node.value[int(part)]
        return item.start_mark.line + 1, item
    return None
