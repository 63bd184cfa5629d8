"""What the ranks of a run agree on; alone, a rank agrees with itself.

Every method here is a meeting: all ranks come to it, in the same order. Work that only some of them
do, or that may fail on one of them, goes on `together`: what ends it on one rank ends it on all,
with the cause, where otherwise the others would wait at the next meeting. A rank that dies without
a word closes its connections, and that ends the meeting too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
import torch.distributed

from anneal_pipeline.errors import RankFailedError, StopRequestedError

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This rank among `world_size`, joined by the default process group when there are several."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share_of(self, rows: Sequence[_T]) -> Sequence[_T]:
        """This rank's part of sorted rows: long and short ones, at most one fewer than another."""
        return rows[self.rank :: self.world_size]

    def sum(self, values: Sequence[float], *, failure: Exception | None = None) -> list[float]:
        """Add up numbers over all ranks (fp64); with a failure on one, none gets an answer.

        Raises that failure on the rank that has it, and RankFailedError with its words elsewhere;
        a planned stop on one is one on all.
        """
        if self.world_size == 1:
            if failure is not None:
                raise failure
            return list(values)
        flags = [float(failure is not None), *values]
        tensor = torch.tensor(flags, dtype=torch.float64, device=self.device)
        with _meeting():
            torch.distributed.all_reduce(tensor)
        num_failed, *summed = tensor.tolist()
        if num_failed:
            self._fail(failure)
        return summed

    def any(self, flag: bool) -> bool:  # one value, its meaning is the caller's
        return self.sum([float(flag)])[0] > 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """Work without a meeting in it: ends well on all ranks, or raises on all of them."""
        failure = None
        try:
            yield
        except Exception as error:  # raised again by the vote, here and everywhere
            failure = error
        self.sum((), failure=failure)

    def first_does(self, work: Callable[[], object]) -> None:
        """Let the first rank do it, alone, and wait for it."""
        with self.together():
            if self.is_first:
                work()

    def share(self, make: Callable[[], _T]) -> _T:
        """What the first rank makes, alone, on all ranks."""
        made: list[_T | None] = []
        with self.together():
            made = [make()] if self.is_first else [None]
        if self.world_size > 1:
            with _meeting():
                torch.distributed.broadcast_object_list(made, src=0, device=self.device)
        return cast(_T, made[0])

    def gather(self, value: _T) -> list[_T]:
        """What each rank brings, in the order of ranks, on all of them."""
        if self.world_size == 1:
            return [value]
        brought: list[_T | None] = [None] * self.world_size
        with _meeting():
            torch.distributed.all_gather_object(brought, value)
        return cast(list[_T], brought)

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Add up gradients over all ranks in place; a rank without any adds zeros."""
        if self.world_size == 1:
            return
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = torch.cat([grad.flatten() for grad in grads])
        with _meeting():
            torch.distributed.all_reduce(flat)
        for parameter, part in zip(
            parameters, torch.split(flat, [g.numel() for g in grads]), strict=True
        ):
            parameter.grad = part.view_as(parameter)

    def require_equal(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Fail where a rank holds other numbers than the first: all have moved them alike."""
        if self.world_size == 1:
            return
        own = _digest(parameters)
        first = self.share(lambda: own)
        with self.together():
            if own != first:
                raise RankFailedError(
                    f"Rank {self.rank} holds other adapter weights than rank 0: its memory or "
                    "processor miscalculates"
                )

    def _fail(self, failure: Exception | None) -> None:
        said: list[tuple[str, str] | None] = [None] * self.world_size
        own = None if failure is None else (type(failure).__name__, str(failure))
        with _meeting():
            torch.distributed.all_gather_object(said, own)
        if failure is not None:
            raise failure
        rank, (kind, words) = next((rank, words) for rank, words in enumerate(said) if words)
        if kind == StopRequestedError.__name__:
            raise StopRequestedError
        raise RankFailedError(f"Rank {rank} of {self.world_size} failed: {kind}: {words}")


def _digest(parameters: Sequence[torch.nn.Parameter]) -> str:
    digest = hashlib.sha256()
    for parameter in parameters:
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def _meeting() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo and NCCL have many words for a connection that is closed
        raise RankFailedError(
            "Another rank ended without a word, killed perhaps for its memory"
        ) from error
