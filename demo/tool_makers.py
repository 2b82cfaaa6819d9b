"""Random tools in use: each maker gives a tool, a request that needs it, the call, and what the call gives.

Names, arguments and wordings are drawn apart from each other, so that reading the signature is what helps. A maker
draws what belongs to the tool from `form` and the rest from `words`; `MAKERS` weighs them. In all wordings,
alternatives are separated by `|`.
"""

from collections.abc import Callable
from random import Random
from typing import Any

from signatures import BOOLEAN, INTEGER, NUMBER, SLOTS, STRING, Schema, Use, a, decimal, definition, foreign, name_of
from signatures import value_of as said_value
from words import ADJECTIVES, ATTRIBUTES, COLOURS, FOODS, MATERIALS, THINGS, Words, capital

_VERBS = "create|add|book|send|order|register|schedule|delete|update|make|write|open|start|save|store"
_NOUNS = (
    "customer|event|order|user|ticket|room|note|reminder|task|account|meeting|trip|table|product|page|file|message|"
    "contact|booking|invoice|parcel|playlist|alarm|letter|group|course|report"
)
_ENGLISH = "Good Day|Hallo|Moon|River|Sunny|Morning|Star|Spring"  # what a foreign name may mean
_TOPICS = "weather|forecast|temperature|traffic|news|time|population|wind|humidity|sunrise|mayor|history"
_NUMBERS = "input|x|y|n|a|b|value|number|first|second|count"
_FINDERS = "get|get|find|read|fetch|query|tell"
_OPERATIONS = [
    ("add|adder|sum|plus", "their sum", "What is {x} + {y}|What is {x} plus {y}|Add {x} and {y}|How much is {x} + {y}"),
    ("multiply|times|product", "their product", "What is {x} * {y}|What is {x} times {y}|Multiply {x} and {y}"),
    ("subtract|minus|difference", "their difference", "What is {x} - {y}|What is {x} minus {y}"),
    ("divide|quotient", "their quotient", "What is {x} / {y}|What is {x} divided by {y}|Divide {x} by {y}"),
]


def _pick(rng: Random, alternatives: str) -> str:
    return rng.choice(alternatives.split("|"))


def _action(form: Random, words: Words) -> Use:
    """Something new with up to four properties: "Create a customer named 'X' in Y."."""
    rng = words.rng
    verb, noun = _pick(form, _VERBS), _pick(form, _NOUNS)
    doing, what = capital(verb), a(noun)
    slots: dict[str, tuple[str, Schema, Callable[[Words], str]]] = {}
    for names, phrases, schema, draw in form.sample(SLOTS, form.choice((1, 2, 2, 3, 4))):
        slots.setdefault(_pick(form, names).format(n=noun), (phrases, schema, draw))
    about = _pick(
        form,
        f"{doing} {what}.|Tool that can {verb} {what}.|{doing}s {what}.|Tool for {what}.\n\nArgs:\n    see there|",
    )
    tool = definition(name_of(form, verb, noun), about, {name: schema for name, (_, schema, _) in slots.items()})
    said, arguments = {}, {}
    for name, (phrases, schema, draw) in slots.items():
        value, phrase = draw(words), _pick(rng, phrases)
        if rng.random() < 0.15:
            phrase = _pick(rng, "with {a} {v}|{a}: {v}|{a}={v}|and the {a} is {v}")
        gloss = f" ({_pick(rng, _ENGLISH)} {_pick(rng, 'Group|House|Club|Corporation')})" if not value.isascii() else ""
        said[name] = phrase.format(v=value, a=name.replace("_", " ")) + (gloss if rng.random() < 0.5 else "")
        arguments[name] = said_value(schema, value)
    order = rng.sample(list(said), len(said))  # not the order of the signature, which the call keeps
    request = " ".join([f"{doing} {what}", *(said[name] for name in order)]) + _pick(rng, ".|.|")
    done = f'Done.|OK|The {noun} is ready.|Number {words.number()}|{{"id": {words.number()}}}'
    return Use(tool, request, arguments, _pick(rng, done))


def _look_up_place(form: Random, words: Words) -> Use:
    """What holds at a place: "What is the weather in X?"."""
    rng = words.rng
    topic, key = _pick(form, _TOPICS), _pick(form, "location|city|town|place|name|where|query")
    about = _pick(form, f"Get the {topic} at a {key}.|Tells the {topic} of a town.|The {topic} in a place.|")
    value = f"{_pick(rng, 'San|New|Port')} {words.town()}" if rng.random() < 0.2 else words.town()
    value += f", {rng.choice('CNOTW')}{rng.choice('ACNYZ')}" if rng.random() < 0.25 else ""
    asked = _pick(
        rng,
        f"What is the {topic} in {value}?|What's the {topic} in {value}?|Tell me the {topic} in {value}.|"
        f"How is the {topic} in {value}?",
    )
    return _finder(form, words, topic, about, asked, {key: value})


def _look_up(form: Random, words: Words) -> Use:
    """A property of something: "What is the price of X?"."""
    rng = words.rng
    topic = form.choice([name for name in ATTRIBUTES if " " not in name])
    key = _pick(form, "name|person|product|item|thing|id|subject")
    about = _pick(form, f"Get the {topic} of {a(key)}.|Finds the {topic} of something.|Look up {a(topic)}.|")
    latin = (words.person, words.invented, words.code, words.product)
    value = foreign(rng) if rng.random() < 0.2 else rng.choice(latin)()
    asked = _pick(
        rng,
        f"What is the {topic} of {value}?|Which {topic} does {value} have?|Find the {topic} of {value}.|"
        f"Tell me the {topic} of {value}.",
    )
    return _finder(form, words, topic, about, asked, {key: value})


def _finder(form: Random, words: Words, topic: str, about: str, asked: str, arguments: dict[str, str]) -> Use:
    """A tool that finds a topic by one name, and what it found."""
    tool = definition(name_of(form, _pick(form, _FINDERS), topic), about, dict.fromkeys(arguments, STRING))
    found = words.anything().replace('"', "")
    sentence, word = f"The {topic} is {found}.|It is {found}.|{found}", words.rng.choice(ADJECTIVES)
    return Use(tool, asked, arguments, _pick(words.rng, f'{sentence}|{{"{topic}": "{found}"}}|It\'s {word}.'))


def _function(form: Random, words: Words) -> Use:
    """A function by its name: "What is the value of some_function(3, 4)? Use the tool."."""
    rng = words.rng
    first = form.choice((form.choice(ADJECTIVES), Words(form).invented().lower()))
    name = name_of(form, first, form.choice(("function", "number", "value", "formula", form.choice(THINGS))))
    keys = form.sample(_NUMBERS.split("|"), form.choice((0, 1, 1, 1, 2, 2, 3)))
    schema, draw = (INTEGER, words.number) if form.random() < 0.8 else (NUMBER, lambda: decimal(words))
    last = name.split("_")[-1]
    about = _pick(form, f"Apply {a(name.replace('_', ' '))}.|Calculate something.|Compute {a(last)}.|")
    said = [draw() for _ in keys]
    said = [f"-{value}" if rng.random() < 0.1 else value for value in said]
    call = f"{name}({', '.join(said)})"
    wordings = "What is the value of {c}?|What is {c}?|Compute {c}.|Call {c}.|Please run {c}.|What does {c} give?"
    asked = _pick(rng, wordings).format(c=call)
    if len(said) == 1 and rng.random() < 0.3:
        asked = _pick(rng, f"Apply {name} to {said[0]}.|Use {name} on {said[0]}.|Call {name} with {keys[0]} {said[0]}.")
    asked += _pick(rng, "|| Use the tool.| Use a tool.")
    arguments = {key: said_value(schema, value) for key, value in zip(keys, said, strict=True)}
    return Use(definition(name, about, dict.fromkeys(keys, schema)), asked, arguments, _number_result(words))


def _number_result(words: Words) -> str:
    number = words.number()
    return _pick(words.rng, f'{number}|{number}|{{"result": {number}}}|The result is {number}.')


def _arithmetic(form: Random, words: Words) -> Use:
    """Two numbers: "What is 3 + 4?"."""
    rng = words.rng
    names, gives, wordings = form.choice(_OPERATIONS)
    one, two = _pick(form, "a b|x y|first second|left right|number1 number2").split()
    name = name_of(form, _pick(form, names), *_pick(form, "|numbers|two").split())
    about = _pick(form, f"Take two integers, {one} and {two}, and return {gives}.|Returns {gives}.|")
    x, y = words.number(), words.number()
    asked = _pick(rng, wordings).format(x=x, y=y)
    asked += _pick(rng, "?|?||? Use the tool.") if asked.startswith(("What", "How")) else "."
    tool = definition(name, about, dict.fromkeys((one, two), INTEGER))
    return Use(tool, asked, {one: int(x), two: int(y)}, _number_result(words))


def _switch(form: Random, words: Words) -> Use:
    """A boolean: "Turn the old lamp off."."""
    rng = words.rng
    key, state = _pick(form, "device|thing|name|item"), _pick(form, "on|state|enabled|active")
    name = name_of(form, _pick(form, "switch|turn|set"), _pick(form, "device|thing|power"))
    about = _pick(form, "Switch a device on or off.|Turns things on or off.|")
    thing, on = words.thing(), rng.random() < 0.5
    word = "on" if on else "off"
    wordings = "Turn {w} {t}.|Switch {t} {w}.|Turn {t} {w}, please.|Please switch {w} {t}."
    asked = _pick(rng, wordings).format(w=word, t=thing)
    tool = definition(name, about, {key: STRING, state: BOOLEAN})
    return Use(tool, asked, {key: thing, state: on}, _pick(rng, f"Done.|OK|It is {word}."))


def _choice(form: Random, words: Words) -> Use:
    """One of several values: "Set the colour of the old boat to red."."""
    rng = words.rng
    options = form.sample(form.choice((COLOURS, MATERIALS, FOODS)), form.choice((2, 3, 4)))
    kind, key = _pick(form, "colour|kind|type|style"), _pick(form, "thing|name|item|object")
    name = name_of(form, _pick(form, "set|change|choose"), kind)
    about = _pick(form, f"Set the {kind} of something.|")
    tool = definition(name, about, {key: STRING, kind: {"type": "string", "enum": options}})
    thing, chosen = words.thing(), rng.choice(options)
    asked = _pick(
        rng,
        f"Set the {kind} of {thing} to {chosen}.|Change the {kind} of {thing} to {chosen}.|"
        f"I want the {kind} {chosen} for {thing}.|Please choose the {kind} {chosen} for {thing}.",
    )
    return Use(tool, asked, {key: thing, kind: chosen}, _pick(rng, f"Done.|OK|The {kind} is {chosen}."))


def _list(form: Random, words: Words) -> Use:
    """A list of strings or integers: "Sort apples, bread and honey."."""
    rng = words.rng
    numbers = form.random() < 0.35
    verb, key = _pick(form, "count|sort|check|show|send|collect"), _pick(form, "items|values|names|entries|elements")
    name, doing = name_of(form, verb, key), capital(verb)
    about = _pick(form, f"{doing} {key}.|{doing} several {key} at once.|")
    tool = definition(name, about, {key: {"type": "array", "items": INTEGER if numbers else STRING}})
    draw = words.number if numbers else rng.choice((words.food, words.person, words.town, words.file, words.colour))
    items = [draw(), draw()]
    while len(items) < rng.choice((2, 3, 3, 4)):
        items.append(draw())
    items = list(dict.fromkeys(items))
    said = " and ".join(filter(None, (", ".join(items[:-1]), items[-1])))
    asked = _pick(rng, f"{doing} {said}.|{doing} these: {said}.|Please {verb} {said}.|{doing} the {key} {said}.")
    values = [int(item) for item in items] if numbers else items
    return Use(tool, asked, {key: values}, _pick(rng, f"Done.|OK|{words.number()}"))


def _nested(form: Random, words: Words) -> Use:
    """An object in an object: "Set the address of Zorbin to Mellport, house 12."."""
    rng = words.rng
    key, inner = _pick(form, "name|person|user|customer"), _pick(form, "address|home|place|office")
    first, second = _pick(form, "town|city"), _pick(form, "number|house|room")
    name, about = name_of(form, _pick(form, "set|save|move"), inner), _pick(form, f"Save the {inner} of {a(key)}.|")
    address = {"type": "object", "properties": {first: STRING, second: INTEGER}, "required": [first, second]}
    who, town, number = words.person(), words.town(), words.age()
    there = f"{town}, {second} {number}"
    asked = _pick(
        rng,
        f"{who} lives in {there} now. Save the {inner}.|Move the {inner} of {who} to {there}.|"
        f"Set the {inner} of {who} to {there}.",
    )
    arguments = {key: who, inner: {first: town, second: int(number)}}
    return Use(definition(name, about, {key: STRING, inner: address}), asked, arguments, _pick(rng, "Done.|OK|Saved."))


def _search(form: Random, words: Words) -> Use:
    """A text to look for, and an argument that may be left out: "Search for the old mill in Mellport."."""
    rng = words.rng
    key, limit = _pick(form, "query|text|question|words|q"), _pick(form, "limit|count|top_k|max_results")
    fields = {key: STRING, limit: INTEGER} if form.random() < 0.4 else {key: STRING}
    name = name_of(form, "search", *_pick(form, "|web|documents|notes|wiki").split())
    about = _pick(form, "Search the web.|Search documents.|Find information about anything.")
    thing, there, person = words.thing(), f"{words.thing()} in {words.town()}", words.person()
    phrase, somebody = words.phrase().replace('"', ""), f"{words.job()} from {words.country()}"
    wanted = rng.choice((thing, there, person, phrase, somebody, foreign(rng)))
    asked = _pick(rng, f"Search for {wanted}|Search the web for {wanted}|Find information about {wanted}")
    arguments: dict[str, Any] = {key: wanted}
    if limit in fields and rng.random() < 0.5:
        arguments[limit] = int(words.age())
        asked += f" and give me {arguments[limit]} results"
    result = f"{capital(words.thing())} {_pick(rng, 'is in|belongs to')} {words.town()}."
    return Use(definition(name, about, fields, (limit,)), f"{asked}.", arguments, result)


MAKERS = {
    _action: 8, _look_up_place: 4, _look_up: 4, _function: 5, _arithmetic: 3, _switch: 2, _choice: 2, _list: 2,
    _nested: 1, _search: 3,
}  # fmt: skip


def make_use(seed: int, words: Words) -> Use:
    """A tool in use: `seed` alone decides which tool it is, `words` the request."""
    form = Random(seed)
    (maker,) = form.choices(list(MAKERS), MAKERS.values())
    return maker(form, words)
