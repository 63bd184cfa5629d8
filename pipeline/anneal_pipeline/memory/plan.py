"""What one rank needs in memory to load its model and to train, part by part, in bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

MOMENTS_BLOCK = 256
"""Moments in 8 bits that share a constant in bitsandbytes."""
MOMENTS_8_BIT_MIN = 4096
"""Numbers of a parameter below which bitsandbytes keeps its moments in fp32."""


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """The parts of a step at its greatest need, with gradients of a micro-batch before; loading."""

    weights: int
    """The frozen base, and its buffers."""
    quantization_state: int
    adapters: int
    gradients: int
    optimizer: int
    """Moments, and with tuning.lora.rankAllocation the importance of each trained number."""
    batch: int
    """Token ids, attention mask and labels."""
    activations: int
    logits: int
    """Everything as wide as the vocabulary: logits, their log-softmax, and gradients of both."""
    overhead: int
    """What the libraries take for themselves once a step has run."""
    loading: int
    """All there is at the greatest need while the base is loaded, before any step."""

    @property
    def step(self) -> int:
        return sum(self.parts().values())

    @property
    def peak(self) -> int:
        """Of the run: a base in 4 bits may need more to be loaded than to be trained."""
        return max(self.step, self.loading)

    @property
    def of_pass(self) -> int:
        """Bytes of it that a pass through the model takes and gives back."""
        return self.activations + self.logits

    def with_pass_scaled(self, factor: float) -> MemoryPlan:
        """The plan of a loaded model, by a pass that took `factor` of what was planned."""
        return replace(
            self,
            loading=0,
            activations=round(self.activations * factor),
            logits=round(self.logits * factor),
        )

    def parts(self) -> Mapping[str, int]:
        """Of the step."""
        return {
            "weights": self.weights,
            "quantisation state": self.quantization_state,
            "adapters": self.adapters,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "batch": self.batch,
            "activations": self.activations,
            "logits": self.logits,
            "overhead": self.overhead,
        }

    def parts_of_loading(self) -> Mapping[str, int]:
        stays = self.weights + self.quantization_state
        return {
            "weights": self.weights,
            "quantisation state": self.quantization_state,
            "the work on one weight": self.loading - stays,
        }


@dataclass(frozen=True, kw_only=True)
class Held:
    """Bytes that are there whatever the batch."""

    weights: int
    quantization_state: int
    adapters: int
    optimizer: int

    @property
    def gradients(self) -> int:
        return self.adapters


def moments_bytes(sizes: Iterable[int], *, in_8_bits: bool) -> int:
    """Of AdamW, for parameters of so many fp32 numbers."""
    return sum(
        2 * (size + 4 * -(-size // MOMENTS_BLOCK))
        if in_8_bits and size >= MOMENTS_8_BIT_MIN
        else 2 * 4 * size
        for size in sizes
    )


def size_text(num_bytes: int) -> str:
    """1.25 GiB, or 90 MiB."""
    gib = num_bytes / (1 << 30)
    return f"{gib:.2f} GiB" if gib >= 1 else f"{num_bytes / (1 << 20):.0f} MiB"
