"""What one pass through the model takes, measured: the correction of a plan."""

from __future__ import annotations

import torch

from anneal_pipeline.memory.room import PROC, field_bytes
from anneal_pipeline.training.batches import Batch
from anneal_pipeline.training.loss import LogitsPath


def measure_pass(path: LogitsPath, batch: Batch, *, model: torch.nn.Module) -> int | None:
    """Bytes that a forward and a backward pass take at their peak, beside gradients.

    None where that cannot be measured. Nothing is learnt from it, and gradients are gone after it.
    Raises whatever the framework raises when memory runs out.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    was_training = model.training
    model.train()
    try:
        for parameter in trained:
            parameter.grad = torch.ones_like(parameter)
        before = _begin(batch.ids.device)
        path.backward(batch, weigh=lambda losses: losses)
        peak = _peak(batch.ids.device)
    finally:
        for parameter in trained:
            parameter.grad = None
        model.train(was_training)
    return None if before is None or peak is None else max(0, peak - before)


def _begin(device: torch.device) -> int | None:
    """What is held now, with the counter of the peak set back to it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return int(torch.cuda.memory_allocated(device))
    try:
        # The high-water mark of the resident set (proc(5), since Linux 4.0).
        (PROC / "self" / "clear_refs").write_text("5")
    except OSError:
        return None
    return _of_process("VmRSS:")


def _peak(device: torch.device) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return _of_process("VmHWM:")


def _of_process(name: str) -> int | None:
    return field_bytes(PROC / "self" / "status", name)
