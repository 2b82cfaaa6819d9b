"""ChatIpexLLM over a toy engine: messages to prompts, answers to messages, streams, metadata, errors."""

import asyncio
import threading

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import (
    AIMessage,
    ChatMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
    trim_messages,
)
from langchain_core.prompts import ChatPromptTemplate
from pydantic import ValidationError

import toy
from langchain_lowbit import ChatIpexLLM, IpexLLM
from lowbit import chat as backend

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}"
    "{{ '[assistant]' if add_generation_prompt }}"
)


def scripted(answers, **engine):
    """A text model that answers by the last user message: {message: answer}. What ends its answers is the template's
    end of turn; its own eos is another id."""

    def logits(ids):
        before, _, said = bytes(i for i in ids if i < 256).rpartition(b"[assistant]")
        answer = answers.get(before.rpartition(b"[user]")[2].decode(), "").encode()  # "": half a prompt, in a chunk
        return toy.favour(answer[len(said)] if len(said) < len(answer) else toy.EOS)

    return toy.text_model(logits, chat_template=TEMPLATE, generation_config={"eos_token_id": 0}, **engine)


@pytest.fixture
def model():
    return scripted({"Hi": "Hello, you!", "Bye": "Grüße 你好", "Long": "word " * 60})


@pytest.fixture
def chat(model):
    return ChatIpexLLM(model=model)


def test_an_answer_ends_by_itself_and_tells_about_itself(chat):
    answer = chat.invoke("Hi")
    assert isinstance(answer, AIMessage)
    assert answer.content == "Hello, you!"
    assert answer.response_metadata == {
        "finish_reason": "stop",
        "model_name": "toy",
        "model_provider": "lowbit",
    }
    prompt = "[user]Hi[assistant]"
    assert answer.usage_metadata["input_tokens"] == len(prompt) + 2  # <s> and </s> of the question
    assert answer.usage_metadata["output_tokens"] == len("Hello, you!") + 1
    assert answer.usage_metadata["input_token_details"] == {"cache_read": 0}


def test_the_next_turn_reuses_the_first(chat):
    first = chat.invoke("Hi")
    second = chat.invoke([HumanMessage("Hi"), first, HumanMessage("Bye")])
    assert second.content == "Grüße 你好"
    assert second.usage_metadata["input_token_details"]["cache_read"] >= first.usage_metadata["input_tokens"]


def test_streams_are_the_answer_in_pieces(chat):
    chunks = list(chat.stream("Bye"))
    assert len(chunks) > 3
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    told = chat.invoke("Bye")
    assert whole.content == told.content
    assert whole.response_metadata == told.response_metadata
    assert whole.usage_metadata["output_tokens"] == told.usage_metadata["output_tokens"]
    assert [c.chunk_position for c in chunks] == [None] * (len(chunks) - 1) + ["last"]
    assert all(c.usage_metadata is None for c in chunks[:-1])


async def test_async_twins_say_the_same(chat):
    assert (await chat.ainvoke("Bye")).content == chat.invoke("Bye").content
    assert "".join([c.content async for c in chat.astream("Bye")]) == chat.invoke("Bye").content
    answers = await chat.abatch(["Hi", "Bye", "Hi"])
    assert [a.content for a in answers] == ["Hello, you!", "Grüße 你好", "Hello, you!"]


async def test_prompts_are_made_beside_the_loop(chat, monkeypatch):
    """A long conversation takes long to become tokens."""
    threads = []
    turn = backend.turn
    monkeypatch.setattr(backend, "turn", lambda *a, **kw: threads.append(threading.get_ident()) or turn(*a, **kw))
    await chat.ainvoke("Hi")
    async for _ in chat.astream("Hi"):
        pass
    assert len(threads) == 2
    assert threading.get_ident() not in threads


async def test_cancelling_stops_the_work():
    model = scripted({"Long": "word " * 90}, delay=0.005)
    task = asyncio.create_task(ChatIpexLLM(model=model, max_tokens=400).ainvoke("Long"))
    while len(model.generator.engine.passes) < 5:
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.05)
    passes = len(model.generator.engine.passes)
    await asyncio.sleep(0.05)
    assert len(model.generator.engine.passes) == passes < 400


def test_batches_come_in_order(chat):
    answers = chat.batch(["Hi", "Bye"] * 5)
    assert [a.content for a in answers] == ["Hello, you!", "Grüße 你好"] * 5


async def test_as_many_wait_at_once_as_are_decoded_together():
    """More threads than LangChain's own default, which is a few more than there are cores."""
    model = scripted({"Hi": "Hello, you!"})
    chat, count = ChatIpexLLM(model=model), model.generator.max_batch
    barrier = threading.Barrier(count, timeout=20)
    generate = model.generate

    def generate_when_all_are_here(*args, **options):
        barrier.wait()
        return generate(*args, **options)

    model.generate = generate_when_all_are_here
    answers = chat.batch(["Hi"] * count)
    assert [a.content for a in answers] == ["Hello, you!"] * count
    barrier = threading.Barrier(2, timeout=20)
    assert len(chat.batch(["Hi"] * 2, {"max_concurrency": 2})) == 2
    most = now = 0

    async def counted(*args, **options):
        nonlocal most, now
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        return generate(*args, **options)

    model.agenerate = counted
    assert len(await chat.abatch(["Hi"] * (count + 3))) == count + 3
    assert most == count


def test_what_agents_ask_of_a_model(chat):
    assert chat.model_name == chat.model_id == "toy"
    assert chat.profile["max_input_tokens"] == chat.model.context
    assert chat.profile["tool_calling"] is True
    assert chat.profile["image_inputs"] is False
    assert ChatIpexLLM(model=IpexLLM(model=chat.model)).profile == chat.profile
    assert ChatIpexLLM().profile is None


def test_conversations_are_counted_as_the_prompts_they_become():
    def greet(name: str) -> str:
        """Greets."""
        return name

    chat = ChatIpexLLM(model=scripted({}, context=2048))
    talk = [HumanMessage("Hi"), AIMessage("Hello, you!"), HumanMessage("Bye")]
    limit = chat.get_num_tokens_from_messages(talk)
    assert limit == chat.invoke(talk).usage_metadata["input_tokens"]
    with_tools = chat.get_num_tokens_from_messages(talk, tools=[{"name": "f", "parameters": {}}])
    assert with_tools == chat.invoke(talk, tools=[{"name": "f"}]).usage_metadata["input_tokens"] + len(
        ', "parameters": {}'
    )
    strict = toy.text_model(
        {}, chat_template="{% if messages[0].role != 'user' %}{{ raise_exception('x') }}{% endif %}q"
    )
    # An answer alone is no conversation for this template; its text and <s> are counted.
    assert ChatIpexLLM(model=strict).get_num_tokens_from_messages(talk[1:2]) == len("Hello, you!") + 1
    limit = chat.get_num_tokens_from_messages(talk[2:])
    assert trim_messages(talk, max_tokens=limit, token_counter=chat, strategy="last") == talk[2:]


def test_stop_limits_and_their_order(model):
    assert ChatIpexLLM(model=model, stop=["you"]).invoke("Hi").content == "Hello, "
    assert ChatIpexLLM(model=model, stop="you").invoke("Hi", stop=[","]).content == "Hello"
    short = ChatIpexLLM(model=model, model_kwargs={"max_new_tokens": 2}, max_tokens=3)
    answer = short.invoke("Hi")
    assert (answer.content, answer.response_metadata["finish_reason"]) == ("Hel", "length")
    assert short.invoke("Hi", max_tokens=4).content == "Hell"
    assert short.bind(max_new_tokens=1).invoke("Hi").content == "H"
    assert ChatIpexLLM(model=model, max_new_tokens=2).max_tokens == 2


def test_the_same_seed_says_the_same():
    babbler = toy.text_model(toy.babble(), chat_template=TEMPLATE, generation_config={"eos_token_id": 0})
    sampled = ChatIpexLLM(model=babbler, temperature=1.0, seed=7, max_tokens=20)
    texts = {sampled.invoke("x").content for _ in range(3)} | {a.content for a in sampled.batch(["x"] * 3)}
    assert len(texts) == 1
    assert ChatIpexLLM(model=babbler, temperature=1.0, seed=8, max_tokens=20).invoke("x").content not in texts


def test_logprobs(chat):
    content = chat.invoke("Hi", logprobs=2).response_metadata["logprobs"]["content"]
    assert "".join(entry["token"] for entry in content) == "Hello, you!</s>"
    assert all(len(entry["top_logprobs"]) == 2 and entry["logprob"] <= 0 for entry in content)
    chunks = list(chat.stream("Hi", logprobs=2))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert whole.response_metadata["logprobs"]["content"] == content


def test_every_kind_of_message_reaches_a_template_that_knows_tools():
    seen = []
    model = toy.text_model({}, chat_template="{% if tools %}{% endif %}" + TEMPLATE)
    chat = ChatIpexLLM(model=model)
    model.generator.start = lambda requests, **_: seen.append(model.decode(requests[0].prompt)) or 1 / 0
    calls = [{"name": "f", "args": {}, "id": "1"}]
    with pytest.raises(ZeroDivisionError):
        chat.invoke(
            [
                SystemMessage("S"),
                HumanMessage(["a", {"type": "text", "text": "b", "cache_control": {}}]),
                AIMessage([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "c"}], tool_calls=calls),
                ToolMessage("d", tool_call_id="1"),
                ChatMessage("e", role="critic"),
            ]
        )
    assert seen == ["[system]S[user]ab[assistant]c[tool]d[critic]e[assistant]"]


def test_tool_messages_carry_the_name_of_their_call():
    template = (
        "{% if tools %}{% endif %}{% for m in messages %}{{ m.role }}:{{ m.name }}:{{ m.tool_call_id }} {% endfor %}"
    )
    model = toy.text_model({}, chat_template=template)
    seen = []
    model.generator.start = lambda requests, **_: seen.append(model.decode(requests[0].prompt)) or 1 / 0
    with pytest.raises(ZeroDivisionError):
        ChatIpexLLM(model=model).invoke(
            [
                HumanMessage("x", name="Ann"),
                AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": "1"}]),
                ToolMessage("d", tool_call_id="1"),
            ]
        )
    assert seen == ["user:Ann: assistant:: tool:f:1 "]


@pytest.mark.parametrize("kind", ["image_url", "image", "audio", "file", "video"])
def test_what_is_no_text_is_refused_by_name(chat, kind):
    with pytest.raises(ValueError, match=f"reads text only.*'{kind}'"):
        chat.invoke([HumanMessage([{"type": kind, "url": "http://x/y"}])])


def test_other_errors_say_what_to_do(chat, model):
    with pytest.raises(ValueError, match="RemoveMessage has no place"):
        chat.invoke([RemoveMessage(id="1")])
    with pytest.raises(ValueError, match="one loaded model"):
        chat.invoke("Hi", model="other")
    with pytest.raises(TypeError, match="did you mean 'temperature'"):
        chat.invoke("Hi", temprature=1)
    with pytest.raises(ValidationError, match="Extra inputs"):
        ChatIpexLLM(model=model, temprature=1)
    with pytest.raises(ValueError, match=r"ChatIpexLLM.from_model_id"):
        ChatIpexLLM().invoke("Hi")
    with pytest.raises(TypeError, match=r"what lowbit.load returns"):
        ChatIpexLLM(model="Qwen/Qwen2.5")
    bare = ChatIpexLLM(model=toy.text_model({}))
    with pytest.raises(ValueError, match=r"no chat template.*template=.*vicuna"):
        bare.invoke("Hi")


def test_a_named_template_for_a_model_without_one():
    prompt = "USER: Hi ASSISTANT:"
    model = toy.text_model(lambda ids: toy.favour(ids[-2]))  # repeats the two last characters: "T:"
    answer = ChatIpexLLM(model=model, template="vicuna", max_tokens=4).invoke([("system", "S"), ("user", "Hi")])
    assert answer.usage_metadata["input_tokens"] == len("S " + prompt) + 1
    assert model.generator.engine.passes[0] == [len("S " + prompt) + 1]


def test_template_arguments():
    model = toy.text_model({}, chat_template={"default": "{{ mood }}{{ size }}", "other": "o"})
    seen = []
    model.generator.start = lambda requests, **_: seen.append(model.decode(requests[0].prompt)) or 1 / 0
    chat = ChatIpexLLM(model=model, template_kwargs={"mood": "m", "size": 1})
    for kwargs in ({}, {"template_kwargs": {"size": 2}}, {"template": "other"}):
        with pytest.raises(ZeroDivisionError):
            chat.invoke("x", **kwargs)
    assert seen == ["m1", "m2", "o"]


def test_weights_are_shared_with_an_llm(model):
    llm = IpexLLM(model=model, model_id="the/model", model_kwargs={"max_new_tokens": 3})
    chat = ChatIpexLLM(model=llm)
    assert chat.model is llm.model is model
    assert chat.model_id == "the/model"
    assert chat.invoke("Hi").content == "Hel"
    assert ChatIpexLLM(model=chat, model_kwargs={}).invoke("Hi").content == "Hello, you!"
    assert IpexLLM(model=chat).model is model


def test_constructors_load_and_save(tiny_folder, tmp_path):
    chat = ChatIpexLLM.from_model_id(str(tiny_folder), {"temperature": 0}, load_in_low_bit="nf4", max_tokens=5)
    assert chat.model.quantization["format"] == "nf4"
    answer = chat.invoke("Hi")
    chat.model.save_low_bit(tmp_path / "saved")
    again = ChatIpexLLM.from_model_id_low_bit(str(tmp_path / "saved"), temperature=0, max_tokens=5)
    assert again.invoke("Hi").content == answer.content
    with pytest.raises(TypeError, match="belongs in model_kwargs"):
        ChatIpexLLM.from_model_id(str(tiny_folder), threads=1)


def test_callbacks_and_chains(chat):
    class Collector(BaseCallbackHandler):
        tokens = ()

        def on_llm_new_token(self, token, **kwargs):
            self.tokens += (token,)

    collector = Collector()
    chain = ChatPromptTemplate.from_messages([("system", "S"), ("user", "{q}")]) | chat
    for _ in chain.stream({"q": "Hi"}, {"callbacks": [collector]}):
        pass
    assert "".join(collector.tokens) == "Hello, you!"
    streaming, told = ChatIpexLLM(model=chat.model, streaming=True), Collector()
    assert streaming.invoke("Hi", {"callbacks": [told]}).content == "Hello, you!"
    assert "".join(told.tokens) == "Hello, you!"


def test_tracing_and_cache_keys(model):
    chat = ChatIpexLLM(model=model, temperature=0.5, max_tokens=9, stop="x", api_key="secret", timeout=3)
    params = chat._get_ls_params()
    assert params["ls_provider"] == "lowbit"
    assert (params["ls_model_name"], params["ls_model_type"]) == ("toy", "chat")
    assert (params["ls_temperature"], params["ls_max_tokens"], params["ls_stop"]) == (0.5, 9, ["x"])
    assert "secret" not in str(chat.asdict())
    other = ChatIpexLLM(model=model, temperature=0.5, max_tokens=9, stop="x", template="vicuna")
    assert chat._get_llm_string() != other._get_llm_string()
    assert chat.get_num_tokens("abc") == 4


def test_nothing_is_printed(chat, capfd):
    chat.invoke("Hi")
    list(chat.stream("Hi"))
    assert capfd.readouterr() == ("", "")


# ---- models that think before they answer ----

THINKS = (
    "{% for m in messages %}[{{ m.role }}]"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}</s>{% endfor %}"
    "{{ '[assistant]' if add_generation_prompt }}{{ 'now: <think>\n' if open }}"
)


def thinking(answer, **how):
    def logits(ids):
        said = bytes(i for i in ids if i < 256).rpartition(b"[assistant]")[2].removeprefix(b"now: <think>\n")
        return toy.favour(answer.encode()[len(said)] if len(said) < len(answer.encode()) else toy.EOS)

    return ChatIpexLLM(model=toy.text_model(logits, chat_template=THINKS), **how)


@pytest.mark.parametrize("version", [None, "v1"])
def test_thoughts_are_apart_from_the_answer(version):
    chat = thinking("<think>\nHm.\nSo?\n</think>\n\nYes.", output_version=version)
    answer = chat.invoke("Hi")
    assert (answer.text, answer.content_blocks) == (
        "Yes.",
        [{"type": "reasoning", "reasoning": "Hm.\nSo?"}, {"type": "text", "text": "Yes."}],
    )
    chunks = list(chat.stream("Hi"))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert [block["type"] for block in whole.content_blocks] == ["reasoning", "text"]
    assert whole.content_blocks[0]["reasoning"] == "Hm.\nSo?"
    assert whole.text == "Yes."
    assert sum(any(block["type"] == "reasoning" for block in chunk.content_blocks) for chunk in chunks) > 3


@pytest.mark.parametrize("version", [None, "v1"])
def test_thoughts_go_back_to_the_template(version):
    chat = thinking("<think>Hm.</think>Yes.", output_version=version)
    talk = [HumanMessage("Hi"), chat.invoke("Hi"), HumanMessage("Sure?")]
    model, seen = chat.model, []
    model.generator.start = lambda requests, **_: seen.append(model.decode(requests[0].prompt)) or 1 / 0
    with pytest.raises(ZeroDivisionError):
        chat.invoke(talk)
    assert seen == ["[user]Hi[assistant]<think>Hm.</think>Yes.[user]Sure?[assistant]"]


def test_a_prompt_may_begin_the_thoughts():
    chat = thinking("Hm.\n</think>\n\nYes.", template_kwargs={"open": True})
    answer = chat.invoke("Hi")
    assert (answer.content, answer.additional_kwargs) == ("Yes.", {"reasoning_content": "Hm."})
    # A grammar leaves no place for thoughts: the prompt ends them.
    assert chat.invoke("Hi", choice=["No"]).content == "No"
