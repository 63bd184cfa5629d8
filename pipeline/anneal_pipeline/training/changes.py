"""What differs between a run and the checkpoint it would go on from.

A run that goes on under another configuration, other rows, another base or other libraries is
another run: it is refused with every difference named, unless `checkpoint.acceptChanges` names it.
Threads, processor and ranks change with the machine; they cost the last bits and only warn. When
evaluations are made counts where early stopping watches them: they decide which step is the last,
and which one is the best.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anneal_pipeline.checkpoint.manifest import Manifest
from anneal_pipeline.config.pipeline import MATHEMATICAL_SECTIONS, PipelineConfig
from anneal_pipeline.config.schema import ConfigError
from anneal_pipeline.errors import RUN_CHANGED, UserError
from anneal_pipeline.evaluation.perplexity import RESPONSE_PERPLEXITY

DATASET_CONTENT = "dataset.content"
MODEL_CONTENT = "model.content"
LIBRARIES = "libraries"
BASE_DIGEST = "baseDigest"
"""The run fact that stands for the model's weights."""
_EVALUATION = "evaluation"
_TOLD_ONLY = ("baseline", "metrics", "prompts", "numGenerations", "generalText")
"""Fields of it that change what is reported, and never what is trained."""
_METRIC = "training.earlyStopping.metric"
_UNSET = "unset"
_SHOWN_MAX = 60
_DIGEST_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class Change:
    path: str
    """As `checkpoint.acceptChanges` names it."""
    before: str
    now: str

    def __str__(self) -> str:
        return f"{self.path} {self.before} -> {self.now}"

    def is_accepted(self, accepted: Sequence[str]) -> bool:
        """True when the list holds the path or a section it lies in."""
        return any(f"{self.path}.".startswith(f"{entry}.") for entry in accepted)


def find_changes(
    saved: Manifest,
    *,
    config: PipelineConfig,
    dataset_digest: str,
    libraries: Mapping[str, str],
    facts: Mapping[str, Any],
    saved_config: Mapping[str, Any],
    saved_facts: Mapping[str, Any],
) -> list[Change]:
    """Every difference that makes it another run, configuration first."""
    before, now = _known(saved_config), config.to_data()
    changes = _between(_leaves(before), _leaves(now))
    if _is_watched(before) or _is_watched(now):
        changes += _between(_evaluation_times(before), _evaluation_times(now))
    digests = (
        (DATASET_CONTENT, saved.dataset_digest, dataset_digest),
        (MODEL_CONTENT, saved_facts.get(BASE_DIGEST), facts.get(BASE_DIGEST)),
    )
    changes += [
        Change(path=path, before=_digest(before), now=_digest(now))
        for path, before, now in digests
        if before != now
    ]
    return changes + _between(_prefixed(saved.libraries), _prefixed(libraries))


def refuse_changes(changes: Sequence[Change], *, checkpoint: str, accepted: Sequence[str]) -> None:
    """Raise `RunChanged` for what is not accepted; it names every change and how to go on."""
    refused = [change for change in changes if not change.is_accepted(accepted)]
    if refused:
        listed = ", ".join(change.path for change in refused)
        raise UserError(
            RUN_CHANGED,
            f"Checkpoint {checkpoint} belongs to another run: {'; '.join(map(str, refused))}; put "
            f"the old values back, accept the difference with checkpoint.acceptChanges: [{listed}],"
            " set checkpoint.resume to Never, or use a new output folder",
        )


def watches_another_metric(changes: Sequence[Change]) -> bool:
    """Whether the best evaluation so far was judged by what is not watched any more."""
    return any(
        change.path == _METRIC and {change.before, change.now} - {_UNSET} != {RESPONSE_PERPLEXITY}
        for change in changes
    )


def _known(stored: Mapping[str, Any]) -> Mapping[str, Any]:
    """The stored configuration with the defaults of fields that came after it."""
    try:
        return PipelineConfig.parse(stored).to_data()
    except ConfigError:  # a field it has is gone: compare what is there
        return stored


def _leaves(config: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def walk(node: object, path: str) -> None:
        if isinstance(node, dict) and node:
            for key, value in node.items():
                walk(value, f"{path}.{key}")
        else:
            found[path] = node

    for section in MATHEMATICAL_SECTIONS:
        walk(config.get(section), section)
    return found


def _is_watched(config: Mapping[str, Any]) -> bool:
    return config.get("training", {}).get("earlyStopping") is not None


def _evaluation_times(config: Mapping[str, Any]) -> dict[str, Any]:
    section: Mapping[str, Any] = config.get(_EVALUATION, {})
    return {f"{_EVALUATION}.{k}": value for k, value in section.items() if k not in _TOLD_ONLY}


def _between(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    paths = dict.fromkeys((*now, *before))
    return [
        Change(path=path, before=_shown(before.get(path)), now=_shown(now.get(path)))
        for path in paths
        if before.get(path) != now.get(path)
    ]


def _prefixed(versions: Mapping[str, str]) -> dict[str, str]:
    return {f"{LIBRARIES}.{name}": value for name, value in versions.items()}


def _digest(value: object) -> str:
    return str(value)[:_DIGEST_SHOWN] if value else _UNSET


def _shown(value: object) -> str:
    if value is None:
        return _UNSET
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _SHOWN_MAX else f"{text[: _SHOWN_MAX - 3]}..."
