"""Errors of the pipeline.

    PipelineError
      UserError            the user's input is wrong: never retried, exit code 65
      CheckpointError      a checkpoint cannot be written or read: infrastructure
      RankFailedError      another rank failed, whose own error is the cause
      TrainingFailedError  the run cannot go on with this model, data and rate
      StopRequestedError   asked to stop before there was anything to save: no failure

Every message is one sentence or two for the person who wrote the job: what is wrong, where, what
was found, what was expected, and the next step.
"""

from __future__ import annotations

DATASET_NOT_FOUND = "DatasetNotFound"
DATASET_EMPTY = "DatasetEmpty"
DATASET_UNREADABLE = "DatasetUnreadable"
DATASET_LAYOUT_UNKNOWN = "DatasetLayoutUnknown"
DATASET_ROWS_INVALID = "DatasetRowsInvalid"
NO_TRAINABLE_ROWS = "NoTrainableRows"
ROW_TOO_LONG = "RowTooLong"
TEMPLATE_UNSUPPORTED = "TemplateUnsupported"
MODEL_NOT_FOUND = "ModelNotFound"
MODEL_NOT_SAFETENSORS = "ModelNotSafetensors"
MODEL_IS_GGUF = "ModelIsGguf"
MODEL_UNSUPPORTED = "ModelUnsupported"
TARGET_MODULES_NOT_FOUND = "TargetModulesNotFound"
ADAPTER_IMPOSSIBLE = "AdapterImpossible"
QUANTIZATION_UNAVAILABLE = "QuantizationUnavailable"
DOES_NOT_FIT = "DoesNotFit"
RUN_CHANGED = "RunChanged"
NON_FINITE_LOSS = "NonFiniteLoss"
LOSS_DIVERGED = "LossDiverged"
NOTHING_TO_WATCH = "NothingToWatch"

USER_REASONS = (
    DATASET_NOT_FOUND,
    DATASET_EMPTY,
    DATASET_UNREADABLE,
    DATASET_LAYOUT_UNKNOWN,
    DATASET_ROWS_INVALID,
    NO_TRAINABLE_ROWS,
    ROW_TOO_LONG,
    TEMPLATE_UNSUPPORTED,
    MODEL_NOT_FOUND,
    MODEL_NOT_SAFETENSORS,
    MODEL_IS_GGUF,
    MODEL_UNSUPPORTED,
    TARGET_MODULES_NOT_FOUND,
    ADAPTER_IMPOSSIBLE,
    QUANTIZATION_UNAVAILABLE,
    DOES_NOT_FIT,
    RUN_CHANGED,
    NON_FINITE_LOSS,
    LOSS_DIVERGED,
    NOTHING_TO_WATCH,
)
"""Every reason a `UserError` of the pipeline carries: conditions and docs are tied to this list."""


class PipelineError(Exception):
    """The root of everything the pipeline raises on purpose."""


class UserError(PipelineError):
    """The job cannot succeed as it is written; a retry would end the same way."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class CheckpointError(PipelineError):
    """A checkpoint could not be written, or what is stored cannot be trusted."""


class StopRequestedError(PipelineError):
    """A planned stop met while inputs were still being fetched or prepared."""

    def __init__(self) -> None:
        super().__init__("Stopped on request before training began; the next attempt starts anew.")


class RankFailedError(PipelineError):
    """Another rank of this run failed or is gone, so this one cannot go on either."""


class TrainingFailedError(UserError):
    """Loss or gradients stopped being numbers: the same data and rate would end here again."""
