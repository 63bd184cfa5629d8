"""How an attempt ended: the one JSON object that trainer and operator exchange.

A valid outcome outranks the exit code. It travels three ways, so that it survives the pod: as the
attempt's last progress report, in the termination log, and as logs/attempt-NN/outcome.json.
"""

from enum import IntEnum, StrEnum

from pydantic import Field

from anneal_pipeline.config.schema import Schema


class ExitCode(IntEnum):
    """Exit codes of anneal-train; every code not listed counts as INFRASTRUCTURE."""

    DONE = 0
    USER = 65
    """The user's input is wrong (EX_DATAERR); never retried."""
    INTERRUPTED = 75
    """Stopped after saving a checkpoint (EX_TEMPFAIL)."""
    INFRASTRUCTURE = 203
    """Ours or the infrastructure's failure (as in fms-hf-tuning)."""


class OutcomeClass(StrEnum):
    """Who has to act, and hence which retry budget an ended attempt spends."""

    DONE = "Done"
    USER = "User"
    INTERRUPTED = "Interrupted"
    INFRASTRUCTURE = "Infrastructure"

    @property
    def exit_code(self) -> ExitCode:
        """The exit code of an attempt that ended so."""
        return _EXIT_CODES[self]


_EXIT_CODES = {
    OutcomeClass.DONE: ExitCode.DONE,
    OutcomeClass.USER: ExitCode.USER,
    OutcomeClass.INTERRUPTED: ExitCode.INTERRUPTED,
    OutcomeClass.INFRASTRUCTURE: ExitCode.INFRASTRUCTURE,
}

MESSAGE_MAX = 1024
"""Characters of a message; the termination log holds 4096 bytes in all."""


class Outcome(Schema):
    """The end of one attempt."""

    outcome_class: OutcomeClass = Field(alias="class")
    """Who has to act."""
    reason: str = Field(pattern=r"^[A-Z][A-Za-z0-9]{0,63}$")
    """PascalCase word for programs, e.g. DatasetNotFound."""
    message: str = Field(max_length=MESSAGE_MAX)
    """One sentence with the remedy, for people."""
    step: int | None = Field(default=None, ge=0)
    """Optimiser step reached."""
    checkpoint: str | None = None
    """Name of the newest good checkpoint, e.g. step-000120-a01-1f2e3d4c."""
    artefact_digest: str | None = Field(default=None, pattern=r"^sha256:[0-9a-f]{64}$")
    """Digest of the artefact manifest; also a tag of the registered version."""
    model_version: str | None = None
    """Registered model and version, as NAME/VERSION."""
    metrics: dict[str, float] = Field(default={}, max_length=32)
    """Final figures, e.g. basePerplexity and tunedPerplexity."""
