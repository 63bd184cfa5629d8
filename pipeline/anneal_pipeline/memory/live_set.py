"""How much memory the tensors of a computation hold at once, counted while it runs.

Made for fake tensors: what would depend on their values is answered as for rows full of trained
tokens, so that the training loop's own code runs through it.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_aten = torch.ops.aten
CUDA_BLOCK_BYTES = 512
"""What PyTorch's CUDA allocator rounds up to."""


class LiveSet(TorchDispatchMode):  # type: ignore[no-untyped-call]  # PyTorch's hook
    """Counts storages from the operator that makes them to their end."""

    def __init__(self, *, vocabulary: int, block_bytes: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._vocabulary = vocabulary
        self._block_bytes = block_bytes
        self._known: set[int] = set()
        self._now = self._logits_now = 0
        self.peak = 0
        """Bytes."""
        self.peak_logits = 0
        """Those of `peak` that are as wide as the vocabulary."""

    def ignore(self, tensor: torch.Tensor) -> None:
        """Leave a tensor that is counted elsewhere out of the count."""
        storage = tensor.untyped_storage()
        self._known.add(storage._cdata)
        weakref.finalize(storage, self._known.discard, storage._cdata)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = _answer(func, args)
        if out is None:
            out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf)
        return out

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = -(-storage.nbytes() // self._block_bytes) * self._block_bytes
        logits = size if tensor.dim() and tensor.shape[-1] == self._vocabulary else 0
        self._known.add(key)
        self._now += size
        self._logits_now += logits
        weakref.finalize(storage, self._forget, key, size, logits)
        if self._now > self.peak:
            self.peak, self.peak_logits = self._now, self._logits_now

    def _forget(self, key: int, size: int, logits: int) -> None:
        self._known.discard(key)
        self._now -= size
        self._logits_now -= logits


def _answer(func: Any, args: Any) -> Any:
    """The result of what depends on values, or None."""
    if func is _aten._local_scalar_dense.default:
        return _SCALARS.get(args[0].dtype, 1.0 if args[0].dtype.is_floating_point else 1)
    if func is _aten.index.Tensor and _masks(args[1]):
        values, mask = args[0], args[1][0]
        return values.new_empty((mask.numel(), *values.shape[mask.dim() :]))
    if func in (_aten.index_put_.default, _aten._index_put_impl_.default) and _masks(args[1]):
        return args[0]
    if func is _aten.index_put.default and _masks(args[1]):
        return _aten.empty_like.default(args[0])
    return None


_SCALARS = {torch.bool: True}


def _masks(indices: Any) -> bool:
    return len(indices) == 1 and indices[0] is not None and indices[0].dtype == torch.bool
