"""In which forms the tuned model leaves the run."""

from typing import Literal

from pydantic import Field

from anneal_pipeline.config.schema import Schema

GgufType = Literal["f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0"]


class GgufConfig(Schema):
    """GGUF files (llama.cpp)."""

    types: tuple[GgufType, ...] = Field(default=("f16",), min_length=1, max_length=8)
    """Tensor types, one file each."""


class ExportConfig(Schema):
    """The exports."""

    formats: tuple[Literal["adapter", "merged", "gguf", "onnx"], ...] = Field(
        default=("adapter",), min_length=1, max_length=4
    )
    """adapter is the PEFT folder; merged a Hugging Face model that needs no PEFT."""
    gguf: GgufConfig | None = None
    """Settings of the gguf format."""
    verify: bool = True
    """Load each export again and compare it with the trained model before it is published."""
