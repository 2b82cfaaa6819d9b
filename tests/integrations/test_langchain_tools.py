"""Tools of ChatIpexLLM: definitions into the prompt, calls out of the answer, results back, and LangGraph's agents.

The model is scripted: it calls what a table says after what it reads, in the syntax at hand.
"""

import itertools
import json
from typing import Annotated, TypedDict

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.output_parsers import PydanticToolsParser
from langchain_core.tools import StructuredTool, tool
from pydantic import BaseModel, Field

import toy
from langchain_lowbit import ChatIpexLLM
from lowbit.tool_calls import find_syntax

KNOWS_TOOLS = (
    "{% if tools %}[tools]{{ tools | tojson }}</s>{% endif %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>\n{{ c.function | tojson }}\n</tool_call>{% endfor %}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
KNOWS_NONE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def scripted(answers, template=KNOWS_TOOLS):
    """A text model that gives the first answer whose key is in the last turn of its prompt.

    A prompt is prefilled in parts, so some calls see half a turn; what they get is used by nobody.
    """

    def logits(ids):
        before, _, said = bytes(i for i in ids if i < 256).rpartition(b"[assistant]")
        last = before.decode().rpartition("[")[2]
        answer = next((answer for key, answer in answers.items() if key in last), f"no answer to {last}")
        answer = answer.encode()
        return toy.favour(answer[len(said)] if len(said) < len(answer) else toy.EOS)

    return toy.text_model(logits, chat_template=template, context=4096)


def written(name, syntax="hermes", **arguments):
    return find_syntax(syntax).write(name, json.dumps(arguments, ensure_ascii=False))


@tool
def population(city: str) -> int:
    """Returns how many people live in a city."""
    return {"Mellport": 4100, "Quonda": 900}[city]


@tool
def add(a: int, b: int) -> int:
    """Returns the sum of two numbers."""
    return a + b


def prompt_of(chat, messages):
    seen = []
    generator = chat.bound.model.generator
    start = generator.start
    generator.start = lambda requests, **kw: (
        seen.append(chat.bound.model.decode(requests[0].prompt)) or start(requests, **kw)
    )
    chat.invoke(messages)
    generator.start = start
    return seen[0]


class Multiply(BaseModel):
    """Multiplies."""

    a: int = Field(description="first")
    b: int = 2


class Divide(TypedDict):
    """Divides."""

    a: Annotated[int, ..., "first"]


def greet(name: str) -> str:
    """Greets somebody.

    Args:
        name: of whom
    """
    return f"Hello {name}"


def test_every_kind_of_definition_reaches_the_template():
    chat = ChatIpexLLM(model=scripted({"": "ok"}))
    schema = {"title": "Ask", "description": "Asks.", "type": "object", "properties": {"q": {"type": "string"}}}
    tools = [population, Multiply, Divide, greet, schema, StructuredTool.from_function(greet, name="welcome")]
    prompt = prompt_of(chat.bind_tools(tools), "Hi")
    definitions = json.loads(prompt.partition("[tools]")[2].partition("[user]")[0])
    assert [d["function"]["name"] for d in definitions] == [
        "population",
        "Multiply",
        "Divide",
        "greet",
        "Ask",
        "welcome",
    ]
    assert definitions[1]["function"]["parameters"]["properties"]["a"] == {"description": "first", "type": "integer"}
    assert definitions[3]["function"]["description"] == "Greets somebody."


@pytest.mark.parametrize("syntax", ["hermes", "mistral", "llama-3", "chatglm", "json"])
async def test_calls_come_out_of_the_answer(syntax):
    answer = written("population", syntax, city="Mellport 你")
    chat = ChatIpexLLM(model=scripted({"": answer}), tool_syntax=syntax).bind_tools([population])
    told = [chat.invoke("How many?"), await chat.ainvoke("How many?")]
    for stream in ([c for c in chat.stream("How many?")], [c async for c in chat.astream("How many?")]):
        whole = stream[0]
        for chunk in stream[1:]:
            whole += chunk
        told.append(whole)
    for message in told:
        assert message.content == ""
        (call,) = message.tool_calls
        assert (call["name"], call["args"], call["type"]) == ("population", {"city": "Mellport 你"}, "tool_call")
        assert message.response_metadata["finish_reason"] == "tool_calls"
        assert message.content_blocks[0]["type"] == "tool_call"
    assert len({message.tool_calls[0]["id"] for message in told}) == 4


def test_words_stream_before_a_call():
    answer = "Let me look that up.\n" + written("population", city="Quonda") + written("add", a=1, b=2)
    chat = ChatIpexLLM(model=scripted({"": answer})).bind_tools([population, add])
    chunks = list(chat.stream("How many?"))
    assert "".join(c.content for c in chunks) == "Let me look that up."
    assert [c.content for c in chunks[:3]] == ["L", "e", "t"]
    calls = [call for c in chunks for call in c.tool_call_chunks]
    assert [(c["name"], c["index"]) for c in calls if c["name"]] == [("population", 0), ("add", 1)]
    assert [c["id"] is None for c in calls] == [c["name"] is None for c in calls]
    assert "".join(c["args"] for c in calls) == '{"city": "Quonda"}{"a": 1, "b": 2}'
    message = chat.invoke("How many?")
    assert [c["name"] for c in message.tool_calls] == ["population", "add"]
    assert message.content == "Let me look that up."


@pytest.mark.parametrize("syntax", ["hermes", "mistral", "mistral-11", "llama-3", "chatglm", "json"])
def test_arguments_stream_and_add_up_to_the_message(syntax):
    """Chunk by chunk the arguments grow, as LangChain's partial objects; the sum is what `invoke` returns."""
    answer = written("population", syntax, city='Mell "port" 你\\', n=[1.5, None])
    chat = ChatIpexLLM(model=scripted({"": answer}), tool_syntax=syntax).bind_tools([population])
    chunks = list(chat.stream("How many?"))
    seen = [call["args"] for chunk in itertools.accumulate(chunks) for call in chunk.tool_calls]
    assert {} in seen
    assert any(args.get("city", "").startswith("Mell") and "n" not in args for args in seen)
    *_, whole = itertools.accumulate(chunks)
    message = chat.invoke("How many?")
    assert [(c["name"], c["args"]) for c in whole.tool_calls] == [(c["name"], c["args"]) for c in message.tool_calls]
    assert whole.tool_calls[0]["args"] == {"city": 'Mell "port" 你\\', "n": [1.5, None]}
    assert len({c["id"] for chunk in chunks for c in chunk.tool_call_chunks if c["id"]}) == 1
    # Characters outside the basic plane apart: each byte of a character is a token of the toy model.
    assert sum(len(chunk.tool_call_chunks) for chunk in chunks) >= len(json.dumps(whole.tool_calls[0]["args"])) - 8


def test_half_a_call_is_never_a_call_of_a_stream():
    """LangChain completes half an object; a call cut by the token limit must not be run with what it has by then."""
    answer = written("population", city='a\\"b', n={"x": [1]})
    for limit in range(answer.index("{", 20) + 1, answer.rindex("}")):
        chat = ChatIpexLLM(model=scripted({"": answer}), max_tokens=limit).bind_tools([population])
        *_, whole = itertools.accumulate(chat.stream("How many?"))
        assert (whole.tool_calls, chat.invoke("How many?").tool_calls) == ([], []), answer[:limit]
        assert [c["name"] for c in whole.invalid_tool_calls] == ["population"]


def test_a_tool_of_a_schema_streams_partial_objects():
    chat = ChatIpexLLM(model=scripted({"": written("Multiply", a=12, b=7)}))
    chain = chat.bind_tools([Multiply]) | PydanticToolsParser(tools=[Multiply], first_tool_only=True)
    assert chain.invoke("?") == Multiply(a=12, b=7)
    seen = [m for m in chain.stream("?") if m is not None]
    assert seen[0] == Multiply(a=1, b=2)  # as much as is written of the first, the default of the second
    assert seen[-1] == Multiply(a=12, b=7)


@pytest.mark.parametrize("syntax", ["hermes", "mistral", "mistral-11", "llama-3", "json"])
async def test_parallel_calls_can_be_refused(syntax):
    both = written("add", syntax, a=1, b=2) + "\n" + written("add", syntax, a=3, b=4)
    model = scripted({"": both})
    chat = ChatIpexLLM(model=model, tool_syntax=syntax)
    several, one = (chat.bind_tools([add], parallel_tool_calls=value) for value in (True, False))
    assert [c["args"]["a"] for c in several.invoke("?").tool_calls] == [1, 3]
    *_, streamed = itertools.accumulate(one.stream("?"))
    for message in (one.invoke("?"), await one.ainvoke("?"), streamed):
        assert [c["args"] for c in message.tool_calls] == [{"a": 1, "b": 2}]
        assert (message.invalid_tool_calls, message.content) == ([], "")
        assert message.response_metadata["finish_reason"] == "tool_calls"
    if find_syntax(syntax).closing:  # the answer ends there: no time goes into what would be dropped
        assert one.invoke("?").usage_metadata["output_tokens"] < len(both) - 30


@pytest.mark.parametrize(
    "answer",
    [
        '<tool_call>{"name": "add", "arguments": {"a": 1,,}}</tool_call>',
        '<tool_call>{"name": "add", "arguments": {"a": 1',  # the limit came first
        '<tool_call>{"name": "add", "arguments": 3}</tool_call>',
    ],
)
def test_what_cannot_be_read_is_an_invalid_call(answer):
    chat = ChatIpexLLM(model=scripted({"": answer}), max_tokens=len(answer)).bind_tools([add])
    message = chat.invoke("1 + 2?")
    (call,) = message.invalid_tool_calls
    assert (call["name"], message.tool_calls, message.content) == ("add", [], "")
    assert call["error"]
    whole = None
    for chunk in chat.stream("1 + 2?"):
        whole = chunk if whole is None else whole + chunk
    assert [c["name"] for c in whole.invalid_tool_calls] == ["add"]
    assert whole.tool_calls == []


def test_without_tools_an_answer_is_what_it_says():
    answer = written("add", a=1, b=2)
    assert ChatIpexLLM(model=scripted({"": answer})).invoke("x").content == answer
    none = ChatIpexLLM(model=scripted({"": answer})).bind_tools([add], tool_choice="none")
    assert none.invoke("x").content == answer
    assert "[tools]" not in prompt_of(none, "x")


def test_results_go_back_into_the_template():
    chat = ChatIpexLLM(model=scripted({"": "ok"})).bind_tools([add])
    called = AIMessage("", tool_calls=[{"name": "add", "args": {"a": 1, "b": 2}, "id": "x"}])
    prompt = prompt_of(chat, [HumanMessage("1 + 2?"), called, ToolMessage("3", tool_call_id="x")])
    assert prompt.endswith(
        '[user]1 + 2?[assistant]<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
        "[tool]3[assistant]"
    )


def test_anthropics_results_are_parts_of_the_users_message():
    chat = ChatIpexLLM(model=scripted({"": "ok"})).bind_tools([add])
    use = {"type": "tool_use", "id": "x", "name": "add", "input": {"a": 1, "b": 2}}
    called = AIMessage([use], tool_calls=[{"name": "add", "args": {"a": 1, "b": 2}, "id": "x"}])
    result = {"type": "tool_result", "tool_use_id": "x", "content": [{"type": "text", "text": "3"}]}
    prompt = prompt_of(chat, [called, HumanMessage([result, {"type": "text", "text": "And?"}])])
    assert prompt.endswith("</tool_call>[tool]3[user]And?[assistant]")
    assert prompt_of(chat, [called, HumanMessage([result])]).endswith("</tool_call>[tool]3[assistant]")


def test_a_wrong_choice_is_refused_when_it_is_bound():
    chat = ChatIpexLLM(model=scripted({"": "ok"}))
    with pytest.raises(ValueError, match="did you mean 'population'"):
        chat.bind_tools([population], tool_choice="populaton")


QUESTION = "How many people live in Mellport and Quonda together?"


@pytest.mark.parametrize(("template", "syntax"), [(KNOWS_TOOLS, "hermes"), (KNOWS_NONE, "json")])
async def test_an_agent_finishes_a_task_of_two_tools(template, syntax):
    """LangGraph's agent: two calls at once, then one over their results, then the answer in words."""
    both = [written("population", syntax, city=city) for city in ("Mellport", "Quonda")]
    # The two results are one turn of the user where the template knows no tools, two turns where it does.
    second_result = "tool]900" if template == KNOWS_TOOLS else "population: 900"
    model = scripted(
        {
            QUESTION: "\n".join(both),
            second_result: written("add", syntax, a=4100, b=900),
            "5000": "Together 5000 people live there.",
        },
        template,
    )
    agent = create_agent(ChatIpexLLM(model=model), [population, add], system_prompt="Use the tools.")
    for state in (
        agent.invoke({"messages": [("user", QUESTION)]}),
        await agent.ainvoke({"messages": [("user", QUESTION)]}),
    ):
        messages = state["messages"]
        assert [m.type for m in messages] == ["human", "ai", "tool", "tool", "ai", "tool", "ai"]
        assert [m.content for m in messages if m.type == "tool"] == ["4100", "900", "5000"]
        assert messages[-1].content == "Together 5000 people live there."


async def test_an_agent_streams_tokens_and_calls():
    model = scripted({"1 + 2": written("add", a=1, b=2), "tool]3": "It is 3."})
    agent = create_agent(ChatIpexLLM(model=model), [add])
    words, calls = [], []
    async for chunk, about in agent.astream({"messages": [("user", "1 + 2?")]}, stream_mode="messages"):
        if about["langgraph_node"] == "model":
            words.append(chunk.content)
            calls += chunk.tool_call_chunks
    assert "".join(words) == "It is 3."
    assert len(words) > 5
    assert [c["name"] for c in calls if c["name"]] == ["add"]
    assert "".join(c["args"] for c in calls) == '{"a": 1, "b": 2}'
    assert len(calls) > 10
