"""How the API server spells names (RFC 1123), said once for the resource, the CLI and addresses."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"

LABEL_PATTERN = f"^{_LABEL}$"
LABEL_MAX_CHARS = 63
SUBDOMAIN_PATTERN = rf"^{_LABEL}(\.{_LABEL})*$"
SUBDOMAIN_MAX_CHARS = 253

ObjectName = Annotated[
    str, Field(min_length=1, max_length=SUBDOMAIN_MAX_CHARS, pattern=SUBDOMAIN_PATTERN)
]
"""Name of a Kubernetes object (RFC 1123 subdomain)."""
