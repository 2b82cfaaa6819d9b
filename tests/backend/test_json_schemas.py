"""JSON schemas: what is enforced is what jsonschema checks, keyword by keyword and in random mixtures; the rest is an
error that names the keyword."""

import json
import re
from typing import Literal

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from lowbit.grammar import compile_constraint
from lowbit.json_schemas import ANNOTATIONS, ENFORCED, REFUSED, read_schema
from toy import EOS, VOCAB, byte_tokenizer

TOKENIZER = byte_tokenizer()


def say(schema, seed: int, limit: int = 1500) -> str | None:
    """Returns what dice say within a schema, None where they do not come to an end."""
    guide = compile_constraint("json_schema", schema, TOKENIZER, VOCAB).guide([EOS])
    rng = np.random.default_rng(seed)
    output: list[int] = []
    while len(output) < limit:
        words = guide(np.array(output, np.int32))
        allowed = np.nonzero(np.unpackbits(words.view(np.uint8), bitorder="little")[:VOCAB])[0]
        if EOS in allowed:
            return TOKENIZER.decode(output)
        # Closers get better odds, so that free-form parts end.
        closers = [i for i in allowed if chr(i) in '"}]']
        output.append(int(rng.choice(closers if closers and rng.random() < 0.2 else allowed)))
    return None


def check(schema, text: str) -> None:
    def no_key_twice(pairs):
        assert len(dict(pairs)) == len(pairs), f"a key twice in {text}"
        return dict(pairs)

    value = json.loads(text, object_pairs_hook=no_key_twice)
    kind = jsonschema.Draft202012Validator
    kind(schema, format_checker=kind.FORMAT_CHECKER).validate(value)


# ---- every keyword ----

KEYWORDS = [
    {"type": ["string", "null", "boolean"]},
    {"enum": ["a", 1, None, {"ü": [1.5]}]},
    {"const": {"a": [1, "\n\\"]}},
    {"type": "integer", "minimum": -3, "maximum": 12},
    {"type": "integer", "exclusiveMinimum": 100, "exclusiveMaximum": 103},
    {"type": "integer", "multipleOf": 7},
    {"type": "integer"},
    {"type": "number", "minimum": -0.5, "maximum": 2.25},
    {"type": "number", "exclusiveMinimum": 1e3, "maximum": 1e4},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5},
    {"type": "number", "minimum": -62290.4, "exclusiveMaximum": -62290},
    {"type": "integer", "exclusiveMinimum": 2**60 + 1, "maximum": 2**60 + 2000},
    {"enum": [0.1, 1.5e-7, 123456.789012345, 2**53 - 1]},
    {"type": "string", "minLength": 2, "maxLength": 4},
    {"type": "string", "pattern": "^[a-c]+-\\d{2}$"},
    {"type": "string", "pattern": "b", "maxLength": 5},
    *({"type": "string", "format": name} for name in ("date", "time", "date-time", "uuid", "ipv4", "ipv6", "email")),
    {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    {"type": "array", "prefixItems": [{"type": "integer"}, {"const": "x"}], "items": False, "minItems": 2},
    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False},
    {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "null"}}, "additionalProperties": False},
    {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "null"}},
    {"type": "object", "patternProperties": {"^x": {"type": "integer"}}, "additionalProperties": False},
    {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 1, "maxProperties": 2},
    {"type": "object", "properties": {"a": {}}, "required": ["a", "z"]},
    {"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 3}]},
    {"oneOf": [{"type": "integer", "minimum": 3}, {"type": "string", "maxLength": 3}]},
    {"allOf": [{"minimum": 3}, {"type": "integer", "maximum": 5}]},
    {"allOf": [
        {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]},
        {"type": "object", "properties": {"b": {"const": 2}}, "required": ["b"]},
    ]},
    {"$ref": "#/$defs/tree", "$defs": {"tree": {
        "type": "object",
        "properties": {
            "v": {"type": "integer"}, "t": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 1},
        },
        "required": ["v"], "additionalProperties": False,
    }}},
    {"definitions": {"x": {"type": "null"}}, "$ref": "#/definitions/x"},
    {},
]  # fmt: skip


@pytest.mark.parametrize("schema", KEYWORDS, ids=lambda schema: json.dumps(schema)[:60])
def test_what_is_said_is_valid(schema):
    said = [text for seed in range(12) if (text := say(schema, seed)) is not None]
    assert len(said) >= 4
    for text in said:
        check(schema, text)


@pytest.mark.parametrize("keyword", sorted(REFUSED - {"if", "then", "else"}))
def test_what_cannot_be_enforced_is_an_error_that_names_it(keyword):
    with pytest.raises(ValueError, match=re.escape(f"keyword '{keyword}' at $.properties.a is not supported")):
        read_schema({"type": "object", "properties": {"a": {"anyOf": [{keyword: {}}], keyword: {}}}})


def test_every_keyword_has_one_place():
    assert not ENFORCED & REFUSED
    assert not (ENFORCED | REFUSED) & ANNOTATIONS


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "string", "format": "ipv9"}, "ipv9"),
        ({"type": "strin"}, "strin"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum \\(5\\) is greater"),
        ({"$ref": "#/nowhere"}, "nowhere"),
        ({"$ref": "https://example.org/schema"}, "example.org"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-ahead"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"properties": {"a": {"minLenght": 3}}}, "'minLenght' at \\$.properties.a .*'minLength'"),
        ({"type": "integer", "minimum": 0, "exclusiveMinimum": True}, "draft 4"),
        ({"type": "integer", "minimum": "3"}, "'minimum' at \\$ must be a finite number"),
        ({"type": "integer", "minimum": 10**19}, "greater than maximum"),
        ({"const": 0.12345678901234567}, "more digits than can be enforced"),
        ({"enum": [{"a": [2**53 + 1]}]}, "more than 53 bits"),
        ({"type": "integer", "multipleOf": 9, "minimum": 10, "maximum": 11}, "multiple of 9"),
        ("{", "not valid JSON"),
        ("[1]", "must be a JSON object"),
    ],
)
def test_errors_say_what_is_wrong(schema, words):
    with pytest.raises(ValueError, match=words):
        compile_constraint("json_schema", schema, TOKENIZER, VOCAB)
    with pytest.raises(TypeError, match="pydantic class"):
        compile_constraint("json_schema", 3, TOKENIZER, VOCAB)


def test_what_says_nothing_is_left_alone():
    schema = {"type": "string", "maxLength": 2, "title": "T", "x-unit": "m", "unit": "m", "uniqueItems": False}
    before = json.dumps(schema)
    check(schema, say(schema, 1))
    assert json.dumps(schema) == before
    assert read_schema(schema | {"format": "password"}) == {k: v for k, v in schema.items() if k != "uniqueItems"}


def test_digits_come_to_an_end():
    guide = compile_constraint("json_schema", {"type": "integer"}, TOKENIZER, VOCAB).guide([EOS])
    words = guide(np.frombuffer(b"1" * 18, np.uint8).astype(np.int32))
    assert words[ord("1") // 32] >> ord("1") % 32 & 1
    words = guide(np.frombuffer(b"1" * 19, np.uint8).astype(np.int32))
    assert not words[:4].any()


class Pet(BaseModel):
    kind: Literal["cat", "dog"]
    name: str = Field(max_length=6, description="what it is called")


class Owner(BaseModel):
    """Somebody."""

    name: str = Field(pattern="^[A-Z][a-z]{1,5}$")
    pets: list[Pet] = Field(max_length=2)
    age: int | None = Field(default=None, ge=0, lt=130)


@pytest.mark.parametrize("seed", range(8))
def test_pydantic_classes(seed):
    owner = Owner.model_validate_json(say(Owner, seed, 3000))
    assert set(json.loads(owner.model_dump_json())) == {"name", "pets", "age"}


# ---- random mixtures ----

names = st.sampled_from(["a", "b", "naïve", "two words", 'qu"ote', "日本"])
lower, upper = st.sampled_from(["minimum", "exclusiveMinimum"]), st.sampled_from(["maximum", "exclusiveMaximum"])
scalars = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.tuples(st.integers(-1000, 1000), st.integers(0, 5000)).map(
        lambda t: {"type": "integer", "minimum": t[0], "maximum": t[0] + t[1]}
    ),
    st.tuples(st.floats(-1e9, 1e9), st.sampled_from([1e-9, 1e-3, 0.3, 1.0, 17.5, 1e6]), lower, upper).map(
        lambda t: {"type": "number", t[2]: t[0], t[3]: t[0] + t[1]}
    ),
    st.tuples(st.integers(-(2**61), 2**61), st.integers(5000, 10**9), lower, upper).map(
        lambda t: {"type": "integer", t[2]: t[0], t[3]: t[0] + t[1]}
    ),
    st.floats(-1e6, 1e6).map(lambda x: {"const": float(f"{x:.14e}")}),
    st.tuples(st.integers(0, 3), st.integers(0, 6)).map(
        lambda t: {"type": "string", "minLength": t[0], "maxLength": t[0] + t[1]}
    ),
    st.lists(st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.text(max_size=4)), min_size=1, max_size=4).map(
        lambda values: {"enum": values}
    ),
    st.sampled_from([{"type": kind} for kind in ("number", "integer", "string")]),
    st.just({"type": "string", "format": "date"}),
)


def nested(children):
    def make_object(t):
        properties, optional, extra = t
        required = [name for i, name in enumerate(properties) if not optional >> i & 1]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": extra}

    arrays = st.tuples(children, st.integers(0, 2), st.integers(0, 2)).map(
        lambda t: {"type": "array", "items": t[0], "minItems": t[1], "maxItems": t[1] + t[2]}
    )
    objects = st.tuples(st.dictionaries(names, children, max_size=3), st.integers(0, 7), st.booleans()).map(make_object)
    return st.one_of(arrays, objects, st.lists(children, min_size=1, max_size=3).map(lambda s: {"anyOf": s}))


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.recursive(scalars, nested, max_leaves=6), st.integers(0, 2**32))
def test_random_schemas(schema, seed):
    try:
        text = say(schema, seed)
    except ValueError as error:  # an interval without a number that is exact enough, a value with too many digits
        if not re.search("nsatisfiable|more digits than", str(error)):
            raise
        text = None
    assume(text is not None)
    check(schema, text)
