"""Which tokens of a rendered text lie in a span of it, by the tokenizer's character offsets.

Offsets are coarser than tokens: the bytes of one character share its offsets, a tokenizer may give
all characters in a row that it does not know one pair, and a special token may take the blanks
beside it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from anneal_pipeline.data.template import Span


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The tokens of one text, with [start, end) in characters for each."""

    text: str
    ids: Sequence[int]
    offsets: Sequence[tuple[int, int]]
    name_of: Callable[[int], str]
    """The tokenizer's name of an id; `<0x0A>` for a byte, where it falls back to bytes."""

    def inside(self, span: Span) -> range:
        """Positions of the tokens that `span` is written with.

        A token across its begin counts where it has blanks only from before it, and one across its
        end where it takes blanks only from behind.
        """
        begin = self._begin(span.start)
        end = bisect_right(self.offsets, span.end, key=_end)
        while end < len(self.offsets) and self._takes_only_blanks(end, behind=span.end):
            end += 1
        return range(begin, max(begin, end))

    def _begin(self, border: int) -> int:
        position = bisect_left(self.offsets, border, key=_start)
        while position < len(self.offsets) and self.offsets[position][1] <= border:
            position += 1
        first = position
        while first and self.offsets[first - 1][1] > border:
            first -= 1
        if first == position:
            return position
        before, behind = self._parts(first, border)
        written = [f"<0x{byte:02X}>" for byte in before.encode()]
        if [self.name_of(i) for i in self.ids[first : first + len(written)]] == written:
            return first + len(written)
        return position if before.strip() or not behind.strip() else first

    def _parts(self, position: int, border: int) -> tuple[str, str]:
        start, end = self.offsets[position]
        return self.text[start:border], self.text[border:end]

    def _takes_only_blanks(self, position: int, *, behind: int) -> bool:
        own, others = self._parts(position, behind)
        return bool(own.strip()) and not others.strip()


def _start(offset: tuple[int, int]) -> int:
    return offset[0]


def _end(offset: tuple[int, int]) -> int:
    return offset[1]
