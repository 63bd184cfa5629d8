"""How well a run's adapters were used, put together after training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any

from peft import PeftModel

from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.efficiency.adapters import list_adapters
from anneal_pipeline.efficiency.effective_rank import RankUse, rank_use
from anneal_pipeline.efficiency.gradients import GradientStatistics, Sums, weight_magnitude
from anneal_pipeline.efficiency.inventory import Inventory, take_inventory
from anneal_pipeline.model.beginning import OnLayer, untold
from anneal_pipeline.training.eight_bit import NAME as PAGED_8BIT

SHARE_MIN = 0.5
"""Of an adapter's directions; 70 to 95 % in use are usual."""
VANISHING = 1e-6
"""Root mean square of a gradient below which an adapter does not learn."""
IDLE_SHARE = 0.02
"""Of the median over all adapters: whose largest gradient or whole update is below is idle."""


@dataclass(frozen=True, kw_only=True)
class ModuleUse:
    """Of one adapter."""

    name: str
    kind: str
    rank: int
    use: RankUse
    gradient: GradientStatistics | None
    """None where no step was recorded."""
    weight: float
    """Root mean square of its trained numbers, at the end."""

    @property
    def gradient_to_weight(self) -> float | None:
        """Mean gradient of the run over the weights at its end."""
        if self.gradient is None or not self.weight:
            return None
        return self.gradient.mean / self.weight


@dataclass(frozen=True, kw_only=True)
class KindUse:
    """Of all adapters whose modules have one name: q_proj, down_proj ..."""

    kind: str
    num_modules: int
    rank: float
    effective_rank: float
    share: float
    """Means over its modules."""
    gradient: GradientStatistics | None
    gradient_to_weight: float | None


@dataclass(frozen=True, kw_only=True)
class AdapterUse:
    inventory: Inventory
    learning_rate: float
    """The peak."""
    scale: float
    """What the adapter's output is multiplied with: alpha / rank, or alpha / sqrt(rank)."""
    num_steps: int
    """Whose gradients were recorded."""
    num_clipped: int
    """Of those, steps whose gradient was clipped."""
    modules: tuple[ModuleUse, ...]
    kinds: tuple[KindUse, ...]

    @property
    def share(self) -> float:
        """Mean share of directions in use."""
        return fmean(module.use.share for module in self.modules)

    @property
    def effective_rank(self) -> float:
        return fmean(module.use.effective for module in self.modules)

    @property
    def idle(self) -> tuple[ModuleUse, ...]:
        """Adapters that hardly learn: a small gradient in every step, or next to no update."""
        recorded = [m.gradient.mean for m in self.modules if m.gradient is not None]
        usual = median(recorded) if recorded else 0.0
        update = median(module.use.update_norm for module in self.modules)
        return tuple(
            module
            for module in self.modules
            if module.use.update_norm < IDLE_SHARE * update
            or (
                module.gradient is not None
                and module.gradient.largest < max(VANISHING, IDLE_SHARE * usual)
            )
        )

    @property
    def narrow(self) -> tuple[ModuleUse, ...]:
        """Adapters that use less than half of their directions."""
        return tuple(module for module in self.modules if module.use.share < SHARE_MIN)

    def metrics(self) -> dict[str, float]:
        """One number each for the run's page."""
        return {
            "trainable_share": self.inventory.trainable_share,
            "memory_overhead": self.inventory.overhead,
            "effective_rank": self.effective_rank,
            "effective_rank_share": self.share,
            "narrow_modules": len(self.narrow),
            "idle_modules": len(self.idle),
        }

    def summary(self) -> str:
        """One line for the log."""
        inventory = self.inventory
        return (
            f"The adapters ({len(self.modules)} modules, {inventory.trainable:,} parameters, "
            f"{inventory.trainable_share:.2%} of all) use {self.share:.0%} of their directions on "
            f"average; {len(self.narrow)} use less than half of theirs, {len(self.idle)} hardly "
            "learn"
        )

    def to_data(self) -> dict[str, Any]:
        return {
            "metrics": self.metrics(),
            "inventory": self.inventory.to_data(),
            "learning_rate": self.learning_rate,
            "scale": self.scale,
            "effective_learning_rate": self.learning_rate * self.scale,
            "num_steps": self.num_steps,
            "num_clipped": self.num_clipped,
            "kinds": [asdict(kind) for kind in self.kinds],
            "modules": [_module_data(module) for module in self.modules],
            "narrow": [module.name for module in self.narrow],
            "idle": [module.name for module in self.idle],
        }


def _module_data(module: ModuleUse) -> dict[str, Any]:
    return {
        "name": module.name,
        "rank": module.rank,
        "directions": module.use.directions,
        "effective_rank": module.use.effective,
        "effective_rank_share": module.use.share,
        "update_norm": module.use.update_norm,
        "gradient": module.gradient and asdict(module.gradient),
        "gradient_to_weight": module.gradient_to_weight,
    }


def measure_use(
    model: PeftModel,
    config: PipelineConfig,
    *,
    gradients: Sums,
    num_clipped: int,
    on_adapter: OnLayer = untold,
) -> AdapterUse:
    """Of the weights as they are now; `gradients` are the sums of the run.

    `on_adapter` is told of each one that is measured, and ends the work by raising. RuntimeError
    (torch.linalg.LinAlgError is one) and MemoryError come from adapters that cannot be measured.
    """
    modules = tuple(_measure_modules(model, gradients, on_adapter=on_adapter))
    lora, training = config.tuning.lora, config.training
    return AdapterUse(
        inventory=take_inventory(model, moments_in_8_bits=training.optimizer == PAGED_8BIT),
        learning_rate=training.learning_rate,
        scale=lora.alpha / (lora.rank**0.5 if lora.use_rslora else lora.rank),
        num_steps=max((m.gradient.num_samples for m in modules if m.gradient), default=0),
        num_clipped=num_clipped,
        modules=modules,
        kinds=_kinds(modules, gradients),
    )


def _measure_modules(
    model: PeftModel, gradients: Sums, *, on_adapter: OnLayer
) -> Iterator[ModuleUse]:
    adapters = list_adapters(model)
    for done, adapter in enumerate(adapters, start=1):
        yield ModuleUse(
            name=adapter.name,
            kind=adapter.kind,
            rank=adapter.rank,
            use=rank_use(adapter),
            gradient=GradientStatistics.of([gradients.get(adapter.name, [0.0])]),
            weight=weight_magnitude(adapter.parameters),
        )
        on_adapter(done, len(adapters))


def _kinds(modules: Sequence[ModuleUse], gradients: Sums) -> tuple[KindUse, ...]:
    by_kind: dict[str, list[ModuleUse]] = {}
    for module in modules:
        by_kind.setdefault(module.kind, []).append(module)
    return tuple(_kind_use(kind, found, gradients) for kind, found in by_kind.items())


def _kind_use(
    kind: str, modules: Sequence[ModuleUse], gradients: Mapping[str, list[float]]
) -> KindUse:
    ratios = [m.gradient_to_weight for m in modules if m.gradient_to_weight is not None]
    return KindUse(
        kind=kind,
        num_modules=len(modules),
        rank=fmean(module.rank for module in modules),
        effective_rank=fmean(module.use.effective for module in modules),
        share=fmean(module.use.share for module in modules),
        gradient=GradientStatistics.of(gradients.get(module.name, [0.0]) for module in modules),
        gradient_to_weight=fmean(ratios) if ratios else None,
    )
