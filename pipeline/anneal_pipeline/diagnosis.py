"""Something odd that a run noticed in itself, in words with its numbers.

A diagnosis changes nothing. Each carries the number of its row in the requirements (S1 ... S26,
QP4), by which it can be looked up.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from anneal_pipeline.observer import EVENT_DIAGNOSIS, Observer


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    row: str
    case: str = ""
    """Tells apart what one row is made for, where each is worth saying: empty for the usual one."""
    symptom: str
    cause: str
    fix: str

    def __str__(self) -> str:
        return f"{self.symptom}: {self.cause}; {self.fix}"

    @property
    def key(self) -> str:
        """What is said once per run."""
        return f"{self.row}.{self.case}" if self.case else self.row

    def tell(self, observer: Observer) -> None:
        observer.on_event(EVENT_DIAGNOSIS, str(self), asdict(self))
