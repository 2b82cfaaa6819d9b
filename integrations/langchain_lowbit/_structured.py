"""Structured output of ChatIpexLLM: a schema of any kind becomes the answer's grammar, and a parser reads the answer.

The parsers are LangChain's own, with one difference: an answer that was cut short is an error, also at the end of a
stream.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from operator import itemgetter
from typing import Any

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.output_parsers import (
    JsonOutputKeyToolsParser,
    JsonOutputParser,
    PydanticOutputParser,
    PydanticToolsParser,
)
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.runnables import Runnable, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass

from lowbit.grammar import UnfinishedError, check_finished
from lowbit.json_schemas import close_objects, read_schema
from lowbit.runtime import nearest

METHODS = ("json_schema", "function_calling", "json_mode")


def structured_output(
    model: BaseChatModel,
    schema: Mapping[str, Any] | type,
    method: str,
    include_raw: bool,
    strict: bool | None,
    options: Mapping[str, Any],
) -> Runnable[Any, Any]:
    """Returns a chat model bound to a schema, with the parser behind it. `ChatIpexLLM.with_structured_output` has the
    meanings and errors."""
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}{nearest(str(method), METHODS)} Methods: {', '.join(METHODS)}")
    if schema is None:
        raise ValueError("with_structured_output needs a schema: a pydantic class, a TypedDict or a JSON schema")
    pydantic_class: Any = schema if isinstance(schema, type) and is_basemodel_subclass(schema) else None
    trace = {"ls_structured_output_format": {"kwargs": {"method": method}, "schema": schema}}
    bound: Runnable[Any, Any]
    parser: Runnable[Any, Any]
    if method == "function_calling":
        name = convert_to_openai_tool(schema)["function"]["name"]  # type: ignore[arg-type]
        bound = model.bind_tools([schema], tool_choice=name, strict=strict, **trace, **options)  # type: ignore[list-item]
        if pydantic_class:
            parser = WholePydanticTool(tools=[pydantic_class], first_tool_only=True)
        else:
            parser = WholeTool(key_name=name, first_tool_only=True)
    else:
        bound = model.bind(json_schema=json_schema(schema), **trace, **options)
        parser = WholePydantic(pydantic_object=pydantic_class) if pydantic_class else WholeJson()
    if not include_raw:
        return bound | parser
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return {"raw": bound} | parsed.with_fallbacks([failed], exception_key="parsing_error")  # type: ignore[return-value]


def json_schema(schema: Mapping[str, Any] | type) -> dict[str, Any]:
    """Returns the JSON schema of a pydantic class, TypedDict, JSON schema or tool definition; its objects hold what it
    names and nothing else, unless it says so. Raises ValueError naming a keyword that cannot be enforced."""
    if isinstance(schema, Mapping) and not schema.keys() & {"parameters", "function", "input_schema"}:
        return close_objects(read_schema(schema))
    if hasattr(schema, "model_json_schema"):
        return read_schema(schema)
    return close_objects(read_schema(convert_to_openai_tool(schema)["function"]["parameters"]))  # type: ignore[arg-type]


def options_of(response_format: Mapping[str, Any] | type | None) -> dict[str, Any]:
    """Returns the options that OpenAI's `response_format` means: a dictionary with the type "text", "json_object" or
    "json_schema", or a schema itself. Raises ValueError for another type, with the nearest."""
    if response_format is None:
        return {}
    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    if kind in ("text", "json_object"):
        return {} if kind == "text" else {"json_schema": {"type": "object"}}
    if kind == "json_schema" and isinstance(response_format, Mapping):
        return {"json_schema": json_schema(response_format["json_schema"]["schema"])}
    if isinstance(response_format, Mapping) and not response_format.keys() & {"properties", "parameters", "$ref"}:
        kinds = ("text", "json_object", "json_schema")
        raise ValueError(f"unknown response_format {kind!r}{nearest(str(kind), kinds)} Types: {', '.join(kinds)}.")
    return {"json_schema": json_schema(response_format)}


class _Whole:
    """Before a parser: refuses the answer of a model that was cut short."""

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        if not partial and isinstance(result[0], ChatGeneration):
            _check(result[0].message.response_metadata.get("finish_reason"))
        return super().parse_result(result, partial=partial)  # type: ignore[misc]

    def _transform(self, input: Iterator[str | BaseMessage]) -> Iterator[Any]:
        watch = _Watch()
        yield from super()._transform(watch.each(input))  # type: ignore[misc]
        _check(watch.finish_reason)

    async def _atransform(self, input: AsyncIterator[str | BaseMessage]) -> AsyncIterator[Any]:
        watch = _Watch()
        async for parsed in super()._atransform(watch.aeach(input)):  # type: ignore[misc]
            yield parsed
        _check(watch.finish_reason)


class _Watch:
    """Passes the chunks of an answer on; keeps its finish reason."""

    finish_reason: str | None = None

    def each(self, chunks: Iterator[Any]) -> Iterator[Any]:
        for chunk in chunks:
            self._note(chunk)
            yield chunk

    async def aeach(self, chunks: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for chunk in chunks:
            self._note(chunk)
            yield chunk

    def _note(self, chunk: Any) -> None:
        if isinstance(chunk, BaseMessage):
            self.finish_reason = chunk.response_metadata.get("finish_reason", self.finish_reason)


def _check(finish_reason: str | None) -> None:
    try:
        check_finished("stop" if finish_reason in (None, "tool_calls") else finish_reason, True)
    except UnfinishedError as error:
        raise OutputParserException(str(error)) from error


class WholeJson(_Whole, JsonOutputParser):
    """Reads JSON; partial objects while it streams."""


class WholePydantic(_Whole, PydanticOutputParser[Any]):
    """Reads an instance of a pydantic class; while it streams, from when what is there is one."""


class WholeTool(_Whole, JsonOutputKeyToolsParser):
    """Reads the arguments of a call."""


class WholePydanticTool(_Whole, PydanticToolsParser):
    """Reads the arguments of a call as an instance of a pydantic class."""
