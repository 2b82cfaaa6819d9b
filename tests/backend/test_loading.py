"""load_model: every tensor is what its recipe says, in the format asked for, and no more memory is used than needed."""

import json
import logging
import subprocess
import sys

import numpy as np
import pytest
from tiny_bert import write_bert, write_sentence_files
from tiny_hf import hand_made_family, llama_config, safetensors_bytes, write_llama

from lowbit import checkpoint, loading, models, quantize
from lowbit.models._spec import Part, Recipe
from lowbit.ops import to_fp32
from lowbit.packed import PackedTensor
from lowbit.sources import open_source
from lowbit.sources.gather import gather

pytestmark = pytest.mark.usefixtures("no_network")


@pytest.fixture
def family(monkeypatch):
    """Replaces the family files by hand-made recipes."""
    monkeypatch.setattr(models, "family", hand_made_family, raising=False)


def dense(tensors, *names):
    return np.concatenate([to_fp32(tensors[name]) for name in names])


def interleaved(gate, up):
    """Panels of 16 rows of gate and up alternate, both padded to 16 rows: written out row by row."""
    rows = -(-len(gate) // 16) * 16
    out = np.zeros((2 * rows, gate.shape[1]), gate.dtype)
    for r in range(len(gate)):
        out[r // 16 * 32 + r % 16] = gate[r]
        out[r // 16 * 32 + 16 + r % 16] = up[r]
    return out


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("shards", [1, 3])
def test_without_quantisation_every_number_is_the_checkpoints(tmp_path, family, dtype, shards):
    tensors = write_llama(tmp_path / "m", dtype=dtype, shards=shards)
    loaded = loading.load_model(tmp_path / "m", None)
    layer = "model.layers.1."
    expected = {
        "embedding.weight": dense(tensors, "model.embed_tokens.weight"),
        "head.weight": dense(tensors, "lm_head.weight"),
        "layers.1.qkv.weight": dense(tensors, *(f"{layer}self_attn.{p}_proj.weight" for p in "qkv")),
        "layers.1.o.weight": dense(tensors, layer + "self_attn.o_proj.weight"),
        "layers.1.down.weight": dense(tensors, layer + "mlp.down_proj.weight"),
        "layers.1.gate_up.weight": interleaved(
            dense(tensors, layer + "mlp.gate_proj.weight"), dense(tensors, layer + "mlp.up_proj.weight")
        ),
    }
    for name, array in expected.items():
        tensor = loaded.tensors[name]
        assert tensor.format.name == dtype
        assert tensor.shape == array.shape
        np.testing.assert_array_equal(tensor.dequantize(), array)
    norm = loaded.tensors["layers.1.ffn_norm.weight"]
    assert norm.dtype == np.float32
    np.testing.assert_array_equal(norm, to_fp32(tensors[layer + "post_attention_layernorm.weight"]))
    assert "layers.0.qkv.bias" not in loaded.tensors
    assert len(loaded.tensors) == 2 * 6 + 3


def test_quantised_tensors_equal_quantising_the_whole(tmp_path, family):
    tensors = write_llama(tmp_path / "m")
    loaded = loading.load_model(tmp_path / "m", "nf4", group_size=32)
    whole = quantize.quantize(
        interleaved(*(dense(tensors, f"model.layers.0.mlp.{p}_proj.weight") for p in ("gate", "up"))), "nf4", 32
    )
    got = loaded.tensors["layers.0.gate_up.weight"]
    assert got.format.name == "nf4"
    assert got.group_size == 32
    assert got.multiplier == whole.multiplier
    np.testing.assert_array_equal(got.data, whole.data)


@pytest.mark.parametrize(
    ("options", "body", "head", "embedding"),
    [
        ({}, "sym_int4", "sym_int8", "sym_int8"),
        ({"low_bit": "Q4_0"}, "sym_int4", "sym_int8", "sym_int8"),
        ({"low_bit": "bf16"}, "bf16", "bf16", "bf16"),
        ({"low_bit": None}, "fp16", "fp16", "fp16"),
        ({"head_format": "sym_int4"}, "sym_int4", "sym_int4", "sym_int8"),
        ({"embedding_format": "fp16"}, "sym_int4", "sym_int8", "fp16"),
        ({"modules_to_not_convert": ["lm_head"]}, "sym_int4", "fp16", "sym_int8"),
        ({"modules_to_not_convert": ["o_proj", "embed_tokens"]}, "fp16", "sym_int8", "fp16"),
    ],
)
def test_formats(tmp_path, family, options, body, head, embedding):
    write_llama(tmp_path / "m", dtype="fp16")
    loaded = loading.load_model(tmp_path / "m", **options)
    got = {n: loaded.tensors[n].format.name for n in ("layers.0.o.weight", "head.weight", "embedding.weight")}
    assert got == {"layers.0.o.weight": body, "head.weight": head, "embedding.weight": embedding}


def test_alias_brings_its_group_size(tmp_path, family):
    write_llama(tmp_path / "m")
    loaded = loading.load_model(tmp_path / "m", "Q4_0")
    assert loaded.tensors["layers.0.o.weight"].group_size == 32
    assert loaded.quantization["format"] == "sym_int4"
    assert loaded.quantization["group_size"] == 32


@pytest.mark.parametrize(
    ("low_bit", "options", "body", "embedding"),
    [
        ("sym_int4", {}, 32, 64),
        ("nf3", {}, 32, 64),
        ("asym_int5", {}, 64, 64),
        ("sym_int8", {}, 64, 64),
        ("sym_int8", {"module_formats": {"dense": "nf4"}, "embedding_format": "fp4"}, 32, 32),
        ("sym_int4", {"group_size": 64}, 64, 64),
        ("sym_int4", {"group_size": -1}, 0, 0),
        ("sym_int4", {"group_size": 128, "embedding_format": "nf4"}, 128, 128),
        ("bnb_nf4", {}, 64, 64),
        ("bf16", {}, 0, 0),
    ],
)
@pytest.mark.parametrize("task", ["embed", "rerank"])
def test_few_bits_of_embedders_and_rerankers_come_in_groups_of_32(tmp_path, task, low_bit, options, body, embedding):
    write_bert(tmp_path / "m", labels=int(task == "rerank"))
    loaded = loading.load_model(tmp_path / "m", low_bit, task=task, **options)
    assert loaded.tensors["layers.0.o.weight"].group_size == body
    assert loaded.tensors["embedding.weight"].group_size == embedding
    if "module_formats" not in options:
        assert loaded.quantization["group_size"] == body
    saved = checkpoint.save(loaded, tmp_path / "saved")
    again = loading.load_model(saved, low_bit, task=task)  # whatever it was saved with
    assert again.quantization == loaded.quantization
    assert again.tensors["layers.0.o.weight"].group_size == body


def test_few_bits_of_a_language_model_come_in_the_groups_of_what_it_is_for(tmp_path):
    write_llama(tmp_path / "m")
    write_sentence_files(tmp_path / "m", pooling="lasttoken")
    groups = {
        task: loading.load_model(tmp_path / "m", "sym_int4", task=task).tensors["layers.0.o.weight"].group_size
        for task in ("text", "embed")
    }
    assert groups == {"text": 64, "embed": 32}


def test_clip_grid_leaves_out_the_most_negative_code(tmp_path, family):
    tensors = write_llama(tmp_path / "m")
    loaded = loading.load_model(tmp_path / "m", "int4_clip")
    expected = quantize.quantize(dense(tensors, "model.layers.0.self_attn.o_proj.weight"), "int4_clip")
    np.testing.assert_array_equal(loaded.tensors["layers.0.o.weight"].data, expected.data)
    assert loaded.quantization["full_range"] is False


def test_one_kept_module_keeps_the_tensor_it_is_fused_into(tmp_path, family):
    write_llama(tmp_path / "m")
    loaded = loading.load_model(tmp_path / "m", modules_to_not_convert=["layers.0.self_attn.q_proj"])
    assert loaded.tensors["layers.0.qkv.weight"].format.name == "bf16"
    assert loaded.tensors["layers.1.qkv.weight"].format.name == "sym_int4"


@pytest.mark.parametrize(
    ("options", "format"),
    [
        ({}, "sym_int8"),
        ({"head_format": "nf4"}, "nf4"),
        ({"embedding_format": "nf4"}, "nf4"),
        ({"modules_to_not_convert": ["lm_head"]}, "bf16"),
    ],
)
def test_a_tied_head_is_one_tensor(tmp_path, family, options, format):
    write_llama(tmp_path / "m", tie_word_embeddings=True)
    loaded = loading.load_model(tmp_path / "m", **options)
    assert "head.weight" not in loaded.tensors
    assert loaded.tensors["embedding.weight"].format.name == format


def test_a_tied_head_cannot_have_two_formats(tmp_path, family):
    write_llama(tmp_path / "m", tie_word_embeddings=True)
    with pytest.raises(ValueError, match=r"tied.*'nf4'.*'fp16'"):
        loading.load_model(tmp_path / "m", head_format="nf4", embedding_format="fp16")


def test_modules_that_match_nothing_are_warned_of(tmp_path, family, caplog):
    write_llama(tmp_path / "m")
    with caplog.at_level(logging.WARNING):
        loading.load_model(tmp_path / "m", modules_to_not_convert=["o_prj"])
    assert "'o_prj'; nearest: " in caplog.text
    assert "o_proj" in caplog.text


def test_modules_may_have_formats_of_their_own(tmp_path, family, caplog):
    write_llama(tmp_path / "m")
    own = {"down_proj": "sym_int8", "layers.0.self_attn.v_proj": "nf4", "o_prj": "nf4"}
    with caplog.at_level(logging.WARNING):
        loaded = loading.load_model(tmp_path / "m", module_formats=own)
    assert "module_formats: nothing is called 'o_prj'" in caplog.text
    got = {n: t.format.name for n, t in loaded.tensors.items() if n.startswith("layers.") and hasattr(t, "format")}
    assert {n for n, format in got.items() if format == "sym_int8"} == {f"layers.{i}.down.weight" for i in (0, 1)}
    assert {n for n, format in got.items() if format == "nf4"} == {"layers.0.qkv.weight"}
    assert set(got.values()) == {"sym_int4", "sym_int8", "nf4"}
    assert loaded.quantization["module_formats"] == own
    checkpoint.save(loaded, tmp_path / "saved")
    again = loading.load_model(tmp_path / "saved", module_formats=own)
    assert {n: t.format.name for n, t in again.tensors.items() if n in got} == got
    with pytest.raises(ValueError, match="module_formats"):
        loading.load_model(tmp_path / "saved", module_formats={"down_proj": "nf4"})
    with pytest.raises(TypeError, match="dictionary"):
        loading.load_model(tmp_path / "m", module_formats="down_proj")
    with pytest.raises(ValueError, match="sym_int8"):
        loading.load_model(tmp_path / "m", module_formats={"down_proj": "sym_int9"})


def test_modules_must_be_a_list(tmp_path):
    with pytest.raises(TypeError, match=r"\['lm_head'\]"):
        loading.load_model(tmp_path, modules_to_not_convert="lm_head")


def test_what_belongs_to_the_model_comes_along(tmp_path, family):
    write_llama(tmp_path / "m")
    loaded = loading.load_model(tmp_path / "m", trust_remote_code=True)
    assert loaded.config == llama_config()
    assert loaded.generation_config["eos_token_id"] == [2, 3]
    assert set(loaded.tokenizer_files) == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert loaded.provenance == {"source": "m", "revision": None}
    assert set(loaded.notices) == {"LICENSE"}
    assert loaded.spec == hand_made_family(llama_config()).spec


def test_a_base_model_saved_without_its_prefix(tmp_path, family):
    tensors = write_llama(tmp_path / "m", tie_word_embeddings=True)
    bare = {name.removeprefix("model."): array for name, array in tensors.items()}
    (tmp_path / "m" / "model.safetensors").write_bytes(safetensors_bytes(bare))
    loaded = loading.load_model(tmp_path / "m", None)
    np.testing.assert_array_equal(
        loaded.tensors["embedding.weight"].dequantize(), to_fp32(tensors["model.embed_tokens.weight"])
    )


def test_progress_is_shown_only_when_asked_for(tmp_path, family, capfd):
    write_llama(tmp_path / "m")
    loading.load_model(tmp_path / "m")
    assert capfd.readouterr() == ("", "")
    loading.load_model(tmp_path / "m", show_progress=True)
    assert "Loading: 100%" in capfd.readouterr().err


def test_an_unknown_family_is_refused_before_its_weights_are_fetched(fake_hub):
    write_llama(fake_hub.repository, model_type="perceiver")
    with pytest.raises(ValueError, match="'perceiver' is not supported"):
        loading.load_model("org/name")
    assert len(fake_hub.calls) == 1


def test_from_the_hub(fake_hub, family):
    write_llama(fake_hub.repository, shards=2)
    loaded = loading.load_model("org/name", revision="v1")
    assert loaded.provenance == {"source": "org/name", "revision": "f" * 40}
    assert loaded.tokenizer_files["tokenizer.json"].parent == fake_hub.cache


# ---- gathering rows -----------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {
        "a": rng.normal(size=(40, 8)).astype(np.float32),
        "b": rng.normal(size=(24, 8)).astype(np.float32),
        "half": rng.normal(size=(24, 8)).astype(np.float16),
        "narrow": rng.normal(size=(24, 7)).astype(np.float32),
        "conv": rng.normal(size=(8, 50)).astype(np.float32),
        "v": rng.normal(size=37).astype(np.float32),
        "w": rng.normal(size=37).astype(np.float32),
        "ids": np.arange(4),
    }
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    return open_source(tmp_path), tensors


def check_all_ranges(recipe, source, expected):
    gathered = gather(recipe, source)
    assert gathered.shape == expected.shape
    for start in range(0, len(expected), 7):
        for stop in (start, start + 1, start + 16, start + 33, len(expected)):
            if stop <= len(expected):
                np.testing.assert_array_equal(gathered.read(start, stop), expected[start:stop])


def test_concatenation_of_cut_rows(source):
    source, t = source
    recipe = Recipe("x", (Part("a", ((30, 40), (0, 5))), Part("b")))
    check_all_ranges(recipe, source, np.concatenate([t["a"][30:40], t["a"][:5], t["b"]]))


def test_transposed_part(source):
    source, t = source
    check_all_ranges(Recipe("x", (Part("conv", ((10, 45),), transpose=True), Part("b"))), source,
                     np.concatenate([t["conv"].T[10:45], t["b"]]))  # fmt: skip


@pytest.mark.parametrize(
    "parts", [(Part("a", ((0, 24),)), Part("b")), (Part("a"),), (Part("b", ((0, 16),)), Part("a", ((0, 16),)))]
)
def test_interleaved_panels(source, parts):
    source, t = source
    rows = np.concatenate([np.concatenate([t[p.source][a:b] for a, b in p.rows or ((0, None),)]) for p in parts])
    half = len(rows) // 2
    check_all_ranges(Recipe("x", parts, interleave=True), source, interleaved(rows[:half], rows[half:]))


def test_interleaved_vector(source):
    source, t = source
    recipe = Recipe("x", (Part("v"), Part("w")), "vector", interleave=True)
    check_all_ranges(recipe, source, interleaved(t["v"][:, None], t["w"][:, None])[:, 0])


def test_mixed_dtypes_become_fp32(source):
    source, t = source
    gathered = gather(Recipe("x", (Part("b"), Part("half"))), source)
    assert gathered.dtype == np.float32
    np.testing.assert_array_equal(gathered.read(0, 48), np.concatenate([t["b"], t["half"].astype(np.float32)]))


def test_rows_that_lie_together_are_not_copied(source):
    source, _ = source
    gathered = gather(Recipe("x", (Part("a"), Part("b"))), source)
    assert np.shares_memory(gathered.read(2, 30), source.read("a"))


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (Recipe("x", (Part("a"), Part("narrow"))), r"'narrow' in .*model\.safetensors has \[7\] columns"),
        (Recipe("x", (Part("a", ((0, 41),)),)), r"'a' in .*model\.safetensors has 40 rows, .* 0 to 41"),
        (Recipe("x", (Part("v"),)), r"'v' in .*shape \[37\] where a matrix"),
        (Recipe("x", (Part("ids"),), "vector"), r"'ids' in .*int64"),
        (Recipe("x", (Part("v"),), "vector", interleave=True), "odd number of rows"),
    ],
)
def test_what_does_not_fit_is_named(source, recipe, said):
    with pytest.raises(ValueError, match=said):
        gather(recipe, source[0])


# ---- memory -------------------------------------------------------------------------------------------------------

MEMORY = """
import json, re, sys
sys.path.insert(0, sys.argv[2])
import lowbit.loading, lowbit.models
from lowbit.runtime import Runtime
from tiny_hf import hand_made_family
lowbit.models.family = hand_made_family
Runtime().resolve().pool
def status(key):
    return int(re.search(key + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
open("/proc/self/clear_refs", "w").write("5")  # forget the high-water mark so far
before = status("VmRSS")
loaded = lowbit.loading.load_model(sys.argv[1])
print(json.dumps({"peak": status("VmHWM") - before, "packed": loaded.packed_bytes}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the high-water mark from /proc")
def test_peak_memory_is_the_packed_model_and_one_tensor(tmp_path):
    shape = {"hidden_size": 512, "intermediate_size": 1408, "vocab_size": 16000, "num_hidden_layers": 8}
    tensors = write_llama(tmp_path / "m", **shape)
    largest = max(t.nbytes for t in tensors.values())
    folders = [str(p) for p in (tmp_path / "m", __file__.rpartition("/")[0])]
    done = subprocess.run([sys.executable, "-c", MEMORY, *folders], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert sum(t.nbytes for t in tensors.values()) > 2 * measured["packed"]  # else the bound below would say nothing
    assert measured["packed"] <= measured["peak"] <= 1.15 * (measured["packed"] + largest)


def test_packed_bytes_counts_every_tensor(tmp_path, family):
    write_llama(tmp_path / "m")
    loaded = loading.load_model(tmp_path / "m")
    assert loaded.packed_bytes == sum(
        t.nbytes if isinstance(t, PackedTensor) else 4 * t.size for t in loaded.tensors.values()
    )


def test_tokenizer_of_another_model(tmp_path, family):
    write_llama(tmp_path / "m")
    write_llama(tmp_path / "other")
    (tmp_path / "other" / "tokenizer.json").write_text('{"other": 1}')
    loaded = loading.load_model(tmp_path / "m", tokenizer_id=tmp_path / "other")
    assert loaded.tokenizer_files["tokenizer.json"] == tmp_path / "other" / "tokenizer.json"
    checkpoint.save(loaded, tmp_path / "saved")
    again = loading.load_model(tmp_path / "saved", saved_only=True)
    assert again.provenance["tokenizer"] == "other"
    assert again.tokenizer_files["tokenizer.json"].read_text() == '{"other": 1}'
    named = loading.load_model(tmp_path / "saved", tokenizer_id=tmp_path / "m")
    assert named.tokenizer_files["tokenizer.json"].parent == tmp_path / "m"


def test_a_tokenizer_that_is_not_there_is_told_before_loading(tmp_path, family):
    write_llama(tmp_path / "m")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no tokenizer in"):
        loading.load_model(tmp_path / "m", tokenizer_id=tmp_path / "empty")


def test_saved_only_refuses_a_float_checkpoint(tmp_path, family):
    write_llama(tmp_path / "m")
    with pytest.raises(ValueError, match="not a low-bit folder"):
        loading.load_model(tmp_path / "m", saved_only=True)
