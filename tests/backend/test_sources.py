"""Sources: what is read equals what was written, lazily, without the network; damage is refused before data is
touched.
"""

import json
import re
import sys

import numpy as np
import pytest
import safetensors.numpy
from tiny_hf import llama_config, llama_tensors, safetensors_bytes, write_llama, write_sharded

from lowbit.ops import BF16
from lowbit.sources import hub, open_source
from lowbit.sources._foreign import refuse_foreign


@pytest.fixture
def tensors():
    return llama_tensors(llama_config())


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_reads_what_was_written(tmp_path, tensors, shards):
    if shards == 1:
        (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    else:
        write_sharded(tmp_path, tensors, shards)
    source = open_source(tmp_path)
    assert sorted(source.names) == sorted(tensors)
    for name, array in tensors.items():
        assert source.info(name) == (BF16, array.shape)
        assert source.read(name).tobytes() == array.tobytes()
        assert source.read(name, 3, 7).tobytes() == array[3:7].tobytes()
        assert source.file_of(name).parent == tmp_path


def test_agrees_with_the_safetensors_library(tmp_path):
    rng = np.random.default_rng(1)
    tensors = {
        "a": rng.normal(size=(3, 5)).astype(np.float32),
        "b": rng.normal(size=(2, 2, 2)).astype(np.float16),
        "c": rng.normal(size=7),
        "d": np.arange(4, dtype=np.int64),
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.array(3, np.float32),
        "flag": np.array([True, False]),
    }
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    source = open_source(tmp_path)
    assert set(source.names) == set(tensors)
    for name, array in tensors.items():
        read = source.read(name)
        assert read.dtype == array.dtype
        assert read.shape == array.shape
        np.testing.assert_array_equal(read, array)


def test_arrays_are_views_and_survive_release_and_close(tmp_path, tensors):
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    source = open_source(tmp_path)
    name = "model.embed_tokens.weight"
    whole, part = source.read(name), source.read(name, 8, 16)
    assert np.shares_memory(whole, part)
    assert not whole.flags.writeable
    source.release(name)
    assert part.tobytes() == tensors[name][8:16].tobytes()
    source.close()
    assert whole.tobytes() == tensors[name].tobytes()
    with pytest.raises(KeyError):
        source.read(name)


def test_unknown_name_names_the_nearest(tmp_path, tensors):
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    with pytest.raises(KeyError, match=r"model\.norm\.weight"):
        open_source(tmp_path).read("model.norms.weight")


def test_fp8_tensors_are_refused_by_name(tmp_path):
    header = json.dumps({"w": {"dtype": "F8_E4M3", "shape": [2, 2], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"1234")
    with pytest.raises(ValueError, match=r"'w'.*F8_E4M3.*bf16"):
        open_source(tmp_path).info("w")


def test_single_file_wins_over_bin(tmp_path, tensors):
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    (tmp_path / "pytorch_model.bin").write_bytes(b"never opened")
    assert len(open_source(tmp_path).names) == len(tensors)


def test_missing_folder_and_missing_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        open_source(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        open_source(tmp_path)


def test_missing_shard_is_named(tmp_path, tensors):
    write_sharded(tmp_path, tensors, 3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of the 3 shards.*model-00002-of-00003\.safetensors"):
        open_source(tmp_path)


def test_index_that_contradicts_its_shards(tmp_path, tensors):
    write_sharded(tmp_path, tensors, 2)
    index = tmp_path / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    table["weight_map"]["ghost.weight"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(table))
    with pytest.raises(ValueError, match=r"ghost\.weight"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../../etc/passwd"}}', '{"weight_map": {"a": 1}}'],
)
def test_damaged_index(tmp_path, text):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(text)
    with pytest.raises(ValueError, match=re.escape(str(index))):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"bigdl_transformers_low_bit": "sym_int4"}, "ipex-llm"),
        ({"quantization_config": {"quant_method": "hqq"}}, "HQQ"),
        ({"quantization_config": {"load_in_4bit": True}}, "bitsandbytes"),
        ({"quantization_config": {"quant_method": "unheard-of"}}, "unheard-of"),
    ],
)
def test_foreign_configs_are_refused_by_name(tmp_path, config, said):
    with pytest.raises(ValueError, match=f"{said}.*original"):
        refuse_foreign(tmp_path, config)


def test_own_and_plain_configs_pass(tmp_path):
    for method in ("lowbit", "gptq", "awq"):
        refuse_foreign(tmp_path, {"quantization_config": {"quant_method": method}})
    refuse_foreign(tmp_path, {"model_type": "llama"})


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("bigdl_config.json", b"{}", "ipex-llm"),
        ("m.gguf", b"GGUF", "GGUF"),
        ("quantize_config.json", b"{}", "intel-extension"),
    ],
)
def test_foreign_folders_are_refused_by_name(tmp_path, file, content, said):
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=said):
        open_source(tmp_path)


def test_a_gguf_file_is_refused_by_name(tmp_path):
    file = tmp_path / "model.bin"
    file.write_bytes(b"GGUF\x03\0\0\0")
    with pytest.raises(ValueError, match="GGUF file"):
        hub.locate(str(file))


# ---- the hub ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["./model", "/models/x", "~/x", "../x", "a/b/c", "a\\b", "C:\\m", "x.gguf", "with space"]
)
def test_written_like_a_path(text):
    assert hub.is_local(text)


@pytest.mark.parametrize("text", ["gpt2", "Qwen/Qwen2.5-0.5B-Instruct", "org/name_x.y"])
def test_written_like_an_id(text):
    assert not hub.is_local(text)


def test_an_existing_folder_is_a_path_even_without_a_slash(tmp_path, monkeypatch):
    write_llama(tmp_path / "gpt2")
    monkeypatch.chdir(tmp_path)
    assert hub.is_local("gpt2")
    assert hub.locate("gpt2").folder == tmp_path / "gpt2"


def test_absent_path_never_asks_the_hub(no_network):
    with pytest.raises(FileNotFoundError, match=r"no folder at .*absent"):
        hub.locate("./absent/model")


@pytest.mark.parametrize("shards", [1, 2])
def test_weights_come_second_and_bin_never_beside_safetensors(fake_hub, shards):
    write_llama(fake_hub.repository, shards=shards)
    for extra in ("pytorch_model.bin", "consolidated.safetensors", "model.onnx", "README.md"):
        (fake_hub.repository / extra).write_bytes(b"")
    options = {"cache_dir": "somewhere", "token": "secret", "local_files_only": False}
    access = hub.Access(**options)
    location = hub.locate("org/name", "main", access)
    assert not list(location.folder.glob("*.safetensors"))
    assert (location.folder / "tokenizer.json").exists()
    location = hub.fetch_weights(location, access)
    assert len(open_source(location.folder).names) == 21
    assert not {"pytorch_model.bin", "consolidated.safetensors", "model.onnx"} & {
        f.name for f in location.folder.iterdir()
    }
    assert location.model_id == "org/name"
    assert location.revision == "f" * 40
    for _, _, passed in fake_hub.calls:
        assert {key: passed[key] for key in options} == options
    assert [passed["revision"] for _, _, passed in fake_hub.calls] == ["main", "f" * 40]


def test_bin_where_there_is_nothing_else(fake_hub):
    (fake_hub.repository / "config.json").write_text("{}")
    (fake_hub.repository / "pytorch_model.bin").write_bytes(b"x")
    location = hub.fetch_weights(hub.locate("org/name"))
    assert (location.folder / "pytorch_model.bin").exists()


def test_a_repository_without_weights(fake_hub):
    (fake_hub.repository / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"org/name has no weights.*pytorch_model\.bin"):
        hub.fetch_weights(hub.locate("org/name"))


def _http_error(kind):
    """An error of huggingface_hub as its client raises it, without a server."""
    error = kind.__new__(kind)
    Exception.__init__(error, "from the server")
    return error


@pytest.mark.parametrize(
    ("kind", "becomes", "said"),
    [
        ("HfHubHTTPError", ConnectionError, "the hub refused org/name.*from the server"),
        ("RepositoryNotFoundError", ValueError, "no model 'org/name' on the hub.*token"),
        ("GatedRepoError", PermissionError, "licence"),
        ("RevisionNotFoundError", ValueError, "no revision 'v9'"),
        ("LocalEntryNotFoundError", FileNotFoundError, "org/name.*not complete in the local cache"),
    ],
)
def test_hub_errors_in_plain_words(monkeypatch, kind, becomes, said):
    import huggingface_hub
    from huggingface_hub import errors

    def fail(*args, **options):
        raise _http_error(getattr(errors, kind))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(becomes, match=said):
        hub.locate("org/name", revision="v9")


def test_offline_with_an_empty_cache(tmp_path, no_network):
    with pytest.raises(FileNotFoundError, match=r"org/name.*local_files_only.*connect once"):
        hub.locate("org/name", access=hub.Access(tmp_path, local_files_only=True))


def test_offline_from_the_cache(tmp_path, no_network):
    commit = "a" * 40
    repository = tmp_path / "models--org--name"
    write_llama(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    access = hub.Access(tmp_path, local_files_only=True)
    location = hub.fetch_weights(hub.locate("org/name", access=access), access)
    assert location.revision == commit
    assert len(open_source(location.folder).names) == 21


def test_bin_without_torch_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # what an absent package looks like to `import`
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ImportError, match=r"pytorch_model\.bin.*pip install 'lowbit\[torch\]'.*safetensors"):
        open_source(tmp_path)
