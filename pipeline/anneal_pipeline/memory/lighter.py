"""Jobs like one that does not fit, whose base is held in less: what to set where no step helps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.config.schema import ConfigError
from anneal_pipeline.device import compute_dtype
from anneal_pipeline.errors import UserError
from anneal_pipeline.memory.estimate import LighterBase, planning
from anneal_pipeline.memory.trace import Place
from anneal_pipeline.model.four_bit import find_fault

_METHOD = "tuning.method"
_TYPE = "tuning.quantization.type"
_COMPUTE = "tuning.quantization.computeDtype"


def lighter_bases(
    config: PipelineConfig, *, folder: Path, place: Place, device: torch.device
) -> Iterator[LighterBase]:
    """The one to try first comes first; `device` has to quantise and to compute like that."""
    for changes in _changes(place, config=config):
        changed = _with(config, changes)
        if changed is None or not _is_possible(changes, config=changed, device=device):
            continue
        there = replace(
            place,
            in_4_bit=place.in_4_bit or _METHOD in changes,
            compute=torch.bfloat16 if _COMPUTE in changes else place.compute,
        )
        yield LighterBase(changes=changes, plan_of=planning(changed, folder=folder, place=there))


def _changes(place: Place, *, config: PipelineConfig) -> Iterator[Mapping[str, str]]:
    in_16_bits = {_COMPUTE: "bfloat16"} if place.compute == torch.float32 else {}
    first: dict[str, str] = {}
    if not place.in_4_bit:
        first = {_METHOD: "qlora"}
    elif config.tuning.quantization.type == "fp4" and not place.on_gpu:
        first = {_TYPE: "nf4"}  # which is quantised with half of the work
    every = (first, in_16_bits, {**first, **in_16_bits})
    yield from (changes for n, changes in enumerate(every) if changes and changes not in every[:n])


def _with(config: PipelineConfig, changes: Mapping[str, str]) -> PipelineConfig | None:
    """None where the job does not allow it."""
    data: dict[str, Any] = config.to_data()
    for path, value in changes.items():
        *sections, last = path.split(".")
        inner = data
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    try:
        return PipelineConfig.parse(data)
    except ConfigError:
        return None


def _is_possible(
    changes: Mapping[str, str], *, config: PipelineConfig, device: torch.device
) -> bool:
    if _METHOD in changes and find_fault(device, wanted=config.tuning.quantization) is not None:
        return False
    if _COMPUTE in changes:
        try:
            compute_dtype(changes[_COMPUTE], device=device)
        except UserError:
            return False
    return True
