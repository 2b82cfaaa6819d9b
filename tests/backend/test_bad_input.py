"""Damaged, hostile and contradictory files: a message with file, cause and fix, never a crash, never a wrong model."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_hf import hand_made_family, llama_config, llama_tensors, safetensors_bytes, write_llama, write_sharded

from lowbit import checkpoint, loading, models
from lowbit.ops import fp32_to_bf16
from lowbit.sources import open_source
from lowbit.sources.safetensors import MAX_HEADER_BYTES

pytestmark = pytest.mark.usefixtures("no_network")


@pytest.fixture(autouse=True)
def family(monkeypatch):
    monkeypatch.setattr(models, "family", hand_made_family, raising=False)


def file_of(header: object, data: bytes = bytes(64), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(4, 4), offsets=(0, 64)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


# ---- safetensors headers ------------------------------------------------------------------------------------------

HEADERS = {
    "empty file": (b"", "0 bytes"),
    "seven bytes": (b"1234567", "7 bytes"),
    "header longer than the file": (file_of({}, b"", 1000), "header of 1000 bytes"),
    "header longer than allowed": (file_of({}, b"", MAX_HEADER_BYTES + 1), "more than the"),
    "header length with the top bit": (file_of({}, b"", 2**64 - 1), "more than the"),
    "no JSON": (file_of(b"not json at all"), "not JSON"),
    "no UTF-8": (file_of(b'{"\xff": 1}'), "not JSON"),
    "cut JSON": (file_of(b'{"w": {"dtype": "F32", '), "not JSON"),
    "nested without end": (file_of(b"[" * 200_000), "not JSON"),
    "a list": (file_of([1]), "not a JSON object"),
    "metadata of numbers": (file_of({"__metadata__": {"a": 1}}), "__metadata__"),
    "a name twice": (file_of(b'{"w": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "w": 1}'), "twice"),
    "no offsets": (file_of({"w": {"dtype": "F32", "shape": [4, 4]}}), "'w': needs"),
    "unknown dtype": (file_of({"w": entry(dtype="Q9")}), "unknown dtype 'Q9'"),
    "dtype a list": (file_of({"w": entry(dtype=["F32"])}), "unknown dtype"),
    "negative size": (file_of({"w": entry(shape=(-4, -4))}), "not a list of sizes"),
    "float size": (file_of({"w": entry(shape=(4.0, 4))}), "not a list of sizes"),
    "true as size": (file_of({"w": entry(shape=(True, 16))}), "not a list of sizes"),
    "three offsets": (file_of({"w": entry(offsets=(0, 64, 64))}), "not two byte offsets"),
    "negative offset": (file_of({"w": entry(offsets=(-64, 0))}), "not two byte offsets"),
    "backward offsets": (file_of({"w": entry(offsets=(64, 0))}), "does not fill"),
    "size and offsets differ": (file_of({"w": entry(offsets=(0, 60))}), "does not fill its 60 bytes"),
    "sizes that overflow": (file_of({"w": entry(shape=(2**32, 2**32))}), "does not fill"),
    "behind the end": (file_of({"w": entry(offsets=(4, 68))}), "4 bytes behind the end"),
    "far behind the end": (file_of({"w": entry(offsets=(2**62, 2**62 + 64))}), "behind the end"),
    "truncated data": (file_of({"w": entry()}, bytes(63)), "1 bytes behind the end"),
    "overlap": (
        file_of({"v": entry(shape=(2, 4), offsets=(0, 32)), "w": entry("F32", (2, 4), (28, 60))}),
        "'v' and 'w' overlap",
    ),
    "one inside the other": (
        file_of(
            {"outer": entry(), "inner": entry(shape=(1,), offsets=(8, 12)), "z": entry(shape=(0,), offsets=(64, 64))}
        ),
        "'outer' and 'inner' overlap",
    ),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_lie(tmp_path, name):
    content, said = HEADERS[name]
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=said) as caught:
        open_source(tmp_path)
    assert str(file) in str(caught.value)
    assert "again" in str(caught.value)


def test_a_sound_header_passes_the_same_path(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(file_of({"w": entry(), "__metadata__": {"format": "pt"}}))
    assert open_source(tmp_path).read("w").shape == (4, 4)


@pytest.mark.parametrize("keep", [0, 5, 8, 500, 2500, -1])
def test_truncated_checkpoints(tmp_path, keep):
    write_llama(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a sound safetensors file"):
        loading.load_model(tmp_path / "m")


def test_random_damage_to_a_header_is_refused_or_harmless(tmp_path):
    """Whatever a header says after random changes, what is read stays inside the file."""
    content = safetensors_bytes(llama_tensors(llama_config(num_hidden_layers=1)))
    end = 8 + int.from_bytes(content[:8], "little")
    rng = random.Random(0)
    file = tmp_path / "model.safetensors"
    refused = 0
    for _ in range(400):
        damaged = bytearray(content)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(end)
            damaged[at] = rng.choice(b'0123456789"{}[],:-eE \x00\xff')
        file.write_bytes(damaged)
        try:
            source = open_source(tmp_path)
            for name in source.names:
                source.read(name).tobytes()
        except ValueError:
            refused += 1
    assert 100 < refused < 400  # some changes only rename a tensor: both ends of the statement were tried


# ---- checkpoints --------------------------------------------------------------------------------------------------


def damaged_llama(folder: Path, name: str, change) -> Path:
    tensors = write_llama(folder)
    tensors[name] = change(tensors[name])
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    return folder


@pytest.mark.parametrize("low_bit", ["sym_int4", "nf4", "fp8_e5m2", "bf16", None])
@pytest.mark.parametrize(("value", "said"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite")])
def test_weights_that_are_not_finite(tmp_path, low_bit, value, said):
    def spoil(array):
        array[5, 7] = fp32_to_bf16(np.array([value], np.float32))[0]
        return array

    folder = damaged_llama(tmp_path / "m", "model.layers.1.mlp.up_proj.weight", spoil)
    pattern = rf"model\.layers\.1\.mlp\.up_proj\.weight in .*model\.safetensors\).* {said}.*[Dd]ownload"
    with pytest.raises(ValueError, match=pattern):
        loading.load_model(folder, low_bit)


def test_a_norm_that_is_not_finite(tmp_path):
    folder = damaged_llama(tmp_path / "m", "model.norm.weight", lambda a: fp32_to_bf16(np.full(64, np.nan, np.float32)))
    with pytest.raises(ValueError, match=r"model\.norm\.weight in .*model\.safetensors\) holds NaN.*download"):
        loading.load_model(folder)


def test_a_tensor_that_is_missing(tmp_path):
    tensors = write_llama(tmp_path / "m")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    (tmp_path / "m" / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    with pytest.raises(ValueError, match=r"/m: .*'model\.layers\.1\.mlp\.up_proj\.weight'; nearest.*incomplete"):
        loading.load_model(tmp_path / "m")


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("lm_head.weight", (95, 64), r"shape \[95, 64\], config\.json asks for \[96, 'any'\]"),
        ("model.layers.0.self_attn.k_proj.weight", (33, 64), r"shape \[129, 64\], .* \[128, 64\]"),
        ("model.layers.0.mlp.down_proj.weight", (64, 71), r"shape \[64, 71\], .* \[64, 72\]"),
        ("model.layers.0.mlp.up_proj.weight", (64, 64), r"gate_proj.*shape \[136, 64\], .* \[144, 64\]"),
        ("model.layers.0.self_attn.v_proj.weight", (32, 63), r"\[63\] columns"),
        ("model.layers.0.self_attn.o_proj.weight", (64,), "a matrix was expected"),
    ],
)
def test_a_shape_that_does_not_fit_the_config(tmp_path, name, shape, said):
    folder = damaged_llama(tmp_path / "m", name, lambda a: fp32_to_bf16(np.ones(shape, np.float32)))
    with pytest.raises(ValueError, match=said) as caught:
        loading.load_model(folder)
    assert "model.safetensors" in str(caught.value)
    assert name in str(caught.value)


def test_weights_that_are_integers(tmp_path):
    folder = damaged_llama(tmp_path / "m", "model.embed_tokens.weight", lambda a: np.zeros((96, 64), np.uint8))
    with pytest.raises(ValueError, match=r"embed_tokens.*uint8.*unquantised"):
        loading.load_model(folder)


def test_a_missing_shard(tmp_path):
    write_llama(tmp_path / "m", shards=3)
    (tmp_path / "m" / "model-00003-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of the 3 shards.*model-00003-of-00003\.safetensors"):
        loading.load_model(tmp_path / "m")


def test_a_shard_of_another_model(tmp_path):
    write_llama(tmp_path / "m", shards=2)
    write_sharded(tmp_path / "m", {"other.weight": np.zeros((2, 2), np.float32)}, 1)
    shutil.copy(
        tmp_path / "m" / "model-00001-of-00001.safetensors", tmp_path / "m" / "model-00002-of-00002.safetensors"
    )
    write_index = llama_tensors(llama_config())
    index = {name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(write_index)}
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    with pytest.raises(ValueError, match=r"the index says tensor .*model-00002-of-00002\.safetensors"):
        loading.load_model(tmp_path / "m")


@pytest.mark.parametrize("low_bit", ["int5_turbo", "sym_int", "mixed_fp8", ""])
def test_unknown_formats_are_refused_before_anything_is_read(tmp_path, low_bit):
    with pytest.raises(ValueError, match=r"sym_int|nearest"):
        loading.load_model(tmp_path / "absent", low_bit)


@pytest.mark.parametrize("option", ["head_format", "embedding_format"])
def test_unknown_outer_formats(tmp_path, option):
    with pytest.raises(ValueError, match="unknown format 'sym_int9'"):
        loading.load_model(tmp_path, **{option: "sym_int9"})


def test_unknown_group_size(tmp_path):
    with pytest.raises(ValueError, match=r"group_size 48.*nearest is"):
        loading.load_model(tmp_path, group_size=48)


@pytest.mark.parametrize(("text", "said"), [("", "not JSON"), ("{", "not JSON"), ("[]", "holds a list")])
def test_a_config_that_is_none(tmp_path, text, said):
    write_llama(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"config\.json.*{said}"):
        loading.load_model(tmp_path / "m")


def test_a_folder_without_config(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json in"):
        loading.load_model(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bigdl_transformers_low_bit": "q4_k_m"}, "ipex-llm as q4_k_m, whose byte layout is not known"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "no tensor called"),
        ({"quantization_config": {"quant_method": "awq"}}, "an AWQ checkpoint.*original"),
        ({"quantization_config": {"load_in_4bit": True}}, "bitsandbytes.*original"),
    ],
)
def test_checkpoints_quantised_by_others(tmp_path, changes, said):
    write_llama(tmp_path / "m", **changes)
    with pytest.raises(ValueError, match=said):
        loading.load_model(tmp_path / "m")


# ---- low-bit folders ----------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    write_llama(tmp_path / "m")
    return checkpoint.save(loading.load_model(tmp_path / "m"), tmp_path / "saved")


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_a_flipped_byte_anywhere_in_the_weights(saved):
    file = saved / "model.safetensors"
    size = file.stat().st_size
    for at in [*range(0, 64), *range(64, size, max(1, size // 200)), size - 1]:
        flip(file, at)
        with pytest.raises(ValueError, match=r"model\.safetensors .*(again|upgrade)"):
            loading.load_model(saved)
        flip(file, at)
    loading.load_model(saved)


def test_a_flipped_weight_is_named(saved):
    opened = checkpoint.load(saved)
    header = int.from_bytes((saved / "model.safetensors").read_bytes()[:8], "little")
    flip(saved / "model.safetensors", 8 + header + 5)
    with pytest.raises(ValueError, match=rf"do not match their checksum \(in {next(iter(opened.tensors))}"):
        checkpoint.load(saved)
    assert checkpoint.load(saved, verify=False).tensors.keys() == opened.tensors.keys()


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "generation_config.json", "LICENSE"])
def test_a_changed_small_file_is_warned_of_and_found_by_verify(saved, name, caplog):
    (saved / name).write_text((saved / name).read_text() + " ")
    checkpoint.load(saved)
    assert f"{name} was changed since it was saved" in caplog.text
    with pytest.raises(ValueError, match=rf"{name} was changed since it was saved"):
        checkpoint.verify(saved)


def test_a_changed_graph_is_refused(saved):
    edit(saved / "config.json", lambda t: t["quantization_config"]["spec"].update(norm_eps=1e-3))
    with pytest.raises(ValueError, match=r"the quantization_config in .*config\.json was changed"):
        checkpoint.load(saved)


def test_an_edited_generation_config_still_loads(saved):
    (saved / "generation_config.json").write_text('{"temperature": 0.5}')
    assert checkpoint.load(saved).generation_config == {"temperature": 0.5}


def test_a_flipped_byte_in_the_manifest_or_config_never_changes_the_model_silently(saved):
    expected, refused = checkpoint.load(saved), 0
    for name in ("lowbit.json", "config.json"):
        size = (saved / name).stat().st_size
        for at in range(0, size, max(1, size // 150)):
            flip(saved / name, at)
            try:
                opened = loading.load_model(saved)
            except (ValueError, FileNotFoundError):
                refused += 1
            else:
                assert opened.spec == expected.spec
                assert opened.quantization == expected.quantization
                assert all(
                    np.array_equal(getattr(t, "data", t), getattr(opened.tensors[n], "data", opened.tensors[n]))
                    for n, t in expected.tensors.items()
                )
            flip(saved / name, at)
    assert refused > 100


@pytest.mark.parametrize("name", ["model.safetensors", "lowbit.json", "config.json"])
def test_a_missing_file(saved, name):
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"no {name} in .*saved"):
        checkpoint.load(saved)


@pytest.mark.parametrize("keep", [0, 100, 5000, -1])
def test_truncated_weights(saved, keep):
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged: it has \d+ bytes and was saved with \d+"):
        checkpoint.load(saved)


def edit(path: Path, change) -> None:
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))


@pytest.mark.parametrize("name", ["config.json", "lowbit.json"])
def test_a_folder_of_a_newer_lowbit(saved, name):
    edit(saved / name, lambda t: t.get("quantization_config", t).update(version=checkpoint.VERSION + 1))
    with pytest.raises(ValueError, match=r"newer lowbit \(folder version 2.*pip install -U lowbit"):
        loading.load_model(saved)


def test_files_outside_the_folder_are_not_named(saved):
    edit(saved / "lowbit.json", lambda t: t["files"].update({"../m/config.json": {"bytes": 1, "crc32": "0"}}))
    with pytest.raises(ValueError, match="outside its folder"):
        checkpoint.load(saved)


def test_weights_of_another_folder(tmp_path, saved):
    other = checkpoint.save(loading.load_model(tmp_path / "m", "nf4"), tmp_path / "other")
    shutil.copy(other / "model.safetensors", saved / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged.*copy or save"):
        checkpoint.load(saved)


@pytest.mark.parametrize("marker", ["bigdl_config.json", "config.json"])
def test_low_bit_folders_of_ipex_llm(tmp_path, marker):
    (tmp_path / "config.json").write_text(json.dumps(llama_config()))
    (tmp_path / marker).write_text(json.dumps({**llama_config(), "bigdl_transformers_low_bit": "fp6_k"}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"fp6_k, whose byte layout is not known"):
        loading.load_model(tmp_path)
    with pytest.raises(ValueError, match=r"ipex-llm or bigdl-llm.*original"):
        checkpoint.load(tmp_path)
