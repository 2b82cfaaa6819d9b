"""LlamaIndex's IpexLLM: what it asks of a scripted model; the embedded model in a query engine and a chat engine."""

import asyncio
import inspect
import itertools
from pathlib import Path

import pytest
from llama_index.core import PromptTemplate, SummaryIndex
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler, TokenCountingHandler
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.llms import ChatMessage, ImageBlock, MessageRole, TextBlock
from llama_index.core.schema import TextNode

import lowbit
from llama_index.llms.lowbit import IpexLLM
from toy import EOS, babble, favour, text_model

EMBEDDED = Path(__file__).resolve().parents[2] / "demo" / "model"
TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
HELLO = [ChatMessage("Be kind.", role="system"), ChatMessage("Hello")]
SCRIPT = {
    "Hello": " world",
    "[system]Be kind.[user]Hello[assistant]": "Hi there!",
    "[user]Hello[assistant]": "Hi!",
    "system: Be kind.\nuser: Hello\nassistant: ": "plain",
    "<<Hello>>": "wrapped",
}


def llm(chat_template=TEMPLATE, script=SCRIPT, delay=0.0, **options):
    return IpexLLM(model=text_model(script, chat_template=chat_template, delay=delay), **options)


@pytest.fixture
def loaded(monkeypatch):
    """The calls of `lowbit.load`, which returns a toy model."""
    calls = []

    def load(id_or_path, low_bit="sym_int4", **options):
        calls.append((id_or_path, low_bit, options))
        return text_model(SCRIPT, chat_template=TEMPLATE)

    monkeypatch.setattr(lowbit, "load", load)
    return calls


# ---- the constructors ----

UPSTREAM = {
    "context_window": 3900, "max_new_tokens": 256, "tokenizer_name": "meta-llama/Llama-2-7b-chat-hf",
    "model_name": "meta-llama/Llama-2-7b-chat-hf", "load_in_4bit": True, "load_in_low_bit": None, "model": None,
    "tokenizer": None, "device_map": "cpu", "stopping_ids": None, "tokenizer_kwargs": None,
    "tokenizer_outputs_to_remove": None, "model_kwargs": None, "generate_kwargs": None, "is_chat_model": False,
    "callback_manager": None, "messages_to_prompt": None, "completion_to_prompt": None,
    "pydantic_program_mode": "default", "output_parser": None, "low_bit_model": False,
}  # fmt: skip
# On purpose: a model has its own tokenizer, and its files say whether it chats.
OTHER_DEFAULTS = {"tokenizer_name": None, "is_chat_model": None}


@pytest.mark.parametrize(
    ("constructor", "without"),
    [
        ("__init__", set()),
        ("from_model_id", {"low_bit_model"}),
        ("from_model_id_low_bit", {"low_bit_model", "load_in_4bit", "load_in_low_bit"}),
    ],
)
def test_constructors_are_upstreams(constructor, without):
    parameters = inspect.signature(getattr(IpexLLM, constructor)).parameters.values()
    positional = {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "self"}
    wanted = {name: default for name, default in (UPSTREAM | OTHER_DEFAULTS).items() if name not in without}
    assert list(positional) == list(wanted)
    assert positional == wanted
    assert issubclass(IpexLLM, BaseLLM)
    assert IpexLLM.class_name() == "IpexLLM"


def test_arguments_arrive(loaded):
    model_kwargs = {"threads": 1, "torch_dtype": "auto", "trust_remote_code": True}
    made = IpexLLM.from_model_id(
        300, 12, "other/tokenizer", "a/model", True, "nf4", device_map="auto", model_kwargs=model_kwargs
    )
    assert loaded == [
        ("a/model", "nf4",
         {"device": "auto", "threads": 1, "trust_remote_code": True, "tokenizer_id": "other/tokenizer"}),
    ]  # fmt: skip
    assert (made.model_name, made.load_in_low_bit, made.context_window) == ("a/model", "nf4", 300)
    assert made.metadata.num_output == 12
    IpexLLM(model_name="m", tokenizer_name="m")
    IpexLLM.from_model_id(model_name="m", load_in_4bit=False)
    IpexLLM.from_model_id_low_bit(200, 8, "m", "m", None, "tok", "xpu:1")
    IpexLLM.from_model_id_low_bit(model_name="m")
    assert loaded[1:] == [
        ("m", "sym_int4", {"device": "cpu"}),
        ("m", None, {"device": "cpu"}),
        ("m", "sym_int4", {"device": "xpu:1", "tokenizer_id": "tok", "saved_only": True}),
        ("m", "sym_int4", {"device": "cpu", "saved_only": True}),
    ]


def test_a_hub_token_is_used_and_forgotten(loaded):
    given = {"token": "hf_secret", "threads": 1}
    made = IpexLLM(model_name="m", model_kwargs=given)
    assert loaded[0][2]["token"] == "hf_secret"
    assert made.model_kwargs == {"threads": 1}
    assert given == {"token": "hf_secret", "threads": 1}
    assert "hf_secret" not in f"{made!r} {made.to_dict()} {made.to_payload()} {made.json()}"


def test_bad_arguments_are_told_before_loading(loaded):
    wrong = {
        "pass device_map=": {"model_kwargs": {"device": "cpu"}},
        "did you mean 'revision'": {"model_kwargs": {"revisoin": "x"}},
        "did you mean 'temperature'": {"generate_kwargs": {"temprature": 1}},
        "did you mean 'padding_side'": {"tokenizer_kwargs": {"padding_sde": "left"}},
        "hub id or a folder, not a dict": {"tokenizer": {"a": 1}},
        "what lowbit.load returns, not a dict": {"model": {"a": 1}},
    }
    for message, arguments in wrong.items():
        with pytest.raises(TypeError, match=message):
            IpexLLM(**arguments)
    with pytest.raises(ValueError, match="temperature"):
        IpexLLM(generate_kwargs={"temperature": -1})
    with pytest.raises(TypeError, match="load_in_4bit"):
        IpexLLM.from_model_id_low_bit(load_in_4bit=True)
    assert loaded == []


def test_a_failed_load_says_why(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        IpexLLM.from_model_id(model_name=str(tmp_path))


def test_metadata():
    made = llm(context_window=100_000)
    assert made.metadata.model_dump() == {
        "context_window": 512, "num_output": 256, "is_chat_model": True, "is_function_calling_model": False,
        "model_name": "toy", "system_role": MessageRole.SYSTEM,
    }  # fmt: skip
    assert not llm(None).metadata.is_chat_model
    assert not llm(completion_to_prompt=lambda prompt: prompt).metadata.is_chat_model
    assert not llm(is_chat_model=False).metadata.is_chat_model
    assert made._model.model_id == "toy"
    assert made._tokenizer is made._model.tokenizer
    assert "toy" in repr(made)
    assert made.to_dict()["class_name"] == "IpexLLM"
    assert made.to_payload()["model_name"] == "toy"


# ---- prompts ----


def test_a_completion_continues_the_text_as_it_is():
    assert llm(is_chat_model=False).complete("Hello").text == " world"
    assert llm(None).complete("Hello").text == " world"
    assert llm().complete("Hello", formatted=True).text == " world"


def test_a_chat_models_completion_is_a_users_message():
    assert llm().complete("Hello").text == "Hi!"
    assert llm(system_prompt="Be kind.").complete("Hello").text == "Hi there!"


def test_wrappers_of_prompts():
    wrap = llm(completion_to_prompt=lambda prompt: f"<<{prompt}>>")
    assert wrap.complete("Hello").text == "wrapped"
    assert wrap.complete("Hello", formatted=True).text == " world"
    assert llm(None, query_wrapper_prompt="<<{query_str}>>").complete("Hello").text == "wrapped"
    assert wrap.predict(PromptTemplate("{word}"), word="Hello") == "wrapped"
    last = llm(messages_to_prompt=lambda messages: f"<<{messages[-1].content}>>")
    assert last.chat(HELLO).message.content == "wrapped"


def test_chat_goes_through_the_template_once():
    made = llm()
    response = made.chat(HELLO)
    assert (response.message.role, response.message.content) == (MessageRole.ASSISTANT, "Hi there!")
    assert response.raw["usage"]["prompt_tokens"] == len("[system]Be kind.[user]Hello[assistant]") + 1  # one <s>
    assert made.messages_to_prompt(HELLO) == "<s>[system]Be kind.[user]Hello[assistant]"
    assert made.complete(made.messages_to_prompt(HELLO), formatted=True).text == "Hi there!"  # still one <s>
    own = llm(None, tokenizer_kwargs={"chat_template": TEMPLATE, "max_length": 9})
    assert own.metadata.is_chat_model
    assert own.chat(HELLO).message.content == "Hi there!"
    assert llm(None).chat(HELLO).message.content == "plain"


def test_an_answer_ends_where_its_template_ends_a_turn():
    """A named format may end a turn with a text that the tokenizer has no token for."""
    named = {"tokenizer_kwargs": {"chat_template": "qwen"}}
    prompt = llm(None, **named).messages_to_prompt(HELLO)
    assert "<|im_start|>system\nBe kind.<|im_end|>" in prompt
    made = llm(None, {prompt.removeprefix("<s>"): "Hi there!<|im_end|>\n<|im_start|>user\nAnd now"}, **named)
    assert made.chat(HELLO).message.content == "Hi there!"
    assert made.chat(HELLO, stop="!").message.content == "Hi there"


def test_roles_and_content_of_messages():
    developer = ChatMessage("Be kind.", role=MessageRole.DEVELOPER)
    assert llm().chat([developer, ChatMessage("Hello")]).message.content == "Hi there!"
    with pytest.raises(ValueError, match="'image' content"):
        llm().chat([ChatMessage(blocks=[TextBlock(text="see"), ImageBlock(url="http://x/y.png")])])


# ---- options ----


def test_options_of_the_call_win():
    made = llm(is_chat_model=False, max_new_tokens=3, generate_kwargs={"stop": "r"}, model_kwargs={"max_new_tokens": 1})
    assert made.complete("Hello").text == " wo"
    assert made.complete("Hello", max_new_tokens=6, stop=None).text == " wo"  # None: not given
    assert made.complete("Hello", max_new_tokens=6, stop=["d"]).text == " worl"
    made.max_new_tokens = 2
    assert made.complete("Hello").text == " w"
    with pytest.raises(TypeError, match="did you mean 'temperature'"):
        made.stream_complete("Hello", temperatur=1)  # at the call, not at the first piece


def test_stopping_ids_end_an_answer_beside_the_eos():
    made = llm(is_chat_model=False, stopping_ids=[ord("l")])
    response = made.complete("Hello")
    assert (response.text, response.raw["finish_reason"]) == (" wor", "stop")
    assert made.complete("[user]Hello[assistant]").text == "Hi!"


# ---- the eight methods ----


async def collected(name, made, argument, **options):
    """The responses of one of the eight methods, as a list."""
    result = getattr(made, name)(argument, **options)
    if name.startswith("a"):
        result = await result
    if "stream" not in name:
        return [result]
    return [r async for r in result] if name.startswith("a") else list(result)


METHODS = [prefix + kind for prefix in ("", "stream_", "a", "astream_") for kind in ("complete", "chat")]


@pytest.mark.parametrize("name", METHODS)
async def test_every_method_gives_the_same_answer(name):
    responses = await collected(name, llm(), HELLO[1:] if name.endswith("chat") else "Hello", logprobs=2)
    texts = [r.text if name.endswith("complete") else r.message.content for r in responses]
    assert texts[-1] == "Hi!"
    usage = {"prompt_tokens": 23, "completion_tokens": 4, "total_tokens": 27}
    assert responses[-1].raw == {
        "finish_reason": "stop",
        "usage": usage | {"prompt_tokens_details": {"cached_tokens": 0}},
    }
    assert responses[-1].additional_kwargs == usage
    assert sum(len(r.logprobs) for r in responses) == 4
    assert [p.token for p in responses[0].logprobs[0]][:1] == ["H"]
    assert len({p.token for p in responses[0].logprobs[0]}) == 2
    if "stream" in name:
        assert len(responses) > 2
        assert "".join(r.delta for r in responses) == "Hi!"
        assert all(text.startswith(before) for before, text in itertools.pairwise(texts))
        assert all(r.raw is None for r in responses[:-1])
    else:
        assert responses[0].delta is None


async def test_parallel_answers_are_those_given_alone():
    made = llm(script=babble(memory=40), max_new_tokens=20, generate_kwargs={"ignore_eos": True, "temperature": 0})
    questions = [f"question {i}" for i in range(8)]
    alone = [made.chat([ChatMessage(question)]).message.content for question in questions]
    together = await asyncio.gather(*(made.achat([ChatMessage(question)]) for question in questions))
    assert [response.message.content for response in together] == alone
    assert len(set(alone)) == 8
    streams = await asyncio.gather(*(collected("astream_complete", made, question) for question in questions))
    assert [responses[-1].text for responses in streams] == alone


@pytest.mark.parametrize("name", [name for name in METHODS if name.startswith("a")])
async def test_async_methods_leave_the_loop_free(name):
    made = llm(script=babble(), delay=0.02, max_new_tokens=10, generate_kwargs={"ignore_eos": True})
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            await asyncio.sleep(0.005)
            ticks += 1

    ticking = asyncio.create_task(tick())
    await collected(name, made, HELLO if name.endswith("chat") else "Hello")
    ticking.cancel()
    assert ticks >= 10  # of about 40


async def test_cancelling_ends_the_work():
    made = llm(script=babble(), delay=0.01, max_new_tokens=400, generate_kwargs={"ignore_eos": True})
    passes = made._model.generator.engine.passes
    for start in (made.acomplete("Hello"), collected("astream_chat", made, HELLO)):
        before = len(passes)
        task = asyncio.create_task(start)
        while len(passes) < before + 3:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.1)
        after = len(passes)
        await asyncio.sleep(0.1)
        assert len(passes) == after < before + 100


@pytest.mark.parametrize("name", ["astream_complete", "astream_chat"])
async def test_leaving_a_stream_ends_the_work(name):
    made = llm(script=babble(), delay=0.005, max_new_tokens=400, generate_kwargs={"ignore_eos": True})
    passes = made._model.generator.engine.passes
    responses = await getattr(made, name)(HELLO if name.endswith("chat") else "Hello")
    async for response in responses:
        if len(response.delta) and len(passes) > 3:
            break
    del responses, response
    await asyncio.sleep(0.2)
    after = len(passes)
    await asyncio.sleep(0.1)
    assert len(passes) == after < 100


def test_closing_a_stream_ends_the_work():
    made = llm(script=babble(), max_new_tokens=400, generate_kwargs={"ignore_eos": True})
    responses = made.stream_chat(HELLO)
    for _ in range(3):
        next(responses)
    responses.close()
    passes = len(made._model.generator.engine.passes)
    assert passes < 50
    assert made.complete("Hello", max_new_tokens=2).raw["finish_reason"] == "length"


# ---- callbacks and events ----


async def test_callbacks_and_events_come_once_per_call():
    seen = []

    class Handler(BaseEventHandler):
        def handle(self, event, **kwargs):
            seen.append(type(event).__name__)

    handler = Handler()
    debug = LlamaDebugHandler(print_trace_on_end=False)
    counter = TokenCountingHandler(tokenizer=lambda text: 1 / 0)  # never asked: the model counts its own tokens
    made = llm(callback_manager=CallbackManager([debug, counter]))
    dispatcher = get_dispatcher()
    dispatcher.add_event_handler(handler)
    try:
        for name in METHODS:
            seen.clear()
            responses = await collected(name, made, HELLO[1:] if name.endswith("chat") else "Hello")
            kind = "LLMChat" if name.endswith("chat") else "LLMCompletion"
            progress = [f"{kind}InProgressEvent"] * len(responses) if "stream" in name else []
            assert seen == [f"{kind}StartEvent", *progress, f"{kind}EndEvent"]
    finally:
        dispatcher.event_handlers.remove(handler)
    assert len(debug.get_event_pairs(CBEventType.LLM)) == len(METHODS)
    assert (counter.prompt_llm_token_count, counter.completion_llm_token_count) == (23 * 8, 4 * 8)


# ---- in an engine, on the embedded model ----


@pytest.fixture(scope="module")
def embedded():
    if not (EMBEDDED / "config.json").exists():
        pytest.skip("the embedded model (demo/model) is not in this checkout")
    return IpexLLM.from_model_id(
        model_name=str(EMBEDDED), load_in_low_bit="sym_int8", max_new_tokens=24, generate_kwargs={"temperature": 0}
    )


NODES = [TextNode(text="Tarvik lives in Quonda."), TextNode(text="Zorbin lives in Mellport.")]
QUESTION = "Context: {context_str}\nQuestion: {query_str}\nAnswer:"


@pytest.mark.parametrize("is_chat_model", [True, False])
async def test_a_query_engine_answers_from_its_nodes(embedded, is_chat_model):
    made = IpexLLM(
        model=embedded._model, is_chat_model=is_chat_model, max_new_tokens=24, generate_kwargs={"temperature": 0}
    )
    index = SummaryIndex(NODES)
    engine = index.as_query_engine(llm=made, text_qa_template=PromptTemplate(QUESTION))
    assert str(engine.query("Where does Tarvik live?")).strip() == "Quonda."
    assert str(await engine.aquery("Where does Zorbin live?")).strip() == "Mellport."
    streaming = index.as_query_engine(llm=made, text_qa_template=PromptTemplate(QUESTION), streaming=True)
    assert "".join(streaming.query("Where does Zorbin live?").response_gen).strip() == "Mellport."


async def test_a_chat_engine_with_a_context():
    """The context goes into the system message, the question after it; the second turn sees the first."""
    seen = []

    def logits(ids):
        seen.append(bytes(i for i in ids if i < 256).decode())
        return favour(ord("!") if seen[-1].endswith("[assistant]") else EOS)

    made = IpexLLM(model=text_model(logits, chat_template=TEMPLATE, context=8192))
    engine = SummaryIndex(NODES).as_chat_engine(chat_mode="context", llm=made)
    assert engine.chat("Where does Tarvik live?").response == "!"
    assert (await engine.achat("And Zorbin?")).response == "!"
    asked = max(seen, key=len)
    assert asked.startswith("[system]")
    assert "Tarvik lives in Quonda." in asked
    assert asked.endswith("[user]Where does Tarvik live?[assistant]![user]And Zorbin?[assistant]!")


async def test_a_chat_engine_keeps_the_conversation(embedded):
    engine = SimpleChatEngine.from_defaults(llm=embedded)
    first = engine.chat("Tell me a story about a fox.")
    assert "fox" in first.response
    streamed = "".join(engine.stream_chat("Tell me a story about an owl.").response_gen)
    assert len(streamed.split()) > 5
    await engine.achat("Tell me a story about a bear.")
    roles = [message.role.value for message in engine.chat_history]
    assert roles == ["user", "assistant"] * 3
    assert engine.chat_history[1].content == first.response


def test_a_saved_model_opens_again(embedded, tmp_path):
    embedded._model.save_low_bit(tmp_path / "saved")
    again = IpexLLM.from_model_id_low_bit(
        model_name=str(tmp_path / "saved"), max_new_tokens=24, generate_kwargs={"temperature": 0}
    )
    story = [ChatMessage("Tell me a story about a fox.")]
    assert again.chat(story).message.content == embedded.chat(story).message.content
    with pytest.raises(ValueError, match="not a low-bit folder"):
        IpexLLM.from_model_id_low_bit(model_name=str(EMBEDDED))
