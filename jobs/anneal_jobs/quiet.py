"""Keeping notices and progress bars of libraries off terminals, and libraries from calling home."""

from __future__ import annotations

import logging
import os

_VARIABLES = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "MLFLOW_CONFIGURE_LOGGING": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "true",
    # A transfer by Xet counts its bytes twice and cannot be ended from its progress callback.
    "HF_HUB_DISABLE_XET": "1",
}

# Offers a package that would load compiled code from the hub; training does not go through it.
_LOGGERS = ("bitsandbytes.backends.cpu.ops",)


def quiet_libraries() -> None:
    """Must be called before the libraries are imported."""
    for name, value in _VARIABLES.items():
        os.environ.setdefault(name, value)
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
