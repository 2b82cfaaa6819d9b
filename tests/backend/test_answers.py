"""Answers in their parts: thoughts, words, calls, whatever pieces they come in."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbit.answers import AnswerReader, Thought
from lowbit.tool_calls import CallReader, ToolCall, find_syntax

CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


def read(pieces, *, syntax=None, thinks=True, thinking=False):
    calls = CallReader(find_syntax(syntax), ["now"]) if syntax else None
    reader = AnswerReader(calls, thinks=thinks, thinking=thinking)
    found = [part for piece in pieces for part in reader.push(piece)] + reader.finish()
    return (
        "".join(part.text for part in found if isinstance(part, Thought)),
        "".join(part for part in found if isinstance(part, str)),
        [part.name for part in found if isinstance(part, ToolCall)],
    )


@pytest.mark.parametrize("size", [1, 2, 1000])
@pytest.mark.parametrize(
    ("text", "how", "expected"),
    [
        ("<think>\nHm, 1 < 2.\n\nSo?\n</think>\n\nYes.\n", {}, ("Hm, 1 < 2.\n\nSo?", "Yes.\n", [])),
        (" \n<think></think>Yes.", {}, ("", "Yes.", [])),
        ("<think>\n\n</think>\n\nYes.", {}, ("", "Yes.", [])),
        ("Hm.\n</think>\n\nYes.", {"thinking": True}, ("Hm.", "Yes.", [])),
        ("<think>cut off </th", {}, ("cut off </th", "", [])),
        ("<thi", {}, ("", "<thi", [])),
        ("  Yes, <think> is a mark </think>.", {}, ("", "  Yes, <think> is a mark </think>.", [])),
        ("<think>Hm.</think>Yes.", {"thinks": False}, ("", "<think>Hm.</think>Yes.", [])),
        (f"<think>\nHm.\n</think>\n\nI look.\n{CALL}", {"syntax": "hermes"}, ("Hm.", "I look.", ["now"])),
        (f"<think>{CALL}</think>\n{CALL}", {"syntax": "hermes"}, (CALL, "", ["now"])),
        ('<think>Hm.</think>\n\n{"name": "now", "arguments": {}}', {"syntax": "json"}, ("Hm.", "", ["now"])),
        ("", {"syntax": "json"}, ("", "", [])),
    ],
)
def test_parts_of_answers(text, how, expected, size):
    assert read([text[i : i + size] for i in range(0, len(text), size)], **how) == expected


@given(text=st.text(alphabet="<think>/ \nab", max_size=50), cuts=st.lists(st.integers(0, 50), max_size=5))
def test_parts_do_not_depend_on_the_pieces(text, cuts):
    text = "<think>" + text
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    for syntax in (None, "hermes"):
        assert read([text[a:b] for a, b in pairwise(edges)], syntax=syntax) == read([text], syntax=syntax)


def test_thoughts_come_as_they_are_thought():
    reader = AnswerReader(thinks=True)
    assert reader.push("<think>\nLet") == [Thought("Let")]
    assert reader.push(" me see.\n") == [Thought(" me see.")]
    assert reader.push("</think>\n\nYes") == ["Yes"]
