"""docs/migration.md names what exists: every argument, key, variable and command on the page is looked up."""

import inspect
import re
from pathlib import Path

import pytest

from langchain_lowbit import (
    ChatIpexLLM,
    IpexLLM,
    IpexLLMBgeEmbeddings,
    QuantizedBgeEmbeddings,
    QuantizedBiEncoderEmbeddings,
    WeightOnlyQuantPipeline,
)
from langchain_lowbit._arguments import NO_EFFECT, split_model_kwargs
from langchain_lowbit._embedding_arguments import encode_options, loading_options
from langchain_lowbit.chat_models import _NO_SERVICE
from llama_index.embeddings.lowbit import IpexLLMEmbedding
from llama_index.llms.lowbit import IpexLLM as LlamaIpexLLM
from llama_index.llms.lowbit._arguments import template_of
from lowbit import chat_templates, cli, formats
from lowbit.options import option_names
from lowbit.replaced import REPLACED
from lowbit.runtime import GPU_ENVIRONMENT
from lowbit.sampling import OPTION_NAMES
from lowbit.tool_syntax import SYNTAXES

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
    internal = {"cancel", "suppress_tokens", "keep_tokens", "tokenizer_id", "saved_only"}
    assert set(KEYS) >= ({*OPTION_NAMES} | runtime | loading | {*NO_EFFECT}) - internal


def test_arguments_are_those_of_the_class():
    named = {name for names, _ in rows("argument") for name in names}
    constructor = {"tokenizer_id", "load_in_4bit", "load_in_low_bit"}
    assert named - constructor <= set(IpexLLM.model_fields)
    assert set(IpexLLM.model_fields) - named == {"model", "tokenizer"}


def test_arguments_of_the_chat_class_are_on_the_page():
    table = dict((names[0], (names, second)) for names, second in rows("argument of the chat class"))
    named = {name for names, _ in table.values() for name in names}
    own = set(ChatIpexLLM.__annotations__) - {"model_config"}
    assert named == own | _NO_SERVICE.keys() | {"max_new_tokens"}
    in_second = lambda name: {n for n in re.findall(r"`([\w.-]+)`", table[name][1])}  # noqa: E731
    assert in_second("template") == set(chat_templates.NAMED)
    assert in_second("tool_syntax") == {syntax.name for syntax in SYNTAXES}


def test_every_new_import_on_the_page_works():
    imports = re.findall(r"\| `(from (?:langchain_lowbit|llama_index\.\w+\.lowbit\w*) import \w+)`", PAGE)
    assert len(imports) >= 10
    for line in imports:
        exec(line, {})


def test_arguments_of_the_embedding_classes_are_on_the_page():
    named = {name for names, _ in rows("argument of an embedding class") for name in names}
    classes = (QuantizedBgeEmbeddings, QuantizedBiEncoderEmbeddings, IpexLLMBgeEmbeddings)
    constructors = [inspect.signature(cls.__init__).parameters for cls in classes[:2]]
    known = {name for parameters in constructors for name in parameters} | set(IpexLLMBgeEmbeddings.model_fields)
    assert known - {"self", "kwargs", "client"} == named


def test_arguments_of_the_other_classes_are_on_the_page():
    classes = {
        "argument of the pipeline class": (WeightOnlyQuantPipeline.from_model_id, set()),
        "argument of LlamaIndex's IpexLLM": (LlamaIpexLLM.__init__, {"self"}),
        "argument of LlamaIndex's IpexLLMEmbedding": (IpexLLMEmbedding.__init__, {"self"}),
    }
    for heading, (constructor, not_told) in classes.items():
        named = {name for names, _ in rows(heading) for name in names}
        assert named == set(inspect.signature(constructor).parameters) - not_told - {"kwargs"}, heading


def test_keys_of_tokenizer_kwargs_are_accepted():
    (second,) = (second for names, second in rows("argument of LlamaIndex's IpexLLM") if "tokenizer_kwargs" in names)
    names = re.findall(r"`(\w+)`", second.partition("ChatIpexLLM")[2])
    assert len(names) > 5
    template_of(dict.fromkeys(names))


@pytest.mark.torch
def test_arguments_of_the_auto_classes_are_on_the_page():
    from lowbit.transformers import WITHOUT_EFFECT, AutoModelForCausalLM

    named = {name for names, _ in rows("argument of `from_pretrained`") for name in names}
    parameters = set(inspect.signature(AutoModelForCausalLM.from_pretrained).parameters)
    generation = {"temperature", "max_length", "use_cache"}
    own = parameters - {"pretrained_model_name_or_path", "model_args", "kwargs"}
    assert named == own | WITHOUT_EFFECT | generation | {"speculative", "pipeline_parallel_stages"}


@pytest.mark.torch
def test_every_new_import_of_a_torch_name_works():
    imports = re.findall(r"`(from lowbit[\w.]* import [\w, ]+)`", PAGE)
    assert len(imports) >= 4
    for line in imports:
        exec(line, {})


def test_options_of_the_embedding_classes_are_accepted():
    cells = {names[0]: second for names, second in rows("argument of an embedding class")}
    for argument, accept in (("model_kwargs", loading_options), ("encode_kwargs", encode_options)):
        options = [name for name in re.findall(r"`(\w+)`", cells[argument]) if name[0].islower()]
        for name in set(options) - {"sym_int8"}:
            accept({name: None})
        assert len(options) >= 6


def test_dead_ids_on_the_page_are_replaced():
    ids = re.findall(r"`(Intel/bge-[^`]+)`", PAGE)
    assert len(ids) == 2
    for name in ids:
        assert REPLACED[name] == "BAAI/bge-small-en-v1.5"


def test_formats_and_variables_and_commands_exist():
    formats.resolve("sym_int4")
    formats.resolve("nf4")
    for setting in GPU_ENVIRONMENT:
        assert f"`{setting.name}`" in PAGE
    for command in re.findall(r"`lowbit (\w+) MODEL", PAGE):
        assert hasattr(cli, command)
