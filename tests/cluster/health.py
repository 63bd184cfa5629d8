"""Asks components whether they are well, and waits until they are."""

import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from certificates import Pair
from errors import ClusterError
from logs import tail

# Health endpoints are on this machine: a proxy from the environment must not see them.
_NO_PROXY = urllib.request.ProxyHandler({})


def answers(url: str, *, authority: Path | None, client: Pair | None = None) -> str:
    """Return "" when the address answers 200, else what it said instead."""
    handlers: list[urllib.request.BaseHandler] = [_NO_PROXY]
    if authority is not None:
        context = ssl.create_default_context(cafile=str(authority))
        if client is not None:
            context.load_cert_chain(client.certificate, client.key)
        handlers.append(urllib.request.HTTPSHandler(context=context))
    try:
        with urllib.request.build_opener(*handlers).open(url, timeout=5) as answer:
            answer.read()
    except urllib.error.HTTPError as error:
        return f"{url} answers {error.code}: {error.read(500).decode(errors='replace').strip()}"
    except OSError as error:
        return f"{url} does not answer: {error}"
    return ""


def wait_until_well(
    name: str,
    *,
    check: Callable[[], str],
    alive: Callable[[], bool],
    log: Path,
    seconds: float,
) -> None:
    """Ask `check` until it returns "".

    Raises ClusterError with the end of the log when the process dies or `seconds` pass.
    """
    end = time.monotonic() + seconds
    while complaint := check():
        if not alive():
            raise ClusterError(f"{name} ended while starting; the end of {log}:\n{tail(log)}")
        if time.monotonic() > end:
            raise ClusterError(
                f"{name} is not well after {seconds:.0f} s: {complaint}; "
                f"the end of {log}:\n{tail(log)}"
            )
        time.sleep(0.1)
