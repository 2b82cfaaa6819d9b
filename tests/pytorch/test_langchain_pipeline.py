"""WeightOnlyQuantPipeline in transformers: encoder-decoder models, unknown families, the caller's pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.torch

DEMO = Path(__file__).resolve().parents[2] / "demo" / "model"


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory):
    import torch
    from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

    folder = tmp_path_factory.mktemp("t5")
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, pad_token_id=1,
        decoder_start_token_id=0, eos_token_id=None, task_specific_params={"summarization": {"prefix": "summarize: "}},
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("task", ["text2text-generation", "summarization"])
async def test_encoder_decoder_models(t5_folder, task):
    from langchain_lowbit import WeightOnlyQuantPipeline
    from lowbit.torch import LowBitLinear

    llm = WeightOnlyQuantPipeline.from_model_id(
        t5_folder, task, load_in_4bit=True,
        pipeline_kwargs={"max_new_tokens": 12, "do_sample": False, "suppress_tokens": [*range(6)]},
    )  # fmt: skip
    modules = [module for module in llm.pipeline.model.modules() if isinstance(module, LowBitLinear)]
    assert modules
    assert llm.pipeline.prefix == ("summarize: " if task == "summarization" else "")
    text = llm.invoke("A story of a fox.")
    assert text
    assert "".join(llm.stream("A story of a fox.")) == text
    assert await llm.ainvoke("A story of a fox.") == text
    assert "".join([part async for part in llm.astream("A story of a fox.")]) == text
    assert llm.invoke("A story of a fox.", stop=[text[1:3]]) == text[: text.index(text[1:3])]
    assert llm.batch(["A story of a fox.", "A"])[0] == text
    assert llm.invoke("A story of a fox.", temperature=0) == text
    with pytest.raises(ValueError, match="frobnicate"):
        llm.invoke("x", frobnicate=1)


def test_the_callers_pipeline():
    import transformers

    from langchain_lowbit import WeightOnlyQuantPipeline

    pipeline = transformers.pipeline("text-generation", model=str(DEMO), max_new_tokens=10)
    llm = WeightOnlyQuantPipeline(pipeline=pipeline, pipeline_kwargs={"do_sample": False})
    prompt = "Context: Zorbin lives in Mellport.\nQuestion: Where does Zorbin live?\nAnswer:"
    assert llm.invoke(prompt).strip() == "Mellport."
    assert llm.model_id == str(DEMO)
