"""GenerationOptions: names, merging, meanings and checks."""

import logging
import threading

import pytest

from lowbit.sampling import GenerationOptions, from_generation_config

resolve = GenerationOptions.resolve


def test_greedy_unless_something_asks_for_sampling():
    assert resolve().greedy
    assert resolve(temperature=0).greedy
    assert resolve(repetition_penalty=1.2).greedy
    assert not resolve(temperature=0.7).greedy
    assert not resolve(top_p=0.9).greedy
    assert not resolve(do_sample=True).greedy
    assert resolve(do_sample=False, temperature=0.7).greedy
    assert resolve(do_sample=True, temperature=0).greedy
    assert not GenerationOptions(temperature=0.5).greedy
    assert GenerationOptions().greedy


def test_the_model_says_how_to_sample_but_its_temperature_alone_does_not():
    model = from_generation_config({"temperature": 0.6, "top_p": 0.9})
    assert resolve(model).greedy
    sampled = resolve(model, do_sample=True).sampler_arguments()
    assert (sampled["temperature"], sampled["top_p"], sampled["top_k"]) == (0.6, 0.9, 50)
    assert not resolve(from_generation_config({"do_sample": True})).greedy
    assert resolve(from_generation_config({"do_sample": True, "temperature": 0})).greedy
    assert resolve(from_generation_config(None)).greedy


def test_later_sources_win():
    model = from_generation_config({"do_sample": True, "temperature": 0.6, "top_k": 20})
    assert resolve(model, {"temperature": 0}).greedy
    assert not resolve(model, {"temperature": 0}, temperature=0.5).greedy
    assert resolve(model, {"temperature": 0}, top_p=0.5).greedy
    options = resolve(model, {"temperature": 0}, do_sample=True)
    assert options.sampler_arguments()["temperature"] == 1.0
    assert resolve(model, {"top_k": None}).sampler_arguments()["top_k"] == 20  # None means: not given


def test_limits():
    assert resolve().new_tokens_allowed(10) == 256
    assert resolve(max_new_tokens=5).new_tokens_allowed(10) == 5
    assert resolve(max_length=64).new_tokens_allowed(10) == 54
    with pytest.raises(ValueError, match=r"has 64 tokens and max_length=64"):
        resolve(max_length=64).new_tokens_allowed(64)


def test_both_limits_at_once_log_a_note(caplog):
    with caplog.at_level(logging.WARNING):
        assert resolve(max_new_tokens=5, max_length=64).new_tokens_allowed(10) == 5
    assert "max_new_tokens counts" in caplog.text


def test_a_later_limit_of_the_other_kind_replaces_an_earlier_one():
    assert resolve({"max_new_tokens": 5}, max_length=64).new_tokens_allowed(10) == 54
    assert resolve({"max_length": 64}, max_new_tokens=5).max_length is None


def test_names():
    assert resolve(stop_strings=["a"], max_tokens=3) == resolve(stop="a", max_new_tokens=3)
    with pytest.raises(TypeError, match="same option"):
        resolve(stop="a", stop_strings="b")
    with pytest.raises(TypeError, match="did you mean 'repetition_penalty'"):
        resolve(repetion_penalty=1.1)
    with pytest.raises(TypeError, match="known: max_new_tokens"):
        resolve(zzz=1)


def test_names_that_change_nothing_are_taken_and_others_refused(caplog):
    resolve(num_beams=1, use_cache=True, pad_token_id=0, no_repeat_ngram_size=0)
    with pytest.raises(ValueError, match="no_repeat_ngram_size=3 is not supported"):
        resolve(no_repeat_ngram_size=3)
    with caplog.at_level(logging.WARNING):
        options = from_generation_config({"num_beams": 4, "transformers_version": "4", "_from_model_config": True})
    assert options == {"do_sample": False}
    assert "num_beams=4" in caplog.text
    assert "transformers_version" not in caplog.text


def test_stop_strings():
    assert resolve(stop="a").stop == ("a",)
    assert resolve(stop=["a", "b", "a"]).stop == ("a", "b")
    assert resolve(stop=[]).stop == resolve(stop=None).stop == ()
    with pytest.raises(ValueError, match="empty"):
        resolve(stop=["a", ""])
    with pytest.raises(TypeError, match="stop must be"):
        resolve(stop=[1])


def test_eos_ids():
    assert resolve(eos_token_id=3).eos_token_id == (3,)
    assert resolve(eos_token_id=[3, 4]).eos_token_id == (3, 4)
    assert resolve(eos_token_id=[]).eos_token_id == ()
    assert resolve().eos_token_id is None
    with pytest.raises(TypeError, match="eos_token_id"):
        resolve(eos_token_id="</s>")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0), ("max_new_tokens", -1), ("max_length", 0), ("min_new_tokens", -1), ("temperature", -0.1),
        ("temperature", float("nan")), ("temperature", float("inf")),
        ("top_k", -1), ("top_p", 0), ("top_p", 1.1),
        ("min_p", -0.1), ("min_p", 2), ("repetition_penalty", 0), ("presence_penalty", 3), ("frequency_penalty", -3),
        ("seed", -1), ("logprobs", -1),
    ],
)  # fmt: skip
def test_values_out_of_range_name_the_option_and_the_value(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .* got {value}"):
        resolve(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 1.5),
        ("max_new_tokens", "5"),
        ("temperature", "hot"),
        ("do_sample", "yes"),
        ("top_k", True),
        ("cancel", 1),
    ],
)
def test_values_of_another_type(name, value):
    with pytest.raises(TypeError, match=name):
        resolve(**{name: value})


def test_whole_floats_and_numpy_numbers_are_whole():
    import numpy as np

    assert resolve(max_new_tokens=8.0).max_new_tokens == 8
    assert resolve(max_new_tokens=np.int64(8), temperature=np.float32(0.5)).max_new_tokens == 8


def test_logprobs_spellings():
    assert resolve(logprobs=True).logprobs == 0
    assert resolve(logprobs=False).logprobs is None
    assert resolve(logprobs=3).sampler_arguments()["top_logprobs"] == 3
    assert resolve().sampler_arguments()["top_logprobs"] == -1


def test_cancel_is_an_event():
    event = threading.Event()
    assert resolve(cancel=event).cancel is event


@pytest.mark.torch
def test_defaults_when_sampling_are_those_of_transformers():
    import torch
    from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=300))
    warpers = model._get_logits_processor(
        model._prepare_generation_config(GenerationConfig(do_sample=True))[0], input_ids_seq_length=1,
        encoder_input_ids=torch.zeros(1, 1, dtype=torch.long),
    )  # fmt: skip
    assert [type(w).__name__ for w in warpers] == ["TopKLogitsWarper"]
    assert warpers[0].top_k == resolve(do_sample=True).sampler_arguments()["top_k"]
