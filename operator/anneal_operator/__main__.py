"""`anneal-operator`: read the settings, run until SIGTERM, say in one sentence why if it fails."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

from anneal_operator import logs
from anneal_operator.app import run
from anneal_operator.errors import OperatorError
from anneal_operator.logs import log_event
from anneal_operator.settings import Settings, read_settings

logger = logging.getLogger(__name__)


async def _run(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await run(settings, stop=stop)


def main() -> int:
    """Run the operator; `--check` only reads and prints the settings."""
    logs.configure(level="INFO")
    try:
        settings = read_settings()
        logs.configure(level=settings.log_level)
        log_event(logger, "operator_starting", **settings.model_dump(mode="json"))
        if "--check" not in sys.argv[1:]:
            asyncio.run(_run(settings))
    except OperatorError as error:
        log_event(logger, "operator_failed", level=logging.CRITICAL, error=str(error))
        return 1
    except ExceptionGroup as group:
        known, unknown = group.split(OperatorError)
        if unknown is not None:
            raise
        causes = [str(error) for error in known.exceptions] if known else []
        log_event(logger, "operator_failed", level=logging.CRITICAL, error="; ".join(causes))
        return 1
    log_event(logger, "operator_stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
