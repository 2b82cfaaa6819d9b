"""docs/migration.md names what exists: every argument, key, variable and command on the page is looked up."""

import re
from pathlib import Path

import pytest

from langchain_lowbit import IpexLLM
from langchain_lowbit._arguments import NO_EFFECT, split_model_kwargs
from lowbit import cli, formats
from lowbit.options import option_names
from lowbit.runtime import GPU_ENVIRONMENT
from lowbit.sampling import OPTION_NAMES

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "migration.md").read_text(encoding="utf-8")


def rows(heading):
    """Returns the (names in the first cell, second cell) pairs of the table whose head begins with `heading`."""
    table = PAGE.split(f"| {heading} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    cells = [row.strip("| ").split(" | ") for row in table]
    return [(re.findall(r"`(\w+)`", first), second) for first, second in cells]


KEYS = [name for names, _ in rows("key of `model_kwargs`") for name in names]


@pytest.mark.parametrize("name", KEYS)
def test_keys_of_model_kwargs_are_accepted(name):
    split_model_kwargs({name: None})


def test_no_key_is_forgotten():
    runtime, loading = option_names()
    internal = {"cancel", "suppress_tokens", "tokenizer_id", "saved_only"}
    assert set(KEYS) >= ({*OPTION_NAMES} | runtime | loading | {*NO_EFFECT}) - internal


def test_arguments_are_those_of_the_class():
    named = {name for names, _ in rows("argument") for name in names}
    constructor = {"tokenizer_id", "load_in_4bit", "load_in_low_bit"}
    assert named - constructor <= set(IpexLLM.model_fields)
    assert set(IpexLLM.model_fields) - named == {"model", "tokenizer"}


def test_formats_and_variables_and_commands_exist():
    formats.resolve("sym_int4")
    formats.resolve("nf4")
    for setting in GPU_ENVIRONMENT:
        assert f"`{setting.name}`" in PAGE
    for command in re.findall(r"`lowbit (\w+) MODEL", PAGE):
        assert hasattr(cli, command)
