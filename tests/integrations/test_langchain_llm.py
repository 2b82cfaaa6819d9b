"""IpexLLM's translation between LangChain and a text model, on a small fake; the notebook test has the real one."""

import asyncio
import copy
import inspect
import json
import threading
import time
from types import SimpleNamespace

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.language_models import LLM
from langchain_core.load import dumpd
from langchain_core.prompts import PromptTemplate

import lowbit
import toy
from langchain_lowbit import BigdlLLM, IpexLLM
from langchain_lowbit._arguments import split_model_kwargs
from lowbit.grammar import UnfinishedError
from lowbit.text import Completion, Delta, TextModel, TokenLogprob
from toy import babble, text_model

STORY = "Once upon a time there was a fox ."


class FakeTextModel(TextModel):
    """Answers every prompt with the words of a story, one word per step; keeps what it was asked."""

    model_id = "fake/model"
    runtime = SimpleNamespace(device="cpu", precision="auto")
    tokenizer = object()

    def __init__(self, step_seconds=0.0, low_bit="sym_int4", tokenizer_id="fake/tokenizer"):
        self._loaded = SimpleNamespace(
            quantization={"format": low_bit, "group_size": 64}, provenance={"tokenizer": tokenizer_id}
        )
        self.step_seconds = step_seconds
        self.calls, self.steps, self.threads = [], 0, set()

    def __repr__(self):
        return "FakeTextModel()"

    def encode(self, text):
        return [ord(c) for c in text]

    def _deltas(self, prompt, options):
        words = [word + " " for word in STORY.split()][: options.get("max_new_tokens", 100)]
        stops = [options["stop"]] if isinstance(options.get("stop"), str) else options.get("stop") or []
        cancel = options.get("cancel")
        for i, word in enumerate(words):
            self.threads.add(threading.get_ident())
            self.steps += 1
            time.sleep(self.step_seconds)
            reason = None if i + 1 < len(words) else "length"
            if any(s in word for s in stops):
                word, reason = "", "stop"
            if cancel is not None and cancel.is_set():
                word, reason = "", "cancelled"
            logprobs = (TokenLogprob(i, word, -0.5),) if options.get("logprobs") is not None else None
            yield Delta(word, (i,), reason, logprobs, len(prompt), i + 1)
            if reason is not None:
                return

    def stream(self, prompt, **options):
        self.calls.append((prompt, options))
        return self._deltas(prompt, options)

    async def astream(self, prompt, **options):
        cancel = options.setdefault("cancel", threading.Event())
        iterator = self.stream(prompt, **options)
        try:
            while (delta := await asyncio.to_thread(next, iterator, None)) is not None:
                yield delta
        finally:
            cancel.set()

    def generate(self, prompts, **options):
        self.calls.append((prompts, options))
        results = []
        for prompt in prompts:
            deltas = list(self._deltas(prompt, options))
            logprobs = None if deltas[-1].logprobs is None else tuple(p for d in deltas for p in d.logprobs)
            results.append(
                Completion(
                    "".join(d.text for d in deltas),
                    tuple(i for d in deltas for i in d.token_ids),
                    len(prompt),
                    len(deltas),
                    deltas[-1].finish_reason,
                    logprobs,
                )
            )
        return results

    async def agenerate(self, prompts, **options):
        cancel = options.setdefault("cancel", threading.Event())
        try:
            return await asyncio.to_thread(self.generate, prompts, **options)
        finally:
            cancel.set()


class Collector(BaseCallbackHandler):
    def __init__(self):
        self.tokens, self.ended, self.errors = [], [], []

    def on_llm_new_token(self, token, **kwargs):
        self.tokens.append(token)

    def on_llm_end(self, response, **kwargs):
        self.ended.append(response)

    def on_llm_error(self, error, **kwargs):
        self.errors.append(error)


@pytest.fixture
def fake():
    return FakeTextModel()


@pytest.fixture
def llm(fake):
    return IpexLLM(model=fake, model_kwargs={"temperature": 0, "max_new_tokens": 4})


@pytest.fixture
def loads(monkeypatch, fake):
    """Replaces `lowbit.load`; the list holds the calls it got."""
    calls = []

    def load(model_id, low_bit="sym_int4", **options):
        calls.append((model_id, low_bit, options))
        return fake

    monkeypatch.setattr(lowbit, "load", load)
    return calls


# ---- constructors ----


def test_constructors_have_upstreams_arguments():
    def signature(function):
        return [
            (p.name, p.kind.name, None if p.default is p.empty else p.default)
            for p in inspect.signature(function).parameters.values()
        ]

    assert signature(IpexLLM.from_model_id) == [
        ("model_id", "POSITIONAL_OR_KEYWORD", None),
        ("model_kwargs", "POSITIONAL_OR_KEYWORD", None),
        ("tokenizer_id", "KEYWORD_ONLY", None),
        ("load_in_4bit", "KEYWORD_ONLY", True),
        ("load_in_low_bit", "KEYWORD_ONLY", None),
        ("kwargs", "VAR_KEYWORD", None),
    ]
    assert signature(IpexLLM.from_model_id_low_bit) == [
        ("model_id", "POSITIONAL_OR_KEYWORD", None),
        ("model_kwargs", "POSITIONAL_OR_KEYWORD", None),
        ("tokenizer_id", "KEYWORD_ONLY", None),
        ("kwargs", "VAR_KEYWORD", None),
    ]
    assert {"model_id", "model_kwargs", "model", "tokenizer", "streaming"} <= set(IpexLLM.model_fields)
    assert issubclass(IpexLLM, LLM)
    assert BigdlLLM is IpexLLM


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, "sym_int4"),
        ({"load_in_low_bit": "nf4"}, "nf4"),
        ({"load_in_low_bit": "asym_int4", "load_in_4bit": False}, "asym_int4"),
        ({"load_in_4bit": False}, None),
    ],
)
def test_formats_of_from_model_id(loads, arguments, expected):
    IpexLLM.from_model_id("some/model", **arguments)
    assert loads == [("some/model", expected, {})]


def test_low_bit_constructor_wants_a_saved_model(loads):
    IpexLLM.from_model_id_low_bit("some/folder", {"device": "cpu"})
    assert loads == [("some/folder", "sym_int4", {"device": "cpu", "saved_only": True})]


def test_model_kwargs_are_split_and_not_changed(loads, fake):
    given = {
        "temperature": 0, "max_length": 64, "trust_remote_code": True, "device": "cpu", "revision": "main",
        "threads": 2, "torch_dtype": "auto", "use_cache": True,
    }  # fmt: skip
    before = copy.deepcopy(given)
    llm = IpexLLM.from_model_id("some/model", given, tokenizer_id="other/tokenizer")
    assert given == before, "the caller's dict was changed"
    assert loads[0][2] == {
        "trust_remote_code": True, "device": "cpu", "revision": "main", "threads": 2, "tokenizer_id": "other/tokenizer",
    }  # fmt: skip
    llm.invoke("x")
    assert fake.calls[-1][1] == {"temperature": 0, "do_sample": False, "max_length": 64}
    assert llm.model_id == "some/model"
    assert "device" not in llm.model_kwargs
    assert "trust_remote_code" not in llm.model_kwargs
    # a second model from the same dict is the same model (upstream had popped the device)
    IpexLLM.from_model_id("some/model", given)
    assert loads[1][2]["device"] == "cpu"


def test_a_hub_token_reaches_the_hub_and_nothing_else(loads):
    llm = IpexLLM.from_model_id("some/model", {"token": "hf_secret"})
    assert loads[0][2] == {"token": "hf_secret"}
    assert "hf_secret" not in repr(llm) + str(llm._identifying_params) + json.dumps(llm.metadata)


def test_remote_code_is_never_trusted_unasked(loads):
    IpexLLM.from_model_id("some/model")
    IpexLLM.from_model_id_low_bit("some/folder")
    assert all("trust_remote_code" not in options for *_, options in loads)


@pytest.mark.parametrize(
    ("model_kwargs", "words"),
    [
        ({"temprature": 0}, "unknown option 'temprature' in model_kwargs; did you mean 'temperature'"),
        ({"trust_remote_cod": True}, "did you mean 'trust_remote_code'"),
        ({"load_in_4bit": True}, "pass load_in_4bit=... beside it"),
        ({"streaming": True}, "pass streaming=... beside it"),
    ],
)
def test_unknown_model_kwargs_name_the_nearest(loads, model_kwargs, words):
    with pytest.raises(TypeError) as caught:
        IpexLLM.from_model_id("some/model", model_kwargs)
    assert words in str(caught.value)
    assert loads == [], "checked before anything is loaded"


@pytest.mark.parametrize("model_kwargs", [{"temperature": -1}, {"num_beams": 4}])
def test_bad_generation_options_are_told_before_loading(loads, model_kwargs):
    with pytest.raises(ValueError, match=next(iter(model_kwargs))):
        IpexLLM.from_model_id("some/model", model_kwargs)
    assert loads == []


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"temperature": 0}, "'temperature' belongs in model_kwargs"),
        ({"device": "cpu"}, "'device' belongs in model_kwargs"),
        ({"tokenizer_name": "x"}, "did you mean 'tokenizer_id'"),
        ({"streming": True}, "did you mean 'streaming'"),
    ],
)
def test_unknown_arguments_say_where_they_belong(loads, kwargs, words):
    with pytest.raises(TypeError) as caught:
        IpexLLM.from_model_id("some/model", **kwargs)
    assert words in str(caught.value)


def test_fields_pass_through_the_constructors(loads):
    handler = Collector()
    llm = IpexLLM.from_model_id(
        "m", streaming=False, callbacks=[handler], verbose=True, tags=["a"], metadata={"b": 1}, cache=False
    )
    assert (llm.streaming, llm.callbacks, llm.verbose, llm.tags, llm.cache) == (False, [handler], True, ["a"], False)
    assert llm.metadata["b"] == 1


def test_a_failed_load_raises_its_cause(monkeypatch):
    def load(*args, **kwargs):
        raise FileNotFoundError("no folder at /nowhere")

    monkeypatch.setattr(lowbit, "load", load)
    with pytest.raises(FileNotFoundError, match="no folder at /nowhere"):
        IpexLLM.from_model_id("/nowhere")


def test_without_a_model_the_error_says_how_to_get_one():
    with pytest.raises(ValueError, match="from_model_id"):
        IpexLLM().invoke("x")


def test_a_model_of_somebody_else_is_refused():
    with pytest.raises(TypeError, match=r"lowbit\.load"):
        IpexLLM(model=object())


def test_around_a_loaded_model(fake):
    llm = IpexLLM(model=fake)
    assert llm.model_id == "fake/model"
    assert llm.tokenizer is fake.tokenizer
    assert IpexLLM(model=fake, model_id="my-name").model_id == "my-name"


# ---- answers ----


def test_answer_is_the_completion_only_in_every_mode(llm):
    expected = "Once upon a time "
    assert llm.invoke("PROMPT") == expected
    assert llm.batch(["PROMPT", "Q"]) == [expected] * 2
    assert "".join(llm.stream("PROMPT")) == expected
    assert llm.model_copy(update={"streaming": False}).invoke("PROMPT") == expected


async def test_answer_is_the_same_in_async_modes(llm):
    expected = "Once upon a time "
    assert await llm.ainvoke("PROMPT") == expected
    assert await llm.abatch(["PROMPT", "Q"]) == [expected] * 2
    assert "".join([text async for text in llm.astream("PROMPT")]) == expected


def test_nothing_is_printed(llm, capfd):
    llm.invoke("x")
    list(llm.stream("x"))
    llm.batch(["x", "y"])
    llm.model_copy(update={"streaming": False}).invoke("x")
    assert capfd.readouterr() == ("", "")


def test_chain(llm):
    chain = PromptTemplate.from_template("USER: {question}\nASSISTANT:") | llm
    assert chain.invoke("What is AI?") == "Once upon a time "
    assert llm.model.calls[-1][0] == ["USER: What is AI?\nASSISTANT:"]


def test_stream_gives_deltas_as_they_come(llm, fake):
    stream = llm.stream("x")
    assert next(stream) == "Once "
    assert fake.steps == 1, "more was generated than was asked for"
    assert list(stream) == ["upon ", "a ", "time "]


def test_leaving_a_stream_stops_the_model(llm, fake):
    stream = llm.stream("x")
    next(stream)
    stream.close()
    assert fake.steps == 1


def test_batch_is_one_call_of_the_model(llm, fake):
    llm.batch(["a", "b", "c"])
    assert [prompts for prompts, _ in fake.calls] == [["a", "b", "c"]]


async def test_abatch_is_one_call_of_the_model(llm, fake):
    await llm.abatch(["a", "b", "c"])
    assert [prompts for prompts, _ in fake.calls] == [["a", "b", "c"]]


def test_call_options_win_over_model_kwargs(llm, fake):
    assert llm.bind(max_new_tokens=2).invoke("x") == "Once upon "
    assert llm.invoke("x", max_new_tokens=1, seed=7) == "Once "
    assert fake.calls[-1][1] == {"temperature": 0, "do_sample": False, "max_new_tokens": 1, "seed": 7}
    assert "".join(llm.stream("x", max_new_tokens=3)) == "Once upon a "
    assert llm.model_kwargs == {"temperature": 0, "max_new_tokens": 4}


def test_a_calls_limit_replaces_one_of_the_other_kind(llm, fake):
    llm.invoke("x", max_length=20)
    assert fake.calls[-1][1].get("max_new_tokens") is None
    assert fake.calls[-1][1]["max_length"] == 20


def test_unknown_call_options_name_the_nearest(llm):
    for call in (llm.invoke, lambda *a, **k: list(llm.stream(*a, **k))):
        with pytest.raises(TypeError, match="did you mean 'max_new_tokens'"):
            call("x", max_new_token=2)


@pytest.mark.parametrize("stop", [["time"], "time", ["zzz", "time"]])
def test_stop_in_every_sync_mode(llm, stop):
    expected = "Once upon a "
    assert llm.invoke("x", stop=stop) == expected
    assert llm.bind(stop=stop).invoke("x") == expected
    assert llm.batch(["x", "y"], stop=stop) == [expected] * 2
    assert "".join(llm.stream("x", stop=stop)) == expected
    assert llm.generate(["x"], stop=stop).generations[0][0].generation_info["finish_reason"] == "stop"


async def test_stop_in_every_async_mode(llm):
    expected = "Once upon a "
    assert await llm.ainvoke("x", stop=["time"]) == expected
    assert await llm.abatch(["x", "y"], stop=["time"]) == [expected] * 2
    assert "".join([text async for text in llm.astream("x", stop=["time"])]) == expected


def test_stop_of_model_kwargs_is_replaced_by_the_calls(fake):
    llm = IpexLLM(model=fake, model_kwargs={"stop": ["upon"]})
    assert llm.invoke("x") == "Once "
    assert llm.invoke("x", stop=["time"]) == "Once upon a "


CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}<assistant>"


async def test_chat_template_on_request():
    """Answers "<user>Hi</s><assistant>" with "Hello", whose turn ends at a token that is not the model's own eos."""

    def logits(ids):
        text = bytes(i for i in ids if i < 256).decode()
        said = text.partition("<assistant>")[2]
        asked = "Hello" if "<assistant>" in text else "raw"
        said = said if "<assistant>" in text else text[2:]
        return toy.favour(ord(asked[len(said)]) if len(said) < len(asked) else toy.EOS)

    model = toy.text_model(logits, chat_template=CHAT, generation_config={"eos_token_id": 0})
    llm = IpexLLM(model=model, apply_chat_template=True, model_kwargs={"max_new_tokens": 9})
    assert llm.invoke("Hi") == await llm.ainvoke("Hi") == "".join(llm.stream("Hi")) == "Hello"
    assert "".join([text async for text in llm.astream("Hi")]) == "Hello"
    assert llm.batch(["Hi", "Hi"]) == ["Hello"] * 2
    assert IpexLLM(model=model, model_kwargs={"max_new_tokens": 3}).invoke("Hi") == "raw"
    plain = IpexLLM(model=model)
    assert llm._identifying_params != plain._identifying_params


def test_a_named_chat_template():
    model = toy.text_model({})
    prompts = []
    model.generator.start = lambda requests, **_: prompts.append(model.decode(requests[0].prompt)) or 1 / 0
    with pytest.raises(ZeroDivisionError):
        IpexLLM(model=model, template="llama-2").invoke("Hi")
    assert prompts == ["[INST] Hi [/INST]"]
    with pytest.raises(ValueError, match=r"no chat template.*template= the name"):
        IpexLLM(model=model, apply_chat_template=True).invoke("Hi")


# ---- results and callbacks ----

USAGE = {"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6}


@pytest.mark.parametrize("streaming", [True, False])
def test_finish_reason_and_usage(fake, streaming):
    llm = IpexLLM(model=fake, model_kwargs={"max_new_tokens": 4}, streaming=streaming)
    result = llm.generate(["ab"], callbacks=[Collector()])
    assert result.generations[0][0].generation_info == {"finish_reason": "length", "token_usage": USAGE}
    assert result.llm_output == {"token_usage": USAGE, "model_name": "fake/model"}


def test_usage_of_a_batch_is_the_sum(llm):
    result = llm.generate(["ab", "abcd"])
    assert result.llm_output["token_usage"] == {"prompt_tokens": 6, "completion_tokens": 8, "total_tokens": 14}
    assert [g[0].generation_info["token_usage"]["prompt_tokens"] for g in result.generations] == [2, 4]


def test_end_of_a_stream_tells_usage(llm):
    collector = Collector()
    list(llm.stream("ab", config={"callbacks": [collector]}))
    generation = collector.ended[0].generations[0][0]
    assert generation.text == "Once upon a time "
    assert generation.generation_info == {"finish_reason": "length", "token_usage": USAGE}


@pytest.mark.parametrize("callbacks", [[], [Collector()]])
def test_logprobs_on_request(llm, callbacks):
    def info(**options):
        return llm.generate(["ab"], callbacks=callbacks, **options).generations[0][0].generation_info

    assert "logprobs" not in info()
    logprobs = info(logprobs=0)["logprobs"]
    assert [entry["text"] for entry in logprobs] == ["Once ", "upon ", "a ", "time "]
    assert logprobs[0] == {"token_id": 0, "text": "Once ", "logprob": -0.5, "alternatives": []}
    assert json.loads(json.dumps(logprobs)) == logprobs, "tracers store plain data"


def test_logprobs_of_a_stream_add_up(llm):
    collector = Collector()
    list(llm.stream("ab", config={"callbacks": [collector]}, logprobs=0))
    assert len(collector.ended[0].generations[0][0].generation_info["logprobs"]) == 4


def test_callbacks_get_every_delta(llm):
    for run in (
        lambda handler: llm.invoke("x", config={"callbacks": [handler]}),
        lambda handler: list(llm.stream("x", config={"callbacks": [handler]})),
    ):
        run(collector := Collector())
        assert collector.tokens == ["Once ", "upon ", "a ", "time "]
        assert len(collector.ended) == 1


def test_streaming_false_keeps_invoke_silent_towards_callbacks(fake):
    llm = IpexLLM(model=fake, model_kwargs={"max_new_tokens": 4}, streaming=False)
    collector = Collector()
    assert llm.invoke("x", config={"callbacks": [collector]}) == "Once upon a time "
    assert collector.tokens == []
    assert list(llm.stream("x")) == ["Once ", "upon ", "a ", "time "], "stream streams in either case"


def test_callbacks_hear_of_errors(llm, monkeypatch):
    def stream(self, prompt, **options):
        raise ValueError("the prompt is too long")

    monkeypatch.setattr(FakeTextModel, "stream", stream)
    collector = Collector()
    with pytest.raises(ValueError, match="too long"):
        llm.invoke("x", config={"callbacks": [collector]})
    assert len(collector.errors) == 1


async def test_async_callbacks_get_every_delta(llm):
    class AsyncCollector(AsyncCallbackHandler):
        def __init__(self):
            self.tokens = []

        async def on_llm_new_token(self, token, **kwargs):
            self.tokens.append(token)

    handler = AsyncCollector()
    await llm.ainvoke("x", config={"callbacks": [handler]})
    assert handler.tokens == ["Once ", "upon ", "a ", "time "]


# ---- async ----


async def heartbeat(beats):
    while True:
        beats.append(time.perf_counter())
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("mode", ["ainvoke", "abatch", "astream"])
async def test_the_loop_stays_alive(mode):
    llm = IpexLLM(model=FakeTextModel(step_seconds=0.05), model_kwargs={"max_new_tokens": 4})
    beats = []
    task = asyncio.create_task(heartbeat(beats))
    if mode == "ainvoke":
        await llm.ainvoke("x")
    elif mode == "abatch":
        await llm.abatch(["x"])
    else:
        assert [text async for text in llm.astream("x")] == ["Once ", "upon ", "a ", "time "]
    task.cancel()
    assert len(beats) > 8, "the loop was blocked while tokens were made"
    assert threading.get_ident() not in llm.model.threads


@pytest.mark.parametrize("mode", ["ainvoke", "astream"])
async def test_cancelling_a_task_ends_the_work(mode):
    fake = FakeTextModel(step_seconds=0.03)
    llm = IpexLLM(model=fake)

    async def consume():
        if mode == "ainvoke":
            await llm.ainvoke("x")
        else:
            async for _ in llm.astream("x"):
                pass

    task = asyncio.create_task(consume())
    await asyncio.sleep(0.08)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.05)
    steps = fake.steps
    assert steps <= 5
    await asyncio.sleep(0.1)
    assert fake.steps == steps, "the model kept running after its task was cancelled"


def test_many_threads_at_once(llm):
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(llm.invoke("x"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == ["Once upon a time "] * 8


# ---- identity ----


def test_identifying_params(llm):
    params = llm._identifying_params
    assert params["model_id"] == "fake/model"
    assert params["model_kwargs"] == {"temperature": 0, "max_new_tokens": 4}
    assert params["quantization"] == {"format": "sym_int4", "group_size": 64}
    assert params["device"] == "cpu"
    assert json.loads(json.dumps(params)) == params
    assert llm._llm_type == "ipex-llm"


def test_saved_description_is_plain_data(llm, tmp_path):
    llm.save(tmp_path / "llm.json")
    assert json.loads((tmp_path / "llm.json").read_text())["quantization"]["format"] == "sym_int4"


def test_not_serialisable_like_upstream(llm):
    assert IpexLLM.is_lc_serializable() is False
    assert dumpd(llm)["type"] == "not_implemented"


@pytest.mark.parametrize("difference", [{"low_bit": "nf4"}, {"tokenizer_id": "other/tokenizer"}])
def test_cache_knows_format_and_tokenizer(fake, difference):
    cache = InMemoryCache()
    other = FakeTextModel(**difference)
    IpexLLM(model=fake, cache=cache).invoke("x")
    IpexLLM(model=fake, cache=cache).invoke("x")
    assert len(fake.calls) == 1
    IpexLLM(model=other, cache=cache).invoke("x")
    assert len(other.calls) == 1, "another model was answered from the cache"


def test_tracing_params(llm):
    params = llm._get_ls_params(stop="\n", max_new_tokens=9)
    assert params == {
        "ls_provider": "lowbit", "ls_model_type": "llm", "ls_model_name": "fake/model",
        "ls_temperature": 0, "ls_max_tokens": 9, "ls_stop": ["\n"],
    }  # fmt: skip


def test_version_is_in_the_metadata(llm):
    if hasattr(LLM, "_add_version"):
        assert llm.metadata["lc_versions"]["lowbit"] == lowbit.__version__


def test_tokens_are_counted_by_the_models_tokenizer(llm, fake):
    assert llm.get_num_tokens("four") == 4
    assert llm.get_token_ids("ab") == [97, 98]
    assert IpexLLM(model=fake, custom_get_token_ids=lambda text: [0]).get_num_tokens("four") == 1


def test_extra_fields_are_refused(fake):
    with pytest.raises(ValueError, match="Extra inputs"):
        IpexLLM(model=fake, temperature=0)


def test_unknown_model_kwargs_are_told_without_loading_too(fake):
    with pytest.raises(TypeError, match="did you mean 'temperature'"):
        IpexLLM(model=fake, model_kwargs={"temprature": 0})


def test_split_of_nothing():
    assert split_model_kwargs(None) == ({}, {})


def test_a_constraint_passes_through_and_half_an_answer_is_an_error():
    model = text_model(babble(4))
    llm = IpexLLM(model=model, model_kwargs={"temperature": 2.0, "seed": 3})
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    schema["additionalProperties"] = False
    assert set(json.loads(llm.invoke("x", json_schema=schema))) == {"n"}
    assert llm.bind(choice=["yes", "no"]).invoke("x") in ("yes", "no")
    assert "".join(llm.stream("x", regex="[a-c]{3}!")).endswith("!")
    assert all(answer in ("yes", "no") for answer in llm.batch(["x", "y"], choice=["yes", "no"]))
    short = {"json_schema": schema, "max_new_tokens": 3}
    with pytest.raises(UnfinishedError, match="max_new_tokens"):
        llm.invoke("x", **short)
    with pytest.raises(UnfinishedError, match="max_new_tokens"):
        list(llm.stream("x", **short))
    with pytest.raises(UnfinishedError, match="max_new_tokens"):
        asyncio.run(llm.ainvoke("x", **short))
