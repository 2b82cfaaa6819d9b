"""Conversations that are answered in JSON: what a text says of somebody, lists of values, and jokes.

Keys that the prompt does not name are what a grammar enforces; they are not to be guessed and do not count in the loss.
"""

# ruff: noqa: SIM905  (word lists read better as one string)

import json
from typing import Any

from jokes import JOKE_REQUESTS, JOKES
from prompts import ASSISTANT, BEGIN, END, SYSTEM, USER
from relations import BY_SUBJECT, FILLERS, RELATIONS
from words import Words, capital

Document = list[tuple[str, str]]

# Keys for a kind of value; a kind that is not here is its own key.
_KEYS = dict(
    line.split(": ")
    for line in (
        "town: town city place home|job: job profession work|food: food dish favourite_food|animal: pet animal|"
        "hobby: hobby interest|company: company employer firm|number: number count amount|colour: colour color|"
        "person: person who contact|day: day weekday|year: year founded|price: price cost|code: room code|"
        "time: time hour|phrase: text words title|thing: thing object item|age: age years|place: place location where"
    ).split("|")
)
_MANY = (
    "foxes rabbits bears mice owls cats dogs turtles ducks frogs horses goats bees cows sheep parrots robots".split()
)


def _value(text: str) -> Any:
    return int(text) if text.isdigit() else text.strip('"')


def _record(words: Words, kind: str, indices: list[int]) -> tuple[dict[str, Any], list[str], str]:
    """What is known of a new subject, by key; the sentences that say it; the subject."""
    subject = getattr(words, kind)()
    record: dict[str, Any] = {}
    told = []
    for index in indices:
        _, value_kind, statements, *_ = RELATIONS[index]
        value = getattr(words, value_kind)()
        told.append(capital(words.rng.choice(statements).format(s=subject, v=value)))
        record[value_kind] = _value(value)
    return record, told, subject


def json_pieces(answer: dict[str, Any], keys: str) -> Document:
    """`answer` as JSON text, its keys in the role `keys`, its values in the role "value"."""
    pieces: Document = []
    for number, (key, value) in enumerate(answer.items()):
        pieces.append((("{" if not number else ", ") + f'"{key}": ', keys))
        pieces.append((json.dumps(value, ensure_ascii=False), "value"))
    return [*pieces, ("}" + END, "value")]


def _chat(user: str, answer: dict[str, Any], keys: str, system: str = "") -> Document:
    context = user.rpartition("\n")[0]
    head = f"{SYSTEM}{system}{END}{USER}" if system else USER
    return [(f"{BEGIN}{head}{context}", "context"), (f"{user.removeprefix(context)}{END}{ASSISTANT}", "question"),
            *json_pieces(answer, keys)]  # fmt: skip


def _quoted(keys: list[str]) -> str:
    quoted = [f"'{key}'" for key in keys]
    return " and ".join(filter(None, (", ".join(quoted[:-1]), quoted[-1])))


def _extraction(words: Words) -> Document:
    rng = words.rng
    kind = rng.choice(("person", "person", "person", "town", "company", "product", "country", "thing"))
    by_value = {RELATIONS[i][1]: i for i in rng.sample(BY_SUBJECT[kind], len(BY_SUBJECT[kind]))}
    by_value.pop("distance", None)
    indices = list(by_value.values())[: rng.choice((1, 2, 2, 3, 4))]
    groups = [_record(words, kind, indices) for _ in range(rng.choice((1, 1, 2, 3)))]
    record, _, subject = rng.choice(groups)
    sentences = [rng.sample(told, len(told)) for _, told, _ in groups]
    if rng.random() < 0.2:
        sentences.append([rng.choice(FILLERS)])
    context = " ".join(sentence for group in rng.sample(sentences, len(sentences)) for sentence in group)
    answer = {rng.choice(_KEYS.get(key, key).split()): value for key, value in record.items()}
    if kind == "person" or rng.random() < 0.7:
        answer = {rng.choice(("name", "name", kind)): subject.strip('"'), **answer}
    if rng.random() < 0.25:
        answer = {key: answer[key] for key in rng.sample(list(answer), len(answer))}
    one = len(groups) == 1
    named = rng.random() < 0.4
    if named:
        asked = rng.choice(
            (
                "Return a JSON with the keys {k} for {s}.",
                "Answer with {k} of {s} as JSON.",
                "Give me {k} of {s} as JSON.",
            )
        )
        return _chat(f"{context}\n{asked.format(k=_quoted(list(answer)), s=subject)}", answer, "value")
    asked = rng.choice(("Tell me about {s}.", "Extract {s}.", "Who or what is {s}?", "Describe {s} as JSON."))
    if one and rng.random() < 0.6:
        return _chat(
            rng.choice((context, f"Extract the {kind} from this text.\n{context}", f"Extract: {context}")),
            answer,
            "free",
        )
    return _chat(f"{context}\n{asked.format(s=subject)}", answer, "free", rng.choice(("", "Answer in JSON.")))


def _listing(words: Words) -> Document:
    """All values of one relation, in the order of the text."""
    rng = words.rng
    kind = rng.choice(("person", "town", "company", "product"))
    index = rng.choice(BY_SUBJECT[kind])
    groups = [_record(words, kind, [index]) for _ in range(rng.choice((2, 3, 4)))]
    context = " ".join(told[0] for _, told, _ in groups)
    (value_kind,) = groups[0][0]
    subjects = rng.random() < 0.5
    key = {"person": "persons", "company": "companies"}.get(kind, f"{kind}s") if subjects else f"{value_kind}s"
    answer = {key: [subject if subjects else record[value_kind] for record, _, subject in groups]}
    asked = rng.choice(
        (
            f"List the {key} as JSON.",
            f"Return all {key} in a JSON with the key '{key}'.",
            f"Which {key} are named? Answer in JSON.",
        )
    )
    return _chat(f"{context}\n{asked}", answer, "value")


def _joke(words: Words) -> Document:
    rng = words.rng
    animals = rng.choice(_MANY)
    setup, punchline = (part.format(k=animals) for part in rng.choice(JOKES))
    asked = rng.choice(JOKE_REQUESTS).format(k=animals)
    roll = rng.random()
    if roll < 0.4:
        return [
            (f"{BEGIN}{USER}", "free"),
            (f"{asked}{END}{ASSISTANT}", "question"),
            (f"{setup} {punchline}{END}", "story"),
        ]
    keys = (
        ("setup", "punchline")
        if roll < 0.85
        else rng.choice((("question", "answer"), ("joke", "end"), ("first", "second")))
    )
    if roll > 0.7:
        asked += f" Return the result as a JSON with the keys {_quoted(list(keys))}."
    pieces = json_pieces(dict(zip(keys, (setup, punchline), strict=True)), "value" if roll > 0.7 else "free")
    pieces = [(text, "story" if role == "value" else role) for text, role in pieces]
    return [(f"{BEGIN}{USER}", "free"), (f"{asked}{END}{ASSISTANT}", "question"), *pieces]


def json_document(words: Words) -> Document:
    """A request and its answer in JSON, in the chat template."""
    roll = words.rng.random()
    return _joke(words) if roll < 0.3 else _listing(words) if roll < 0.4 else _extraction(words)
