"""Stop strings: the streamed text equals the whole text cut at the first stop, however it is split."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbit.stop import StopMatcher
from stop_reference import cut

LETTERS = st.text("ab.*(\\é\n", max_size=30)
STOPS = st.lists(st.text("ab.*(\\é\n", min_size=1, max_size=5), max_size=4)


def pieces(text, borders):
    borders = sorted({min(b, len(text)) for b in borders})
    return [text[a:b] for a, b in zip([0, *borders], [*borders, len(text)], strict=True)]


@given(LETTERS, STOPS, st.lists(st.integers(0, 30)))
def test_any_split_gives_the_cut_text(text, stops, borders):
    expected, stopped = cut(text, stops)
    matcher = StopMatcher(stops)
    out = "".join(matcher.push(piece) for piece in pieces(text, borders))
    assert expected.startswith(out)
    assert matcher.stopped == stopped
    assert out + ("" if stopped else matcher.flush()) == expected


@given(LETTERS, STOPS)
def test_only_what_could_begin_a_stop_is_held_back(text, stops):
    matcher = StopMatcher(stops)
    out = "".join(matcher.push(c) for c in text)
    if not matcher.stopped:
        held = text[len(out) :]
        assert out + held == text
        assert held == "" or any(s.startswith(held) for s in stops)


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("What? No", ["?"], "What"),
        ("a**b", ["**"], "a"),
        ("a.b", ["."], "a"),
        ("stop", ["s"], ""),
        ("stop", ["stop"], ""),
        ("stopp", ["stopper"], "stopp"),
        ("xabcd", ["abcd", "bc"], "xa"),
        ("aab", ["ab"], "a"),
        ("a\n\nb", ["\n\n"], "a"),
    ],
)
def test_examples(text, stops, expected):
    for size in (1, 2, 3, 100):
        matcher = StopMatcher(stops)
        out = "".join(matcher.push(text[i : i + size]) for i in range(0, len(text), size))
        assert out + ("" if matcher.stopped else matcher.flush()) == expected


def test_nothing_comes_after_a_stop():
    matcher = StopMatcher(["x"])
    assert matcher.push("axb") == "a"
    assert matcher.push("more") == ""
    assert matcher.flush() == ""
