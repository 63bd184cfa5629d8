"""What a training step of one rank needs in memory, before anything is loaded.

Counted from what autograd keeps: a frozen layer keeps nothing of its input, an adapter keeps the
input it was given, dropped-out copy and mask included, attention keeps its inputs and its output, a
gated MLP its two halves and their product's factors. tests/benchmarks/memory_plan.py compares the
sum with measured peaks. No run is decided by it yet: on the CPU the resident set is up to a third
above the sum, by what the allocator keeps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from anneal_pipeline.config.tuning import ALL_ATTENTION, ALL_LINEAR, ALL_MLP, LoraConfig
from anneal_pipeline.memory.shape import ModelShape
from anneal_pipeline.model.adapter_ranks import rank_of
from anneal_pipeline.model.layers import Layer
from anneal_pipeline.model.roles import Role

FP32 = 4
COMPUTE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
BLOCK = 64
"""Weights that share a quantisation constant in bitsandbytes."""
CONSTANTS_BLOCK = 256
"""Constants that share one of their own with double quantisation."""
PIECE_TOKENS = 1024
"""As in training.loss, which needs torch to be imported; a test holds them equal."""
LOGITS_COPIES = 4
"""Logits in fp32, their log-softmax, and the gradient of each."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the plan depends on beside the model."""

    lora: LoraConfig
    in_4_bit: bool
    double_quant: bool
    compute: str
    checkpointing: bool
    on_gpu: bool
    micro_batch_size: int
    length: int
    """Tokens of the longest row."""


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes of one rank, by what they are for."""

    weights: int
    quantization_state: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def fixed(self) -> int:
        """What is there whatever the batch."""
        held = self.weights + self.quantization_state
        return held + self.adapters + self.gradients + self.optimizer

    @property
    def total(self) -> int:
        return self.fixed + self.activations + self.logits

    def parts(self) -> dict[str, int]:
        return {
            "weights": self.weights,
            "quantisation state": self.quantization_state,
            "adapters": self.adapters,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "activations": self.activations,
            "logits": self.logits,
        }


def plan_memory(shape: ModelShape, setting: Setting) -> MemoryPlan:
    compute = COMPUTE_BYTES[setting.compute]
    four_bit = [la for la in shape.layers if setting.in_4_bit and not la.num_experts]
    num_packed = sum(layer.num_parameters for layer in four_bit)
    targets = find_targets(shape, setting.lora)
    num_trained = sum(
        layer.num_adapter_parameters(rank_of(layer.name, setting.lora))
        + (layer.out_features if setting.lora.use_dora else 0)
        for layer in targets
    )
    num_trained += _num_whole(shape, setting.lora)
    activations, logits = _step_bytes(shape, setting, targets)
    return MemoryPlan(
        weights=num_packed // 2 + (shape.num_parameters - num_packed) * compute,
        quantization_state=_constants_bytes(four_bit, double_quant=setting.double_quant),
        adapters=num_trained * FP32,
        gradients=num_trained * FP32,
        optimizer=num_trained * 2 * FP32,
        activations=activations,
        logits=logits,
    )


def find_targets(shape: ModelShape, lora: LoraConfig) -> tuple[Layer, ...]:
    """The layers that get an adapter, as `model.targets` finds them in the loaded model."""
    roles: Mapping[str, frozenset[Role]] = {
        ALL_LINEAR: frozenset({Role.ATTENTION, Role.MLP, Role.EXPERT, Role.OTHER}),
        ALL_ATTENTION: frozenset({Role.ATTENTION}),
        ALL_MLP: frozenset({Role.MLP, Role.EXPERT}),
    }
    no_experts = lora.dropout > 0 or lora.use_dora
    return tuple(
        layer
        for layer in shape.layers
        if not (layer.num_experts and no_experts)
        and any(
            layer.role in roles[pattern]
            if pattern in roles
            else f".{layer.name}".endswith(f".{pattern}")
            for pattern in lora.target_modules
        )
    )


def _num_whole(shape: ModelShape, lora: LoraConfig) -> int:
    """Embeddings and heads trained in full; norms are too small to count."""
    named = {pattern.rsplit(".", 1)[-1] for pattern in lora.modules_to_save}
    large = named & {"embed_tokens", "lm_head", "wte", "embed_in", "embed_out", "word_embeddings"}
    return len(large) * shape.vocabulary * shape.hidden


def _constants_bytes(layers: Sequence[Layer], *, double_quant: bool) -> int:
    num = sum(-(-layer.num_parameters // BLOCK) for layer in layers)
    if not double_quant:
        return num * FP32
    return num + num // CONSTANTS_BLOCK * FP32 + len(layers) * 256 * FP32


def _step_bytes(shape: ModelShape, setting: Setting, targets: Sequence[Layer]) -> tuple[int, int]:
    """(activations, logits) at the moment of their greatest sum."""
    compute = COMPUTE_BYTES[setting.compute]
    tokens = setting.micro_batch_size * setting.length
    layer = tokens * _kept_per_token(shape, setting, targets)
    working = tokens * _working_per_token(shape, setting) + _unpacked(shape, setting)
    num_logits = min(tokens, PIECE_TOKENS) * shape.vocabulary
    logits = num_logits * FP32 * LOGITS_COPIES
    if not setting.checkpointing:
        return layer * shape.num_layers + working, logits
    kept = tokens * shape.hidden * compute * (shape.num_layers + 1)
    # Logits are gone when the first layer is computed again.
    return kept + max(layer + working - logits, 0), logits


def _kept_per_token(shape: ModelShape, setting: Setting, targets: Sequence[Layer]) -> int:
    """Bytes that one decoder layer keeps per token for the backward pass."""
    compute = COMPUTE_BYTES[setting.compute]
    norms = 2 * shape.hidden * FP32
    attention = 5 * shape.query_size * compute
    if shape.is_eager:
        attention += shape.num_heads * setting.length * (FP32 + compute)
    mlp = (3 if shape.is_gated else 1) * shape.intermediate * compute
    return norms + attention + mlp + _adapters_per_token(shape, setting, targets)


def _adapters_per_token(shape: ModelShape, setting: Setting, targets: Sequence[Layer]) -> int:
    lora = setting.lora
    inputs = sum(layer.in_features for layer in targets if not layer.num_experts)
    ranks = sum(rank_of(layer.name, lora) for layer in targets if not layer.num_experts)
    outputs = sum(layer.out_features for layer in targets if not layer.num_experts)
    copies = FP32
    if lora.dropout > 0:
        # A GPU keeps a mask of one byte, the CPU the scaled noise itself.
        copies += 1 if setting.on_gpu else FP32
    kept = inputs * copies + ranks * FP32
    if lora.use_dora:
        kept += 2 * outputs * FP32
    return kept // shape.num_layers


def _working_per_token(shape: ModelShape, setting: Setting) -> int:
    """Gradients on their way through the widest part of a layer."""
    return 3 * shape.intermediate * COMPUTE_BYTES[setting.compute]


def _unpacked(shape: ModelShape, setting: Setting) -> int:
    """The largest 4-bit weight, which is unpacked while it is multiplied with."""
    if not setting.in_4_bit:
        return 0
    sizes = (layer.num_parameters for layer in shape.layers if not layer.num_experts)
    return max(sizes, default=0) * COMPUTE_BYTES[setting.compute]
