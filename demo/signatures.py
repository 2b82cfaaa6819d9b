"""What random tools are made of: definitions, names, schemas, values in words. tool_makers.py puts them together."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from words import ADJECTIVES, MATERIALS, THINGS, Words

Schema = dict[str, Any]
STRING, INTEGER, NUMBER, BOOLEAN = ({"type": t} for t in ("string", "integer", "number", "boolean"))

# First and last code point of letters of other scripts: to be copied, byte by byte.
SCRIPTS = ((0x4E00, 0x9FA5), (0x4E00, 0x9FA5), (0x3041, 0x3093), (0x30A1, 0x30F3), (0x410, 0x44F), (0x3B1, 0x3C9),
           (0xAC00, 0xD7A3), (0x5D0, 0x5EA), (0xE0, 0xF6), (0x627, 0x648))  # fmt: skip


@dataclass(frozen=True)
class Use:
    """A tool, a request in words, the arguments of the call that it needs, and that call's result."""

    tool: dict[str, Any]
    request: str
    arguments: dict[str, Any]
    result: str

    @property
    def name(self) -> str:
        return self.tool["function"]["name"]


def definition(
    name: str, description: str, fields: dict[str, Schema], optional: tuple[str, ...] = ()
) -> dict[str, Any]:
    """A tool in OpenAI's form."""
    function: dict[str, Any] = {"name": name}
    if description:
        function["description"] = description
    parameters: dict[str, Any] = {"type": "object", "properties": fields}
    if needed := [key for key in fields if key not in optional]:
        parameters["required"] = needed
    return {"type": "function", "function": function | {"parameters": parameters}}


def foreign(rng: Random) -> str:
    """Two to nine letters of a script that is not Latin, or a word with accents."""
    first, last = rng.choice(SCRIPTS)
    return "".join(chr(rng.randrange(first, last + 1)) for _ in range(rng.randrange(2, 10)))


def _title(words: Words) -> str:
    """A name for something new, of any script."""
    roll = words.rng.random()
    if roll < 0.45:
        return foreign(words.rng)
    if roll < 0.65:
        kinds = ("Group", "House", "Club", "Team", "Works", "Bank")
        return f"{words.invented()} {words.rng.choice((*kinds, words.invented()))}"
    return words.rng.choice((words.invented, words.person, words.file, words.code, words.town))()


def _sentence(words: Words) -> str:
    return words.rng.choice((
        f"{words.person()} is {words.job()}", f"please bring {words.thing()}", f"see you on {words.day()}",
        f"a {words.rng.choice(ADJECTIVES)} {words.rng.choice(THINGS)} from {words.town()}",
        f"{words.rng.choice(ADJECTIVES)} {words.rng.choice(MATERIALS)}", f"{words.action()}",
        f"a {words.invented()} {words.rng.choice(('company', 'shop', 'bank', 'school', 'technology company'))}",
        words.phrase().replace('"', ""),
    ))  # fmt: skip


def decimal(words: Words) -> str:
    """A decimal number as JSON writes it."""
    return str(float(words.decimal()))


# Argument names, how a request says the value, the value's schema, and the value in words.
SLOTS: list[tuple[str, str, Schema, Callable[[Words], str]]] = [
    ("name|title|label|{n}_name|name",
     "named {v}|called {v}|named '{v}'|called \"{v}\"|with the name {v}", STRING, _title),
    ("name|title|{n}_name", "named '{v}'|called '{v}'", STRING, _title),
    ("person|user|guest|customer|owner|recipient", "for {v}|for {v}", STRING, Words.person),
    ("town|city|place|location|address", "in {v}|at {v}", STRING, Words.town),
    ("day|date|when|weekday", "on {v}|for {v}", STRING, Words.day),
    ("time|start|hour|at", "at {v}", STRING, Words.time),
    ("description|text|note|message|details|comment|body",
     "- {v}|with the {a} '{v}'|that says: {v}|({v})", STRING, _sentence),
    ("count|amount|quantity|people|limit|seats|number", "with {a} {v}|and set {a} to {v}", INTEGER, Words.number),
    ("age|size|year|level|priority|id|x|n", "with {a} {v}|({a} {v})|and {a} {v}", INTEGER, Words.age),
    ("price|weight|length|score|factor|speed", "with {a} {v}|({a} {v})|and {a} {v}", NUMBER, decimal),
]  # fmt: skip


def name_of(rng: Random, *parts: str) -> str:
    """A function's name made of words: snake, camel, or with something around it."""
    roll = rng.random()
    if roll < 0.65:
        return "_".join(parts)
    if roll < 0.8:
        return parts[0] + "".join(part.capitalize() for part in parts[1:])
    return "_".join((*parts, "tool")) if roll < 0.9 else "_".join((rng.choice(("my", "the", "do", "new")), *parts))


def a(noun: str) -> str:
    """`noun` with its indefinite article."""
    return ("an " if noun[0] in "aeio" else "a ") + noun


def value_of(schema: Schema, said: str) -> Any:
    """What stands in a call for a value that a request `said`."""
    return {"integer": int, "number": float}.get(schema["type"], str)(said)
