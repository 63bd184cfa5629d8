"""What a run's adapters suggest for the next run, in sentences with its numbers.

Every rule needs a number of the run; where the numbers are usual nothing is said. The bands are
those of the specification: 70 to 95 % of the rank in use, a trainable share under 2 %, memory
beside the base under 20 %. Where ranks are allocated, `rank` is a budget and `rankPattern` is
excluded, so that nothing is said of either. Nothing here changes a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.config.tuning import LoraConfig
from anneal_pipeline.efficiency.use import SHARE_MIN, VANISHING, AdapterUse, ModuleUse
from anneal_pipeline.memory.plan import size_text
from anneal_pipeline.model.layers import kinds

SHARE_FULL = 0.95
GAIN_MIN = 0.1
"""Fall of the held-out loss below which a full rank may be what holds the run back."""
CLIPPED_SHARE = 0.5
SPIKE = 20.0
"""Largest gradient over the mean."""
OVERHEAD_USUAL = 0.2
WORTH_BYTES = 256 << 20
NAMED_MAX = 5


def recommendations(
    use: AdapterUse, config: PipelineConfig, *, loss_change: float | None
) -> Iterator[str]:
    """`loss_change` is that of the held-out loss from base to tuned: -0.2 is a fall by 20 %."""
    lora = config.tuning.lora
    if lora.rank_allocation is None:
        yield from _of_rank(use, lora, loss_change=loss_change)
    yield from _of_targets(use, lora)
    yield from _of_alpha(use, config)
    yield from _of_memory(use, config)


def _of_rank(use: AdapterUse, lora: LoraConfig, *, loss_change: float | None) -> Iterator[str]:
    learning = [module for module in use.modules if module not in use.idle]
    smaller = _rank_for(learning, lora.rank)
    if learning and use.share < SHARE_MIN and smaller is not None:
        yield (
            f"On average {use.effective_rank:.1f} directions of rank {lora.rank} are in use "
            f"({use.share:.0%}, where 70 to 95 % are usual): tuning.lora.rank {smaller} with alpha "
            f"{lora.alpha * smaller / lora.rank:g} would learn nearly the same in less memory"
        )
    elif use.share >= SHARE_MIN:
        yield from _of_narrow_kinds(use, learning)
    is_poor = loss_change is not None and loss_change > -GAIN_MIN
    if use.share >= SHARE_FULL and is_poor:
        yield (
            f"All directions of rank {lora.rank} are in use ({use.share:.0%}) and the held-out "
            f"loss changed by {loss_change:+.0%} only: tuning.lora.rank {2 * lora.rank} with alpha "
            f"{2 * lora.alpha:g} may learn more"
        )


def _of_narrow_kinds(use: AdapterUse, learning: Sequence[ModuleUse]) -> Iterator[str]:
    for kind in use.kinds:
        modules = [module for module in learning if module.kind == kind.kind]
        smaller = _rank_for(modules, round(kind.rank))
        if modules and kind.share < SHARE_MIN and smaller is not None:
            yield (
                f"{kind.kind} uses {kind.effective_rank:.1f} of {kind.rank:g} directions "
                f"({kind.share:.0%}): tuning.lora.rankPattern {{{kind.kind}: {smaller}}} would do"
            )


def _rank_for(modules: Sequence[ModuleUse], rank: int) -> int | None:
    """The least power of two above the effective rank of nine in ten of `modules`."""
    shares = sorted(module.use.share for module in modules)
    if not shares:
        return None
    needed = shares[(9 * len(shares) - 1) // 10] * rank
    smaller = 1
    while smaller < needed:
        smaller *= 2
    return smaller if smaller < rank else None


def _of_targets(use: AdapterUse, lora: LoraConfig) -> Iterator[str]:
    idle = {module.name for module in use.idle}
    if not idle or len(idle) == len(use.modules):
        return
    whole = [
        kind.kind
        for kind in use.kinds
        if all(module.name in idle for module in use.modules if module.kind == kind.kind)
    ]
    if whole:
        others = [kind.kind for kind in use.kinds if kind.kind not in whole]
        yield (
            f"No adapter on {', '.join(whole)} learns (gradients or updates under 2 % of the "
            f"usual): leave them out with tuning.lora.targetModules [{', '.join(others)}]"
        )
    single = [m.name for m in use.modules if m.name in idle and m.kind not in whole]
    if single and lora.rank_allocation is None:
        more = f" and {len(single) - NAMED_MAX} more" if len(single) > NAMED_MAX else ""
        yield (
            f"{len(single)} of {len(use.modules)} adapters hardly learn ({kinds(single)}): "
            f"{', '.join(single[:NAMED_MAX])}{more}; rank 1 for them in tuning.lora.rankPattern "
            "loses nothing"
        )


def _of_alpha(use: AdapterUse, config: PipelineConfig) -> Iterator[str]:
    lora = config.tuning.lora
    if lora.use_rslora or not use.num_steps:
        return
    ratio = lora.alpha / lora.rank
    clipped = use.num_clipped / use.num_steps
    means = [module.gradient.mean for module in use.modules if module.gradient]
    if clipped > CLIPPED_SHARE and ratio > 2:
        yield (
            f"{clipped:.0%} of the steps were clipped to norm {config.training.max_grad_norm:g} "
            f"and alpha is {ratio:g} times rank {lora.rank}: tuning.lora.alpha {2 * lora.rank} "
            "makes smaller steps"
        )
    elif sum(mean < VANISHING for mean in means) > len(means) / 2 and ratio < 2:
        yield (
            f"The gradients of most adapters are under {VANISHING:g} and alpha is {ratio:g} times "
            f"rank {lora.rank}: tuning.lora.alpha {2 * lora.rank} makes them larger"
        )
    spiky = [
        kind.kind
        for kind in use.kinds
        if kind.gradient and kind.gradient.largest > SPIKE * kind.gradient.mean
    ]
    if spiky and clipped <= CLIPPED_SHARE:
        yield (
            f"Single gradients of {', '.join(spiky)} were over {SPIKE:g} times their mean: look "
            "for damaged rows, or lower training.maxGradNorm from "
            f"{config.training.max_grad_norm:g}"
        )


def _of_memory(use: AdapterUse, config: PipelineConfig) -> Iterator[str]:
    inventory = use.inventory
    saved = inventory.optimizer_bytes * 3 // 4
    is_whole = config.training.optimizer == "adamw"
    if is_whole and inventory.overhead > OVERHEAD_USUAL and saved >= WORTH_BYTES:
        yield (
            f"Adapters, gradients and moments take {inventory.overhead:.0%} of the base's memory, "
            f"where under {OVERHEAD_USUAL:.0%} is usual: training.optimizer pagedAdamw8bit frees "
            f"about {size_text(saved)}"
        )
