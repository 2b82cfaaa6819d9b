"""The generators behind the demo model: repeatable, consistent, and honest about what is held out."""

import json
import re
import sys
from itertools import islice
from pathlib import Path
from random import Random

import jinja2
import pytest

DEMO = Path(__file__).parents[2] / "demo"
sys.path.insert(0, str(DEMO))

import facts  # noqa: E402
import prompts  # noqa: E402
import stories  # noqa: E402
import text  # noqa: E402
import tools_text  # noqa: E402
import words  # noqa: E402

STYLES = ["chat", *prompts.STYLES]


def flat(document):
    return "".join(piece for piece, _ in document)


def test_documents_depend_only_on_the_seed():
    first = list(islice(text.documents(seed=7), 300))
    assert first == list(islice(text.documents(seed=7), 300))
    assert first != list(islice(text.documents(seed=8), 300))


def test_documents_begin_once_and_end_with_an_end_token():
    for document in islice(text.documents(seed=3), 1000):
        whole = flat(document)
        assert whole.startswith(prompts.BEGIN)
        assert whole.count(prompts.BEGIN) == 1
        assert whole.endswith((prompts.END, prompts.END_OF_TEXT))
        assert {role for _, role in document} <= {"story", "context", "question", "answer", "value", "free"}


def test_text_is_ascii_without_unfilled_slots_or_doubled_blanks():
    for document in islice(text.documents(seed=5), 2000):
        whole = flat(document)
        if "Tools:" in whole:
            continue  # tools are told of in braces, and called with names of any script
        assert whole.isascii()
        assert not re.search(r"\{\w*\}", whole), whole
        assert "  " not in whole, whole


def test_later_stages_bring_longer_documents():
    short = [len(flat(d)) for d in islice(text.documents(seed=1, stage=0.0), 500)]
    long = [len(flat(d)) for d in islice(text.documents(seed=1, stage=1.0), 500)]
    assert sum(long) > 1.2 * sum(short)


@pytest.mark.parametrize("style", STYLES)
def test_answers_occur_in_their_context(style):
    for question in text.evaluation(seed=1, style=style, count=400):
        assert question.context in question.prompt
        if question.answer == facts.UNKNOWN:
            continue
        phrase = question.answer.removesuffix(".")
        # only the first letter may differ: "The Tazo lamp costs 5 euros." answers "the Tazo lamp."
        assert phrase in question.context or phrase[:1].upper() + phrase[1:] in question.context


@pytest.mark.parametrize("style", STYLES)
def test_evaluation_is_repeatable_and_mostly_answerable(style):
    questions = text.evaluation(seed=4, style=style, count=500)
    assert questions == text.evaluation(seed=4, style=style, count=500)
    assert questions != text.evaluation(seed=5, style=style, count=500)
    assert 0.04 < sum(q.answer == facts.UNKNOWN for q in questions) / 500 < 0.12


def test_a_question_has_one_answer_in_its_context():
    source = words.Words(Random(11))
    for _ in range(500):
        quiz = facts.make_quiz(source, 8, passages=2, asked=4)
        answers = dict(quiz.questions)
        assert all(answers[q] == a for q, a in quiz.questions)


def test_matching_quizzes_ask_for_subjects_among_like_facts():
    source = words.Words(Random(13))
    backwards = total = 0
    for size in range(2, 12):
        for _ in range(20):
            quiz = facts.make_matching(source, size, passages=2)
            context = " ".join(quiz.passages)
            asked = [question for question, _ in quiz.questions]
            assert len(asked) == len(set(asked))
            for _, answer in quiz.questions:
                at = context.lower().index(answer.removesuffix(".").lower())
                backwards += at == 0 or context[:at].endswith((". ", "\n"))
                total += 1
    assert backwards > 0.25 * total  # by the share alone of questions whose answer begins a sentence


def test_unanswerable_questions_come_as_often_as_asked_for_and_never_twice():
    source = words.Words(Random(12))
    seen = 0
    for _ in range(300):
        quiz = facts.make_quiz(source, 4, asked=3, unknown=0.5)
        asked = {q: a for q, a in quiz.questions}
        assert len(asked) == len(quiz.questions)
        seen += sum(a == facts.UNKNOWN for a in asked.values())
    assert seen > 200


def test_held_out_names_never_occur_in_training():
    train, held = words.Words(Random(1)), words.Words(Random(1), held_out=True)
    trained = {train.invented() for _ in range(3000)}
    reserved = {held.invented() for _ in range(3000)}
    assert not trained & reserved
    assert all(words.is_held_out(name) for name in reserved)
    seen = " ".join(flat(d) for d in islice(text.documents(seed=2), 1500))
    seen = set(re.findall(r"[A-Za-z]+", seen))
    assert not {n for n in reserved if len(n) > 6} & seen


def test_stories_are_about_who_was_asked_for():
    for number, kind in enumerate(["fox", "owl", "girl"] * 30):
        story = stories.make_story(Random(number), kind)
        assert f" {kind} " in story.replace(",", " ").replace(".", " ") or kind == "girl"
        assert story.startswith(("Once", "One day", "There once", "Long ago"))
        assert 250 < len(story) < 1500
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", story), story


def test_chat_template_and_render_chat_agree():
    template = jinja2.Environment().from_string(prompts.CHAT_TEMPLATE)
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": " Hello! \n"},
        {"role": "assistant", "content": "Hello! How can I help you?"},
        {"role": "user", "content": "What is AI?"},
    ]
    for add in (True, False):
        rendered = template.render(messages=messages, add_generation_prompt=add, bos_token=prompts.BEGIN)
        assert rendered == prompts.BEGIN + prompts.render_chat(messages, add)
        assert rendered.endswith(prompts.ASSISTANT if add else prompts.END)


def test_chat_template_and_render_chat_agree_about_tools():
    environment = jinja2.Environment()
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    template = environment.from_string(prompts.CHAT_TEMPLATE)
    for question in tools_text.tool_evaluation(seed=3, count=300):
        shown = {"messages": question.messages, "tools": question.tools, "bos_token": prompts.BEGIN}
        rendered = template.render(**shown, add_generation_prompt=True)
        assert rendered == prompts.BEGIN + prompts.render_chat(question.messages, tools=question.tools)


def test_committed_tokenizer_carries_the_same_template():
    folder = DEMO / "model"
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["chat_template"] == prompts.CHAT_TEMPLATE
