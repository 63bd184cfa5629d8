"""The part of the evaluation report about the adapters: what they cost and what they use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.efficiency.gradients import GradientStatistics
from anneal_pipeline.efficiency.inventory import (
    ADAPTERS,
    BASE,
    FULL_TUNING_BYTES,
    OTHER,
    Inventory,
)
from anneal_pipeline.efficiency.recommendations import recommendations
from anneal_pipeline.efficiency.use import AdapterUse, KindUse, ModuleUse
from anneal_pipeline.evaluation.tables import html_table, markdown_table
from anneal_pipeline.memory.plan import size_text

_HEAD = (
    *("modules", "adapters", "rank", "directions in use", "share"),
    *("gradient, mean", "std", "least", "largest", "over weights"),
)
_USUAL = "Nothing of this asks for another setting in the next run."
_NAMED_MAX = 12


@dataclass(frozen=True, kw_only=True)
class AdapterSection:
    use: AdapterUse
    advice: tuple[str, ...]
    """What the numbers suggest for the next run."""

    @classmethod
    def of(
        cls, use: AdapterUse, config: PipelineConfig, *, loss_change: float | None
    ) -> AdapterSection:
        advice = recommendations(use, config, loss_change=loss_change)
        return cls(use=use, advice=tuple(advice))

    def to_data(self) -> dict[str, Any]:
        return {**self.use.to_data(), "recommendations": list(self.advice)}

    def markdown(self) -> Iterator[str]:
        yield "\n## Adapters\n"
        for name, value in self._facts():
            yield f"- {name}: {value}"
        yield from markdown_table(_HEAD, map(_cells, self.use.kinds))
        yield ""
        for text in self.advice or (_USUAL,):
            yield f"- {text}"

    def html(self) -> str:
        facts = "".join(
            f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>"
            for name, value in self._facts()
        )
        advice = "".join(f"<li>{escape(text)}</li>" for text in self.advice or (_USUAL,))
        return (
            f'<h2>Adapters</h2><table class="facts">{facts}</table><p></p>'
            f"{html_table(_HEAD, map(_cells, self.use.kinds))}<ul>{advice}</ul>"
        )

    def _facts(self) -> Iterator[tuple[str, str]]:
        use, inventory = self.use, self.use.inventory
        for group in (BASE, ADAPTERS, OTHER):
            if inventory.group(group).total:
                yield f"Parameters, {group}", _parameters(inventory, group)
        yield "Trained", f"{inventory.trainable:,} parameters ({inventory.trainable_share:.2%})"
        yield "Memory beside the base", _memory(inventory)
        yield "Full fine-tuning", _full_tuning(inventory)
        yield (
            "Learning rate",
            f"{use.learning_rate:g} at its peak, times the adapters' scale {use.scale:.3g}: "
            f"{use.learning_rate * use.scale:.3g} in effect",
        )
        yield "Gradients clipped", f"in {use.num_clipped} of {use.num_steps} steps"
        if use.narrow:
            yield "Less than half of the directions in use", _names(use.narrow)
        if use.idle:
            yield "Hardly learning", _names(use.idle)


def _parameters(inventory: Inventory, group: str) -> str:
    whole = inventory.group(group)
    parts = ", ".join(
        f"{part.name} {part.total:,}" for part in inventory.parts if part.group == group
    )
    return (
        f"{whole.total:,} ({parts}), {whole.trainable:,} trained and {whole.frozen:,} frozen, "
        f"{size_text(whole.num_bytes)}"
    )


def _memory(inventory: Inventory) -> str:
    weights = inventory.added_bytes - inventory.gradient_bytes - inventory.optimizer_bytes
    return (
        f"{size_text(inventory.added_bytes)} ({inventory.overhead:.0%} of it): weights "
        f"{size_text(weights)}, gradients {size_text(inventory.gradient_bytes)}, moments "
        f"{size_text(inventory.optimizer_bytes)}"
    )


def _full_tuning(inventory: Inventory) -> str:
    here = inventory.group(BASE).num_bytes + inventory.added_bytes
    return (
        f"would hold {size_text(inventory.full_tuning_bytes)} at the least (weights, gradients and "
        f"moments in 16 bits, {FULL_TUNING_BYTES} bytes a parameter), this run {size_text(here)} "
        f"({here / inventory.full_tuning_bytes:.1%}), both without activations"
    )


def _cells(kind: KindUse) -> tuple[str, ...]:
    ratio = kind.gradient_to_weight
    return (
        kind.kind,
        str(kind.num_modules),
        f"{kind.rank:g}",
        f"{kind.effective_rank:.1f}",
        f"{kind.share:.0%}",
        *_figures(kind.gradient),
        "-" if ratio is None else f"{ratio:.2g}",
    )


def _figures(gradient: GradientStatistics | None) -> tuple[str, ...]:
    if gradient is None:
        return ("-",) * 4
    figures = (gradient.mean, gradient.std, gradient.least, gradient.largest)
    return tuple(f"{figure:.2g}" for figure in figures)


def _names(modules: tuple[ModuleUse, ...]) -> str:
    more = f" and {len(modules) - _NAMED_MAX} more" if len(modules) > _NAMED_MAX else ""
    return f"{', '.join(module.name for module in modules[:_NAMED_MAX])}{more}"
