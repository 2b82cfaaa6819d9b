"""Facts, the contexts that state them, and questions whose answer is a phrase of the context.

`RELATIONS` is the table of fixed relations; `_attribute_fact` and `_event_fact` add open-ended ones ("The motto of X is
Y.", "X hid the old lamp in the mill in 1923."). A quiz is a context and questions about it; its distractors state the
same relation about other subjects and other relations about the same subject.
"""

from dataclasses import dataclass, field
from random import Random

from stories import make_story
from words import VERBS, Words, capital

UNKNOWN = "I do not know."

# (subject kind, value kind, statements, questions about the value, questions about the subject)
RELATIONS = [
    ("person", "town", "{s} lives in {v}.|{s} has a house in {v}.|The home of {s} is in {v}.|{s} moved to {v} last year.",
     "Where does {s} live?|In which town does {s} live?|Where is the home of {s}?", "Who lives in {v}?"),
    ("person", "town", "{s} was born in {v}.|{s} grew up in {v}.|The birthplace of {s} is {v}.",
     "Where was {s} born?|What is the birthplace of {s}?|In which town was {s} born?", "Who was born in {v}?"),
    ("person", "job", "{s} is {v}.|{s} works as {v}.|By profession, {s} is {v}.|{s} earns a living as {v}.",
     "What is the job of {s}?|What does {s} do for a living?|What does {s} work as?", "Who is {v}?|Who works as {v}?"),
    ("person", "food", "{s} likes to eat {v}.|{s} loves {v}.|The favourite food of {s} is {v}.",
     "What does {s} like to eat?|What is the favourite food of {s}?", "Who likes to eat {v}?|Who loves {v}?"),
    ("person", "animal", "{s} has {v}.|{s} owns {v}.|{s} keeps {v} at home.|The pet of {s} is {v}.",
     "What pet does {s} have?|Which animal does {s} own?|What is the pet of {s}?", "Who has {v}?|Who owns {v}?"),
    ("person", "hobby", "{s} enjoys {v}.|The hobby of {s} is {v}.|In the evening {s} likes {v}.",
     "What is the hobby of {s}?|What does {s} enjoy?", "Who enjoys {v}?"),
    ("person", "age", "{s} is {v} years old.|The age of {s} is {v}.", "How old is {s}?|What is the age of {s}?",
     "Who is {v} years old?"),
    ("person", "colour", "The favourite colour of {s} is {v}.|{s} likes the colour {v} best.|{s} always wears {v}.",
     "What is the favourite colour of {s}?|Which colour does {s} like best?", ""),
    ("person", "person", "{s} is married to {v}.|{s} married {v}.", "Who is {s} married to?|Who did {s} marry?", ""),
    ("person", "company", "{s} works for {v}.|{s} works at {v}.|The employer of {s} is {v}.",
     "Who does {s} work for?|Which company does {s} work for?|Where does {s} work?", "Who works for {v}?"),
    ("person", "language", "{s} speaks {v}.|{s} is learning {v}.", "Which language does {s} speak?|What does {s} speak?",
     "Who speaks {v}?"),
    ("person", "day", "{s} visits the market on {v}.|{s} goes to the market every {v}.",
     "On which day does {s} visit the market?|When does {s} go to the market?", ""),
    ("country", "town", "The capital of {s} is {v}.|{v} is the capital of {s}.|{s} has its capital in {v}.|"
     "The capital city of {s} is called {v}.", "What is the capital of {s}?|Which town is the capital of {s}?|"
     "What is the name of the capital of {s}?", "Which country has the capital {v}?|{v} is the capital of which country?"),
    ("country", "language", "People in {s} speak {v}.|The language of {s} is {v}.|In {s}, everybody speaks {v}.",
     "Which language do people speak in {s}?|What language is spoken in {s}?|What is the language of {s}?", ""),
    ("country", "currency", "The currency of {s} is {v}.|People in {s} pay with {v}.", "What is the currency of {s}?|"
     "What do people in {s} pay with?", ""),
    ("country", "person", "The president of {s} is {v}.|{v} is the president of {s}.|{s} is ruled by {v}.",
     "Who is the president of {s}?|Who rules {s}?", "Which country is ruled by {v}?"),
    ("town", "person", "The mayor of {s} is {v}.|{v} is the mayor of {s}.|{s} has a mayor called {v}.",
     "Who is the mayor of {s}?|What is the name of the mayor of {s}?", "{v} is the mayor of which town?"),
    ("town", "number", "{s} has {v} inhabitants.|The population of {s} is {v}.|{v} people live in {s}.",
     "How many inhabitants does {s} have?|What is the population of {s}?|How many people live in {s}?", ""),
    ("town", "food", "{s} is famous for {v}.|{s} is known for its {v}.", "What is {s} famous for?|What is {s} known for?",
     "Which town is famous for {v}?"),
    ("town", "country", "{s} is a town in {v}.|{s} lies in {v}.|{s} is in the north of {v}.",
     "In which country is {s}?|Where is {s}?", ""),
    ("company", "year", "{s} was founded in {v}.|The company {s} was founded in {v}.|{s} was started in the year {v}.",
     "When was {s} founded?|In which year was {s} founded?|When was the company {s} started?", "Which company was founded in {v}?"),
    ("company", "person", "{s} was founded by {v}.|{v} founded {s}.|The founder of {s} is {v}.",
     "Who founded {s}?|Who is the founder of {s}?", "Which company did {v} found?"),
    ("company", "person", "The head of {s} is {v}.|{s} is led by {v}.|{v} runs the company {s}.",
     "Who is the head of {s}?|Who leads {s}?|Who runs {s}?", ""),
    ("company", "product", "{s} makes {v}.|The company {s} sells {v}.", "What does {s} make?|What does the company {s} sell?",
     "Who makes {v}?"),
    ("company", "town", "{s} has its office in {v}.|The company {s} is based in {v}.|The headquarters of {s} are in {v}.",
     "Where is {s} based?|Where is the office of {s}?|Where are the headquarters of {s}?", ""),
    ("company", "number", "{s} has {v} employees.|{s} employs {v} people.|{v} people work for {s}.",
     "How many employees does {s} have?|How many people does {s} employ?|How many people work for {s}?", ""),
    ("product", "price", "{s} costs {v}.|The price of {s} is {v}.|You can buy {s} for {v}.",
     "How much does {s} cost?|What is the price of {s}?|What does {s} cost?", "What costs {v}?"),
    ("product", "colour", "{s} is {v}.|The colour of {s} is {v}.|{s} is painted {v}.", "What colour is {s}?|"
     "What is the colour of {s}?|Which colour does {s} have?", ""),
    ("product", "material", "{s} is made of {v}.|{s} is built from {v}.", "What is {s} made of?|Which material is {s} made of?", ""),
    ("product", "duration", "The battery of {s} lasts {v}.|{s} runs for {v}.", "How long does the battery of {s} last?|"
     "How long does {s} run?", ""),
    ("thing", "place", "{s} is in {v}.|{s} is kept in {v}.|You can find {s} in {v}.|{s} stands behind {v}.",
     "Where is {s}?|Where is {s} kept?|Where can I find {s}?", "What is in {v}?|What is kept in {v}?"),
    ("thing", "colour", "{s} in the hall is {v}.", "What colour is {s} in the hall?", ""),
    ("thing", "person", "{s} belongs to {v}.|The owner of {s} is {v}.", "Who owns {s}?|Who does {s} belong to?|"
     "Who is the owner of {s}?", "What belongs to {v}?"),
    ("place", "time", "{s} opens at {v}.|{s} is open from {v}.", "When does {s} open?|At what time does {s} open?",
     "What opens at {v}?"),
    ("place", "time", "{s} closes at {v}.|{s} is open until {v}.", "When does {s} close?|At what time does {s} close?", ""),
    ("ship", "person", "The captain of {s} is {v}.|{s} is sailed by {v}.", "Who is the captain of {s}?|Who sails {s}?",
     "Which ship is sailed by {v}?"),
    ("ship", "town", "{s} sails to {v}.|{s} is on its way to {v}.", "Where does {s} sail to?|Where is {s} going?", ""),
    ("ship", "month", "{s} leaves in {v}.|{s} sails in {v}.", "When does {s} leave?|In which month does {s} sail?", ""),
    ("flag", "action", "The flag {s} {v}.|The option {s} {v}.|With {s}, the program {v}.",
     "What does the flag {s} do?|What does {s} do?|What does the option {s} do?", "Which flag {v}?|Which option {v}?"),
    ("function", "action", "The function {s} {v}.|Calling {s} {v}.", "What does the function {s} do?|What does {s} do?",
     "Which function {v}?"),
    ("function", "file", "The function {s} is defined in {v}.|{s} is in the file {v}.", "Where is {s} defined?|"
     "Which file defines {s}?|In which file is {s}?", ""),
    ("file", "thing", "The file {s} describes {v}.|{s} contains notes about {v}.", "What does the file {s} describe?|"
     "What does {s} contain notes about?", "Which file describes {v}?"),
    ("format", "bits", "The format {s} needs {v}.|{s} uses {v} per group.", "How much does the format {s} need?|"
     "How much does {s} use per group?", ""),
    ("flag", "number", "The default of {s} is {v}.|By default, {s} is set to {v}.", "What is the default of {s}?|"
     "To what is {s} set by default?", "Which flag has the default {v}?"),
    ("person", "number", "The phone number of {s} is {v}.|You can call {s} at {v}.", "What is the phone number of {s}?", ""),
    ("person", "code", "{s} works in room {v}.|The room of {s} is {v}.", "In which room does {s} work?|What is the room of {s}?",
     "Who works in room {v}?"),
    ("role", "person", "{s} is called {v}.|The name of {s} is {v}.", "What is the name of {s}?|What is {s} called?", ""),
    ("role", "place", "{s} is in {v}.|You can find {s} in {v}.", "Where is {s}?", "Who is in {v}?"),
    ("role", "thing", "{s} has {v}.|{s} owns {v}.", "What does {s} have?|What does {s} own?", "Who has {v}?|Who owns {v}?"),
    ("role", "phrase", "The code word of {s} is {v}.|The password for {s} is {v}.", "What is the code word of {s}?|"
     "What is the password for {s}?", ""),
    ("person", "phrase", "{s} wrote a book called {v}.|{s} is the author of {v}.", "Which book did {s} write?|"
     "What is {s} the author of?", "Who wrote {v}?|Who is the author of {v}?"),
    ("person", "phrase", "{s} said: {v}.|The last words of {s} were: {v}.", "What did {s} say?", "Who said {v}?"),
    ("town", "distance", "{s} is {v} away from the sea.|It is {v} from {s} to the sea.", "How far is {s} from the sea?|"
     "How far is it from {s} to the sea?", ""),
]
RELATIONS = [(s, v, st.split("|"), qs.split("|"), rev.split("|") if rev else []) for s, v, st, qs, rev in RELATIONS]
SUBJECT_KINDS = "person person person role country town company product thing place ship flag function file format".split()
OPEN_SUBJECTS = "person person role role country town company product thing place ship format".split()
BY_SUBJECT = {kind: [i for i, row in enumerate(RELATIONS) if row[0] == kind] for kind in SUBJECT_KINDS}

FILLERS = (
    "The weather was fine that day.|Many people know this.|It was a quiet morning.|Nobody was surprised.|"
    "This has been so for many years.|Visitors often ask about it.|The winter was long and cold.|"
    "There is more to read about this on the next page.|Everybody was happy about it.|This page was changed last week.|"
    "The rest of the story is well known.|It is a good example.|Some people think otherwise.|The road was long and dry.|"
    "This part is short.|Please read it with care.|The children played in the garden.|All of this happened long ago.|"
    "No further details are known.|The old records were lost in a fire."
).split("|")


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
        [f"{owner} {name} is {value}."] if owner else [f"The {name} of {subject} is {value}."] * 2
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
    """The sentences of `facts`, a pronoun replacing a person that the sentence before has just named."""
    told, before = [], None
    for fact in facts:
        short = fact.subject == before and fact.pronoun_text and rng.random() < 0.5
        told.append(fact.pronoun_text if short else fact.text)
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
    return [" ".join(s for group in sentences[a:b] for s in group) for a, b in zip(bounds, bounds[1:], strict=False)]


def make_quiz(words: Words, size: int, passages: int = 1, asked: int = 1, unknown: float = 0.08) -> Quiz:
    """A quiz whose context states about `size` facts, with `asked` questions, a share `unknown` of them unanswerable."""
    rng = words.rng
    groups: list[list[Fact]] = []
    kind = rng.choice(SUBJECT_KINDS)
    prefer = rng.choice(BY_SUBJECT[kind])
    left = size
    while left > 0:
        count = min(left, rng.choice((1, 1, 2, 3)))
        groups.append(_subject_facts(words, kind, count, prefer))
        left -= len(groups[-1])
        if rng.random() < 0.3:
            kind = rng.choice(SUBJECT_KINDS)
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
        return f"{rng.choice(('Tell me', 'Give me', 'I want to know'))} {question.removeprefix('What is ').removesuffix('?')}."
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
