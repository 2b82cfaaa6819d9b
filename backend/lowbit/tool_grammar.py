"""The grammar of an answer that is one call of a tool, in a model's own syntax: what enforces a tool_choice."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lowbit.grammar import embedded_schema
from lowbit.json_schemas import close_objects, read_schema
from lowbit.tokenizer import Tokenizer
from lowbit.tool_syntax import ToolSyntax

_ARGUMENTS = "\0"  # stands for the arguments in a syntax's form


def one_call(tools: Sequence[Mapping[str, Any]], syntax: ToolSyntax, tokenizer: Tokenizer) -> str:
    """Returns a Lark grammar (option `grammar`) of one call of one of some tools, with arguments of its schema.

    tools: OpenAI's definitions, or their "function" parts. Arguments hold what the schema names and nothing else, where
    it says nothing about other keys. Raises ValueError naming the tool and the keyword that cannot be enforced.
    """
    rules = []
    for n, tool in enumerate(tools):
        function = tool.get("function", tool)
        try:
            schema = read_schema(function.get("parameters") or {"type": "object", "properties": {}})
        except ValueError as error:
            raise ValueError(f"a call of tool {function['name']!r} cannot be enforced: {error}") from None
        before, _, after = syntax.write(function["name"], _ARGUMENTS).partition(_ARGUMENTS)
        parts = [*_literals(before, syntax, tokenizer), f"arguments{n}", *_literals(after, syntax, tokenizer)]
        rules += [f"call{n}: {' '.join(parts)}", f"arguments{n}: %json {embedded_schema(close_objects(schema))}"]
    start = " | ".join(f"call{n}" for n in range(len(tools)))
    return "\n".join([f"start: {start}", *rules])


def _literals(text: str, syntax: ToolSyntax, tokenizer: Tokenizer) -> list[str]:
    """The terms of a literal text; marks that are special tokens by their ids, for they have no text of their own."""
    marks = {mark: i for mark in syntax.tokens if (i := tokenizer.id(mark)) in tokenizer.special_ids}
    parts = re.split("|".join(f"({re.escape(mark)})" for mark in marks), text) if marks else [text]
    return [f"<[{marks[part]}]>" if part in marks else json.dumps(part) for part in parts if part]
