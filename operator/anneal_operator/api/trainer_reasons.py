"""Reasons an attempt's outcome brings, beside the operator's own.

Kept here and not where they are raised, because the operator documents them and may not import the
pipeline; a test ties this table to what the pipeline and the jobs can raise.
"""

from anneal_operator.api.reasons import ADMIN, NOBODY, USER, ReasonDoc

_FIX_DATA = "Correct the rows or the file the message names, and create the job again."
_FIX_MODEL = "Name a model folder with what the message asks for."
_REPEATED = "The attempt is repeated from the last checkpoint while the budget lasts."


def _doc(meaning: str, *, who: str, remedy: str) -> ReasonDoc:
    return ReasonDoc(meaning=meaning, who=who, remedy=remedy)


TRAINER_REASON_DOCS: dict[str, ReasonDoc] = {
    "DatasetNotFound": _doc(
        "The dataset's object or file does not exist.", who=USER, remedy="Correct dataset.uri."
    ),
    "DatasetEmpty": _doc("The dataset has no rows.", who=USER, remedy=_FIX_DATA),
    "DatasetUnreadable": _doc(
        "The dataset's file is not what its format says.", who=USER, remedy=_FIX_DATA
    ),
    "DatasetLayoutUnknown": _doc(
        "The rows have no layout that is known.", who=USER, remedy="Set dataset.layout."
    ),
    "DatasetRowsInvalid": _doc(
        "More rows than dataset.filters.maxDropShare cannot be trained on.",
        who=USER,
        remedy="See data/quarantine.jsonl in the output folder; fix the rows.",
    ),
    "NoTrainableRows": _doc("No row is left to train on.", who=USER, remedy=_FIX_DATA),
    "RowTooLong": _doc(
        "A row is longer than allowed and filters.overlength is fail.",
        who=USER,
        remedy="Raise training.sequenceLength, or drop or truncate such rows.",
    ),
    "TemplateUnsupported": _doc(
        "The chat template changes earlier turns, ends no answer, has no place for tools, or is "
        "one of several without a default.",
        who=USER,
        remedy="Do what the message says, or use a model whose template keeps earlier turns.",
    ),
    "ModelNotFound": _doc("The base model does not exist.", who=USER, remedy="Correct model.uri."),
    "ModelNotSafetensors": _doc(
        "The base model has no safetensors weights.", who=USER, remedy=_FIX_MODEL
    ),
    "ModelIsGguf": _doc(
        "A GGUF file is for inference and cannot be trained on.", who=USER, remedy=_FIX_MODEL
    ),
    "ModelUnsupported": _doc("The model cannot be loaded.", who=USER, remedy=_FIX_MODEL),
    "TargetModulesNotFound": _doc(
        "A name in tuning.lora.targetModules matches nothing.",
        who=USER,
        remedy="Use one of the names the message lists.",
    ),
    "AdapterImpossible": _doc(
        "The adapters asked for cannot be put on this model.",
        who=USER,
        remedy="Change the field of tuning.lora that the message names.",
    ),
    "QuantizationUnavailable": _doc(
        "4-bit weights or 8-bit moments are not available where the trainer runs.",
        who=ADMIN,
        remedy="See the message.",
    ),
    "DoesNotFit": _doc(
        "The run needs more memory than there is: of the GPU, or on CPUs of the pod.",
        who=USER,
        remedy="Change what the message names, or give the run a larger GPU or more memory.",
    ),
    "RunChanged": _doc(
        "The output folder belongs to a run with another model, data or method.",
        who=USER,
        remedy="Use a new job name, or checkpoint.resume Never.",
    ),
    "NonFiniteLoss": _doc(
        "The loss stopped being a number.", who=USER, remedy="Lower training.learningRate."
    ),
    "LossDiverged": _doc(
        "The loss ran away and lower learning rates did not hold it.",
        who=USER,
        remedy="Lower training.learningRate, or look at the rows of the step.",
    ),
    "NothingToWatch": _doc(
        "training.earlyStopping is set, but no rows are held out.",
        who=USER,
        remedy="Set dataset.split.validation, or remove training.earlyStopping.",
    ),
    "BucketNotFound": _doc("The bucket does not exist.", who=USER, remedy="Correct the URI."),
    "StorageAccessDenied": _doc(
        "The S3 server refuses the credentials.",
        who=ADMIN,
        remedy="Correct the Secret that the profile names, in the job's namespace.",
    ),
    "UriInvalid": _doc("A URI cannot be read.", who=USER, remedy="Correct the URI."),
    "StorageUnreachable": _doc("The storage does not answer.", who=NOBODY, remedy=_REPEATED),
    "TrackingFailed": _doc(
        "MLflow did not take the registration in time.", who=NOBODY, remedy=_REPEATED
    ),
    "StaleAttempt": _doc("A newer attempt runs, so this one stopped.", who=NOBODY, remedy="None."),
    "TrainerCrashed": _doc(
        "A training process ended without an outcome.", who=NOBODY, remedy=_REPEATED
    ),
    "RankFailed": _doc(
        "A training process was lost, killed perhaps for its memory, and the others ended.",
        who=NOBODY,
        remedy=f"{_REPEATED} If it happens again, raise compute.memory.",
    ),
    "RayNotStarted": _doc("Ray did not start in the pod.", who=NOBODY, remedy=_REPEATED),
    "RunConfigInvalid": _doc(
        "The trainer cannot read what the operator stored.",
        who=ADMIN,
        remedy="Use trainer and operator images of one release.",
    ),
    "CheckpointGivenUp": _doc(
        "A checkpoint could not be stored within checkpoint.graceSeconds.",
        who=NOBODY,
        remedy="The next attempt goes on from the one before; raise it if this happens again.",
    ),
    "Interrupted": _doc(
        "The attempt was asked to stop and saved a checkpoint.", who=NOBODY, remedy=_REPEATED
    ),
}
