"""The grammar of a required call, where its marks are special tokens of the vocabulary and where they are text."""

import json

import numpy as np
from tokenizers import AddedToken

from lowbit.grammar import compile_constraint
from lowbit.tool_calls import find_syntax
from lowbit.tool_grammar import one_call
from toy import EOS, VOCAB, byte_tokenizer

ADD = {"type": "function", "function": {"name": "add", "parameters": {
    "type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"],
}}}  # fmt: skip


def test_special_marks_are_their_tokens():
    tokenizer = byte_tokenizer()
    tokenizer.backend.add_special_tokens([AddedToken("[TOOL_CALLS]", special=True), AddedToken("[ARGS]", special=True)])
    tokenizer.special_ids |= {VOCAB, VOCAB + 1}
    grammar = one_call([ADD], find_syntax("mistral-11"), tokenizer)
    guide = compile_constraint("grammar", grammar, tokenizer, VOCAB + 2).guide([EOS])
    text = [VOCAB, *b"add", VOCAB + 1, *b'{"a":2}', EOS]
    for n, token in enumerate(text):
        words = guide(np.array(text[:n], np.int32))
        assert words[token // 32] >> token % 32 & 1, n
    guide(np.array([], np.int32))
    words = guide(np.array(text[:0], np.int32))
    assert not words[ord("[") // 32] >> ord("[") % 32 & 1  # the letters of the mark are not the mark


def test_marks_that_are_text_are_written():
    tokenizer = byte_tokenizer()
    grammar = one_call([ADD, {"name": "now"}], find_syntax("hermes"), tokenizer)
    constraint = compile_constraint("grammar", grammar, tokenizer, VOCAB)
    call = '<tool_call>\n{"name": "add", "arguments": ' + json.dumps({"a": 1}, indent=2) + "}\n</tool_call>"
    assert constraint.matches(call)
    assert constraint.matches('<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>')
    assert not constraint.matches(call.replace("1", "3"))
    assert not constraint.matches(call.replace("add", "now"))
    assert not constraint.matches(call.replace('"a": 1', '"a": 1, "b": 1'))
