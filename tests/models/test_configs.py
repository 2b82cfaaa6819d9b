"""What families say about configs they cannot run. No torch."""

from __future__ import annotations

import re

import pytest

from lowbit import models
from lowbit.models import Family

LLAMA = {
    "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
}  # fmt: skip
GPT2 = {"model_type": "gpt2", "vocab_size": 32, "n_embd": 16, "n_layer": 2, "n_head": 4}
OPT = {
    "model_type": "opt", "vocab_size": 32, "hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip


def test_supported_families():
    decoders = {"llama", "mistral", "qwen2", "qwen3", "phi3", "gpt2", "opt"}  # encoders: test_encoders.py
    assert decoders <= set(models.families())
    for model_type in decoders:
        config = {"gpt2": GPT2, "opt": OPT}.get(model_type, LLAMA) | {"model_type": model_type}
        family = models.family(config)
        assert isinstance(family, Family)
        assert family.spec.family == model_type


@pytest.mark.parametrize("model_type", ["mamba", "t5", "_common", "_rope", "../llama", "llama.py", "", "Llama"])
def test_unknown_family(model_type):
    with pytest.raises(ValueError, match=re.escape(repr(model_type))) as error:
        models.family({**LLAMA, "model_type": model_type})
    for word in ("llama", "qwen3", "issue", "optimize_model"):
        assert word in str(error.value)


@pytest.mark.parametrize("config", [{}, {"model_type": None}, {"model_type": 3}])
def test_config_without_family(config):
    with pytest.raises(ValueError, match="no model_type"):
        models.family(config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**LLAMA, "hidden_act": "xielu"}, "hidden_act='xielu'.*known are silu"),
        ({**LLAMA, "rope_scaling": {"type": "spiral", "factor": 2}}, "rope type 'spiral'.*known are default, linear"),
        ({**LLAMA, "rope_scaling": {"type": "linear"}}, "needs the setting 'factor'"),
        ({**LLAMA, "rope_parameters": {"rope_type": "llama3", "factor": 2}}, "needs the setting 'low_freq_factor'"),
        ({**LLAMA, "rope_parameters": {"full_attention": {"rope_theta": 1}}}, "per kind of layer"),
        ({k: v for k, v in LLAMA.items() if k != "hidden_size"}, "llama config lacks hidden_size"),
        (
            {
                **LLAMA,
                "model_type": "qwen2",
                "use_sliding_window": True,
                "sliding_window": 4,
                "layer_types": ["chunked"] * 2,
            },
            "layer_types",
        ),
        ({**GPT2, "add_cross_attention": True}, "add_cross_attention=True"),
        ({**GPT2, "activation_function": "tanh"}, "activation_function='tanh'"),
        ({**OPT, "layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine=False"),
    ],
)
def test_settings_without_a_graph_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        models.family(config)


def test_missing_tensors_are_named():
    family = models.family(LLAMA)
    names = {"model." + part.source for recipe in family.recipes for part in recipe.parts} | {"lm_head.weight"}
    assert len(family.located(names)) == len(family.recipes)
    with pytest.raises(ValueError, match=r"no tensor 'model\.layers\.1\.mlp\.up_proj\.weight'"):
        family.located(names - {"model.layers.1.mlp.up_proj.weight"})
    with pytest.raises(ValueError, match=r"lacks \d+ more"):
        family.located(set())


def test_a_tied_head_needs_no_tensor():
    tied = models.family({**LLAMA, "tie_word_embeddings": True})
    assert tied.spec.tied_head
    assert "head.weight" not in {recipe.name for recipe in tied.recipes}
    assert "head.weight" in {recipe.name for recipe in models.family(LLAMA).recipes}


@pytest.mark.parametrize(
    ("window", "expected"), [(4096, (4096, 4096)), (None, ()), ("absent", (4096, 4096)), (7, (7, 7))]
)
def test_mistral_window(window, expected):
    config = {**LLAMA, "model_type": "mistral"} | ({} if window == "absent" else {"sliding_window": window})
    assert models.family(config).spec.layer_window == expected
