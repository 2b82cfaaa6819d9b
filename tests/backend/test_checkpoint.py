"""The low-bit folder: what is saved comes back bit for bit, by mapping, and a folder is never half old and half new."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from tiny_hf import hand_made_family, write_llama

from lowbit import checkpoint, loading, models
from lowbit.checkpoint import _replace, _weights
from lowbit.packed import PackedTensor
from shared_data import shared

pytestmark = pytest.mark.usefixtures("no_network")
HERE = str(Path(__file__).parent)


@pytest.fixture
def loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "family", hand_made_family, raising=False)
    write_llama(tmp_path / "original")
    return loading.load_model(tmp_path / "original", "nf4", modules_to_not_convert=["layers.1.self_attn.o_proj"])


@pytest.fixture
def folder(tmp_path, loaded):
    return checkpoint.save(loaded, tmp_path / "saved")


def assert_same(a, b):
    assert a.tensors
    assert set(a.tensors) == set(b.tensors)
    for name, x in a.tensors.items():
        y = b.tensors[name]
        if isinstance(x, PackedTensor):
            assert (x.format, x.group_size, x.shape, x.multiplier) == (y.format, y.group_size, y.shape, y.multiplier)
            assert x.data.tobytes() == y.data.tobytes()
        else:
            assert y.dtype == np.float32
            assert x.tobytes() == y.tobytes()
    assert a.spec == b.spec
    assert a.generation_config == b.generation_config
    assert a.quantization == b.quantization
    assert {n: p.read_bytes() for n, p in a.tokenizer_files.items()} == {
        n: p.read_bytes() for n, p in b.tokenizer_files.items()
    }
    assert set(a.notices) == set(b.notices)


def leftovers(parent):
    return [p.name for p in parent.iterdir() if p.name.endswith((".tmp", ".old"))]


# ---- there and back -----------------------------------------------------------------------------------------------


def test_comes_back_bit_for_bit(folder, loaded):
    opened = checkpoint.load(folder)
    assert_same(loaded, opened)
    assert opened.provenance["source"] == "original"
    assert opened.provenance["lowbit"]
    assert opened.config["hidden_size"] == 64
    checkpoint.verify(folder)


@pytest.mark.parametrize("low_bit", ["sym_int3", "asym_int5", "sym_int8", "fp6", "fp8_e5m2", "Q4_1", "fp16", None])
@pytest.mark.parametrize("group_size", [None, 32, -1])
def test_every_kind_of_format_comes_back(tmp_path, monkeypatch, low_bit, group_size):
    monkeypatch.setattr(models, "family", hand_made_family, raising=False)
    write_llama(tmp_path / "original", tie_word_embeddings=True)
    loaded = loading.load_model(tmp_path / "original", low_bit, group_size=group_size)
    assert_same(loaded, checkpoint.load(checkpoint.save(loaded, tmp_path / "saved")))


def test_load_model_opens_it_without_the_family_or_the_original(tmp_path, folder, loaded, monkeypatch):
    monkeypatch.setattr(models, "family", None, raising=False)
    shutil.rmtree(tmp_path / "original")
    elsewhere = tmp_path / "another" / "machine"
    shutil.copytree(folder, elsewhere)
    shutil.rmtree(folder)
    opened = loading.load_model(elsewhere)
    assert opened.tensors["layers.0.o.weight"].format.name == "nf4"
    assert opened.tensors["layers.1.o.weight"].format.name == "bf16"
    assert opened.tokenizer_files["tokenizer.json"].parent == elsewhere


def test_saved_again_from_the_opened_folder(tmp_path, folder, loaded):
    again = checkpoint.save(checkpoint.load(folder), tmp_path / "again")
    assert_same(loaded, checkpoint.load(again))
    checkpoint.save(checkpoint.load(folder), folder)  # onto itself, while it is mapped
    assert_same(loaded, checkpoint.load(folder))
    assert checkpoint.load(folder).provenance["source"] == "original"


def test_the_safetensors_library_reads_it(folder, loaded):
    arrays = safetensors.numpy.load_file(folder / "model.safetensors")
    assert set(arrays) == set(loaded.tensors)
    for name, tensor in loaded.tensors.items():
        expected = tensor.data if isinstance(tensor, PackedTensor) else tensor
        np.testing.assert_array_equal(arrays[name], expected)
    with safetensors.safe_open(folder / "model.safetensors", "numpy") as file:
        facts = json.loads(file.metadata()["layers.0.qkv.weight"])
    assert facts == {"format": "nf4", "group_size": 64, "shape": [128, 64], "multiplier": facts["multiplier"]}


def test_weights_are_views_of_the_mapping_on_cache_lines(folder):
    opened = checkpoint.load(folder)
    tensors = [t for t in opened.tensors.values() if isinstance(t, PackedTensor)]
    assert len(tensors) == 10
    for tensor in tensors:
        assert tensor.data.ctypes.data % 64 == 0
        assert not tensor.data.flags.owndata
        assert not tensor.data.flags.writeable
    with (folder / "model.safetensors").open("rb") as file:
        assert (8 + int.from_bytes(file.read(8), "little")) % 64 == 0


def test_opened_model_outlives_its_replacement(folder, loaded):
    opened = checkpoint.load(folder)
    expected = opened.tensors["head.weight"].data.tobytes()
    checkpoint.save(loaded, folder)
    shutil.rmtree(folder)
    assert opened.tensors["head.weight"].data.tobytes() == expected


def test_config_says_how_it_was_quantised(folder):
    quantization = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert quantization["quant_method"] == "lowbit"
    assert quantization["version"] == checkpoint.VERSION
    assert (quantization["format"], quantization["group_size"]) == ("nf4", 64)
    assert quantization["modules_to_not_convert"] == ["layers.1.self_attn.o_proj"]
    assert quantization["spec"]["hidden_size"] == 64


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"low_bit": "sym_int8"}, "low_bit='nf4' and cannot be opened with 'sym_int8'"),
        ({"group_size": 128}, "group_size=64 and cannot be opened with 128"),
        ({"head_format": "fp16"}, "head_format='sym_int8'"),
    ],
)
def test_asking_a_folder_for_another_format(folder, options, said):
    with pytest.raises(ValueError, match=said):
        loading.load_model(folder, **options)


def test_asking_a_folder_for_what_it_is(folder):
    loading.load_model(
        folder, "nf4", group_size=64, head_format="int8", modules_to_not_convert=["layers.1.self_attn.o_proj"]
    )


def test_from_the_hub(fake_hub, folder, loaded):
    for path in folder.iterdir():
        shutil.copy(path, fake_hub.repository)
    assert_same(loaded, loading.load_model("org/low-bit"))
    asked = [patterns for _, patterns, _ in fake_hub.calls]
    assert len(asked) == 2
    assert "lowbit.json" in asked[0]
    assert asked[1] == ["model.safetensors", "config.json"]


# ---- saving onto something ----------------------------------------------------------------------------------------


def test_replaces_an_older_folder_and_keeps_other_peoples_files(tmp_path, folder, loaded):
    (folder / "README.md").write_text("mine")
    (folder / "notes").mkdir()
    (folder / "notes" / "a.txt").write_text("mine too")
    stale = folder / "vocab.json"
    stale.write_text("{}")
    manifest = json.loads((folder / "lowbit.json").read_text())
    manifest["files"]["vocab.json"] = {"bytes": 2, "crc32": "0"}  # as if the older model had one
    (folder / "lowbit.json").write_text(json.dumps(manifest))
    checkpoint.save(loaded, folder)
    assert (folder / "README.md").read_text() == "mine"
    assert (folder / "notes" / "a.txt").read_text() == "mine too"
    assert not stale.exists()
    checkpoint.verify(folder)
    assert leftovers(tmp_path) == []


def test_a_damaged_older_folder_is_replaced_and_no_file_of_others_lost(folder, loaded):
    (folder / "README.md").write_text("mine")
    (folder / "lowbit.json").write_text("{")
    checkpoint.save(loaded, folder)
    assert (folder / "README.md").read_text() == "mine"
    checkpoint.verify(folder)


def test_a_tokenizer_that_vanished_meanwhile(tmp_path, loaded):
    loaded.tokenizer_files["tokenizer.json"].unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json is gone since the model was loaded"):
        checkpoint.save(loaded, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert leftovers(tmp_path) == []


def test_into_a_folder_with_only_a_tokenizer(tmp_path, loaded):
    target = tmp_path / "out"
    target.mkdir()
    (target / "tokenizer.json").write_text("older")
    (target / "README.md").write_text("mine")
    checkpoint.save(loaded, target)
    assert (target / "README.md").read_text() == "mine"
    checkpoint.verify(target)
    assert leftovers(target) == []


def test_into_an_empty_folder_and_below_folders_that_do_not_exist(tmp_path, loaded):
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "empty", tmp_path / "a" / "b" / "c"):
        checkpoint.verify(checkpoint.save(loaded, target))
        assert leftovers(target.parent) == []


def test_through_a_link(tmp_path, folder, loaded):
    (tmp_path / "link").symlink_to(folder)
    checkpoint.save(loaded, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    checkpoint.verify(tmp_path / "link")


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model-00001-of-00002.bin", "x.gguf"])
def test_never_replaces_a_model_of_somebody_else(tmp_path, loaded, weights):
    target = tmp_path / "theirs"
    target.mkdir()
    (target / weights).write_bytes(b"theirs")
    with pytest.raises(FileExistsError, match=weights):
        checkpoint.save(loaded, target)
    assert [p.name for p in target.iterdir()] == [weights]


def test_never_replaces_a_file(tmp_path, loaded):
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError, match="is a file"):
        checkpoint.save(loaded, tmp_path / "file")


def test_without_the_exchange_of_the_system(tmp_path, folder, loaded, monkeypatch):
    monkeypatch.setattr(_replace.sys, "platform", "other")
    (folder / "README.md").write_text("mine")
    checkpoint.save(loaded, folder)
    assert (folder / "README.md").read_text() == "mine"
    checkpoint.verify(folder)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("platform", [sys.platform, "other"])
def test_a_failure_at_the_last_moment_keeps_the_old_folder(tmp_path, folder, loaded, monkeypatch, platform):
    before = (folder / "lowbit.json").read_bytes()
    monkeypatch.setattr(_replace.sys, "platform", platform)
    real = os.rename

    def fails(source, target):
        if str(source).endswith(".tmp"):
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(_replace.os, "rename", fails)
    with pytest.raises(OSError, match=r"Input/output error.*nothing was changed"):
        checkpoint.save(loaded, folder)
    assert (folder / "lowbit.json").read_bytes() == before
    checkpoint.verify(folder)
    assert leftovers(tmp_path) == []


SAVE = """
import resource, sys
sys.path.insert(0, sys.argv[3])
import lowbit.models
from lowbit import checkpoint, loading
from tiny_hf import hand_made_family
lowbit.models.family = hand_made_family
loaded = loading.load_model(sys.argv[1], "sym_int8")
if len(sys.argv) > 4:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]),) * 2)
try:
    checkpoint.save(loaded, sys.argv[2])
except OSError as error:
    sys.exit(str(error))
"""


def run_save(original, target, *limit, **options):
    return subprocess.run(
        [sys.executable, "-c", SAVE, str(original), str(target), HERE, *limit],
        capture_output=True,
        text=True,
        **options,
    )


def test_a_full_disk_leaves_the_old_folder_and_nothing_else(tmp_path, folder):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    done = run_save(tmp_path / "original", folder, "20000")
    assert done.returncode == 1
    for said in ("File too large", "nothing was changed", str(folder)):
        assert said in done.stderr
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert leftovers(tmp_path) == []
    assert run_save(tmp_path / "original", folder).returncode == 0
    assert checkpoint.load(folder).quantization["format"] == "sym_int8"


def test_a_full_disk_with_no_old_folder(tmp_path, folder):
    done = run_save(tmp_path / "original", tmp_path / "new", "20000")
    assert "File too large" in done.stderr
    assert not (tmp_path / "new").exists()
    assert leftovers(tmp_path) == []


def test_a_really_full_file_system(tmp_path, folder):
    small = tmp_path / "small"
    small.mkdir()
    if (
        shutil.which("mount") is None
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(small)], capture_output=True
        ).returncode
    ):
        pytest.skip("cannot mount a small file system here")
    try:
        shutil.copytree(folder, small / "saved")
        filler = small / "filler"
        filler.write_bytes(bytes(100 << 10))
        done = run_save(tmp_path / "original", small / "saved")
        assert "No space left on device" in done.stderr
        assert "MB are free" in done.stderr
        assert leftovers(small) == []
        checkpoint.verify(small / "saved")
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_place_that_may_not_be_written(tmp_path, loaded, monkeypatch):
    real = Path.mkdir

    def refuse(self, *args, **kwargs):
        if self.name.endswith(".tmp"):
            raise PermissionError(13, "Permission denied", str(self))
        real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", refuse)  # also as root, who may write everywhere
    with pytest.raises(PermissionError, match=r"could not save to .*out: Permission denied.*may write to"):
        checkpoint.save(loaded, tmp_path / "out")


def test_opens_from_a_read_only_folder(folder, loaded):
    for path in [*folder.iterdir(), folder]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        code = "import sys; from lowbit import checkpoint; checkpoint.verify(sys.argv[1])"
        options = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
        for parent in folder.parents:
            if options and not parent.stat().st_mode & 0o001:
                options = {}  # another user could not even reach the folder
        done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, **options)
        assert done.returncode == 0, done.stderr
    finally:
        folder.chmod(0o755)


def test_concurrent_savers_leave_one_complete_folder(tmp_path, loaded):
    errors = []

    def work():
        try:
            for _ in range(5):
                checkpoint.save(loaded, tmp_path / "shared")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert_same(loaded, checkpoint.load(tmp_path / "shared", verify=True))
    assert leftovers(tmp_path) == []


def test_a_folder_can_be_opened_while_it_is_replaced(tmp_path, folder, loaded):
    """A reader sees one model or the other, never parts of both."""
    others = [loaded, loading.load_model(tmp_path / "original", "sym_int8")]
    formats = {m.quantization["format"]: m.packed_bytes for m in others}
    stop, seen, errors = threading.Event(), set(), []

    def read():
        try:
            while not stop.is_set():
                opened = checkpoint.load(folder, verify=True)
                assert formats[opened.quantization["format"]] == opened.packed_bytes
                seen.add(opened.quantization["format"])
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    for i in range(20):
        checkpoint.save(others[i % 2], folder)
    stop.set()
    thread.join()
    assert errors == []
    assert seen == set(formats)


# ---- chunks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [64, 1000, 4096])
def test_files_of_many_chunks(tmp_path, loaded, monkeypatch, chunk):
    monkeypatch.setattr(_weights, "CHUNK_BYTES", chunk)
    folder = checkpoint.save(loaded, tmp_path / "chunked")
    assert_same(loaded, checkpoint.load(folder))
    manifest = json.loads((folder / "lowbit.json").read_text())["weights"]
    assert manifest["bytes"] == (folder / "model.safetensors").stat().st_size
    assert len(manifest["crc32"]) == -(-manifest["bytes"] // chunk)


def test_large_folders_are_opened_without_reading_them(folder, monkeypatch):
    monkeypatch.setattr(checkpoint, "VERIFY_BYTES", 100)
    monkeypatch.setattr(_weights.WeightsFile, "check", lambda self, chunks=None: checked.append(chunks))
    checked = []
    checkpoint.load(folder)
    checkpoint.load(folder, verify=True)
    checkpoint.load(folder, verify=False)
    assert checked == [1, None]


# ---- real models --------------------------------------------------------------------------------------------------

MODELS = [
    "stories260k",
    "babyllama-tok105",
    "babyllama-tok105-as-phi3",
    "shakespeare-char-gpt2",
    "shakespeare-char-opt",
]


@pytest.mark.parametrize("name", MODELS)
def test_trained_models_come_back(tmp_path, name):
    loaded = loading.load_model(shared("models", name), "asym_int4")
    assert_same(loaded, checkpoint.load(checkpoint.save(loaded, tmp_path / "saved"), verify=True))
