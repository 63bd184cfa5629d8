"""What both sides of the training benchmark are measured by; needs nothing but torch.

Speed is tokens of rows (padding is none) between the end of the last warm-up step and the end of
the last step, over the wall time between the two. Memory is the peak from before the model is
loaded to the end of the last step: on the CPU the kernel's own high-water mark of the resident set
(VmHWM, set back by /proc/self/clear_refs) above what was resident after the imports, on a GPU what
torch's allocator had handed out at most. The loss is that of held-out rows after the last step, by
one loop for both.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

MIB = 1 << 20
IGNORED = -100


@dataclass(kw_only=True)
class Meter:
    """Start it after the imports, tell it of every step."""

    device: str
    warmup_steps: int
    total_steps: int
    _resident: int = field(init=False)
    _begun: float = 0.0
    _begun_cpu: float = 0.0
    _begun_tokens: int = 0
    tokens_per_cpu_second: float = 0.0
    tokens_per_second: float = 0.0
    peak_bytes: int = 0

    def __post_init__(self) -> None:
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self._resident = 0
        else:
            Path("/proc/self/clear_refs").write_text("5")
            self._resident = _status("VmHWM")

    def step_ended(self, step: int, *, num_tokens: int) -> None:
        """`step` counts from 1; `num_tokens` is the sum over all steps so far, without padding."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        now, cpu = time.perf_counter(), time.process_time()
        if step == self.warmup_steps:
            self._begun, self._begun_cpu, self._begun_tokens = now, cpu, num_tokens
        if step == self.total_steps:
            done = num_tokens - self._begun_tokens
            self.tokens_per_second = done / (now - self._begun)
            self.tokens_per_cpu_second = done / (cpu - self._begun_cpu)
            self.peak_bytes = self._peak() - self._resident

    def _peak(self) -> int:
        return torch.cuda.max_memory_allocated() if self.device == "cuda" else _status("VmHWM")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run of one side."""

    tokens_per_second: float
    tokens_per_cpu_second: float
    peak_mib: float
    loss: float
    """Nats per trained token of the held-out rows."""
    versions: dict[str, str]

    @classmethod
    def of(cls, meter: Meter, *, loss: float, versions: dict[str, str]) -> Measured:
        return cls(
            tokens_per_second=meter.tokens_per_second,
            tokens_per_cpu_second=meter.tokens_per_cpu_second,
            peak_mib=meter.peak_bytes / MIB,
            loss=loss,
            versions=versions,
        )

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)) + "\n")


def _status(name: str) -> int:
    """A size of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


@torch.no_grad()
def held_out_loss(model: Any, rows: list[dict[str, list[int]]]) -> float:
    """A row at a time, in float32 whatever the model was trained in."""
    _compute_in_float32(model)
    model.eval()
    device = next(model.parameters()).device
    total, count = 0.0, 0
    head = model.get_output_embeddings()
    head.register_forward_hook(_require_float32)
    for row in rows:
        ids = torch.tensor([row["input_ids"]], device=device)
        targets = torch.tensor(row["labels"][1:], device=device)
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        total += float(
            torch.nn.functional.cross_entropy(
                logits, targets, ignore_index=IGNORED, reduction="sum"
            )
        )
        count += int((targets != IGNORED).sum())
    return total / count


def _require_float32(layer: Any, inputs: Any, output: torch.Tensor) -> None:
    """Autocast that a trainer wrapped around the model would show here."""
    if output.dtype != torch.float32:
        raise TypeError(f"the held-out loss is counted in {output.dtype}, expected float32")


def _compute_in_float32(model: Any) -> None:
    """What is in 4 bits stays so; its products are in float32, as are those of all other weights.

    bitsandbytes' kernel for inference on CPUs is switched off, so that both sides take one path.
    """
    model.float()
    for layer in model.modules():
        if getattr(getattr(layer, "weight", None), "quant_state", None) is not None:
            layer.compute_dtype = layer.weight.quant_state.dtype = torch.float32
            layer.support_avx512bf16_for_cpu = False


def read_rows(path: Path) -> list[dict[str, list[int]]]:
    """`input_ids` and `labels` of every row; labels are IGNORED where nothing is trained."""
    rows: list[dict[str, list[int]]] = json.loads(path.read_text())
    return rows
