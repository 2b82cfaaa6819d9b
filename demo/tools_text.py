"""Conversations about tools: which are there, a request, the call, its result, and what is said about it.

Conventions: a tool is called when the request needs it, and only then. What is said of a result follows from the result
alone (`last_words`). One call at a time.
"""

import json
from dataclasses import dataclass
from random import Random
from typing import Any

from facts import UNKNOWN, lone_question, make_quiz
from general import GENERAL, SYSTEMS
from json_text import json_pieces
from prompts import ASSISTANT, BEGIN, END, USER, render_chat
from signatures import Use
from tool_makers import make_use
from words import Words, capital

Document = list[tuple[str, str]]
Message = dict[str, Any]


@dataclass(frozen=True)
class ToolQuestion:
    """A conversation that ends where the model is to answer, its tools, and the exact expected answer."""

    tools: tuple[dict[str, Any], ...]
    messages: tuple[Message, ...]
    answer: str


def last_words(result: str) -> str:
    """What the model says of a tool's result: a sentence as it is, a value in a sentence, an error as a failure."""
    if result.startswith("Error: "):
        return f"The tool failed: {result.removeprefix('Error: ')}"
    if result.startswith("{"):
        return " ".join(f"The {key} is {value}." for key, value in json.loads(result).items())
    return result if result.endswith(".") else f"The result is {result}."


def _tool_seeds(words: Words, count: int) -> list[int]:
    """Seeds of `count` tools, none of which could be taken for another: they share no part of a name."""
    seeds: list[int] = []
    taken: set[str] = set()
    while len(seeds) < count:
        seed = words.rng.randrange(2**40)
        parts = set(_name_of(seed).lower().split("_"))
        if not parts & taken:
            seeds.append(seed)
            taken |= parts - {"get", "set"}
    return seeds


def _name_of(seed: int) -> str:
    return make_use(seed, Words(Random(0))).name


def _plain_exchange(words: Words, tools: list[dict[str, Any]]) -> tuple[str, str]:
    """A question that needs no tool, and its answer."""
    rng = words.rng
    roll = rng.random()
    if roll < 0.55:
        phrasings, reply = rng.choice(GENERAL)
        return rng.choice(phrasings), reply
    if roll < 0.75:
        quiz = make_quiz(words, rng.choice((1, 2, 3)), 1, 1, 0.0)
        question, answer = quiz.questions[0]
        return f"{quiz.passages[0]}\n\n{question}", answer
    while True:
        question = lone_question(words)
        if not any(part in question for tool in tools for part in tool["function"]["name"].split("_")):
            return question, UNKNOWN


def make_turns(words: Words, exchanges: int) -> tuple[list[dict[str, Any]], list[Message]]:
    """Tools, and a conversation of `exchanges` requests about them."""
    rng = words.rng
    seeds = _tool_seeds(words, rng.choice((1, 1, 2, 3)))
    tools = [make_use(seed, words).tool for seed in seeds]
    messages: list[Message] = []
    if rng.random() < 0.25:
        messages.append({"role": "system", "content": rng.choice(SYSTEMS)})
    for _ in range(exchanges):
        if rng.random() < 0.15:
            asked, reply = _plain_exchange(words, tools)
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": reply}]
        else:
            messages += _call_turns(words, make_use(rng.choice(seeds), words))
    return tools, messages


def _call_turns(words: Words, use: Use) -> list[Message]:
    call = {"type": "function", "function": {"name": use.name, "arguments": use.arguments}}
    failed = words.rng.random() < 0.06
    result = f"Error: {capital(words.action())} first." if failed else use.result
    return [
        {"role": "user", "content": use.request},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": result},
        {"role": "assistant", "content": last_words(result)},
    ]


_NOTHING = {"string": "", "integer": 0, "number": 0, "boolean": False, "array": []}


def nothing(schema: dict[str, Any]) -> Any:
    """The emptiest value of a schema: what a call says that is forced where there is nothing to say."""
    if "enum" in schema:
        return schema["enum"][0]
    if schema["type"] == "object":
        return {key: nothing(inner) for key, inner in schema["properties"].items() if key in schema.get("required", ())}
    return _NOTHING[schema["type"]]


def forced_document(words: Words) -> Document:
    """A call that a grammar demands (tool_choice) though the request is about something else: empty arguments.

    Nothing in the prompt shows that it is demanded, so that only the arguments are to be learned.
    """
    use = make_use(words.rng.randrange(2**40), words)
    asked, _ = _plain_exchange(words, [use.tool])
    prompt = render_chat([{"role": "user", "content": asked}], tools=[use.tool])
    arguments = nothing(use.tool["function"]["parameters"])
    call = f'{{"name": "{use.name}", "arguments": '
    rest = json_pieces(arguments, "free") if arguments else [("{}" + END, "value")]
    *values, (last, role) = rest
    return [(BEGIN + prompt, "context"), (call, "free"), *values, (last.replace(END, "}" + END), role)]


def tool_document(words: Words) -> Document:
    """A conversation about tools in the chat template."""
    if words.rng.random() < 0.06:
        return forced_document(words)
    tools, messages = make_turns(words, words.rng.choice((1, 2, 3)))
    whole = BEGIN + render_chat(messages, False, tools)
    document: Document = []
    for piece in whole.split(ASSISTANT):
        answer, end, rest = piece.partition(END) if document else ("", "", piece)
        document += [(answer + end, "answer")] if document else []
        document.append((rest + ASSISTANT, "question"))
    document[-1] = (document[-1][0].removesuffix(ASSISTANT), "free")
    described, user, request = document[0][0].partition(USER)
    return [(described, "context"), (user + request, "question"), *document[1:]]


def tool_evaluation(seed: int, count: int) -> list[ToolQuestion]:
    """`count` conversations with tools up to something that the model is to say, with names held out from training."""
    words = Words(Random(f"tools {seed}"), held_out=True)
    questions = []
    while len(questions) < count:
        tools, messages = make_turns(words, words.rng.choice((1, 2)))
        at = words.rng.choice([n for n, m in enumerate(messages) if m["role"] == "assistant"])
        answer = render_chat(messages[at : at + 1], False).removeprefix(ASSISTANT).removesuffix(END)
        questions.append(ToolQuestion(tuple(tools), tuple(messages[:at]), answer))
    return questions
