"""What a model is made of: parameters and bytes of base and adapters, and what is trained of them.

The memory is that of what is held all the time (weights, gradients, moments), by arithmetic; what a
step needs beside it is in the memory plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from peft import PeftModel

from anneal_pipeline.memory.plan import moments_bytes
from anneal_pipeline.model.adapters import bytes_of, count_of, trainable_parameters

FULL_TUNING_BYTES = 8
"""A parameter under full fine-tuning: weight, gradient and the two moments of AdamW in 16 bits, the
least of what the specification names. In 32 bits it is twice that."""
BASE, ADAPTERS, OTHER = "base", "adapters", "other"
EMBEDDINGS, TRANSFORMER, HEAD = "embeddings", "transformer", "output head"
_FACTORS = {
    "lora_A": "adapters A",
    "lora_B": "adapters B",
    "lora_magnitude_vector": "adapter magnitudes",
}
_COPIES = {"modules_to_save": "whole modules", "trainable_tokens_delta": "rows of new tokens"}


@dataclass(frozen=True, kw_only=True)
class Part:
    """Parameters of one kind; those in 4 bits count as the numbers they stand for."""

    name: str
    group: str
    """`base`, `adapters` or `other`."""
    total: int
    trainable: int
    num_bytes: int
    """With the constants of 4-bit weights."""

    @property
    def frozen(self) -> int:
        return self.total - self.trainable


@dataclass(frozen=True, kw_only=True)
class Inventory:
    parts: tuple[Part, ...]
    gradient_bytes: int
    optimizer_bytes: int

    def group(self, name: str) -> Part:
        """The parts of a group as one."""
        parts = [part for part in self.parts if part.group == name]
        return Part(
            name=name,
            group=name,
            total=sum(part.total for part in parts),
            trainable=sum(part.trainable for part in parts),
            num_bytes=sum(part.num_bytes for part in parts),
        )

    @property
    def total(self) -> int:
        return sum(part.total for part in self.parts)

    @property
    def trainable(self) -> int:
        return sum(part.trainable for part in self.parts)

    @property
    def trainable_share(self) -> float:
        return self.trainable / self.total

    @property
    def added_bytes(self) -> int:
        """What training holds beside the base."""
        beside = self.group(ADAPTERS).num_bytes + self.group(OTHER).num_bytes
        return beside + self.gradient_bytes + self.optimizer_bytes

    @property
    def overhead(self) -> float:
        """`added_bytes` over the bytes of the base."""
        return self.added_bytes / self.group(BASE).num_bytes

    @property
    def full_tuning_bytes(self) -> int:
        """What full fine-tuning of the base holds at the least."""
        return self.group(BASE).total * FULL_TUNING_BYTES

    def to_data(self) -> dict[str, object]:
        return {
            "parts": [vars(part) | {"frozen": part.frozen} for part in self.parts],
            "total": self.total,
            "trainable": self.trainable,
            "trainable_share": self.trainable_share,
            "gradient_bytes": self.gradient_bytes,
            "optimizer_bytes": self.optimizer_bytes,
            "added_bytes": self.added_bytes,
            "overhead": self.overhead,
            "full_tuning_bytes": self.full_tuning_bytes,
        }


def take_inventory(model: PeftModel, *, moments_in_8_bits: bool) -> Inventory:
    """Count every parameter once; tied ones belong to the embeddings."""
    found: dict[tuple[str, str], list[tuple[int, int, int]]] = {}
    names = _names_of_tables(model)
    for name, parameter in model.named_parameters():
        place = _place(name, tables=names.get(id(parameter)))
        count = count_of(parameter)
        trained = count if parameter.requires_grad else 0
        found.setdefault(place, []).append((count, trained, bytes_of(parameter)))
    trainable = list(trainable_parameters(model).values())
    return Inventory(
        parts=tuple(
            Part(
                name=name,
                group=group,
                total=sum(total for total, _, _ in rows),
                trainable=sum(trained for _, trained, _ in rows),
                num_bytes=sum(size for _, _, size in rows),
            )
            for (group, name), rows in sorted(found.items(), key=lambda item: _order(item[0]))
        ),
        gradient_bytes=sum(p.numel() * p.element_size() for p in trainable),
        optimizer_bytes=moments_bytes((p.numel() for p in trainable), in_8_bits=moments_in_8_bits),
    )


def _names_of_tables(model: PeftModel) -> Mapping[int, str]:
    """EMBEDDINGS or HEAD by the identity of a parameter; a tied weight is of the embeddings."""
    base = model.get_base_model()
    tables = ((HEAD, base.get_output_embeddings()), (EMBEDDINGS, base.get_input_embeddings()))
    return {
        id(p): name for name, module in tables if module is not None for p in module.parameters()
    }


def _place(name: str, *, tables: str | None) -> tuple[str, str]:
    """(group, part) of a parameter."""
    parts = name.split(".")
    for key, part in _FACTORS.items():
        if key in parts:
            return ADAPTERS, part
    for key, part in _COPIES.items():
        if key in parts:
            return OTHER, part
    return BASE, tables or TRANSFORMER


def _order(place: tuple[str, str]) -> int:
    names = (EMBEDDINGS, TRANSFORMER, HEAD, *_FACTORS.values(), *_COPIES.values())
    return names.index(place[1])
