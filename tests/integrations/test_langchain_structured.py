"""Structured output and forced tool calls of ChatIpexLLM: a model that babbles at high temperature gives valid objects,
because it cannot do otherwise; what is cut short is an error."""

import asyncio
import json
from typing import Literal, TypedDict

import jsonschema
import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from pydantic import BaseModel, Field

from langchain_lowbit import ChatIpexLLM
from lowbit.tool_syntax import SYNTAXES
from toy import babble, text_model

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
METHODS = ("json_schema", "function_calling", "json_mode")


class Pet(BaseModel):
    """A pet."""

    kind: Literal["cat", "Käfer"]
    name: str = Field(max_length=5, description="what it is called")
    age: int | None = Field(ge=0, le=30)


class PetDict(TypedDict):
    """A pet."""

    kind: Literal["cat", "Käfer"]
    old: bool


PETS = {
    "title": "pets",
    "type": "object",
    "properties": {"pets": {"type": "array", "maxItems": 2, "items": {"enum": ["cat", "dog"]}}},
    "required": ["pets"],
}


@tool
def weather(city: Literal["Paris", "Köln"]) -> str:
    """Returns the weather of a city."""
    return "rain"


@tool
def now() -> str:
    """Returns the time."""
    return "noon"


def chat(**options) -> ChatIpexLLM:
    model = text_model(babble(2), chat_template=TEMPLATE, context=4096)
    return ChatIpexLLM(model=model, **{"temperature": 2.0, "seed": 4, "max_tokens": 500, **options})


# ---- with_structured_output ----


@pytest.mark.parametrize("method", METHODS)
def test_a_pydantic_class(method):
    structured = chat().with_structured_output(Pet, method=method)
    pet = structured.invoke("Hi")
    assert isinstance(pet, Pet)
    assert asyncio.run(structured.ainvoke("Hi")) == pet
    assert list(structured.stream("Hi"))[-1] == pet

    async def stream():
        return [part async for part in structured.astream("Hi")]

    assert asyncio.run(stream())[-1] == pet
    assert all(isinstance(each, Pet) for each in structured.batch(["a", "b", "c"]))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("schema", [PetDict, PETS], ids=["TypedDict", "JSON schema"])
def test_dictionaries(method, schema):
    structured = chat().with_structured_output(schema, method=method)
    parts = list(structured.stream("Hi"))
    assert parts[-1] == structured.invoke("Hi")
    if schema is PETS:
        jsonschema.validate(parts[-1], PETS)
        assert set(parts[-1]) == {"pets"}
    else:
        assert set(parts[-1]) == {"kind", "old"}


def test_streams_give_parts():
    properties = {name: {"type": "boolean"} for name in "ab"}
    schema = {"title": "t", "type": "object", "properties": properties, "required": ["a", "b"]}
    parts = list(chat().with_structured_output(schema).stream("Hi"))
    assert parts[0] == {}
    assert set(parts[-2]) == {"a"} or set(parts[-2]) == {"a", "b"}
    assert set(parts[-1]) == {"a", "b"}


@pytest.mark.parametrize("method", METHODS)
def test_half_an_answer_is_an_error(method):
    structured = chat().with_structured_output(Pet, method=method, max_tokens=9)
    with pytest.raises(OutputParserException, match="max_new_tokens"):
        structured.invoke("Hi")
    with pytest.raises(OutputParserException, match="max_new_tokens"):
        list(structured.stream("Hi"))
    raw = chat(max_tokens=9).with_structured_output(Pet, method=method, include_raw=True).invoke("Hi")
    assert raw["parsed"] is None
    assert isinstance(raw["parsing_error"], OutputParserException)
    assert raw["raw"].response_metadata["finish_reason"] == "length"
    whole = chat().with_structured_output(Pet, method=method, include_raw=True).invoke("Hi")
    assert isinstance(whole["parsed"], Pet)
    assert isinstance(whole["raw"], AIMessage)
    assert whole["parsing_error"] is None


def test_what_is_wrong_is_said_at_once():
    with pytest.raises(ValueError, match=r"'uniqueItems' at \$.properties.a"):
        chat().with_structured_output({"title": "t", "type": "object", "properties": {"a": {"uniqueItems": True}}})
    with pytest.raises(ValueError, match="did you mean 'json_mode'"):
        chat().with_structured_output(Pet, method="json_mod")
    with pytest.raises(ValueError, match="needs a schema"):
        chat().with_structured_output(None)


# ---- tool_choice ----


@pytest.mark.parametrize("syntax", [syntax.name for syntax in SYNTAXES])
def test_a_required_call_comes_in_every_syntax(syntax):
    model = chat(tool_syntax=syntax)
    for choice, names in {"any": {"weather", "now"}, "weather": {"weather"}, "now": {"now"}}.items():
        bound = model.bind_tools([weather, now], tool_choice=choice)
        for seed in range(4):
            answer = bound.invoke("Hi", seed=seed)
            (call,) = answer.tool_calls
            assert call["name"] in names
            assert call["args"] in ([{"city": "Paris"}, {"city": "Köln"}] if call["name"] == "weather" else [{}])
            assert (answer.content, answer.invalid_tool_calls) == ("", [])
            assert answer.response_metadata["finish_reason"] == "tool_calls"


def test_a_required_call_streams():
    whole = None
    for chunk in chat().bind_tools([weather, now], tool_choice="weather").stream("Hi"):
        whole = chunk if whole is None else whole + chunk
    assert [call["name"] for call in whole.tool_calls] == ["weather"]


def test_a_tool_that_cannot_be_enforced_is_named():
    definition = {"name": "f", "description": "", "parameters": {"type": "object", "properties": {"a": {"not": {}}}}}
    bound = chat().bind_tools([definition], tool_choice="f")
    with pytest.raises(ValueError, match=r"tool 'f' cannot be enforced: .*'not' at \$.properties.a"):
        bound.invoke("Hi")


def test_an_agent_answers_with_an_object():
    agent = create_agent(chat(), tools=[], response_format=ToolStrategy(Pet))
    assert isinstance(agent.invoke({"messages": "Hi"})["structured_response"], Pet)


# ---- response_format, as OpenAI's clients and LangChain's ProviderStrategy write it ----


@pytest.mark.parametrize("given", [PETS, {"type": "json_schema", "json_schema": {"name": "pets", "schema": PETS}}])
def test_a_response_format_is_enforced(given):
    for content in (
        chat().invoke("Hi", response_format=given).content,
        "".join(chunk.content for chunk in chat(seed=5).stream("Hi", response_format=given)),
    ):
        jsonschema.validate(json.loads(content), PETS)


def test_other_response_formats():
    plain = chat(max_tokens=5)
    assert plain.invoke("Hi", response_format={"type": "text"}).content == plain.invoke("Hi").content
    assert plain.invoke("Hi", response_format={"type": "json_object"}).content.startswith("{")
    assert Pet.model_validate_json(chat().invoke("Hi", response_format=Pet).content)
    with pytest.raises(ValueError, match="did you mean 'json_schema'"):
        plain.invoke("Hi", response_format={"type": "json_shema"})


def test_an_agent_with_the_providers_strategy():
    agent = create_agent(chat(), [], response_format=ProviderStrategy(Pet))
    assert isinstance(agent.invoke({"messages": [("user", "Hi")]})["structured_response"], Pet)
    with_tools = create_agent(chat(), [now], response_format=ProviderStrategy(Pet))
    with pytest.raises(ValueError, match=r"can call no tools.*ToolStrategy"):
        with_tools.invoke({"messages": [("user", "Hi")]})
