"""Hearing of every weight while transformers loads a model, which may take minutes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers.utils.logging import set_tqdm_hook

_LOADING = "Loading weights"
"""What transformers calls the bar of its loop over the weights."""


@contextmanager
def each_weight(on_weight: Callable[[int, int], None]) -> Iterator[None]:
    """Within it, `on_weight` is called with (weights loaded, weights in all), first with none.

    What it raises ends the loading. It takes the place of the library's bar for people.
    """

    def hook(
        factory: Callable[..., Any], arguments: tuple[Any, ...], options: Mapping[str, Any]
    ) -> Any:
        if options.get("desc") != _LOADING:
            return factory(*arguments, **options)
        return _told(arguments[0], on_weight)

    previous = set_tqdm_hook(hook)
    try:
        yield
    finally:
        set_tqdm_hook(previous)


def _told(weights: Collection[Any], on_weight: Callable[[int, int], None]) -> Iterator[Any]:
    on_weight(0, len(weights))
    for done, weight in enumerate(weights, start=1):
        yield weight
        on_weight(done, len(weights))
