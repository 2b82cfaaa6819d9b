"""Numbers in a JSON schema, said so that the grammar engine holds them exactly.

llguidance reads numbers by a fast way that is exact up to 15 digits and 22 decimals only, and lets the end of an open
interval in where it is a whole number (0 for "exclusiveMinimum": 0, "maximum": 0.5). So limits become closed ones of 15
digits, rounded inwards: what they accept, the schema accepts. Found by tests/backend/test_json_schemas.py.
"""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import Any

_DIGITS = 15
_LAST_DECIMAL = Decimal("1e-22")
_TINY = Decimal("1e-12")  # the distance kept from an open end at 0
# Bounds of an integer that has none: nearly every 64-bit number is inside, and a model that has lost its way does not
# write digits until the token limit. Exact as a double.
_INTEGERS = 9 * 10**18
_NAMES = (("minimum", "exclusiveMinimum", 1), ("maximum", "exclusiveMaximum", -1))


def close_limits(part: dict[str, Any], place: str) -> None:
    """Replaces the limits of a schema's numbers, in place. Raises ValueError for what is no finite number."""
    integer = part.get("type") == "integer"
    for closed, opened, inwards in _NAMES:
        limits = []
        for name in (closed, opened):
            if name in part:
                limit = _number(part.pop(name), name, place)
                limits.append((_whole if integer else _decimal)(limit, inwards, name == opened))
        if integer and not part.keys() & {"enum", "const", "multipleOf"}:
            limits.append(-inwards * _INTEGERS)
        if limits:
            part[closed] = max(limits) if inwards > 0 else min(limits)


def check_value(value: Any, place: str) -> None:
    """Raises ValueError for a number in `enum` or `const` that the engine would write otherwise."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            check_value(each, place)
    elif isinstance(value, float) and not _is_exact(Decimal(repr(value)).normalize()):
        raise ValueError(f"{value!r} at {place} has more digits than can be enforced ({_DIGITS}): shorten it")
    elif isinstance(value, int) and abs(value) > 2**53:
        raise ValueError(f"{value} at {place} has more than 53 bits and cannot be enforced: make it a string")


def _is_exact(value: Decimal) -> bool:
    _, digits, exponent = value.as_tuple()
    return len(digits) <= _DIGITS and isinstance(exponent, int) and -22 <= exponent <= 22


def _number(limit: Any, name: str, place: str) -> int | float:
    if isinstance(limit, bool):
        raise ValueError(
            f"{name!r} at {place} is {limit}, as in draft 4 of JSON schema: give the limit itself, "
            f'for example "{name}": 0'
        )
    if not isinstance(limit, (int, float)) or not math.isfinite(limit):
        raise ValueError(f"{name!r} at {place} must be a finite number, not {limit!r}")
    return limit


def _whole(limit: int | float, inwards: int, is_open: bool) -> int:
    """The first whole number inside a limit that is exact as a double."""
    whole = math.ceil(limit) if inwards > 0 else math.floor(limit)
    if is_open and whole == limit:
        whole += inwards
    near = float(whole)
    if (int(near) - whole) * inwards < 0:
        near = math.nextafter(near, inwards * math.inf)
    return int(near)


def _decimal(limit: int | float, inwards: int, is_open: bool) -> int | float:
    """The first number of 15 digits inside a limit."""
    exact = Decimal(repr(limit))
    context = Context(prec=_DIGITS, rounding=ROUND_CEILING if inwards > 0 else ROUND_FLOOR)
    near = context.create_decimal(exact)
    if abs(near) < 1:
        near = near.quantize(_LAST_DECIMAL, context.rounding)
    if is_open and near == exact:
        near = (context.next_plus if inwards > 0 else context.next_minus)(near) if near else inwards * _TINY
    return int(near) if near == near.to_integral_value() and abs(near) < 10**_DIGITS else float(near)
