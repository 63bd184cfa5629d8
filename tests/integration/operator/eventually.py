"""Waiting for what a real server does in its own time."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

DEADLINE_SECONDS = 120.0
"""Generous: the machine may be busy with other things."""
POLL_SECONDS = 0.1


async def eventually(look: Callable[[], Awaitable[Any]], *, what: str) -> Any:
    """Look again and again until there is something, and say what was awaited if it never comes."""
    async with asyncio.timeout(DEADLINE_SECONDS) as limit:
        while True:
            found = await look()
            if found:
                return found
            limit_at = limit.when()
            if limit_at is not None and asyncio.get_running_loop().time() > limit_at - 1:
                raise AssertionError(f"waited in vain for {what}")
            await asyncio.sleep(POLL_SECONDS)
