"""LlamaIndex's IpexLLM with tools: its methods and a function agent, on a model that follows a script."""

import json
import logging

import pytest
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ToolCallResult
from llama_index.core.base.llms.types import ToolCallBlock
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool

from llama_index.llms.lowbit import IpexLLM
from toy import BOS, EOS, babble, favour, text_model

# LlamaIndex's workflows look at every attribute of an agent, the deprecated ones of pydantic too.
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")

# Written as models are trained on it (Hermes): tools and calls in tags, results as turns of their own.
TEMPLATE = """{{ bos_token }}{% if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}{% for m in messages -%}
[{{ m.role }}]{{ m.content }}{% for c in m.tool_calls or [] -%}
<tool_call>{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}</tool_call>
{%- endfor %}{% endfor %}[assistant]"""


def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


def multiply(a: int, b: int) -> int:
    """Multiplies two numbers."""
    return a * b


TOOLS = [FunctionTool.from_defaults(fn=add), FunctionTool.from_defaults(fn=multiply)]


def call(name, **arguments):
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def scripted(reply, template=TEMPLATE, **options):
    """An LLM whose answer to a conversation is reply(its text)."""

    def logits(ids):
        before, _, said = bytes(i for i in ids if i not in (BOS, EOS)).decode().rpartition("[assistant]")
        rest = reply(before).encode()[len(said.encode()) :]
        return favour(rest[0] if rest else EOS)

    return IpexLLM(model=text_model(logits, chat_template=template, context=8192), **options)


def sum_then_product(before):
    """Calls add, then multiply with its result, then answers."""
    if "[tool]42" in before:
        return "It is 42."
    if "[tool]6" in before:
        return call("multiply", a=6, b=7)
    return "Let me see. " + call("add", a=2, b=4)


def both(before):
    return call("add", a=1, b=1) + "\n" + call("multiply", a=3, b=3) if "[tool]" not in before else "2 and 9."


async def test_a_function_agent_finishes_a_task_of_two_tools():
    llm = scripted(sum_then_product)
    for streaming in (True, False):
        agent = FunctionAgent(tools=[add, multiply], llm=llm, system_prompt="Use tools.", streaming=streaming)
        handler = agent.run("What is (2 + 4) * 7?")
        results = [event async for event in handler.stream_events() if isinstance(event, ToolCallResult)]
        assert [(r.tool_name, r.tool_kwargs, r.tool_output.raw_output) for r in results] == [
            ("add", {"a": 2, "b": 4}, 6),
            ("multiply", {"a": 6, "b": 7}, 42),
        ]
        assert str(await handler) == "It is 42."


async def test_a_function_agent_calls_tools_in_parallel():
    agent = AgentWorkflow.from_tools_or_functions(TOOLS, llm=scripted(both))
    assert isinstance(agent.agents["Agent"], FunctionAgent)
    result = await agent.run("Both, please.")
    assert [c.tool_output.raw_output for c in result.tool_calls] == [2, 9]
    assert str(result) == "2 and 9."


def test_tools_are_written_by_the_template():
    seen = []

    def reply(before):
        seen.append(before)
        return "no"

    llm = scripted(reply)
    llm.chat_with_tools(TOOLS, "hello", chat_history=[ChatMessage("Be kind.", role="system")])
    assert '<tools>[{"type": "function", "function": {"name": "add"' in seen[-1]
    assert seen[-1].endswith("</tools>[system]Be kind.[user]hello")
    llm.chat_with_tools(TOOLS, "hello", tool_choice="none")
    assert seen[-1] == "[user]hello"
    history = [
        ChatMessage("add them"),
        ChatMessage(role="assistant", blocks=[ToolCallBlock(tool_call_id="1", tool_name="add", tool_kwargs={"a": 1})]),
        ChatMessage("3", role="tool", additional_kwargs={"tool_call_id": "1"}),
    ]
    llm.chat(history)
    assert seen[-1] == '[user]add them[assistant]<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>[tool]3'


@pytest.mark.parametrize("name", ["chat", "stream_chat", "achat", "astream_chat"])
async def test_calls_in_every_method(name):
    llm = scripted(lambda before: "Let me see. " + call("add", a=2, b=4))
    arguments = {"tools": TOOLS, "user_msg": "Add.", "allow_parallel_tool_calls": True}
    result = getattr(llm, f"{name}_with_tools")(**arguments)
    result = await result if name.startswith("a") else result
    if "stream" in name:
        responses = [r async for r in result] if name.startswith("a") else list(result)
        assert "".join(r.delta for r in responses) == "Let me see."
        assert not any("<" in (r.message.content or "") for r in responses)
    else:
        responses = [result]
    (block,) = [b for b in responses[-1].message.blocks if isinstance(b, ToolCallBlock)]
    assert (block.tool_name, block.tool_kwargs) == ("add", {"a": 2, "b": 4})
    assert responses[-1].message.content == "Let me see."
    assert responses[-1].raw["finish_reason"] == "tool_calls"
    (selection,) = llm.get_tool_calls_from_response(responses[-1])
    assert (selection.tool_id, selection.tool_name) == (block.tool_call_id, "add")
    assert responses[-1].message.additional_kwargs["tool_calls"][0]["function"]["name"] == "add"


@pytest.mark.parametrize("streams", ["stream_chat", "astream_chat"])
async def test_arguments_grow_while_a_call_is_written(streams):
    """As LlamaIndex's own classes have it: text until the call is complete, of which selections are what is known."""
    llm = scripted(lambda before: "Let me see. " + call("add", a=12, b=4) + call("multiply", a=1, b=2))
    result = getattr(llm, f"{streams}_with_tools")(TOOLS, "Add.", allow_parallel_tool_calls=True)
    responses = [r async for r in await result] if streams.startswith("a") else list(result)
    blocks = [[b for b in r.message.blocks if isinstance(b, ToolCallBlock)] for r in responses]
    first = [of[0].tool_kwargs for of in blocks if of]
    growing = [text for text in first if isinstance(text, str)]
    assert growing == [r'{"a": 12, "b": 4}'[:n] for n in range(1, len(growing) + 1)]
    assert len(growing) > 10
    assert first[-1] == {"a": 12, "b": 4}
    assert len({of[0].tool_call_id for of in blocks if of}) == 1
    known = [[(s.tool_name, s.tool_kwargs) for s in llm.get_tool_calls_from_response(r, False)] for r in responses]
    assert known[-1] == [("add", {"a": 12, "b": 4}), ("multiply", {"a": 1, "b": 2})]
    assert [("add", {"a": 1})] in known
    assert [len(of) for of in blocks] == sorted(len(of) for of in blocks)
    function = responses[-1].message.additional_kwargs["tool_calls"][1]["function"]
    assert function == {"name": "multiply", "arguments": '{"a": 1, "b": 2}'}


async def test_one_call_where_parallel_ones_are_not_allowed():
    llm = scripted(both)
    streamed = list(llm.stream_chat_with_tools(TOOLS, "Both."))[-1]
    for response in (streamed, llm.chat_with_tools(TOOLS, "Both."), await llm.achat_with_tools(TOOLS, "Both.")):
        assert [s.tool_name for s in llm.get_tool_calls_from_response(response)] == ["add"]
        assert response.raw["finish_reason"] == "tool_calls"


def test_predict_and_call_runs_the_tool():
    assert scripted(sum_then_product).predict_and_call(TOOLS, "2 + 4?").response == "6"
    two = scripted(both)
    assert two.predict_and_call(TOOLS, "Both.", allow_parallel_tool_calls=True).response == "2\n\n9"
    assert two.predict_and_call(TOOLS, "One.").response == "2"  # more than one was not allowed


def test_no_call_where_one_is_needed():
    llm = scripted(lambda before: "I would rather not.")
    response = llm.chat_with_tools(TOOLS, "Add.")
    assert llm.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []
    with pytest.raises(ValueError, match="called no tool; it said: 'I would rather not"):
        llm.get_tool_calls_from_response(response)


def test_a_call_that_is_required_is_enforced():
    """Of a model that babbles."""
    llm = IpexLLM(model=text_model(babble(), chat_template=TEMPLATE, context=8192), generate_kwargs={"temperature": 0})
    for asked, names in (({"tool_required": True}, {"add", "multiply"}), ({"tool_choice": "multiply"}, {"multiply"})):
        response = llm.chat_with_tools(TOOLS, "Hm?", max_new_tokens=400, **asked)
        (call,) = llm.get_tool_calls_from_response(response)
        assert call.tool_name in names
        assert call.tool_kwargs.keys() == {"a", "b"}
        assert all(isinstance(value, int) for value in call.tool_kwargs.values())


def test_a_call_that_cannot_be_read_stays_text(caplog):
    with caplog.at_level(logging.WARNING):
        response = scripted(lambda before: '<tool_call>{"name": "add", oops</tool_call>').chat_with_tools(TOOLS, "Add.")
    assert response.message.content == '<tool_call>{"name": "add", oops'
    assert "cannot be read" in caplog.text


def test_which_models_are_given_tools():
    plain = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
    assert scripted(str).metadata.is_function_calling_model
    assert not scripted(str, plain).metadata.is_function_calling_model
    assert not scripted(str, None).metadata.is_function_calling_model
    assert not scripted(str, messages_to_prompt=str).metadata.is_function_calling_model
    # A template that knows no tools is given them in words, where a user insists.
    written = '{"name": "add", "arguments": {"a": 1, "b": 1}}'
    wordy = scripted(lambda before: written if '"add"' in before else "?", plain, is_function_calling_model=True)
    assert wordy.predict_and_call(TOOLS, "1 + 1?").response == "2"
    with pytest.raises(ValueError, match="a chat template writes tools"):
        scripted(str, messages_to_prompt=str).chat_with_tools(TOOLS, "1 + 1?")


def test_template_kwargs_reach_the_template():
    template = TEMPLATE.replace("[assistant]", "{% if thinking %}[think]{% endif %}[assistant]")
    for template_kwargs, answer in ((None, "no"), ({"thinking": True}, "yes")):
        llm = scripted(
            lambda before: "yes" if before.endswith("[think]") else "no", template, template_kwargs=template_kwargs
        )
        assert llm.chat([ChatMessage("hm")]).message.content == answer


async def test_thoughts_are_no_part_of_the_words():
    """Of models that think first: a block of their own in a message, and nothing in a completion."""
    template = TEMPLATE.replace("[assistant]", "{# </think> #}[assistant]")
    llm = scripted(lambda before: "<think>Hm. Well.</think>\n\nYes.", template)
    message = llm.chat([ChatMessage("?")]).message
    assert [type(block).__name__ for block in message.blocks] == ["ThinkingBlock", "TextBlock"]
    assert (message.blocks[0].content, message.content) == ("Hm. Well.", "Yes.")
    streamed = [response async for response in await llm.astream_chat([ChatMessage("?")])]
    assert "".join(r.additional_kwargs.get("thinking_delta", "") for r in streamed) == "Hm. Well."
    assert "".join(r.delta for r in streamed) == "Yes."
    assert llm.complete("?").text == "Yes."
    assert "".join(r.delta for r in llm.stream_complete("?")) == "Yes."
    seen = []
    scripted(lambda before: seen.append(before) or "", template).chat([ChatMessage("?"), message, ChatMessage("So?")])
    assert seen[0] == "[user]?[assistant]Yes.[user]So?"
