"""Which base model is tuned."""

from typing import ClassVar, Self

from pydantic import model_validator

from anneal_pipeline.config.schema import CelRule, Schema
from anneal_pipeline.config.values import Revision, Uri


class ModelConfig(Schema):
    """The base model: a Hugging Face model folder with safetensors weights."""

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule="!self.uri.startsWith('hf://') || has(self.revision)",
            message="revision is required for hf:// models; name the commit to train from",
        ),
        CelRule(
            rule="self.uri.startsWith('hf://') || !has(self.revision)",
            message="model.revision has an effect on hf:// models only; remove it",
        ),
    )

    uri: Uri
    """Where the base model lies: hf://org/name, s3://bucket/prefix or pvc://claim/path. A local
    run also takes a path. Weights must be safetensors; a GGUF file is refused as a training base
    because its quantised weights cannot be trained on."""

    revision: Revision | None = None
    """Commit of a hub model. Required for hf://, and refused for other sources; must be a commit
    hash unless the profile allows tags. Other sources are pinned by the digest of their content,
    recorded at first read."""

    @model_validator(mode="after")
    def _hub_model_alone_is_pinned(self) -> Self:
        if self.uri.startswith("hf://") and self.revision is None:
            raise ValueError(f"revision is required for {self.uri}; name the commit to train from")
        if self.revision is not None and not self.uri.startswith("hf://"):
            raise ValueError(
                f"revision has no effect on {self.uri}, which is no hf:// model; remove it"
            )
        return self
