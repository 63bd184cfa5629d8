"""Sizes of memory as Kubernetes writes them."""

from __future__ import annotations

from decimal import Decimal

from anneal_jobs.errors import UsageError
from anneal_pipeline.errors import UserError

BAD_QUANTITY = "BadQuantity"
_MEMORY_MIN = 1 << 16
"""No model fits in less, so that it is a mistake: most often the unit was forgotten."""
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15} | {
    f"{letter}i": 1 << (10 * power) for power, letter in enumerate("KMGTP", start=1)
}


def bytes_of(quantity: str, *, source: str) -> int:
    """A quantity such as 24Gi in bytes; UserError where it is none."""
    number = quantity.rstrip("kKMGTPi")
    unit = _UNITS.get(quantity[len(number) :])
    if unit is None or not number.replace(".", "", 1).isdecimal():
        raise UserError(BAD_QUANTITY, f"{source}: got {quantity}, expected a size such as 24Gi")
    return int(Decimal(number) * unit)


def option_bytes(quantity: str | None, *, option: str) -> int | None:
    """The same of an option of the command line; UsageError where it is none."""
    if quantity is None:
        return None
    try:
        found = bytes_of(quantity, source=option)
    except UserError as error:
        raise UsageError(str(error)) from None
    if found < _MEMORY_MIN:
        raise UsageError(
            f"{option}: got {quantity}, which is {found} bytes, too little for any model; write a "
            "size such as 24Gi"
        )
    return found
