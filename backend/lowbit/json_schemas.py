"""What a JSON schema asks for, checked before anything runs: every keyword in it is enforced, or it is an error.

Owns the ways a schema may be given (dictionary, JSON text, pydantic class) and the lists of keywords. What the engine
behind grammar.py does with a keyword is tested, keyword by keyword, against the jsonschema package.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from typing import Any

from lowbit.json_numbers import check_value, close_limits
from lowbit.runtime import nearest

# Keywords that hold schemas: one, a list of them, or a dictionary of them.
_ONE = ("items", "additionalItems", "additionalProperties")
_LISTS = ("prefixItems", "allOf", "anyOf", "oneOf", "items")
_NAMED = ("properties", "patternProperties", "$defs", "definitions")
ENFORCED = frozenset({
    *_ONE, *_LISTS, *_NAMED, "type", "enum", "const", "required", "$ref", "minimum", "maximum", "exclusiveMinimum",
    "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "pattern", "format", "minItems", "maxItems",
    "minProperties", "maxProperties",
})  # fmt: skip
# They restrict, by some draft of the specification, and are not enforced here.
REFUSED = frozenset({
    "not", "if", "then", "else", "uniqueItems", "contains", "minContains", "maxContains", "propertyNames",
    "dependentRequired", "dependentSchemas", "dependencies", "unevaluatedItems", "unevaluatedProperties",
    "$dynamicRef", "$recursiveRef", "extends", "divisibleBy", "disallow",
})  # fmt: skip
# They restrict nothing. Other names restrict nothing either, by the specification; one that looks like a mistyped
# keyword is an error all the same.
ANNOTATIONS = frozenset({
    "title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "$comment",
    "$schema", "$id", "id", "$anchor", "$dynamicAnchor", "$recursiveAnchor", "$vocabulary", "contentEncoding",
    "contentMediaType", "contentSchema", "discriminator", "nullable", "name", "strict", "xml", "externalDocs",
})  # fmt: skip
# Formats of OpenAPI and pydantic that say what a value is for, not what it looks like.
_FORMATS_OF_MEANING = frozenset({"password", "path", "binary", "float", "double", "int64"})
_HARMLESS: dict[str, tuple[Any, ...]] = {"uniqueItems": (False,), "unevaluatedProperties": (True,)}


def read_schema(value: Any) -> dict[str, Any]:
    """Returns a schema as a dictionary of its own: from a dictionary, JSON text or a pydantic class.

    A pydantic class without `extra` takes no other keys, so that an answer holds what the class does and nothing else.
    Raises TypeError for anything else, and ValueError for text that is no JSON object, for a keyword that cannot be
    enforced, with its place, and for a name that looks like a mistyped keyword.
    """
    schema: Any
    if isinstance(value, type) and hasattr(value, "model_json_schema"):
        schema = close_objects(value.model_json_schema())
    elif isinstance(value, str):
        try:
            schema = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"json_schema is not valid JSON: {error}") from None
    elif isinstance(value, Mapping):
        schema = copy.deepcopy(dict(value))
    else:
        raise TypeError(
            f"json_schema must be a dictionary, JSON text or a pydantic class, not {value!r} ({type(value).__name__})"
        )
    if not isinstance(schema, dict):
        raise ValueError(f"json_schema must be a JSON object, it is {json.dumps(schema)[:80]}")
    for place, part in _walk(schema, "$"):
        _check(place, part)
    return schema


def close_objects(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy of a schema in which objects with properties have no others, unless it says so.

    What it accepts, the schema accepts. Not for a schema with allOf, whose parts would shut each other out: those stay.
    """
    closed = copy.deepcopy(dict(schema))
    parts = [part for _, part in _walk(closed, "$")]
    if not any("allOf" in part for part in parts):
        for part in parts:
            if "properties" in part and "patternProperties" not in part:
                part.setdefault("additionalProperties", False)
    return closed


def _check(place: str, part: dict[str, Any]) -> None:
    for keyword in list(part):
        if keyword in _HARMLESS and part[keyword] in _HARMLESS[keyword]:
            del part[keyword]
        elif keyword in REFUSED:
            raise ValueError(
                f"the JSON schema cannot be enforced: keyword {keyword!r} at {place} is not supported; leave it out "
                "and check that part of the answer yourself, or say it otherwise"
            )
        elif keyword not in ENFORCED and keyword not in ANNOTATIONS and not keyword.startswith(("x-", "$")):
            hint = nearest(keyword, sorted(ENFORCED | REFUSED))
            if hint != ".":
                raise ValueError(f"unknown keyword {keyword!r} at {place} of the JSON schema{hint}")
    if part.get("format") in _FORMATS_OF_MEANING:
        del part["format"]
    close_limits(part, place)
    check_value([part.get("enum"), part.get("const")], place)


def _walk(schema: Any, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema inside a schema with its place; never what is data (enum, const, default)."""
    if not isinstance(schema, dict):
        return
    yield place, schema
    for keyword in _ONE:
        yield from _walk(schema.get(keyword), f"{place}.{keyword}")
    for keyword in _LISTS:
        if isinstance(schema.get(keyword), list):
            for i, each in enumerate(schema[keyword]):
                yield from _walk(each, f"{place}.{keyword}[{i}]")
    for keyword in _NAMED:
        if isinstance(schema.get(keyword), dict):
            for name, each in schema[keyword].items():
                yield from _walk(each, f"{place}.{keyword}.{name}")
