"""Conversations about tools and answers in JSON, as the demo model learns them: valid, varied, and repeatable."""

import json
import sys
from itertools import islice
from pathlib import Path
from random import Random

import pytest

DEMO = Path(__file__).parents[2] / "demo"
sys.path.insert(0, str(DEMO))

import json_text  # noqa: E402
import prompts  # noqa: E402
import text  # noqa: E402
import tool_makers  # noqa: E402
import tools_text  # noqa: E402
import words  # noqa: E402

TYPES = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list, "object": dict}


def uses(count):
    source = words.Words(Random(21))
    return [tool_makers.make_use(seed, source) for seed in range(count)]


def leaves(value):
    if isinstance(value, dict):
        return [leaf for inner in value.values() for leaf in leaves(inner)]
    return [leaf for inner in value for leaf in leaves(inner)] if isinstance(value, list) else [value]


def check(value, schema):
    assert isinstance(value, TYPES[schema["type"]]), (value, schema)
    if "enum" in schema:
        assert value in schema["enum"]
    for item in value if schema["type"] == "array" else ():
        check(item, schema["items"])
    if schema["type"] == "object":
        assert set(schema.get("required", ())) <= set(value) <= set(schema["properties"])
        for key, inner in value.items():
            check(inner, schema["properties"][key])


def test_calls_are_what_the_signature_asks_for_and_the_request_says():
    for use in uses(2000):
        check(use.arguments, use.tool["function"]["parameters"])
        for leaf in leaves(use.arguments):
            said = {True: "on", False: "off"}[leaf] if isinstance(leaf, bool) else str(leaf)
            assert said in use.request, use


def test_tools_are_many_and_of_every_kind():
    found = uses(2000)
    assert len({use.name for use in found}) > 800
    schemas = [leaf for use in found for leaf in use.tool["function"]["parameters"]["properties"].values()]
    assert {schema["type"] for schema in schemas} == set(TYPES)
    assert any("enum" in schema for schema in schemas)
    assert any(use.arguments == {} for use in found)
    assert sum(not use.request.isascii() for use in found) > 100


def test_a_seed_is_a_tool_whatever_is_asked_of_it():
    one, other = words.Words(Random(1)), words.Words(Random(2))
    pairs = [(tool_makers.make_use(seed, one), tool_makers.make_use(seed, other)) for seed in range(500)]
    assert all(a.tool == b.tool for a, b in pairs)
    assert sum(a.request != b.request for a, b in pairs) > 400


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ("It's sunny.", "It's sunny."),
        ("41", "The result is 41."),
        ('{"result": 3}', "The result is 3."),
        ("Error: Sort the list first.", "The tool failed: Sort the list first."),
    ],
)
def test_what_is_said_follows_from_the_result(result, said):
    assert tools_text.last_words(result) == said


def test_tool_documents_are_the_rendered_conversation():
    for document in islice((tools_text.tool_document(words.Words(Random(n))) for n in range(500)), 500):
        whole = "".join(piece for piece, _ in document)
        assert whole.startswith(prompts.BEGIN + prompts.SYSTEM)
        assert "Tools:\n" in document[0][0]
        if not any(role == "answer" for _, role in document):
            continue  # a forced call
        answers = [piece for piece, role in document if role == "answer"]
        assert len(answers) == whole.count(prompts.ASSISTANT)
        for answer in answers:
            assert answer.endswith(prompts.END)
            assert whole.count(prompts.ASSISTANT + answer) >= 1
            if answer.startswith("{"):
                call = json.loads(answer.removesuffix(prompts.END))
                assert f"{call['name']}(" in document[0][0]


def test_forced_calls_are_valid_and_say_nothing():
    source = words.Words(Random(22))
    for _ in range(200):
        document = tools_text.forced_document(source)
        whole = "".join(piece for piece, _ in document)
        call = json.loads(whole.removesuffix(prompts.END).rpartition(prompts.ASSISTANT)[2])
        assert f"{call['name']}(" in document[0][0]
        assert not any(leaf and leaf not in whole.partition(prompts.ASSISTANT)[0] for leaf in leaves(call["arguments"]))
        assert document[-1][1] == "value"


def test_the_evaluation_asks_for_calls_for_words_after_results_and_for_neither():
    questions = text.evaluation(seed=1, style="tools", count=300)
    assert questions == text.evaluation(seed=1, style="tools", count=300)
    calls = sum(q.answer.startswith('{"name"') for q in questions)
    results = sum(q.messages[-1]["role"] == "tool" for q in questions)
    assert min(calls, results, 300 - calls - results) > 20


def test_the_tools_of_the_standard_suite_are_not_learned_by_heart():
    trained = {use.name for use in uses(3000)}
    assert not trained & {"magic_function", "magic_function_no_args", "my_adder_tool", "unicode_customer"}


def test_json_answers_are_json_and_say_what_the_text_says():
    for number in range(800):
        document = json_text.json_document(words.Words(Random(number)))
        whole = "".join(piece for piece, _ in document)
        prompt, _, answer = whole.removesuffix(prompts.END).rpartition(prompts.ASSISTANT)
        if not answer.startswith("{"):
            assert "joke" in prompt or "funny" in prompt
            continue
        value = json.loads(answer)
        if "joke" not in prompt and "funny" not in prompt:
            assert all(str(leaf).lower() in prompt.lower() for leaf in leaves(value)), whole
        guessed = [piece for piece, role in document if role == "free" and piece.startswith(("{", ", "))]
        assert all(piece.endswith(": ") for piece in guessed)
