"""Reading a FineTuneJob from YAML as kubectl reads it, with every fault at once, path and line.

YAML 1.2, so that `2e-4` is a number here as it is to kubectl. Unknown fields and wrong types are
errors; so is what this release does not implement.
"""

from __future__ import annotations

import copy
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from anneal_jobs.cli.yaml_lines import YamlLines, parts_of
from anneal_operator.api.names import API_VERSION, JOB_KIND
from anneal_operator.api.object_name import (
    LABEL_MAX_CHARS,
    LABEL_PATTERN,
    SUBDOMAIN_MAX_CHARS,
    SUBDOMAIN_PATTERN,
)
from anneal_operator.api.spec import FineTuneJobSpec
from anneal_operator.api.unsupported import unsupported_fields
from anneal_pipeline.config.schema import ConfigError
from anneal_pipeline.config.spelling import closest

_ENVELOPE = ("apiVersion", "kind", "metadata", "spec", "status")
_LOCAL_NAMESPACE = "local"
_SPEC = "spec"
_SHOWN_CHARS = 80


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
    number = _only_job(documents, source=path)
    document = copy.deepcopy(documents[number])
    for assignment in assignments:
        _assign(document, assignment, source=path)
    try:
        return _build(document, source=path)
    except JobFileError as error:
        lines = YamlLines.of(text, document=number)
        faults = tuple(_with_origin(fault, assignments, lines) for fault in error.faults)
        raise JobFileError(path, faults) from None


def _only_job(documents: list[Any], *, source: str) -> int:
    """Which of the documents it is, from 0."""
    jobs = [
        number
        for number, document in enumerate(documents)
        if isinstance(document, dict) and document.get("kind") == JOB_KIND
    ]
    if len(jobs) == 1:
        return jobs[0]
    found = [d for d in documents if d is not None]
    if jobs:
        what = f"found {len(jobs)}; split the file, or remove the others"
    elif not found:
        what = "but the file is empty; write one, or name another file"
    else:
        what = f"found {', '.join(map(_kind_of, found))}; correct `kind`, or name another file"
    raise JobFileError(source, (f"expected exactly one {JOB_KIND}, {what}",))


def _kind_of(document: object) -> str:
    if isinstance(document, dict):
        kind = document.get("kind")
        return "an object without `kind`" if kind is None else f"kind {_shown(kind)}"
    return "a list" if isinstance(document, list) else "plain text"


def _read_text(path: str) -> str:
    try:
        return sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise JobFileError(path, (f"cannot be read: {error.strerror}; check the path",)) from error
    except UnicodeDecodeError as error:
        raise JobFileError(path, ("is not UTF-8 text",)) from error


def _documents(text: str, *, source: str) -> list[Any]:
    try:
        return list(YAML(typ="safe", pure=True).load_all(text))
    except YAMLError as error:
        raise JobFileError(source, (_yaml_fault(error, text),)) from error


def _yaml_fault(error: YAMLError, text: str) -> str:
    """Where the YAML breaks, with the line as it stands there, and what the parser says of it."""
    problem = getattr(error, "problem", None)
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if problem is None or mark is None:
        return f"is not valid YAML: {' '.join(str(error).split())}"
    lines = text.splitlines()
    line = lines[mark.line].strip() if mark.line < len(lines) else "the end of the file"
    begun = getattr(error, "context_mark", None)
    since = f" (begun in line {begun.line + 1})" if begun and begun.line != mark.line else ""
    tab = "; indent with spaces, not tabs" if "'\\t'" in problem else ""
    return (
        f"line {mark.line + 1}, column {mark.column + 1} is not valid YAML: {problem}{since}{tab}; "
        f"the line is: {_shown(line)}"
    )


def _assign(document: dict[str, Any], assignment: str, *, source: str) -> None:
    path, _, text = assignment.partition("=")
    *parents, leaf = path.removeprefix("spec.").split(".")
    target = document.setdefault("spec", {})
    for parent in parents:
        if isinstance(target, dict) and target.get(parent) is None:
            target[parent] = {}
        target = target[parent] if isinstance(target, dict) else None
    if not isinstance(target, dict):
        raise JobFileError(source, (f"--set {path}: the field above it is no object",))
    target[leaf] = _value_of(text)


def _value_of(text: str) -> Any:
    """As YAML reads it, for numbers and lists; what is no YAML is text, as `*.jsonl` is."""
    try:
        return next(iter(YAML(typ="safe", pure=True).load_all(text)), text)
    except YAMLError:
        return text


def _with_origin(fault: str, assignments: tuple[str, ...], lines: YamlLines) -> str:
    """Where to mend it: what stands on the command line is not looked for in the file."""
    field = fault.partition(": ")[0]
    if field == _SPEC:  # of several fields, which the sentence names
        return fault
    where = parts_of(field)
    for assignment in reversed(assignments):
        path = parts_of(f"{_SPEC}.{assignment.partition('=')[0].removeprefix(f'{_SPEC}.')}")
        if all(one == other for one, other in zip(path, where, strict=False)):  # it or above
            return f"{fault} (from --set {_shown(assignment)})"
    line = lines.line(field)
    return fault if line is None else f"{fault} (line {line})"


def _build(document: dict[str, Any], *, source: str) -> JobFile:
    faults = [_unknown(key) for key in document if key not in _ENVELOPE]
    if document.get("apiVersion") != API_VERSION:
        faults.append(f"apiVersion: got {document.get('apiVersion')!r}, expected {API_VERSION}")
    metadata = document.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    name, namespace = metadata.get("name"), metadata.get("namespace")
    faults += _name_faults(name, namespace)
    spec = None
    try:
        spec = FineTuneJobSpec.parse(document.get("spec", {}))
    except ConfigError as error:
        faults += [str(fault) for fault in error.under("spec").faults]
    if spec is not None:
        faults += [str(field) for field in unsupported_fields(spec)]
    if faults or spec is None:
        raise JobFileError(source, tuple(faults))
    return JobFile(name=str(name), namespace=str(namespace or _LOCAL_NAMESPACE), spec=spec)


def _unknown(key: object) -> str:
    """A key of the outermost level: misspelt, or a field of spec that is not indented."""
    name = str(key)
    if name in {field.alias for field in FineTuneJobSpec.model_fields.values()}:
        return f"{name}: unknown field; indent it below spec"
    found = closest(name, _ENVELOPE)
    hint = f"did you mean {found}?" if found else f"expected {', '.join(_ENVELOPE[:-1])}"
    return f"{name}: unknown field; {hint}"


def _name_faults(name: object, namespace: object) -> list[str]:
    faults = []
    if name is None or name == "":
        faults.append("metadata.name: is required but missing")
    elif not _matches(name, SUBDOMAIN_PATTERN, longest=SUBDOMAIN_MAX_CHARS):
        faults.append(
            f"metadata.name: got {_shown(name)}, expected at most {SUBDOMAIN_MAX_CHARS} "
            "lowercase letters, digits, '-' and '.', with a letter or digit at both ends of each "
            "part; choose another name, e.g. support-bot"
        )
    if namespace not in (None, "") and not _matches(
        namespace, LABEL_PATTERN, longest=LABEL_MAX_CHARS
    ):
        faults.append(
            f"metadata.namespace: got {_shown(namespace)}, expected at most {LABEL_MAX_CHARS} "
            "lowercase letters, digits and '-', with a letter or digit at both ends; name the "
            "namespace as the cluster spells it, or remove the field"
        )
    return faults


def _matches(value: object, pattern: str, *, longest: int) -> bool:
    """Whether the API server would take it; the name becomes a folder, so nothing else may pass."""
    if not isinstance(value, str) or len(value) > longest:
        return False
    return re.fullmatch(pattern, value) is not None


def _shown(value: object) -> str:
    text = repr(value) if not isinstance(value, str) or not value.isprintable() else value
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."
