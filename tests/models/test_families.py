"""Every family against transformers: a tiny random model, our path in fp32, logits and greedy tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lowbit import models, ops
from models import tiny

pytestmark = pytest.mark.torch

PROMPT = 40
GREEDY = 24
TOLERANCE = 1e-3  # of the range of the logits

BASE = {
    "vocab_size": 131, "hidden_size": 48, "intermediate_size": 88, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GPT2 = {
    "vocab_size": 131,
    "n_embd": 60,
    "n_layer": 3,
    "n_head": 5,
    "n_positions": 96,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OPT = {
    "vocab_size": 131, "hidden_size": 60, "ffn_dim": 100, "num_hidden_layers": 3, "num_attention_heads": 5,
    "max_position_embeddings": 96,
}  # fmt: skip
SHORT = {"original_max_position_embeddings": 32, "rope_theta": 500.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **SHORT}
YARN = {"rope_type": "yarn", "factor": 4.0, **SHORT}
HALF = {"rope_type": "default", "partial_rotary_factor": 0.5, "rope_theta": 1e4}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.1, 1.2, 1.3, 2.0], "long_factor": [2.0, 3.0, 4.0, 5.0]}

# id -> (model_type, settings)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-biases-tied": (
        "llama",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "head_dim": 10},
    ),
    "llama-linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0}}),
    "llama-dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}}),
    "llama-llama3": ("llama", {"rope_parameters": LLAMA3}),
    "llama-yarn": ("llama", {"rope_parameters": YARN}),
    "mistral": ("mistral", {"sliding_window": None, "head_dim": 12}),
    "mistral-window": ("mistral", {"sliding_window": 7}),
    "qwen2": ("qwen2", {}),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3-biases-window": (
        "qwen3",
        {
            "head_dim": 14, "attention_bias": True, "tie_word_embeddings": True, "use_sliding_window": True,
            "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "phi3": ("phi3", {"sliding_window": 11}),
    "phi3-partial": ("phi3", {"rope_parameters": HALF}),
    "phi3-short": ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 100}),
    "phi3-long": ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 32}),
    "gpt2": ("gpt2", {}),
    "gpt2-scaled": ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "n_inner": 100, "tie_word_embeddings": False}),
    "opt": ("opt", {}),
    "opt-350m": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 36, "activation_function": "gelu"}),
    "opt-plain": ("opt", {"enable_bias": False, "_remove_final_layer_norm": True, "tie_word_embeddings": False}),
}  # fmt: skip
DEFAULTS = {"gpt2": GPT2, "opt": OPT}


class Pair:
    """A transformers model, and its weights and config as a checkpoint would hold them."""

    def __init__(self, model_type: str, settings: dict[str, Any]) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        settings = {**DEFAULTS.get(model_type, BASE), **settings}
        torch.set_num_threads(1)  # its pool spins, and these models are tiny
        torch.manual_seed(len(repr(settings)))
        config = AutoConfig.for_model(model_type, **settings)
        self.torch_model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
        with torch.no_grad():
            for name, parameter in self.torch_model.named_parameters():
                spread = 0.3 if parameter.ndim == 1 else 2.0 / parameter.shape[-1] ** 0.5
                noise = torch.randn_like(parameter) * spread
                values = noise + (1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0)
                parameter.copy_(values.bfloat16().float())  # so that bf16 storage is exact
        self.config = config.to_dict()
        self.weights = {n: p.numpy() for n, p in self.torch_model.state_dict().items()}
        self.family = models.family(self.config)
        self.spec = self.family.spec

    def decoder(self, low_bit: str = "fp32", tier: str | None = None) -> Any:
        tensors = tiny.packed(tiny.from_checkpoint(self.family, self.weights), low_bit)
        return tiny.decoder(self.spec, tensors, tier or ops.default_tier())

    def logits(self, tokens: list[int]) -> np.ndarray:
        import torch

        with torch.no_grad():
            return self.torch_model(torch.tensor([tokens])).logits[0].numpy()


@pytest.fixture(scope="module", params=CASES, ids=CASES)
def pair(request):
    return Pair(*CASES[request.param])


def prompt(pair: Pair, length: int = PROMPT, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, pair.spec.vocab_size, length).tolist()


def assert_close(ours: np.ndarray, theirs: np.ndarray) -> None:
    span = theirs.max() - theirs.min()
    assert np.isfinite(theirs).all()
    assert span > 1
    assert np.abs(ours - theirs).max() <= TOLERANCE * span


def test_prefill_and_steps(pair):
    tokens, model = prompt(pair), pair.decoder()
    expected = pair.logits(tokens)
    session = tiny.cache(pair.spec)
    assert_close(tiny.run(model, session, tokens), expected)
    assert session.length == PROMPT

    session = tiny.cache(pair.spec)
    steps = [tiny.run(model, session, [t], all_logits=False)[0] for t in tokens]
    assert_close(np.stack(steps), expected)


def test_among_other_sessions_and_after_truncation(pair):
    """The same logits beside other sessions' prompts and steps, and when part of a session is taken back."""
    tokens, other, model = prompt(pair), prompt(pair, 30, seed=1), pair.decoder("bf16")
    expected, pool = pair.logits(tokens), ops.pool(2)
    a, b, c = (tiny.cache(pair.spec) for _ in range(3))
    ids, noise = np.array(tokens, np.int32), np.array(other, np.int32)
    got = ops.forward(model, [(b, noise, False), (a, ids[:20], True), (c, noise[:3], False)], pool)
    assert_close(got[1:21], expected[:20])
    for i in range(20, 25):
        got = ops.forward(model, [(a, ids[i : i + 1], False), (b, noise[i : i + 1], False)], pool)
        assert_close(got[:1], expected[i : i + 1])
    tiny.run(model, a, other[:9])
    a.truncate(17)
    assert_close(tiny.run(model, a, tokens[17:]), expected[17:])


def test_greedy_tokens(pair):
    import torch

    # Longer than Phi-3's original context: upstream changes frequencies there, we keep to one set in a session.
    tokens, model, session = prompt(pair, 35, seed=2), pair.decoder(), tiny.cache(pair.spec)
    settings = {"do_sample": False, "max_new_tokens": GREEDY, "pad_token_id": 0}
    pair.torch_model.generation_config.eos_token_id = None
    with torch.no_grad():
        theirs = pair.torch_model.generate(torch.tensor([tokens]), **settings)[0, len(tokens) :].tolist()
    assert len(theirs) == GREEDY
    ours, step = [], tokens
    for _ in range(GREEDY):
        ours.append(int(tiny.run(model, session, step, all_logits=False)[0].argmax()))
        step = ours[-1:]
    assert ours == theirs


@pytest.mark.parametrize("tier", ops.tiers())
@pytest.mark.parametrize("name", ["llama", "qwen3", "phi3", "gpt2", "opt-350m"])
def test_every_tier(name, tier):
    pair = Pair(*CASES[name])
    tokens = prompt(pair)
    assert_close(tiny.run(pair.decoder(tier=tier), tiny.cache(pair.spec), tokens), pair.logits(tokens))


def old_spelling(config: dict[str, Any]) -> dict[str, Any]:
    """Returns a transformers 5 config as transformers 4 wrote it."""
    config = dict(config)
    settings = dict(config.pop("rope_parameters", None) or {})
    config["rope_theta"] = settings.pop("rope_theta", 10000.0)
    if "partial_rotary_factor" in settings:
        config["partial_rotary_factor"] = settings.pop("partial_rotary_factor")
    kind = settings.pop("rope_type", "default")
    config["rope_scaling"] = None if kind == "default" else {"type": kind, **settings}
    return config


def test_old_config_spelling_means_the_same(pair):
    if "rope_parameters" not in pair.config:
        pytest.skip("this family has no rotary positions")
    assert models.family(old_spelling(pair.config)).spec == pair.spec


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_names_without_the_base_model_prefix(name):
    pair = Pair(*CASES[name])
    bare = {
        n.removeprefix("model.").removeprefix("transformer.").removeprefix("decoder."): w
        for n, w in pair.weights.items()
    }
    assert set(bare) != set(pair.weights)
    a, b = (tiny.from_checkpoint(pair.family, weights) for weights in (pair.weights, bare))
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[n], b[n]) for n in a)
