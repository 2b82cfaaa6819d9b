"""Everything the demo model reads: seeded documents for training and held-out questions for the evaluation.

A document is a list of (text, role) pieces. Their concatenation is what the model sees; a role says how much its tokens
count in the loss ("story", "context", "question", "answer", "value": as an answer, in the midst of one, or "free": not
at all). Standard library only.

Conventions: an answer is the bare phrase of the context followed by a full stop ("Bredok."), or `UNKNOWN` when the
context does not say it. A story in raw text ends with `END_OF_TEXT`; every answer and every chat turn ends with `END`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from facts import UNKNOWN, Quiz, lone_question, make_matching, make_quiz, vary
from general import GENERAL, SYSTEMS
from json_text import json_document
from prompts import (
    ANY_STORY_REQUESTS,
    ASSISTANT,
    BEGIN,
    CHAT_STYLES,
    END,
    END_OF_TEXT,
    STEP_BY_STEP,
    STORY_REQUESTS,
    STYLES,
    SYSTEM,
    USER,
    render_chat,
)
from stories import ANIMALS, make_story
from tools_text import tool_document, tool_evaluation
from words import COLOURS, FOODS, MATERIALS, PLACES, THINGS, Words

SINGLE = [word for words in (COLOURS, FOODS, MATERIALS, PLACES, THINGS) for word in words]
MATCHING_SHARE, PARTNER_SHARE = 0.33, 0.08  # of the documents
DRILL_SHARE = 0.6  # of the documents at stage 0: copying comes first, language second

Document = list[tuple[str, str]]


@dataclass(frozen=True)
class Question:
    """One question of the evaluation: the prompt without the begin token, and the exact expected answer."""

    style: str
    prompt: str
    answer: str
    context: str
    messages: tuple[dict[str, Any], ...] = ()


def _with_article(request: str, kind: str) -> str:
    return request.format(k=kind).replace(" a " + kind, (" an " if kind[0] in "aeiou" else " a ") + kind)


def _join(rng: Random, passages: list[str]) -> str:
    """One context string from several passages, separated and marked in one of the usual ways."""
    if len(passages) == 1:
        return passages[0]
    mark = rng.choice((None, None, None, "[{n}] ", "Passage {n}: ", "- "))
    separator = rng.choice(("\n\n", "\n\n", "\n", "\n"))
    return separator.join((mark.format(n=n) if mark else "") + p for n, p in enumerate(passages, 1))


def _raw_quiz(words: Words, quiz: Quiz, style: str) -> Document:
    """A quiz in a raw style: the first question in the full prompt, later ones as further turns."""
    rng = words.rng
    template = rng.choice(STYLES[style])
    (question, answer), *more = quiz.questions
    prompt = template.format(c=_join(rng, quiz.passages), q=question)
    cut = prompt.index(question) if template.index("{q}") > template.index("{c}") else 0
    gap = "" if prompt.endswith(" ") else " "
    document = [(BEGIN + prompt[:cut], "context"), (prompt[cut:], "question"), (gap + answer, "answer")]
    again = "\nUSER: {q}\nASSISTANT:" if style == "user" else "\nQuestion: {q}\nAnswer:"
    for question, answer in more:
        # Later turns teach most per token; half repeat the end token, half look like a pasted transcript.
        document.append((END, "answer") if rng.random() < 0.5 else ("", "free"))
        document += [(again[:1], "free"), (again[1:].format(q=question), "question"), (f" {answer}", "answer")]
    return [*document, (END, "answer")]


def _chat_quiz(words: Words, quiz: Quiz) -> Document:
    rng = words.rng
    (question, answer), *more = quiz.questions
    context = _join(rng, quiz.passages)
    roll = rng.random()
    head = f"{SYSTEM}{rng.choice(SYSTEMS)}{END}" if roll < 0.3 else ""
    if 0.3 <= roll < 0.4:
        opening, user = f"{SYSTEM}{rng.choice(SYSTEMS)}\n{context}{END}{USER}", question
    elif rng.random() < 0.1:
        asked, reply = rng.choice(GENERAL)
        opening, user = f"{head}{USER}{rng.choice(asked)}{END}{ASSISTANT}{reply}{END}{USER}", f"{context}\n{question}"
    else:
        opening, user = head + USER, rng.choice(CHAT_STYLES).format(c=context, q=question).strip()
    cut = user.rindex(question)
    document = [(BEGIN + opening + user[:cut], "context")]
    document += [(user[cut:] + END + ASSISTANT, "question"), (answer + END, "answer")]
    for question, answer in more:
        document += [(USER + question + END + ASSISTANT, "question"), (answer + END, "answer")]
    return document


def quiz_document(words: Words, size: int, passages: int, asked: int, unknown: float = 0.12) -> Document:
    """A context with `asked` questions, in the chat template or in one of the raw `STYLES`."""
    return _quiz_in_style(words, make_quiz(words, size, passages, asked, unknown))


def matching_document(words: Words, size: int, passages: int) -> Document:
    """A context of like facts and questions about most of them, in a style of `quiz_document`."""
    return _quiz_in_style(words, make_matching(words, size, passages))


def _quiz_in_style(words: Words, quiz: Quiz) -> Document:
    style = words.rng.choice((*["chat"] * 4, "context", "user", *["rag"] * 4, "llama_index", *STYLES))
    return _chat_quiz(words, quiz) if style == "chat" else _raw_quiz(words, quiz, style)


def story_document(words: Words) -> Document:
    """A story, as raw text or as the answer to a request."""
    rng = words.rng
    roll = rng.random()
    if roll < 0.45:
        return [(BEGIN, "free"), (make_story(rng) + END_OF_TEXT, "story")]
    kind = rng.choice((*ANIMALS, "girl", "boy")) if roll < 0.9 else None
    request = _with_article(rng.choice(STORY_REQUESTS), kind) if kind else rng.choice(ANY_STORY_REQUESTS)
    return _exchange(rng, request, make_story(rng, kind), "story")


def _exchange(rng: Random, asked: str, reply: str, role: str) -> Document:
    """One question and its reply, in the chat template or the USER/ASSISTANT style."""
    if rng.random() < 0.6:
        system = f"{SYSTEM}{rng.choice(SYSTEMS)}{END}" if rng.random() < 0.3 else ""
        return [(BEGIN + system + USER, "free"), (asked + END + ASSISTANT, "question"), (reply + END, role)]
    return [(f"{BEGIN}USER: ", "free"), (f"{asked}\nASSISTANT:", "question"), (f" {reply}{END}", role)]


def conversation_document(words: Words) -> Document:
    """Two or three exchanges without a context, in the chat template or the USER/ASSISTANT style."""
    rng = words.rng
    chat = rng.random() < 0.6
    document: Document = [(BEGIN, "free")]
    if chat and rng.random() < 0.3:
        document.append((f"{SYSTEM}{rng.choice(SYSTEMS)}{END}", "free"))
    for turn in range(rng.choice((2, 2, 3))):
        asked, reply, role = _exchange_text(words)
        if chat:
            document += [(USER, "free"), (asked + END + ASSISTANT, "question"), (reply + END, role)]
        else:
            document.append(("\n" if turn else "", "free"))
            document += [(f"USER: {asked}\nASSISTANT:", "question"), (f" {reply}", role)]
    return document if chat else [*document, (END, role)]


def _exchange_text(words: Words) -> tuple[str, str, str]:
    """A request without a context, its reply, and the reply's role."""
    rng = words.rng
    roll = rng.random()
    if roll < 0.25:
        kind = rng.choice((*ANIMALS, "girl", "boy"))
        return _with_article(rng.choice(STORY_REQUESTS), kind), make_story(rng, kind), "story"
    if roll < 0.4:
        return vary(rng, lone_question(words)), UNKNOWN, "answer"
    phrasings, reply = rng.choice(GENERAL)
    return rng.choice(phrasings), reply, "answer"


def general_document(words: Words) -> Document:
    """A question from the fixed table, or one about an unheard-of subject, without any context."""
    rng = words.rng
    if rng.random() < 0.2:
        asked, reply = lone_question(words), UNKNOWN
    else:
        phrasings, reply = rng.choice(GENERAL)
        asked = rng.choice(phrasings)
    roll = rng.random()
    if roll < 0.25:
        return [(BEGIN, "free"), (STEP_BY_STEP.format(q=asked), "question"), (f" {reply}{END}", "answer")]
    if roll < 0.4:
        return [(BEGIN, "free"), (f"Question: {asked}\nAnswer:", "question"), (f" {reply}{END}", "answer")]
    return _exchange(rng, asked, reply, "answer")


def drill_document(words: Words) -> Document:
    """A list of pairs, then the same pairs in another order: the densest lesson in looking up and copying."""
    rng = words.rng
    kinds = [rng.choice(("invented", "anything", "anything", "number", "colour")) for _ in range(2)]
    pairs: dict[str, str] = {}
    count = rng.randrange(2, 9)
    while len(pairs) < count:
        key = getattr(words, rng.choice(("invented", "person", "format", "flag", kinds[0])))()
        pairs.setdefault(key, getattr(words, kinds[1])())
    link = rng.choice((": ", " is ", " has ", " = ", " means "))
    separator = rng.choice(("\n", ". ", ", "))
    document = [(BEGIN + "".join(f"{k}{link}{v}{separator}" for k, v in pairs.items()), "context")]
    for _ in range(2):
        again = list(pairs.items())
        rng.shuffle(again)
        for key, value in again:
            document += [(key + link.rstrip(), "question"), (" " + value, "answer"), (separator, "question")]
    return [*document, (END_OF_TEXT, "free")]


def partner_document(words: Words) -> Document:
    """A list of pairs, then one of each pair, to be completed by the other: mostly the second by the first.

    The shortest form of what questions about subjects ask for: what stood before something. It is the hardest thing
    to learn, for nothing in a text points back; so there are pairs of plain words, of names and words, and of anything.
    """
    rng = words.rng
    level = rng.random()
    first = rng.choice(
        ("invented", "invented", "person", "town", "function", "file", "flag", "code", "thing", "anything")
    )
    second = rng.choice(
        ("colour", "food", "material", "hobby", "day", "age", "time", "thing", "thing", "place", "job", "anything")
    )
    pairs: dict[str, str] = {}
    for _ in range(rng.randrange(2, 14)):
        key = rng.choice(SINGLE) if level < 0.3 else words.invented() if level < 0.6 else getattr(words, first)()
        value = rng.choice(SINGLE) if level < 0.6 else getattr(words, second)()
        if key not in pairs and value not in (*pairs.values(), *pairs, key) and key not in pairs.values():
            pairs[key] = value
    link = rng.choice(
        (" ", " ", ": ", " is ", " = ", " has ", " and ") if level < 0.6 else (": ", " is ", " has ", " = ")
    )
    separator = rng.choice(("\n", "; ", ", "))
    document = [(BEGIN + separator.join(f"{k}{link}{v}" for k, v in pairs.items()) + "\n\n", "context")]
    for key, value in rng.sample(list(pairs.items()), len(pairs)):
        asked, answer = (value, key) if rng.random() < 0.8 else (key, value)
        document += [(asked + link.rstrip(), "question"), (f" {answer}", "answer"), (separator, "question")]
    return [*document, (END_OF_TEXT, "free")]


def documents(seed: int, stage: float = 1.0) -> Iterator[Document]:
    """Endless training documents; `stage` from 0 to 1 moves from short contexts with many questions to long ones."""
    words = Words(Random(seed))
    rng = words.rng
    while True:
        roll = rng.random()
        if rng.random() < DRILL_SHARE * (1 - stage):
            yield drill_document(words)
        elif roll < 0.07:
            yield story_document(words)
        elif roll < 0.12:
            yield general_document(words)
        elif roll < 0.14:
            yield conversation_document(words)
        elif roll < 0.24:
            yield tool_document(words)
        elif roll < 0.28:
            yield json_document(words)
        elif roll < 0.28 + PARTNER_SHARE:
            yield partner_document(words)
        else:
            size = 1 + int(rng.random() ** 1.3 * (3 + stage * 9))
            if stage > 0.5 and rng.random() < 0.06:
                size = rng.randrange(12, 40)  # up to about 600 tokens: a prompt with several retrieved passages
            passages = rng.choice((1, 1, 2, 3)) if rng.random() < stage else 1
            if roll < 0.28 + PARTNER_SHARE + MATCHING_SHARE:
                yield matching_document(words, size + 1, passages)
                continue
            # Most documents ask a lot: the answers are what teaches, and a context costs more tokens than a question.
            yield quiz_document(words, size, passages, rng.choice((3, 4, 6, 8)) if rng.random() < 0.75 else 1)


def evaluation(seed: int, style: str, count: int, unknown: float = 0.08, sizes: range = range(1, 9)) -> list[Question]:
    """`count` questions in one style ("chat", "tools" or a key of `STYLES`), about names that training never contains.

    `sizes` are the numbers of facts in a context; conversations about tools have no context.
    """
    if style == "tools":
        asked = tool_evaluation(seed, count)
        return [Question(style, render_chat(a.messages, tools=a.tools), a.answer, "", a.messages) for a in asked]
    words = Words(Random(f"evaluation {seed} {style}"), held_out=True)
    rng = words.rng
    questions = []
    for _ in range(count):
        quiz = make_quiz(words, rng.choice(sizes), rng.choice((1, 2, 3)), 1, unknown)
        (question, answer), context = quiz.questions[0], _join(rng, quiz.passages)
        if style == "chat":
            messages = ({"role": "user", "content": rng.choice(CHAT_STYLES).format(c=context, q=question).strip()},)
            if rng.random() < 0.3:
                messages = ({"role": "system", "content": rng.choice(SYSTEMS)}, *messages)
            prompt = render_chat(list(messages))
        else:
            messages, prompt = (), rng.choice(STYLES[style]).format(c=context, q=question)
        questions.append(Question(style, prompt, answer, context, messages))
    return questions


def general_evaluation() -> list[Question]:
    """Every fixed question in the chat template and in the styles without context."""
    questions = []
    for phrasings, reply in GENERAL:
        for asked in phrasings:
            messages = ({"role": "user", "content": asked},)
            questions.append(Question("general", render_chat(list(messages)), reply, "", messages))
            questions.append(Question("general", STEP_BY_STEP.format(q=asked), reply, ""))
            questions.append(Question("general", f"USER: {asked}\nASSISTANT:", reply, ""))
    return questions
