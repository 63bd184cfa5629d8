"""Memory that runs out before there is a step: no batch is too large then, the weights are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anneal_pipeline.errors import DOES_NOT_FIT, UserError
from anneal_pipeline.memory.plan import size_text
from anneal_pipeline.model.four_bit import BaseForm
from anneal_pipeline.model.weight_files import weight_bytes
from anneal_pipeline.training.memory import is_out_of_memory


@contextmanager
def named_while_loading(*, folder: Path, uri: str, form: BaseForm) -> Iterator[None]:
    """Turn it into the sentence that names the weights and what holds them."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        size = size_text(weight_bytes(folder, uri=uri))
        raise UserError(
            DOES_NOT_FIT,
            f"Memory ran out while the model at {uri} was being loaded, whose weight files hold "
            f"{size}; {_advice(form)} ({str(error).splitlines()[0] if str(error) else 'no words'})",
        ) from error


def _advice(form: BaseForm) -> str:
    more = "take a smaller model, or a GPU or container with more memory"
    if form.in_4_bit:
        return more
    if form.notice:
        return f"run it where 4-bit quantisation is available, which needs a quarter, or {more}"
    return f"set tuning.method to qlora, which holds most of them in a quarter of that, or {more}"
