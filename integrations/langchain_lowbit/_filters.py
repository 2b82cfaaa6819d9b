"""Metadata filters of the vector store: a dict of conditions becomes one predicate. Knows no store and no index."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

from lowbit.runtime import nearest

Predicate = Callable[[dict[str, Any]], bool]
Filter = Mapping[str, Any] | Predicate

_ABSENT = object()


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def test(found: Any, wanted: Any) -> bool:
        try:
            return compare(found, wanted)
        except TypeError:  # absent, or of a type that has no order with the wanted value
            return False

    return test


# operator -> test(value in the metadata, value in the filter)
_TESTS: dict[str, Callable[[Any, Any], bool]] = {
    "$eq": operator.eq,
    "$ne": operator.ne,
    "$gt": _ordered(operator.gt),
    "$gte": _ordered(operator.ge),
    "$lt": _ordered(operator.lt),
    "$lte": _ordered(operator.le),
    "$in": lambda found, wanted: found in wanted,
    "$nin": lambda found, wanted: found not in wanted,
}
_COMBINERS: dict[str, Callable[[list[Predicate]], Predicate]] = {
    "$and": lambda parts: lambda metadata: all(part(metadata) for part in parts),
    "$or": lambda parts: lambda metadata: any(part(metadata) for part in parts),
}
_KEYS = (*_COMBINERS, "$not")


def predicate(wanted: Filter) -> Predicate:
    """Returns the function metadata -> bool of a filter; a function is returned as it is.

    A dict holds for metadata that fulfils every entry: `{"page": 3}` is equality, `{"page": [3, 4]}` one of,
    `{"page": {"$gte": 3, "$lt": 9}}` operators ($eq $ne $gt $gte $lt $lte $in $nin), and `$and`, `$or` (lists of
    filters) and `$not` (a filter) combine. A key that the metadata lacks fulfils only $ne, $nin and $not.

    Raises ValueError for an unknown operator, with the nearest one, and TypeError for what is no filter.
    """
    if callable(wanted):
        return wanted
    if not isinstance(wanted, Mapping):
        raise TypeError(f"a filter is a dict of conditions or a function of the metadata, not {type(wanted).__name__}")
    parts = [_part(key, value) for key, value in wanted.items()]
    return _COMBINERS["$and"](parts)


def _part(key: str, value: Any) -> Predicate:
    if key in _COMBINERS:
        return _COMBINERS[key]([predicate(entry) for entry in value])
    if key == "$not":
        inner = predicate(value)
        return lambda metadata: not inner(metadata)
    if isinstance(key, str) and key.startswith("$"):
        raise ValueError(f"unknown operator {key!r} in a filter{nearest(key, _KEYS)} Choices: {', '.join(_KEYS)}")
    if isinstance(value, Mapping) and any(isinstance(name, str) and name.startswith("$") for name in value):
        return _COMBINERS["$and"]([_condition(key, name, operand) for name, operand in value.items()])
    if isinstance(value, (list, tuple, set, frozenset)):
        return _condition(key, "$in", value)
    return _condition(key, "$eq", value)


def _condition(key: str, name: str, wanted: Any) -> Predicate:
    test = _TESTS.get(name)
    if test is None:
        near = nearest(str(name), _TESTS)
        raise ValueError(f"unknown operator {name!r} in the filter of {key!r}{near} Choices: {', '.join(_TESTS)}")
    return lambda metadata: test(metadata.get(key, _ABSENT), wanted)
