"""Who may know whom, where import-linter's lists of the forbidden do not say it."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PACKAGES = {
    "anneal_operator": ROOT / "operator/anneal_operator",
    "anneal_jobs": ROOT / "jobs/anneal_jobs",
    "anneal_pipeline": ROOT / "pipeline/anneal_pipeline",
}

WITHOUT_THESE = """
import importlib, pkgutil, sys

absent = set(sys.argv[1:])

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
import anneal_operator, anneal_pipeline.config
for package in (anneal_operator, anneal_pipeline.config):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__") and ".generate" not in module.name:
            importlib.import_module(module.name)
"""


def imports(package: str) -> Iterator[tuple[str, str]]:
    """File and module of every import statement below a package."""
    for path in sorted(PACKAGES[package].rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((str(path), alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                yield str(path), node.module


@pytest.mark.parametrize(
    ("package", "other", "allowed"),
    [
        ("anneal_jobs", "anneal_operator", "anneal_operator.api"),
        ("anneal_operator", "anneal_pipeline", "anneal_pipeline.config"),
    ],
)
def test_one_part_is_all_that_is_known_of_another(package: str, other: str, allowed: str) -> None:
    known = [(file, name) for file, name in imports(package) if name.split(".")[0] == other]
    assert known
    assert [found for found in known if not f"{found[1]}.".startswith(f"{allowed}.")] == []


def test_package_files_import_nothing() -> None:
    files = [path for folder in PACKAGES.values() for path in folder.rglob("__init__.py")]
    assert len(files) > len(PACKAGES)
    assert [str(path) for path in files if path.read_text(encoding="utf-8").strip()] == []


def locked(extra: str) -> set[str]:
    """Import names of a lock file's packages; close enough, for few spell them otherwise."""
    text = (ROOT / f"requirements/{extra}.txt").read_text(encoding="utf-8")
    names = re.findall(r"^([A-Za-z0-9._-]+)==", text, re.MULTILINE)
    return {name.lower().replace("-", "_") for name in names}


def test_operator_and_api_need_the_operators_extra_alone() -> None:
    absent = locked("trainer") - locked("operator")
    assert absent >= {"torch", "ray", "mlflow", "boto3", "transformers"}
    command = [sys.executable, "-c", WITHOUT_THESE, *sorted(absent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
