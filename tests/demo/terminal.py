"""What the demo says: each step by name with the time it took, and lines between."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console


@dataclass
class Terminal:
    """One console; plain lines without colour or bars where it is no terminal."""

    console: Console = field(default_factory=lambda: Console(highlight=False, soft_wrap=True))
    began: float = field(default_factory=time.monotonic)
    seconds: dict[str, float] = field(default_factory=dict)
    """Of each step that has ended, in order."""

    @property
    def is_live(self) -> bool:
        return self.console.is_terminal

    @property
    def total_seconds(self) -> float:
        return time.monotonic() - self.began

    def say(self, line: str) -> None:
        """Write one line as it is."""
        self.console.print(line, markup=False)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Name a step before it starts, and tell its time when it ends."""
        self.console.print(f"[bold]==> {name}[/bold]")
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = time.monotonic() - began
        self.console.print(
            f"[bold]==> {name}:[/bold] [green]{duration(self.seconds[name])}[/green]"
        )


def duration(seconds: float) -> str:
    """Spell a duration for people: 0.4 s, 42 s, 5 min 03 s."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"
