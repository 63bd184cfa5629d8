"""`anneal-operator`: read the settings, run until SIGTERM, say in one sentence why if it fails."""

from __future__ import annotations

import argparse
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


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="anneal-operator",
        description="Run the Anneal operator in its pod, until SIGTERM. Its settings are the "
        "environment variables ANNEAL_... that the Helm chart writes.",
    )
    parser.add_argument("--check", action="store_true", help="read and print the settings only")
    arguments = parser.parse_args(argv)
    logs.configure(level="INFO")
    try:
        settings = read_settings()
        logs.configure(level=settings.log_level)
        log_event(logger, "operator_starting", **settings.model_dump(mode="json"))
        if not arguments.check:
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
