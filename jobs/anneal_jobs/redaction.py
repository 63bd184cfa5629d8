"""Taking secrets out of text that people and servers get to see: logs and outcomes.

Known secrets (mounted files, environment) go by their value, others by their form. Nothing in this
package writes one on purpose; messages of libraries may.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from anneal_operator.api import names

MASK = "***"
_MIN_CHARS = 6
"""Shorter values are no secrets, and masking them would garble the text."""
_FILES = (
    Path(names.TRACKING_CREDENTIALS_FOLDER) / "password",
    Path(names.TRACKING_CREDENTIALS_FOLDER) / "token",
    Path(names.HUB_CREDENTIALS_FOLDER) / names.HUB_TOKEN_KEY,
)
_VARIABLES = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "HF_TOKEN",
)
_AWS_VALUE = re.compile(r"^\s*aws_(?:secret_access_key|session_token)\s*=\s*(\S+)", re.MULTILINE)
_FORMS = (
    (re.compile(r"(://)[^/\s@]+@"), rf"\1{MASK}@"),
    # With a digit or a padding: "basic training" is no credential.
    (re.compile(r"(?i)\b(bearer|basic)\s+(?=\S*[\d=])[\w.~+/=-]{8,}"), rf"\1 {MASK}"),
    (re.compile(r"(?i)(x-amz-(?:signature|credential|security-token)=)[^&\s]+"), rf"\1{MASK}"),
    (re.compile(r"\bhf_[A-Za-z0-9]{20,}"), MASK),
    (re.compile(r"\beyJ[\w-]+\.[\w-]+\.[\w-]*"), MASK),
)


def redact(text: str) -> str:
    """The same text with every secret in it masked."""
    for value in known_secrets():
        text = text.replace(value, MASK)
    for form, replacement in _FORMS:
        text = form.sub(replacement, text)
    return text


def known_secrets() -> tuple[str, ...]:
    """The secrets as they are now: a mounted file may be rotated while the job runs."""
    stamps = tuple(_stamp(path) for path in (*_FILES, _shared_file(os.environ)))
    return _secrets_of(stamps, tuple(map(os.environ.get, _VARIABLES)))


@lru_cache(maxsize=1)
def _secrets_of(_stamps: tuple[int, ...], _values: tuple[str | None, ...]) -> tuple[str, ...]:
    return find_secrets(os.environ)


def find_secrets(
    environment: Mapping[str, str], files: tuple[Path, ...] = _FILES
) -> tuple[str, ...]:
    """The secrets this process was given, longest first."""
    found = [environment.get(name, "") for name in _VARIABLES]
    found += [_text(path).strip() for path in files]
    found += _AWS_VALUE.findall(_text(_shared_file(environment)))
    return tuple(sorted({v for v in found if len(v) >= _MIN_CHARS}, key=len, reverse=True))


def _shared_file(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")).expanduser()


def _stamp(path: Path) -> int:
    """When it was written, in ns; 0 where there is no such file."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeError):
        return ""
