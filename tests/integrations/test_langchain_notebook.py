"""The predecessor's notebook, cell by cell, with only import line and model id changed; IpexLLM on real models."""

import asyncio
import json
import threading
import time

import pytest
from langchain_core.callbacks import BaseCallbackHandler

import lowbit
from langchain_lowbit import IpexLLM

# The code cells of LangChain's IPEX-LLM page (CPU part). Changed: the import of IpexLLM; MODEL and SAVED are names.
CELLS = (
    """
import warnings

from langchain_lowbit import IpexLLM
from langchain_core.prompts import PromptTemplate

warnings.filterwarnings("ignore", category=UserWarning, message=".*padding_mask.*")
""",
    """
template = "USER: {question}\\nASSISTANT:"
prompt = PromptTemplate(template=template, input_variables=["question"])
""",
    """
llm = IpexLLM.from_model_id(
    model_id=MODEL,
    model_kwargs={"temperature": 0, "max_length": 64, "trust_remote_code": True},
)
""",
    """
llm_chain = prompt | llm

question = "What is AI?"
output = llm_chain.invoke(question)
""",
    """
saved_lowbit_model_path = SAVED  # path to save low-bit model
llm.model.save_low_bit(saved_lowbit_model_path)
del llm
""",
    """
llm_lowbit = IpexLLM.from_model_id_low_bit(
    model_id=saved_lowbit_model_path,
    tokenizer_id=MODEL,
    # tokenizer_name=saved_lowbit_model_path,  # copy the tokenizers to saved path if you want to use it this way
    model_kwargs={"temperature": 0, "max_length": 64, "trust_remote_code": True},
)
""",
    """
llm_chain = prompt | llm_lowbit


question = "What is AI?"
output_again = llm_chain.invoke(question)
""",
)


def test_notebook(model_folder, tmp_path, capfd):
    names = {"MODEL": str(model_folder), "SAVED": str(tmp_path / "low-bit")}
    for cell in CELLS:
        exec(compile(cell, "notebook", "exec"), names)
    assert isinstance(names["output"], str)
    assert names["output"]
    assert names["output_again"] == names["output"]
    assert "USER:" not in names["output"], "the prompt is part of the answer"
    assert capfd.readouterr() == ("", ""), "something was printed"
    llm = names["llm_lowbit"]
    prompt = names["prompt"].format(question="What is AI?")
    assert llm.get_num_tokens(prompt) + llm.get_num_tokens(names["output"]) <= 64 + 1, "max_length counts the prompt"


def test_saved_folder_is_complete(tiny_folder, tmp_path):
    llm = IpexLLM.from_model_id(str(tiny_folder), {"temperature": 0, "max_new_tokens": 8})
    llm.model.save_low_bit(str(tmp_path / "saved"))
    again = IpexLLM.from_model_id_low_bit(str(tmp_path / "saved"), {"temperature": 0, "max_new_tokens": 8})
    assert again.invoke("Hello") == llm.invoke("Hello"), "a saved model needs no tokenizer_id"
    opened = IpexLLM.from_model_id(str(tmp_path / "saved"), {"temperature": 0, "max_new_tokens": 8})
    assert opened.invoke("Hello") == llm.invoke("Hello"), "from_model_id opens a saved model too"


def test_the_xpu_cells_say_what_is_missing(tiny_folder):
    if any(device["usable"] for device in lowbit.runtime.describe()["devices"] if device["kind"] != "cpu"):
        pytest.skip("this machine has a usable Intel GPU")
    with pytest.raises(ValueError, match="device 'xpu' cannot be used"):
        IpexLLM.from_model_id(
            model_id=str(tiny_folder),
            model_kwargs={"temperature": 0, "max_length": 64, "trust_remote_code": True, "device": "xpu"},
        )


def test_low_bit_constructor_refuses_a_float_model(tiny_folder):
    with pytest.raises(ValueError, match="not a low-bit folder"):
        IpexLLM.from_model_id_low_bit(str(tiny_folder))


@pytest.mark.parametrize("low_bit", ["asym_int4", "nf4", "sym_int8", "fp8_e4m3", "bf16", None])
def test_formats(tiny_folder, low_bit):
    llm = IpexLLM.from_model_id(
        str(tiny_folder), {"temperature": 0, "max_new_tokens": 4}, load_in_low_bit=low_bit, load_in_4bit=False
    )
    assert isinstance(llm.invoke("Hello"), str)
    assert llm._identifying_params["quantization"]["format"] == low_bit


def test_unknown_format_names_the_nearest(tiny_folder):
    with pytest.raises(ValueError, match="nf4"):
        IpexLLM.from_model_id(str(tiny_folder), load_in_low_bit="nf5")


# ---- one model, every mode ----


@pytest.fixture(scope="module")
def llm(model_folder):
    return IpexLLM.from_model_id(str(model_folder), {"temperature": 0, "max_new_tokens": 24})


PROMPT = "Once upon a time, there was a little"


async def test_every_mode_gives_the_same_text(llm):
    expected = llm.invoke(PROMPT)
    assert expected
    assert "".join(llm.stream(PROMPT)) == expected
    assert llm.batch([PROMPT, PROMPT]) == [expected] * 2
    assert await llm.ainvoke(PROMPT) == expected
    assert await llm.abatch([PROMPT, PROMPT]) == [expected] * 2
    assert "".join([text async for text in llm.astream(PROMPT)]) == expected
    assert llm.model_copy(update={"streaming": False}).invoke(PROMPT) == expected


def test_a_batch_answers_each_prompt(llm):
    prompts = [PROMPT, "The", "A longer prompt than the other two, so that the rows are ragged"]
    assert llm.batch(prompts) == [llm.invoke(prompt) for prompt in prompts]


async def test_stop_in_every_mode(llm):
    whole = llm.invoke(PROMPT)
    stop = [whole[len(whole) // 2 :][:3]]
    expected = whole[: whole.index(stop[0])]
    assert llm.invoke(PROMPT, stop=stop) == expected
    assert llm.bind(stop=stop).invoke(PROMPT) == expected
    assert "".join(llm.stream(PROMPT, stop=stop)) == expected
    assert llm.batch([PROMPT, PROMPT], stop=stop) == [expected] * 2
    assert await llm.ainvoke(PROMPT, stop=stop) == expected
    assert "".join([text async for text in llm.astream(PROMPT, stop=stop)]) == expected
    result = llm.generate([PROMPT], stop=stop)
    assert result.generations[0][0].generation_info["finish_reason"] == "stop"


def test_usage_is_what_the_tokenizer_counts(llm):
    for streaming in (True, False):
        result = llm.model_copy(update={"streaming": streaming}).generate(
            [PROMPT], ignore_eos=True, callbacks=[BaseCallbackHandler()]
        )
        usage = result.llm_output["token_usage"]
        assert usage["prompt_tokens"] == llm.get_num_tokens(PROMPT)
        assert usage["completion_tokens"] == 24
        assert result.generations[0][0].generation_info["finish_reason"] == "length"


def test_logprobs_are_log_probabilities(llm):
    result = llm.generate([PROMPT], logprobs=2, ignore_eos=True)
    logprobs = result.generations[0][0].generation_info["logprobs"]
    assert len(logprobs) == 24
    for entry in logprobs:
        assert entry["logprob"] <= 0
        assert len(entry["alternatives"]) == 2
        assert entry["alternatives"][0][2] == pytest.approx(entry["logprob"]), "greedy takes the likeliest"
    json.dumps(logprobs)


def test_seeded_sampling_repeats(llm):
    sampled = llm.bind(temperature=1.0, seed=11, ignore_eos=True)
    assert sampled.invoke(PROMPT) == sampled.invoke(PROMPT)
    assert sampled.invoke(PROMPT) != llm.bind(temperature=1.0, seed=12, ignore_eos=True).invoke(PROMPT)


def test_too_long_a_prompt_gives_both_numbers(llm):
    context = llm.model.context
    with pytest.raises(ValueError, match=str(context)):
        llm.invoke("word " * (context + 1))


def test_eight_threads_at_once(llm):
    expected, answers = llm.invoke(PROMPT), []
    threads = [threading.Thread(target=lambda: answers.append(llm.invoke(PROMPT))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [expected] * 8


async def test_eight_tasks_at_once_leave_the_loop_alive(llm):
    expected = llm.invoke(PROMPT)
    gaps, last = [], time.perf_counter()

    async def heartbeat():
        nonlocal last
        while True:
            await asyncio.sleep(0.005)
            gaps.append(time.perf_counter() - last)
            last = time.perf_counter()

    beat = asyncio.create_task(heartbeat())
    assert await asyncio.gather(*(llm.ainvoke(PROMPT) for _ in range(8))) == [expected] * 8
    beat.cancel()
    assert max(gaps, default=0.0) < 1.0


async def test_cancelling_frees_the_model(llm):
    started = asyncio.Event()

    async def endless():
        async for _ in llm.astream(PROMPT, max_new_tokens=llm.model.context - 64, ignore_eos=True):
            started.set()

    task = asyncio.create_task(endless())
    await started.wait()  # a fixed time would be longer than a tiny model takes for its whole context
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    deadline = time.perf_counter() + 5
    while any(thread.name == "lowbit-generate" for thread in threading.enumerate()):
        assert time.perf_counter() < deadline, "the worker thread is still running"
        await asyncio.sleep(0.01)
