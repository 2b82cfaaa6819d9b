"""Models for the integration tests: a tiny random one that is made here, and the embedded one where it is committed."""

import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "backend"))  # tiny_hf.py


def write_tiny(folder: Path) -> Path:
    """Writes a Llama of random weights with a byte-level tokenizer: it babbles, but always the same."""
    from tiny_hf import write_llama

    write_llama(folder, vocab_size=300, hidden_size=64, intermediate_size=128, max_position_embeddings=512)
    alphabet = {character: i + 4 for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    specials = {"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3}
    tokenizer = Tokenizer(models.BPE(vocab={**specials, **alphabet}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(specials))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny-llama")


@pytest.fixture(scope="session", params=["tiny", "embedded"])
def model_folder(request, tiny_folder):
    """A Hugging Face folder: of the tiny model, then of the embedded one."""
    if request.param == "tiny":
        return tiny_folder
    embedded = ROOT / "demo" / "model"
    if not (embedded / "config.json").exists():
        pytest.skip("the embedded model (demo/model) is not in this checkout")
    return embedded
