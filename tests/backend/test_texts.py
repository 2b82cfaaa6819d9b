"""Texts as token ids: pairs are cut as the tokenizers library cuts them, without what that keeps of long ones."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_bert import write_bert
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import lowbit
from lowbit.texts import cut_pair


@pytest.fixture(scope="module")
def tokenizer():
    made = Tokenizer(models.WordLevel({"[CLS]": 0, "[SEP]": 1, **{f"w{i}": i + 2 for i in range(40)}}, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 0), ("[SEP]", 1)],
    )
    return made


@given(first=st.integers(0, 30), second=st.integers(0, 30), max_length=st.integers(3, 40))
def test_a_pair_is_cut_as_the_library_cuts_it(tokenizer, first, second, max_length):
    pair = (" ".join(f"w{i}" for i in range(first)), " ".join(f"w{i}" for i in range(30, 30 - second, -1)))
    cutting = copy.deepcopy(tokenizer)
    cutting.enable_truncation(max_length)
    expected, whole = cutting.encode(*pair), tokenizer.encode(*pair)
    if len(whole) <= max_length:
        return
    cut = cut_pair(whole, max_length)
    assert cut.ids.tolist() == expected.ids
    assert cut.type_ids.tolist() == expected.type_ids


def test_the_pieces_of_two_long_texts_are_not_kept(tmp_path, caplog):
    """The library would make (3,000 / 10) ** 2 pieces of this pair; of two texts of 1 MB, more than fit in memory."""
    reranker = lowbit.Reranker(write_bert(tmp_path, labels=1))
    long = " ".join(f"w{i % 60}" for i in range(3000))
    encoding = reranker._encode([(long, long)])[0]
    assert len(encoding) == reranker.max_length == 24
    assert reranker.tokenizer.backend.truncation is None
    assert reranker.score(long, (text for text in [long, "w5"])).shape == (2,)  # a generator, too
    assert "more than the 24 tokens" in caplog.text
    with pytest.raises(ValueError, match="has 6003 tokens, the limit of"):
        lowbit.Reranker(tmp_path, truncate=False).score(long, [long])
