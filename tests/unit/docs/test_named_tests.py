"""Documents that promise a test name one that exists, as pytest would find it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DOCUMENTS = sorted(
    path for path in ROOT.glob("docs/*.md") if "tests/" in path.read_text(encoding="utf-8")
)
NAMED = re.compile(r"(?:(tests/[\w/.-]+\.py)|(?<=[\s(])(?=::))((?:::\w+)*)(?:\[([^\]]*)\])?")
"""A file with or without a node in it; behind one, `::name` alone is of the same file."""


def named(text: str) -> Iterator[tuple[str, str, str]]:
    """(file, node, id of its parameters) of every test that a text names."""
    for line in text.splitlines():
        file = ""
        for own, node, parameters in NAMED.findall(line):
            file = own or file
            yield file, node, parameters


@cache
def tree_of(file: str) -> ast.Module | None:
    path = ROOT / file
    return ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else None


def found(file: str, names: list[str]) -> ast.AST | None:
    """What a node id leads to: a class of the file, a function in it, or one of the file."""
    node: ast.AST | None = tree_of(file)
    for name in names:
        children = ast.iter_child_nodes(node) if node else ()
        node = next(
            (
                child
                for child in children
                if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
                and child.name == name
            ),
            None,
        )
    return node


def is_there(file: str, node: str, parameters: str) -> bool:
    names = [name for name in node.split("::") if name]
    test = found(file, names)
    if test is None or (names and not names[-1].lower().startswith("test")):
        return False
    return not parameters or parameters in ids_near(file, test)


def ids_near(file: str, test: ast.AST) -> set[str]:
    """What an id may come from: the decorators of the function, and the lists of its file."""
    module = tree_of(file)
    near: list[ast.AST] = [
        node
        for node in (module.body if module else ())
        if isinstance(node, ast.Assign | ast.AnnAssign)
    ]
    if isinstance(test, ast.FunctionDef | ast.AsyncFunctionDef):
        near += test.decorator_list
    constants = (node for part in near for node in ast.walk(part) if isinstance(node, ast.Constant))
    return {str(node.value) for node in constants}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_test_that_is_named_exists(document: Path) -> None:
    tests = list(named(document.read_text(encoding="utf-8")))
    assert [test for test in tests if not is_there(*test)] == []


def test_the_requirements_are_among_them() -> None:
    assert "requirements.md" in {path.name for path in DOCUMENTS}


HERE = "tests/unit/docs/test_named_tests.py"


class TestOfAClass:
    def test_a_test_of_a_class_is_named_with_it(self) -> None:
        name = "test_a_test_of_a_class_is_named_with_it"
        assert is_there(HERE, f"::TestOfAClass::{name}", "")
        assert not is_there(HERE, f"::{name}", "")
        assert not is_there(HERE, "::TestOfAClass::test_the_requirements_are_among_them", "")


@pytest.mark.parametrize(
    ("text", "want"),
    [
        pytest.param("tests/a.py::test_b", [("tests/a.py", "::test_b", "")], id="a node"),
        pytest.param(
            "tests/a.py::T::test_b[the id], ::test_c (why)",
            [("tests/a.py", "::T::test_b", "the id"), ("tests/a.py", "::test_c", "")],
            id="a second of the same file",
        ),
        pytest.param("`tests/a.py`; b::c", [("tests/a.py", "", "")], id="no test"),
    ],
)
def test_what_a_line_names(text: str, want: list[tuple[str, str, str]]) -> None:
    assert list(named(text)) == want


def test_an_id_that_is_nowhere_is_missed() -> None:
    assert is_there(HERE, "::test_what_a_line_names", "a second of the same file")
    assert not is_there(HERE, "::test_what_a_line_names", "a third of the same file")
    assert not is_there(HERE, "::named", "")
