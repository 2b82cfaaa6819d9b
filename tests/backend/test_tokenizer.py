"""Tokenizers from files, and streams that join to what decoding at once gives."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, processors
from tokenizers import Tokenizer as Backend

import toy
from lowbit.detokenize import clean_up
from lowbit.tokenizer import Tokenizer
from shared_data import shared

WORDS = ["a", "b", "▁a", "▁", "▁▁", "▁b", "you", "▁你", "é", "▁n't", "▁.", ".", "'s", "▁'s", "▁'", " ", "�"]


def spaced_vocabulary(decoder, byte_fallback=True, config=None):
    """A vocabulary with SentencePiece's space, byte tokens and two special tokens."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *WORDS]
    backend = Backend(
        models.BPE({n: i for i, n in enumerate(names)}, [], unk_token="<unk>", byte_fallback=byte_fallback)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.add_special_tokens([AddedToken(n, special=True) for n in names[:3]])
    backend.add_tokens([AddedToken("<call>", special=False)])
    backend.decoder = decoder
    return Tokenizer(backend, config or {}, {"bos_token": "<s>", "eos_token": "</s>"})


def word_piece():
    names = ["[UNK]", "[CLS]", "[SEP]", "a", "##b", "c", "##'s", ".", ",", "'", "n't", "do", "not", "é"]
    backend = Backend(models.WordPiece({n: i for i, n in enumerate(names)}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    backend.add_special_tokens([AddedToken(n, special=True) for n in names[:3]])
    return Tokenizer(backend, {"clean_up_tokenization_spaces": True}, {})


def suffixed():
    names = ["a</w>", "b", "c</w>", ".</w>", "'s</w>", "n't</w>"]
    backend = Backend(models.WordLevel({n: i for i, n in enumerate(names)}, unk_token="b"))
    backend.decoder = decoders.BPEDecoder("</w>")
    return Tokenizer(backend, {"clean_up_tokenization_spaces": True}, {})


LLAMA = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
TOKENIZERS = {
    "llama": spaced_vocabulary(decoders.Sequence(LLAMA)),
    "llama without strip": spaced_vocabulary(decoders.Sequence(LLAMA[:3])),
    "metaspace first": spaced_vocabulary(decoders.Metaspace(prepend_scheme="first")),
    "metaspace always": spaced_vocabulary(decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])),
    "metaspace never": spaced_vocabulary(decoders.Metaspace(prepend_scheme="never")),
    "no decoder": spaced_vocabulary(decoders.Fuse()),
    "byte level": toy.byte_tokenizer(),
    "word piece, cleaned": word_piece(),
    "suffixed, cleaned": suffixed(),
}


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_streams_join_to_the_whole_decoding(name, data):
    tokenizer = TOKENIZERS[name]
    common = st.integers(0, tokenizer.vocab_size - 1)
    if tokenizer.vocab_size > 259:  # words and short byte sequences matter more than the 256 bytes
        common = st.one_of(
            st.integers(259, tokenizer.vocab_size - 1), st.sampled_from([3 + b for b in "你é".encode()]), common
        )
    elif tokenizer.vocab_size == toy.VOCAB:
        common = st.one_of(st.sampled_from(list("a你é\ufffd🙂".encode())), common)
    ids = data.draw(st.lists(common, max_size=40))
    skip = data.draw(st.booleans())
    stream = tokenizer.stream(skip_special_tokens=skip)
    pieces = [stream.push(i) for i in ids]
    assert "".join(pieces) + stream.flush() == tokenizer.decode(ids, skip_special_tokens=skip)


@given(st.lists(st.sampled_from(["a", " ", ".", "'", "n't", "'s", " '", "?"]), max_size=30), st.data())
def test_clean_up_of_a_stream(words, data):
    from lowbit.detokenize import CLEAN_UP, _Replace

    text = "".join(words)
    borders = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    stages = [_Replace(old, new) for old, new in CLEAN_UP]
    out = ""
    for a, b in zip([0, *borders], [*borders, len(text)], strict=True):
        piece = text[a:b]
        for stage in stages:
            piece = stage.push(piece)
        out += piece
    rest = ""
    for stage in stages:
        rest = stage.push(rest) + stage.flush()
    assert out + rest == clean_up(text)


def test_text_is_given_out_as_soon_as_it_is_certain():
    tokenizer = TOKENIZERS["llama"]
    a, you = (tokenizer.id(t) for t in ("▁a", "you"))
    stream = tokenizer.stream()
    assert stream.push(a) == "a"
    assert stream.push(a) == " a"
    assert stream.push(you) == "you"
    assert [stream.push(3 + b) for b in "é".encode()] == ["", ""]
    assert stream.push(a) == "é a"


def test_the_window_stays_small():
    """A token costs the same after a long text as at its beginning."""
    tokenizer = TOKENIZERS["llama"]
    stream = tokenizer.stream()
    for i in random.Random(0).choices(range(259, tokenizer.vocab_size - 2), k=2000):
        stream.push(i)
        assert len(stream._window) <= 4


def test_token_text_keeps_its_space():
    tokenizer = TOKENIZERS["llama"]
    assert tokenizer.token_text(tokenizer.id("▁b")) == " b"
    assert tokenizer.token_text(tokenizer.id("you")) == "you"


# ---- files --------------------------------------------------------------------------------------------------------


def write(folder, **files):
    for name, content in files.items():
        name = name.replace("__", ".")
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


def backend_json(post=True):
    tokenizer = toy.byte_tokenizer()
    if not post:
        tokenizer.backend.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.backend.enable_truncation(4)
    tokenizer.backend.enable_padding(length=9)
    return tokenizer.backend.to_str()


def test_truncation_and_padding_in_the_file_are_not_applied(tmp_path):
    tokenizer = Tokenizer.from_folder(write(tmp_path, tokenizer__json=backend_json()))
    assert len(tokenizer.encode("a" * 50)) == 51
    assert len(tokenizer.encode("")) == 1


@pytest.mark.parametrize("in_file", [True, False])
@pytest.mark.parametrize("bos", [True, False, None])
@pytest.mark.parametrize("eos", [True, False, None])
def test_bos_and_eos_rules(tmp_path, in_file, bos, eos):
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}
    config |= {k: v for k, v in (("add_bos_token", bos), ("add_eos_token", eos)) if v is not None}
    tokenizer = Tokenizer.from_folder(
        write(tmp_path, tokenizer__json=backend_json(in_file), tokenizer_config__json=config)
    )
    adds_bos = in_file if bos is None and eos is None else bool(bos)
    assert tokenizer.encode("a") == [toy.BOS] * adds_bos + [97] + [toy.EOS] * bool(eos)
    assert tokenizer.encode("a", add_special_tokens=False) == [97]
    assert (tokenizer.bos_id, tokenizer.eos_id) == (toy.BOS, toy.EOS)


def test_chat_templates_come_from_their_three_places(tmp_path):
    base = {"tokenizer__json": backend_json(), "tokenizer_config__json": {"chat_template": "config"}}
    assert Tokenizer.from_folder(write(tmp_path, **base)).chat_template == "config"
    write(
        tmp_path,
        tokenizer_config__json={
            "chat_template": [{"name": "default", "template": "d"}, {"name": "t", "template": "x"}]
        },
    )
    assert Tokenizer.from_folder(tmp_path).chat_template == {"default": "d", "t": "x"}
    write(tmp_path, chat_template__json={"chat_template": "json"})
    assert Tokenizer.from_folder(tmp_path).chat_template == "json"
    write(tmp_path, chat_template__jinja="jinja")
    assert Tokenizer.from_folder(tmp_path).chat_template == "jinja"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    assert Tokenizer.from_folder(tmp_path).chat_template == {"default": "jinja", "tool_use": "tools"}


def test_added_tokens_of_the_config_are_added(tmp_path):
    config = {
        "added_tokens_decoder": {
            "258": {"content": "<|im_end|>", "special": True, "normalized": False},
            "259": {"content": "<tool>", "special": False},
        },
        "eos_token": "<|im_end|>",
    }
    tokenizer = Tokenizer.from_folder(write(tmp_path, tokenizer__json=backend_json(), tokenizer_config__json=config))
    assert tokenizer.eos_id == 258
    assert tokenizer.encode("a<|im_end|><tool>", add_special_tokens=False) == [97, 258, 259]
    assert tokenizer.decode([97, 258, 259]) == "a<tool>"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "no tokenizer file"),
        ({"vocab__json": {}}, "needs tokenizer.json"),
        ({"tokenizer__json": "{"}, "tokenizer.json cannot be read"),
        ({"tokenizer__json": backend_json(), "tokenizer_config__json": "[1]"}, "should hold a JSON object"),
        ({"tokenizer__json": backend_json(), "tokenizer_config__json": "{,"}, "not valid JSON"),
        ({"tokenizer__model": "nonsense"}, "not a SentencePiece model"),
        ({"tokenizer__model": "IQ== 0\nIg== 1\n"}, "tiktoken vocabulary"),
        ({"vocab__txt": "a\nb\n"}, r"has no \[CLS\]"),
    ],
)
def test_bad_files_have_clear_errors(tmp_path, files, words):
    with pytest.raises(ValueError, match=words):
        Tokenizer.from_folder(write(tmp_path, **files))


TEXTS = ["Once upon a time", " two  spaces ", "naïve café 你好 🙂", "don't stop.", "line\nline\ttab", "", "a<s>b"]
CORPUS = ["Once upon a time there was a little dog .", "don't stop the naïve café", "你好 世界 , hello world"] * 40


def test_gpt2_files(tmp_path):
    from tokenizers.implementations import ByteLevelBPETokenizer

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(CORPUS, vocab_size=320, show_progress=False)
    trained.save_model(str(tmp_path))
    tokenizer = Tokenizer.from_folder(tmp_path)
    for text in TEXTS:
        assert tokenizer.encode(text) == trained.encode(text).ids
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_bert_files(tmp_path):
    from tokenizers.implementations import BertWordPieceTokenizer

    trained = BertWordPieceTokenizer()
    trained.train_from_iterator(CORPUS, vocab_size=150, show_progress=False)
    trained.save_model(str(tmp_path))
    tokenizer = Tokenizer.from_folder(
        write(tmp_path, tokenizer_config__json={"cls_token": "[CLS]", "sep_token": "[SEP]"})
    )
    trained = BertWordPieceTokenizer(str(tmp_path / "vocab.txt"))
    for text in TEXTS[:4]:
        assert tokenizer.encode(text) == trained.encode(text).ids


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize(
    "options", [{}, {"byte_fallback": True}, {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}]
)
def test_sentencepiece_files(tmp_path, kind, options):
    library = pytest.importorskip("sentencepiece")
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(CORPUS), encoding="utf-8")
    size = 330 if options.get("byte_fallback") else 70
    library.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(tmp_path / "tokenizer"), model_type=kind, vocab_size=size,
        hard_vocab_limit=False, minloglevel=2, user_defined_symbols=["<call>"], **options,
    )  # fmt: skip
    reference = library.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = Tokenizer.from_folder(write(tmp_path, tokenizer_config__json=config))
    rng = random.Random(1)
    letters = "".join(sorted(set("".join(CORPUS))))
    texts = [*TEXTS[:4], *CORPUS[:3], *("".join(rng.choices(letters, k=rng.randint(1, 30))) for _ in range(200))]
    for text in texts:
        ids = reference.encode(text)
        assert tokenizer.encode(text) == [reference.bos_id(), *ids], text
        if reference.unk_id() not in ids:  # special here, as in transformers; sentencepiece writes " ⁇ "
            assert tokenizer.decode(ids) == reference.decode(ids)
    assert tokenizer.encode("a<call>", add_special_tokens=False)[-1] == reference.piece_to_id("<call>")


@pytest.mark.torch
@pytest.mark.parametrize(
    "name", ["stories260k", "zh-poem-llama", "babyllama-tok105", "shakespeare-char-gpt2", "all-MiniLM-L6-v2"]
)
def test_equals_transformers(name):
    from transformers import AutoTokenizer

    folder = shared("models", name)
    ours, theirs = Tokenizer.from_folder(folder), AutoTokenizer.from_pretrained(folder)
    rng = random.Random(0)
    for text in [*TEXTS, "To be, or not to be: that is the question."]:
        ids = theirs(text)["input_ids"]
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    for _ in range(50):
        ids = rng.choices(range(ours.vocab_size), k=30)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        stream = ours.stream()
        assert "".join([stream.push(i) for i in ids]) + stream.flush() == ours.decode(ids)
    assert ours.eos_id == theirs.eos_token_id
