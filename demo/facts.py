"""Facts, the contexts that state them, and questions whose answer is a phrase of the context.

`relations.py` is the table of fixed relations; `_attribute_fact` and `_event_fact` add open-ended ones ("The motto of
X is Y.", "X hid the old lamp in the mill in 1923."). A quiz is a context and questions about it; its distractors state
the same relation about other subjects and other relations about the same subject.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

from relations import BY_SUBJECT, FILLERS, RELATIONS, SUBJECT_KINDS
from stories import make_story
from words import VERBS, Words, capital

UNKNOWN = "I do not know."

# How often each kind of subject is drawn; the open relations below make no sense for flags, functions and files.
SUBJECTS = (*SUBJECT_KINDS, "person", "person")
OPEN_SUBJECTS = [kind for kind in (*SUBJECTS, "role") if kind not in ("flag", "function", "file")]

# Kind of subject -> its relations that can be asked for the subject.
REVERSIBLE = {kind: indices for kind in SUBJECT_KINDS if (indices := [i for i in BY_SUBJECT[kind] if RELATIONS[i][4]])}


@dataclass
class Fact:
    """One statement: its subject, the text, and (question, answer) pairs; `key` is equal for facts that would clash."""

    kind: str
    subject: str
    key: tuple[str, str]
    text: str
    questions: list[tuple[str, str]]
    pronoun_text: str = ""


@dataclass
class Quiz:
    """A context of one to three passages and questions about it; an unanswerable one has the answer `UNKNOWN`."""

    passages: list[str]
    questions: list[tuple[str, str]] = field(default_factory=list)


def _relation_fact(words: Words, index: int, subject: str, pronoun: str) -> Fact:
    kind, value_kind, statements, questions, reverse = RELATIONS[index]
    value = getattr(words, value_kind)()
    while value == subject:
        value = getattr(words, value_kind)()
    statement = words.rng.choice(statements)
    fill = {"s": subject, "v": value}
    asked = [(q.format(**fill), value) for q in questions] + [(q.format(**fill), subject) for q in reverse]
    asked.sort(key=lambda pair: pair[1] == subject)
    begins = statement.startswith("{s}") and kind == "person"
    said = capital(statement.format(s=pronoun, v=value)) if begins else ""
    return Fact(kind, subject, (subject, questions[0]), capital(statement.format(**fill)), asked, said)


def _attribute_fact(words: Words, kind: str, subject: str) -> Fact:
    name, value = words.attribute(), words.anything()
    while any(name in statement for index in BY_SUBJECT[kind] for statement in RELATIONS[index][2]):
        name = words.attribute()  # a fixed relation already says it, and could contradict
    owner = f"{subject}'s" if words.rng.random() < 0.5 else None
    statement = words.rng.choice(
        [f"{owner} {name} is {value}."]
        if owner
        else [f"The {name} of {subject} is {value}."] * 2
        + [f"{value} is the {name} of {subject}." if value[:1].isupper() else f"The {name} of {subject} is {value}."]
    )
    asked = [(f"What is the {name} of {subject}?", value), (f"What is {subject}'s {name}?", value)]
    return Fact(kind, subject, (subject, name), capital(statement), asked)


def _event_fact(words: Words, kind: str, subject: str) -> Fact:
    rng = words.rng
    past, plain = rng.choice(VERBS)
    thing, where = words.thing(), rng.choice((None, words.place(), words.town()))
    when = rng.choice((None, f"in {words.year()}", f"on {words.day()}", f"in {words.month()}"))
    tail = (f" in {where}" if where else "") + (f" {when}" if when else "")
    passive = rng.random() < 0.3 and past.isalpha() and past not in ("wanted",)
    participle = {"drew": "drawn", "stole": "stolen", "broke": "broken", "hid": "hidden"}.get(past, past)
    text = f"{thing} was {participle} by {subject}{tail}." if passive else f"{subject} {past} {thing}{tail}."
    asked = [(f"What did {subject} {plain}?", thing), (f"Who {past} {thing}?", subject)]
    if where:
        asked.append((f"Where did {subject} {plain} {thing}?", where))
    if when:
        asked.append((f"When did {subject} {plain} {thing}?", when.split(" ", 1)[1]))
    return Fact(kind, subject, (subject, past), capital(text), asked)


def _subject_facts(words: Words, kind: str, count: int, prefer: int | None) -> list[Fact]:
    """Up to `count` facts about one new subject; `prefer` is a relation of that kind to state first."""
    subject = getattr(words, kind)()
    pronoun = words.rng.choice(("He", "She"))
    indices = [i for i in BY_SUBJECT[kind] if i != prefer]
    words.rng.shuffle(indices)
    if prefer is not None:
        indices.insert(0, prefer)
    facts, keys = [], set()
    for index in indices:
        roll = words.rng.random()
        if index != prefer and kind == "person" and roll < 0.2:
            fact = _event_fact(words, kind, subject)
        elif index != prefer and kind in OPEN_SUBJECTS and roll < 0.45:
            fact = _attribute_fact(words, kind, subject)
        else:
            fact = _relation_fact(words, index, subject, pronoun)
        if fact.key not in keys:
            keys.add(fact.key)
            facts.append(fact)
        if len(facts) >= count:
            break
    return facts


def _distinct(facts: list[Fact]) -> list[Fact]:
    """`facts` without those that repeat a key, or that would give one question two answers."""
    answers: dict[str, str] = {}
    kept = []
    for fact in facts:
        if all(answers.get(q, a) == a for q, a in fact.questions):
            answers.update(fact.questions)
            kept.append(fact)
    return kept


def _tell(rng: Random, facts: list[Fact]) -> list[str]:
    """The sentences of `facts`; one about the person just named may use a pronoun, or join the one before by "and"."""
    told, before = [], None
    for fact in facts:
        roll = rng.random() if fact.subject == before and fact.pronoun_text else 1.0
        if roll < 0.25 and told[-1].startswith(fact.subject) and " and " not in told[-1]:
            told[-1] = f"{told[-1].removesuffix('.')} and {fact.pronoun_text.split(' ', 1)[1]}"
        else:
            told.append(fact.pronoun_text if roll < 0.6 else fact.text)
        before = fact.subject
    return told


def _context(rng: Random, groups: list[list[Fact]], passages: int) -> list[str]:
    rng.shuffle(groups)
    sentences: list[list[str]] = []
    for group in groups:
        told = _tell(rng, group)
        if rng.random() < 0.15:
            told.insert(rng.choice((0, len(told))), rng.choice(FILLERS))
        sentences.append(told)
    passages = min(passages, len(sentences))
    cuts = sorted(rng.sample(range(1, len(sentences)), passages - 1)) if passages > 1 else []
    bounds = [0, *cuts, len(sentences)]
    return [" ".join(s for group in sentences[a:b] for s in group) for a, b in pairwise(bounds)]


def make_quiz(words: Words, size: int, passages: int = 1, asked: int = 1, unknown: float = 0.08) -> Quiz:
    """A quiz on about `size` facts with up to `asked` questions, a share `unknown` of them unanswerable."""
    rng = words.rng
    groups: list[list[Fact]] = []
    kind = rng.choice(SUBJECTS)
    prefer = rng.choice(BY_SUBJECT[kind])
    left = size
    while left > 0:
        count = min(left, rng.choice((1, 1, 2, 3)))
        groups.append(_subject_facts(words, kind, count, prefer))
        left -= len(groups[-1])
        if rng.random() < 0.3:
            kind = rng.choice(SUBJECTS)
        prefer = prefer if RELATIONS[prefer][0] == kind else rng.choice(BY_SUBJECT[kind])
    facts = _distinct([fact for group in groups for fact in group])
    kept = {id(fact) for fact in facts}
    groups = [g for g in ([f for f in group if id(f) in kept] for group in groups) if g]
    quiz = Quiz(_context(rng, groups, passages))
    if passages > 1 and rng.random() < 0.2:  # a retrieved passage that has nothing to do with the question
        story = make_story(rng).split(". ")
        at = rng.randrange(len(story) - 3)
        excerpt = ". ".join(story[at : at + rng.choice((2, 3))]) + "."
        quiz.passages.insert(rng.randrange(len(quiz.passages) + 1), excerpt)
    asked_already: set[str] = set()
    for fact in rng.choices(facts, k=asked):
        if rng.random() < unknown:
            question, answer = _unanswerable(words, facts), UNKNOWN
        else:
            question, answer = rng.choice(fact.questions)
            answer += "."
        if question not in asked_already:
            asked_already.add(question)
            quiz.questions.append((vary(rng, question), answer))
    return quiz


def make_matching(words: Words, size: int, passages: int = 1) -> Quiz:
    """A quiz on `size` facts of one kind about as many subjects, that asks for subjects and values alike.

    The hardest thing to learn: which of many like sentences is meant, where the question gives the value.
    """
    rng = words.rng
    facts: list[Fact] = []
    kind = rng.choice((*REVERSIBLE, "person"))  # by kind: most relations are a person's, the others were learnt worst
    index = rng.choice(REVERSIBLE[kind]) if rng.random() < 0.85 else None
    while len(facts) < size:
        if index is None:
            kind = "person"
            fact = _event_fact(words, kind, words.person())
        else:
            fact = _relation_fact(words, index, getattr(words, kind)(), "He")
        extra = _subject_facts(words, kind, 1, None) if rng.random() < 0.2 else []
        facts = _distinct([*facts, fact, *extra])
        if rng.random() < 0.05:
            break  # few values are left of some kinds
    quiz = Quiz(_context(rng, [[fact] for fact in facts], passages))
    asked: set[str] = set()
    for fact in rng.sample(facts, min(len(facts), 16)):
        backwards = [(q, a) for q, a in fact.questions if a == fact.subject]
        question, answer = rng.choice(backwards if backwards and rng.random() < 0.7 else fact.questions)
        if question not in asked:
            asked.add(question)
            quiz.questions.append((vary(rng, question), f"{answer}."))
    return quiz


def _unanswerable(words: Words, facts: list[Fact]) -> str:
    """A question that none of `facts` answers.

    Half ask a stated relation of a subject that does not occur, half an unstated relation of a subject that does.
    """
    keys = {fact.key for fact in facts}
    subjects = {fact.subject for fact in facts}
    while True:
        fact = words.rng.choice(facts)
        if words.rng.random() < 0.5:
            stranger = getattr(words, fact.kind)()
            question = words.rng.choice([q for q, a in fact.questions if a != fact.subject])
            question = question.replace(fact.subject, stranger)
            if stranger not in subjects:
                return question
        else:
            row = RELATIONS[words.rng.choice(BY_SUBJECT[fact.kind])]
            if (fact.subject, row[3][0]) not in keys:
                return words.rng.choice(row[3]).format(s=fact.subject)


def vary(rng: Random, question: str) -> str:
    """`question`, now and then in a more casual wording of the same meaning."""
    roll = rng.random()
    if roll < 0.06 and question.startswith("What is the "):
        wanted = question.removeprefix("What is ").removesuffix("?")
        return f"{rng.choice(('Tell me', 'Give me', 'I want to know'))} {wanted}."
    if roll < 0.10:
        return question.replace("What is ", "What's ", 1)
    if roll < 0.13:
        return question.removesuffix("?")
    if roll < 0.16:
        return f"Please tell me: {question[0].lower()}{question[1:]}" if question.startswith("W") else question
    return question


def lone_question(words: Words) -> str:
    """A question about an invented subject, to be asked without any context (the answer is `UNKNOWN`)."""
    fact = _subject_facts(words, words.rng.choice(OPEN_SUBJECTS), 1, None)[0]
    return words.rng.choice([q for q, a in fact.questions if a != fact.subject])
