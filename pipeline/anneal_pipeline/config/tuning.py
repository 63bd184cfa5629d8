"""What is trained: LoRA adapters, over a base that is quantised (QLoRA) or not."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from anneal_pipeline.config.rank_allocation import RankAllocationConfig
from anneal_pipeline.config.schema import CelRule, Schema
from anneal_pipeline.config.values import ModuleName, Rank

ALL_LINEAR = "all-linear"
"""Every linear layer of the decoder's layers: attention, MLP and experts; never the output head."""
ALL_ATTENTION = "all-attention"
"""The linear layers of attention alone."""
ALL_MLP = "all-mlp"
"""The linear layers of the feed-forward parts alone, experts included."""

DEFAULT = "default"
GAUSSIAN = "gaussian"
ORTHOGONAL = "orthogonal"
LOFTQ = "loftq"
PISSA = "pissa"
NewToken = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^\S+$")]
Initialization = Annotated[
    str,
    Field(
        max_length=16,
        pattern=rf"^({DEFAULT}|{GAUSSIAN}|{ORTHOGONAL}|{LOFTQ}|{PISSA}(_niter_[1-9][0-9]?)?)$",
    ),
]
Alpha = Annotated[float, Field(gt=0.0, le=4096.0)]
_ALLOCATED = "has(self.rankAllocation)"


class LoraConfig(Schema):
    """The adapters (Hu et al. 2021, LoRA; names as in PEFT)."""

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule=f"!{_ALLOCATED} || !has(self.rankAllocation.initialRank)"
            " || self.rankAllocation.initialRank > self.rank",
            message="rankAllocation.initialRank must be greater than rank, the average it falls "
            "to; raise it",
        ),
        CelRule(
            rule=f"!{_ALLOCATED} || ((!has(self.useDora) || !self.useDora)"
            " && (!has(self.initialization) || self.initialization == 'default')"
            " && (!has(self.rankPattern) || self.rankPattern.size() == 0))",
            message="rankAllocation excludes useDora, rankPattern and every initialization but "
            "default; remove them",
        ),
        CelRule(
            rule="!has(self.useDora) || !self.useDora || !has(self.initialization)"
            " || !(self.initialization == 'loftq' || self.initialization.startsWith('pissa'))",
            message="initialization loftq and pissa exclude useDora, whose magnitudes would be "
            "those of other weights; remove one of them",
        ),
    )

    rank: Rank = 16
    """Rank of the two adapter matrices; 4 to 128 is usual, by the task. With rankAllocation, the
    average."""
    alpha: Alpha = 32.0
    """Scale of the adapter's output: alpha / rank (alpha / sqrt(rank) with useRslora)."""
    dropout: float = Field(default=0.05, ge=0.0, lt=1.0)
    """Dropout before the adapter, while training."""
    target_modules: tuple[ModuleName, ...] = Field(
        default=(ALL_LINEAR,), min_length=1, max_length=64
    )
    """What gets an adapter: all-linear (attention, MLP and experts; never the output head),
    all-attention, all-mlp, or names or suffixes of the model's modules. A name that matches nothing
    is an error. Stacked experts get one only without dropout and useDora."""
    rank_pattern: dict[ModuleName, Rank] = Field(default={}, max_length=64)
    """Rank by module name, where it differs from rank."""
    alpha_pattern: dict[ModuleName, Alpha] = Field(default={}, max_length=64)
    """alpha by module name, where it differs from alpha; named as in rankPattern."""
    rank_allocation: RankAllocationConfig | None = None
    """Give the modules that matter more rank than others; rank is then the average that the result
    has. Excludes useDora, rankPattern, loraPlusRatio and another initialization. Default: off,
    every module has the same rank from the first step to the last."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(rank) (Kalajdzievski 2023, rsLoRA): steadier at high rank."""
    use_dora: bool = False
    """Train direction and magnitude apart (Liu et al. 2024, DoRA): slower, often better."""
    initialization: Initialization = DEFAULT
    """How the adapters begin. default (A at random, B zero), gaussian (A from a normal
    distribution), orthogonal (even ranks) and pissa (Meng et al. 2024: begins at the strongest
    directions of each weight; pissa_niter_4 to pissa_niter_16 find them faster and less exactly)
    leave the model as it is; the last two are for method lora alone. loftq (Li et al. 2023) takes
    up what the 4-bit weights have lost, and is for method qlora alone."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which bias terms are trained beside the adapters."""
    modules_to_save: tuple[ModuleName, ...] = Field(default=(), max_length=16)
    """Modules trained and saved in full, named as in targetModules; for example embed_tokens and
    lm_head for tokens that the model hardly knows. Tied weights stay one. Only what is not held in
    4 bits, and gets no adapter."""

    @property
    def is_pissa(self) -> bool:
        return self.initialization.startswith(PISSA)

    @property
    def initial_rank(self) -> int:
        """The rank adapters begin with, where rankPattern gives no other."""
        return self.rank_allocation.begins_at(self.rank) if self.rank_allocation else self.rank

    @model_validator(mode="after")
    def _budget_decides_ranks(self) -> Self:
        if self.rank_allocation is None:
            return self
        initial = self.rank_allocation.initial_rank
        if initial is not None and initial <= self.rank:
            raise ValueError(
                f"rankAllocation.initialRank ({initial}) must be greater than rank ({self.rank}), "
                "the average it falls to; raise it"
            )
        others = [
            name
            for name, is_set in (
                ("useDora", self.use_dora),
                ("rankPattern", bool(self.rank_pattern)),
                (f"initialization {self.initialization}", self.initialization != DEFAULT),
            )
            if is_set
        ]
        if others:
            raise ValueError(f"rankAllocation excludes {' and '.join(others)}; remove one of them")
        return self

    @model_validator(mode="after")
    def _magnitudes_are_of_the_base(self) -> Self:
        if self.use_dora and (self.is_pissa or self.initialization == LOFTQ):
            raise ValueError(
                f"initialization {self.initialization} excludes useDora, whose magnitudes would be "
                "those of other weights; remove one of them"
            )
        return self


class QuantizationConfig(Schema):
    """How the frozen base is held (Dettmers et al. 2023, QLoRA). type and doubleQuant are for qlora
    alone; computeDtype is in force for lora too."""

    type: Literal["nf4", "fp4"] = "nf4"
    """The 4-bit data type of the base weights."""
    double_quant: bool = True
    """Quantise the quantisation constants too: 0.37 bit less per parameter."""
    compute_dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """The type matrix products run in, and for lora also the type the whole base is loaded in: auto
    takes bfloat16 on a GPU that has it, float16 with loss scaling on an older one, float32 on a
    CPU. float16 is for GPUs, and not for a model trained in bfloat16, which overflows in it, nor
    for modulesToSave."""


class TuningConfig(Schema):
    """The tuning method."""

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            # `has`: the API server also holds the rule against the bare default, an empty object.
            rule="!has(self.method) || self.method == 'qlora'"
            " || (self.quantization.type == 'nf4' && self.quantization.doubleQuant)",
            message="tuning.quantization.type and doubleQuant have no effect for method lora; "
            "remove them",
        ),
        CelRule(
            rule="!has(self.newTokens)"
            " || self.newTokens.all(t, self.newTokens.exists_one(u, u == t))",
            message="tuning.newTokens names a token more than once",
        ),
        CelRule(
            rule="!has(self.lora) || !has(self.lora.initialization)"
            " || (has(self.method) && self.method == 'lora')"
            " || !(self.lora.initialization == 'orthogonal'"
            " || self.lora.initialization.startsWith('pissa'))",
            message="tuning.lora.initialization orthogonal and pissa need weights that are not "
            "held in 4 bits; use loftq or default, or method lora",
        ),
        CelRule(
            rule="!has(self.lora) || !has(self.lora.initialization)"
            " || self.lora.initialization != 'loftq' || !has(self.method)"
            " || self.method == 'qlora'",
            message="tuning.lora.initialization loftq corrects 4-bit weights and has no effect for "
            "method lora; remove it",
        ),
    )

    method: Literal["qlora", "lora"] = "qlora"
    """qlora: adapters over a 4-bit base. lora: adapters over the base as it is."""
    fallback: Literal["refuse", "allow"] = "refuse"
    """Whether a job goes on as plain lora where 4-bit is not available; it says so."""
    lora: LoraConfig = LoraConfig()
    """The adapters."""
    quantization: QuantizationConfig = QuantizationConfig()
    """The 4-bit base, and the type products run in."""
    new_tokens: tuple[NewToken, ...] = Field(default=(), max_length=256)
    """Words or marks without blanks that become one token each; of the embeddings only their rows
    are trained. Each begins as the mean of what it was cut into so far. A mark is found wherever
    it stands, a word of letters and digits only where it is whole, not within another one."""

    @model_validator(mode="after")
    def _each_token_once(self) -> Self:
        repeated = {token for token in self.new_tokens if self.new_tokens.count(token) > 1}
        if repeated:
            raise ValueError(f"newTokens names {', '.join(sorted(repeated))} more than once")
        return self

    @model_validator(mode="after")
    def _plain_lora_has_no_4_bit_base(self) -> Self:
        held = self.quantization
        if self.method == "lora" and (held.type != "nf4" or not held.double_quant):
            raise ValueError(
                "quantization.type and doubleQuant have no effect for method lora; remove them"
            )
        return self

    @model_validator(mode="after")
    def _initialization_fits_the_base(self) -> Self:
        chosen = self.lora.initialization
        if (self.lora.is_pissa or chosen == ORTHOGONAL) and self.method != "lora":
            raise ValueError(
                f"lora.initialization {chosen} needs weights that are not held in 4 bits; use "
                "loftq or default, or method lora"
            )
        if chosen == LOFTQ and self.method != "qlora":
            raise ValueError(
                "lora.initialization loftq corrects 4-bit weights and has no effect for method "
                "lora; remove it"
            )
        return self
