"""What every test run needs, whatever part of tests/ it is given."""

import asyncio

import pytest
from hypothesis import settings

# How long an example takes is the machine's affair.
settings.register_profile("anneal", deadline=None)
settings.load_profile("anneal")


def pytest_configure() -> None:
    """Keep looptime from making event loops that nobody closes.

    Its hook asks the policy for a loop before every test, synchronous ones too, and on Python 3.11
    the policy then makes one, whose ResourceWarning fails the run. After an explicit None it does
    not.
    """
    asyncio.set_event_loop(None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update", action="store_true", help="rewrite the golden files")
