"""What the data stage tells of its work while it works, and where it ends when asked to stop."""

from __future__ import annotations

from dataclasses import dataclass

from anneal_pipeline.errors import StopRequestedError
from anneal_pipeline.observer import STAGE_DATA, Observer

ROWS_PER_REPORT = 200


@dataclass(kw_only=True)
class Work:
    """Every report is also a look at whether to go on; `StopRequestedError` if not."""

    observer: Observer
    _num_compared: int = 0

    def read(self, row: int, *, num_new: int) -> None:
        """The row of this number was read, in a pass over the files that began at 1, and with it
        the `num_new - 1` before it."""
        if row // ROWS_PER_REPORT > (row - num_new) // ROWS_PER_REPORT:
            self._report(row, unit="rows")

    def end_pass(self, num_rows: int) -> None:
        self._report(num_rows, unit="rows")

    def compared(self, num_rows: int) -> None:
        """So many more rows were compared with others."""
        self._num_compared += num_rows
        self._report(self._num_compared, unit="rows compared")

    def _report(self, done: int, *, unit: str) -> None:
        self.observer.on_stage(STAGE_DATA, done=done, total=0, unit=unit)
        if self.observer.should_stop():
            raise StopRequestedError
