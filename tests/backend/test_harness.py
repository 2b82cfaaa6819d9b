"""The adapter for lm-evaluation-harness, on tasks made here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import lowbit
from lowbit.perplexity import token_losses

lm_eval = pytest.importorskip("lm_eval", reason="the harness is not installed (extra `harness`)")
MODEL = str(Path(__file__).resolve().parents[2] / "demo" / "model")
STORY = "Once upon a time, there was a little fox. The fox lived in a forest."


@pytest.fixture(scope="module")
def model():
    return lowbit.load(MODEL, low_bit="fp32")


@pytest.fixture(scope="module")
def adapter(model):
    from lowbit.harness import LowBitLM

    return LowBitLM(model, max_length=64)


def request(kind: str, *arguments):
    from lm_eval.api.instance import Instance

    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def by_hand(model, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    logits = model.logits([*context, *continuation])[len(context) - 1 : -1]
    greedy = (logits.argmax(1) == np.array(continuation)).all()
    return -token_losses(logits, np.array(continuation)).sum(), bool(greedy)


def test_likelihoods_are_those_of_the_whole_sequence(model, adapter):
    pairs = [(STORY, " The fox was happy."), (STORY, " One day"), ("The dog", " ran"), (STORY, " The fox was sad.")]
    got = adapter.loglikelihood([request("loglikelihood", *pair) for pair in pairs], disable_tqdm=True)
    for (context, continuation), (value, is_greedy) in zip(pairs, got, strict=True):
        ids, whole = model.encode(context), model.encode(context + continuation)
        expected, expected_greedy = by_hand(model, whole[: len(ids)], whole[len(ids) :])
        assert value == pytest.approx(expected, rel=1e-4)
        assert is_greedy == expected_greedy


def test_the_greedy_continuation_is_called_greedy(model, adapter):
    answer = model.generate(STORY, max_new_tokens=8, temperature=0).text
    (_, is_greedy), (_, other) = adapter.loglikelihood(
        [request("loglikelihood", STORY, answer), request("loglikelihood", STORY, " zebra zebra")], disable_tqdm=True
    )
    assert is_greedy
    assert not other


def test_a_text_without_context_and_a_context_too_long(model, adapter):
    from lowbit.harness import LowBitLM

    (value, _), (cut, _) = adapter.loglikelihood(
        [request("loglikelihood", "", "The fox"), request("loglikelihood", STORY * 9, " The fox")], disable_tqdm=True
    )
    ids = model.encode("The fox", add_special_tokens=False)
    assert value == pytest.approx(by_hand(model, [adapter.prefix_token_id], ids)[0], rel=1e-4)
    whole, tail = model.encode(STORY * 9 + " The fox"), len(model.encode(STORY * 9))
    kept = whole[:tail][-(65 - len(whole[tail:])) :]
    assert cut == pytest.approx(by_hand(model, kept, whole[tail:])[0], rel=1e-4)
    with pytest.raises(ValueError, match="at most 8"):
        LowBitLM(model, max_length=8).loglikelihood([request("loglikelihood", "The", STORY)], disable_tqdm=True)


def test_rolling_windows_predict_each_token_once(model, adapter, monkeypatch):
    from lowbit import harness

    text = STORY * 7
    ids = model.encode(text)
    assert len(ids) > 2 * adapter.max_length
    n = adapter.max_length
    expected = by_hand(model, [adapter.prefix_token_id], ids[:n])[0]
    for start in range(n, len(ids), n):
        end = min(start + n, len(ids))
        window = ids[max(0, end - n - 1) : end]
        expected += by_hand(model, window[: -(end - start)], ids[start:end])[0]
    [got] = adapter.loglikelihood_rolling([request("loglikelihood_rolling", text)], disable_tqdm=True)
    assert got == pytest.approx(expected, rel=1e-4)
    monkeypatch.setattr(harness, "LOGIT_BYTES", 4 * model.spec.vocab_size * 7)  # passes of 7 tokens
    monkeypatch.setattr(harness, "BATCH_TOKENS", 70)
    texts = [request("loglikelihood_rolling", text), request("loglikelihood_rolling", STORY)]
    small, other = adapter.loglikelihood_rolling(texts, disable_tqdm=True)
    assert small == pytest.approx(expected, rel=1e-4)
    assert other == pytest.approx(by_hand(model, [adapter.prefix_token_id], model.encode(STORY))[0], rel=1e-4)


def test_generation_follows_a_tasks_settings(model, adapter):
    requests = [
        request("generate_until", "Once upon a time", {"until": ["."], "max_gen_toks": 20}),
        request("generate_until", "The fox", {"until": "\n", "max_gen_toks": 5, "do_sample": False}),
        request("generate_until", "One day", {"until": ["."], "max_gen_toks": 20}),
        request("generate_until", STORY * 9, {"until": [], "max_new_tokens": 6}),
    ]
    texts = adapter.generate_until(requests, disable_tqdm=True)
    assert texts[0] == model.generate("Once upon a time", stop=["."], max_new_tokens=20, temperature=0).text
    assert texts[1] == model.generate("The fox", stop=["\n"], max_new_tokens=5, temperature=0).text
    assert texts[2] == model.generate("One day", stop=["."], max_new_tokens=20, temperature=0).text
    assert texts[3] == model.generate(model.encode(STORY * 9)[-58:], max_new_tokens=6, temperature=0).text
    with pytest.raises(ValueError, match="no room"):
        adapter.generate_until([request("generate_until", "a", {"max_gen_toks": 64})], disable_tqdm=True)


def test_bad_arguments(model):
    from lowbit.harness import LowBitLM

    with pytest.raises(ValueError, match="group_size"):
        LowBitLM(model, group_size=32)
    with pytest.raises(ValueError, match="max_length"):
        LowBitLM(model, max_length=10**6)
    with pytest.raises(TypeError, match="did you mean"):
        LowBitLM(MODEL, group_sise=32)


TASKS = {
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{start}}",
        "doc_to_target": 0,
        "doc_to_choice": "{{[good, bad]}}",
        "target_delimiter": " ",
        "metric_list": [{"metric": "acc"}],
    },
    "text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{start}} {{good}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "answers": {
        "output_type": "generate_until",
        "doc_to_text": "{{start}}",
        "doc_to_target": "{{good}}",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 12},
        "metric_list": [{"metric": "exact_match"}],
    },
}


def test_whole_evaluations(tmp_path, monkeypatch, adapter):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    from lm_eval.tasks import TaskManager

    docs = [
        {"start": "Once upon a", "good": "time", "bad": "zebra"},
        {"start": "Once upon a time, there was a little", "good": "fox.", "bad": "of of of."},
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    for name, task in TASKS.items():
        where = {"cache_dir": str(tmp_path / "cache"), "data_files": {"test": str(data)}}
        task = {"task": f"tiny_{name}", "dataset_path": "json", "dataset_kwargs": where, "test_split": "test"} | task
        (tmp_path / f"{name}.yaml").write_text(json.dumps(task))  # JSON is YAML
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    results = lm_eval.simple_evaluate(
        model=adapter, tasks=[f"tiny_{name}" for name in TASKS], task_manager=manager, bootstrap_iters=0
    )
    found = results["results"]
    assert found["tiny_choices"]["acc,none"] == 1.0
    assert 1 < found["tiny_text"]["word_perplexity,none"] < 1e4
    assert 0 <= found["tiny_answers"]["exact_match,none"] <= 1
    assert results["config"]["quantization"]["format"] == "fp32"

    by_name = lm_eval.simple_evaluate(
        model="lowbit", model_args={"pretrained": MODEL, "low_bit": "sym_int8"}, tasks=["tiny_choices"],
        task_manager=manager, bootstrap_iters=0, batch_size=4,
    )  # fmt: skip
    assert by_name["results"]["tiny_choices"]["acc,none"] == 1.0
    assert by_name["config"]["quantization"]["format"] == "sym_int8"
