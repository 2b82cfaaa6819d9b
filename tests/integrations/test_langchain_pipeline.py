"""WeightOnlyQuantPipeline on the native decoder: no torch."""

from __future__ import annotations

from pathlib import Path

import pytest
from langchain_core.prompts import PromptTemplate

from langchain_lowbit import WeightOnlyQuantPipeline
from lowbit.woq import WeightOnlyQuantConfig

MODEL = str(Path(__file__).resolve().parents[2] / "demo" / "model")
PROMPT = "Context: Zorbin lives in Mellport.\nQuestion: Where does Zorbin live?\nAnswer:"


@pytest.fixture(scope="module")
def llm():
    return WeightOnlyQuantPipeline.from_model_id(
        MODEL, "text-generation", pipeline_kwargs={"max_new_tokens": 12, "temperature": 0}, load_in_4bit=True
    )


def test_answers_without_the_prompt(llm):
    chain = PromptTemplate.from_template("{text}") | llm
    assert chain.invoke({"text": PROMPT}).strip() == "Mellport."
    assert llm.pipeline.model.quantization["format"] == "nf4"
    assert llm.pipeline.model.quantization["group_size"] == 32


def test_streams_stops_and_batches(llm):
    text = llm.invoke("Once upon a time")
    assert "".join(llm.stream("Once upon a time")) == text
    assert len(list(llm.stream("Once upon a time"))) > 1
    stop = text[5:8]
    assert llm.invoke("Once upon a time", stop=[stop]) == text[: text.index(stop)]
    assert llm.invoke("Once upon a time", stop=["?", "**", "."]) == text.split(".")[0].split("?")[0]
    assert llm.batch(["Once upon a time", PROMPT]) == [text, llm.invoke(PROMPT)]
    assert llm.invoke("Once upon a time", max_new_tokens=3) != text


async def test_async(llm):
    assert await llm.ainvoke(PROMPT) == llm.invoke(PROMPT)
    assert "".join([part async for part in llm.astream(PROMPT)]) == llm.invoke(PROMPT)


@pytest.mark.parametrize("config", [WeightOnlyQuantConfig, WeightOnlyQuantConfig(weight_dtype="int4", group_size=64)])
def test_a_configuration_or_its_class(config):
    llm = WeightOnlyQuantPipeline.from_model_id(MODEL, task="text-generation", quantization_config=config)
    assert llm.pipeline.model.quantization["format"] == ("nf4" if isinstance(config, type) else "sym_int4")
    assert "quantization" in llm._identifying_params


def test_without_quantisation():
    llm = WeightOnlyQuantPipeline.from_model_id(MODEL, "text-generation")
    assert llm.pipeline.model.quantization["format"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "translation"}, "text2text-generation, text-generation, summarization"),
        ({"task": "text-generation", "device": 0}, "Intel GPU"),
        ({"task": "text-generation", "device": 0, "device_map": "cpu"}, "not both"),
        ({"task": "text-generation", "device_map": "cuda:0"}, "device_map"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        WeightOnlyQuantPipeline.from_model_id(MODEL, **arguments)


def test_what_is_no_pipeline():
    with pytest.raises(TypeError, match="transformers text pipeline"):
        WeightOnlyQuantPipeline(pipeline=object())
    with pytest.raises(ValueError, match="from_model_id"):
        WeightOnlyQuantPipeline().invoke("x")
