"""Reading a FineTuneJob from YAML as kubectl reads it, with every fault at once and its path.

YAML 1.2, so that `2e-4` is a number here as it is to kubectl. Unknown fields and wrong types are
errors; so is what this release does not implement.
"""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from anneal_operator.api.names import API_VERSION, JOB_KIND
from anneal_operator.api.spec import FineTuneJobSpec
from anneal_operator.api.unsupported import unsupported_fields
from anneal_pipeline.config.schema import ConfigError

_ENVELOPE = ("apiVersion", "kind", "metadata", "spec", "status")


class JobFileError(Exception):
    """The file is no usable FineTuneJob; `faults` are sentences, one for each mistake."""

    def __init__(self, source: str, faults: tuple[str, ...]) -> None:
        super().__init__(f"{source}: {'; '.join(faults)}")
        self.source = source
        self.faults = faults


@dataclass(frozen=True, kw_only=True)
class JobFile:
    name: str
    namespace: str
    spec: FineTuneJobSpec


def read_job_file(path: str, *, assignments: tuple[str, ...] = ()) -> JobFile:
    """Read a file, or standard input for `-`; `assignments` are `path=value` below spec."""
    text = _read_text(path)
    documents = _documents(text, source=path)
    jobs = [d for d in documents if isinstance(d, dict) and d.get("kind") == JOB_KIND]
    if len(jobs) != 1:
        raise JobFileError(
            path, (f"expected exactly one {JOB_KIND}, found {len(jobs)}; check `kind`",)
        )
    document = copy.deepcopy(jobs[0])
    for assignment in assignments:
        _assign(document, assignment, source=path)
    return _build(document, source=path)


def _read_text(path: str) -> str:
    try:
        return sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise JobFileError(path, (f"cannot be read: {error.strerror}",)) from error
    except UnicodeDecodeError as error:
        raise JobFileError(path, ("is not UTF-8 text",)) from error


def _documents(text: str, *, source: str) -> list[Any]:
    try:
        return list(YAML(typ="safe", pure=True).load_all(text))
    except YAMLError as error:
        raise JobFileError(
            source, (f"is not valid YAML: {' '.join(str(error).split())}",)
        ) from error


def _assign(document: dict[str, Any], assignment: str, *, source: str) -> None:
    path, separator, text = assignment.partition("=")
    if not separator or not path:
        raise JobFileError(
            source, (f"--set {assignment!r} must be path=value, as in model.uri=DIR",)
        )
    *parents, leaf = path.removeprefix("spec.").split(".")
    target = document.setdefault("spec", {})
    for parent in parents:
        target = target.setdefault(parent, {}) if isinstance(target, dict) else None
    if not isinstance(target, dict):
        raise JobFileError(source, (f"--set {path}: the field above it is no object",))
    target[leaf] = _documents(text, source=f"--set {path}")[0] if text else ""


def _build(document: dict[str, Any], *, source: str) -> JobFile:
    faults = [f"{key}: unknown field" for key in document if key not in _ENVELOPE]
    if document.get("apiVersion") != API_VERSION:
        faults.append(f"apiVersion: got {document.get('apiVersion')!r}, expected {API_VERSION}")
    metadata = document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if not isinstance(name, str) or not name:
        faults.append("metadata.name: is required but missing")
    spec = None
    try:
        spec = FineTuneJobSpec.parse(document.get("spec", {}))
    except ConfigError as error:
        faults += [str(fault) for fault in error.under("spec").faults]
    if spec is not None:
        faults += [str(field) for field in unsupported_fields(spec)]
    if faults or spec is None or not isinstance(name, str):
        raise JobFileError(source, tuple(faults))
    namespace = metadata.get("namespace", "local") if isinstance(metadata, dict) else "local"
    return JobFile(name=name, namespace=str(namespace), spec=spec)
