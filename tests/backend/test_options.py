"""Merging generation options: which source wins, and what an option implies for the others."""

import pytest

from lowbit.sampling import GenerationOptions, merge


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ([], {}),
        ([None, {"seed": None}], {}),
        ([{"max_tokens": 5}, {"max_new_tokens": 3}], {"max_new_tokens": 3}),
        # a limit replaces one of the other kind from an earlier source
        ([{"max_new_tokens": 5}, {"max_length": 9}], {"max_length": 9}),
        ([{"max_length": 9}, {"max_new_tokens": 5}], {"max_new_tokens": 5}),
        ([{"max_length": 9, "max_new_tokens": 5}], {"max_length": 9, "max_new_tokens": 5}),
        # a later temperature undoes an earlier do_sample, a later top_p does not undo greedy
        ([{"do_sample": False}, {"temperature": 0.7}], {"do_sample": True, "temperature": 0.7}),
        ([{"temperature": 0}, {"top_p": 0.9}], {"do_sample": False, "temperature": 0, "top_p": 0.9}),
        ([{"stop": ["a"]}, {"stop": None}], {"stop": ["a"]}),
        ([{"stop": ["a"]}, {"stop": "b"}], {"stop": "b"}),
    ],
)
def test_merge(sources, expected):
    assert merge(*sources) == expected


def test_merging_twice_changes_nothing():
    sources = ({"temperature": 0, "max_new_tokens": 5}, {"max_length": 9, "temperature": 0.5})
    once = merge(*sources)
    assert merge(once) == once
    assert GenerationOptions.resolve(once) == GenerationOptions.resolve(*sources)


def test_unknown_names_name_the_nearest():
    with pytest.raises(TypeError, match="did you mean 'temperature'"):
        merge({"temprature": 1})
