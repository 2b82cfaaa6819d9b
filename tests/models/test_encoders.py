"""Every encoder family against transformers: a tiny random model in fp32, hidden states, pooling and scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lowbit import models, ops
from models import tiny

pytestmark = pytest.mark.torch

LENGTHS = (1, 33, 7, 70, 2, 40)
TOLERANCE = 1e-4

BERT = {
    "vocab_size": 131, "hidden_size": 48, "intermediate_size": 88, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 80, "type_vocab_size": 3, "pad_token_id": 0,
}  # fmt: skip
ROBERTA = {**BERT, "type_vocab_size": 1, "pad_token_id": 1}
DISTILBERT = {
    "vocab_size": 131, "dim": 96, "hidden_dim": 100, "n_layers": 3, "n_heads": 3, "max_position_embeddings": 80,
}  # fmt: skip
MODERNBERT = {
    "vocab_size": 131, "hidden_size": 64, "intermediate_size": 88, "num_hidden_layers": 5, "num_attention_heads": 2,
    "max_position_embeddings": 80, "local_attention": 12, "global_attn_every_n_layers": 3, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2,
}  # fmt: skip

# id -> (model_type, settings)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", BERT),
    "bert-wide-heads": ("bert", {**BERT, "hidden_size": 160, "num_attention_heads": 2, "hidden_act": "gelu_new"}),
    "distilbert": ("distilbert", DISTILBERT),
    "roberta": ("roberta", ROBERTA),
    "xlm-roberta": ("xlm-roberta", {**ROBERTA, "layer_norm_eps": 1e-5}),
    "mpnet": ("mpnet", {**BERT, "max_position_embeddings": 84, "relative_attention_num_buckets": 32}),
    "modernbert": ("modernbert", MODERNBERT),
    "modernbert-biases": (
        "modernbert",
        {**MODERNBERT, "attention_bias": True, "mlp_bias": True, "norm_bias": True, "classifier_bias": True,
         "classifier_pooling": "mean"},
    ),
}  # fmt: skip


class Pair:
    """A transformers model, and its weights and config as a checkpoint would hold them."""

    def __init__(self, model_type: str, settings: dict[str, Any], labels: int = 0) -> None:
        import torch
        from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

        torch.manual_seed(len(repr(settings)))
        config = AutoConfig.for_model(model_type, **settings)
        if labels:
            config.num_labels = labels
        kind = AutoModelForSequenceClassification if labels else AutoModel
        self.model = kind.from_config(config, attn_implementation="eager").float().eval()
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                spread = 0.3 if parameter.ndim == 1 else 1.0 / parameter.shape[-1] ** 0.5
                noise = torch.randn_like(parameter) * spread
                parameter.copy_(noise + (1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0))
        self.config = {**config.to_dict(), "architectures": [type(self.model).__name__]}
        self.weights = {n: p.numpy() for n, p in self.model.state_dict().items()}
        self.family = models.family(self.config)
        self.spec = self.family.spec

    def encoder(self, low_bit: str = "fp32", compute: str = "fp32", tier: str | None = None) -> Any:
        tensors = tiny.packed(tiny.from_checkpoint(self.family, self.weights), low_bit)
        return ops.encoder(self.spec.to_dict(), tensors, compute, tier)

    def texts(self, lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
        random = np.random.default_rng(5)
        return [random.integers(3, self.spec.vocab_size, n).tolist() for n in lengths]

    def types(self, texts: list[list[int]]) -> list[list[int]] | None:
        if not self.spec.token_types:
            return None
        return [[i * self.spec.token_types // len(t) for i in range(len(t))] for t in texts]

    def reference(self, text: list[int], types: list[int] | None) -> np.ndarray:
        import torch

        with torch.no_grad():
            given = {} if types is None else {"token_type_ids": torch.tensor([types])}
            out = self.model(torch.tensor([text]), **given)
            return (out.logits if self.spec.labels else out.last_hidden_state)[0].numpy()


def packed(texts: list[list[int]], types: list[list[int]] | None) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    ends = np.cumsum([len(t) for t in texts]).astype(np.int64)
    flat = np.concatenate(texts).astype(np.int32)
    return flat, ends, None if types is None else np.concatenate(types).astype(np.int32)


@pytest.fixture(scope="module", params=CASES, ids=CASES)
def pair(request):
    return Pair(*CASES[request.param])


@pytest.fixture(scope="module", params=CASES, ids=CASES)
def classifier(request):
    return Pair(*CASES[request.param], labels=3)


def test_hidden_states_of_packed_texts(pair):
    texts = pair.texts()
    types = pair.types(texts)
    for threads in (1, 2):
        ours = ops.hidden_states(pair.encoder(), *packed(texts, types), ops.pool(threads))
        theirs = np.concatenate([pair.reference(t, types[i] if types else None) for i, t in enumerate(texts)])
        assert theirs.std() > 0.5
        assert np.abs(ours - theirs).max() <= TOLERANCE


@pytest.mark.parametrize("tier", ["scalar", "avx2"])
def test_lower_tiers_agree(pair, tier):
    if tier not in ops.tiers():
        pytest.skip(f"this CPU has no {tier}")
    texts = packed(pair.texts(), None)
    best = ops.hidden_states(pair.encoder(), *texts, ops.pool(2))
    assert np.abs(ops.hidden_states(pair.encoder(tier=tier), *texts, ops.pool(2)) - best).max() <= TOLERANCE


def test_a_text_alone_is_the_text_in_a_batch(pair):
    texts, encoder = pair.texts(), pair.encoder()
    hidden = ops.hidden_states(encoder, *packed(texts, None), ops.pool(2))
    start = 0
    for text in texts:
        alone = ops.hidden_states(encoder, *packed([text], None), ops.pool(2))
        assert np.abs(alone - hidden[start : start + len(text)]).max() <= 1e-5
        start += len(text)


def test_pooling(pair):
    texts = packed(pair.texts(), None)
    encoder = pair.encoder()
    hidden = ops.hidden_states(encoder, *texts, ops.pool(2))
    names = models._spec.POOLINGS
    ours = ops.embed(encoder, *texts, names, ops.pool(2)).reshape(len(LENGTHS), len(names), -1)
    for i, rows in enumerate(np.split(hidden, texts[1][:-1])):
        n = len(rows)
        weights = np.arange(1, n + 1)[:, None]
        expected = {
            "cls": rows[0], "mean": rows.mean(0), "max": rows.max(0), "mean_sqrt_len": rows.sum(0) / np.sqrt(n),
            "last": rows[-1], "weighted_mean": (rows * weights).sum(0) / weights.sum(),
        }  # fmt: skip
        for j, name in enumerate(names):
            assert np.abs(ours[i, j] - expected[name]).max() <= TOLERANCE, name


def test_classification(classifier):
    texts = classifier.texts()
    types = classifier.types(texts)
    ours = ops.classify(classifier.encoder(), *packed(texts, types), ops.pool(2))
    theirs = np.stack([classifier.reference(t, types[i] if types else None) for i, t in enumerate(texts)])
    assert ours.shape == (len(LENGTHS), 3)
    assert theirs.std() > 0.1
    assert np.abs(ours - theirs).max() <= TOLERANCE


def test_names_without_the_prefix(classifier):
    """A checkpoint saved from the bare model has no prefix; both spellings load."""
    prefix = classifier.family.prefixes[0]
    bare = {name.removeprefix(prefix): array for name, array in classifier.weights.items()}
    assert len(bare) == len(classifier.weights)
    assert set(bare) != set(classifier.weights)
    located = classifier.family.located(bare)
    assert [r.name for r in located] == [r.name for r in classifier.family.located(classifier.weights)]


@pytest.mark.parametrize(("low_bit", "bound"), [("sym_int8", 0.03), ("bf16", 0.03), ("sym_int4", 0.5), ("nf4", 0.5)])
def test_low_bit_formats_stay_near(pair, low_bit, bound):
    texts = packed(pair.texts(), None)
    exact = ops.embed(pair.encoder(), *texts, ("mean",), ops.pool(2))
    ours = ops.embed(pair.encoder(low_bit, "int8"), *texts, ("mean",), ops.pool(2))
    assert 0 < np.linalg.norm(ours - exact) / np.linalg.norm(exact) < bound


def test_many_texts_fill_several_chunks():
    pair = Pair(*CASES["bert"])
    texts = pair.texts(tuple(1 + 37 * i % 79 for i in range(60)))
    encoder = pair.encoder()
    together = ops.embed(encoder, *packed(texts, None), ("cls",), ops.pool(2))
    for i in (0, 13, 59):
        alone = ops.embed(encoder, *packed([texts[i]], None), ("cls",), ops.pool(2))
        assert np.abs(alone[0] - together[i]).max() <= 1e-5


@pytest.mark.parametrize(
    ("low_bit", "compute"), [("fp32", "fp32"), ("sym_int8", "int8"), ("sym_int4", "int8"), ("bf16", "int8")]
)
def test_members_that_work_alone_compute_what_the_team_does(pair, low_bit, compute):
    """From some 500 rows on, each thread takes texts of its own; a text by itself is shared by the team."""
    texts, encoder = pair.texts(tuple(1 + 37 * i % 79 for i in range(24))), pair.encoder(low_bit, compute)
    by_team = [ops.hidden_states(encoder, *packed([text], None), ops.pool(2)) for text in texts]
    for threads in (1, 2, 3):
        alone = ops.hidden_states(encoder, *packed(texts, None), ops.pool(threads))
        assert np.array_equal(alone, np.concatenate(by_team))


@pytest.mark.parametrize("case", ["bert", "mpnet", "modernbert"])
def test_long_texts(case):
    """Longer than the 512 keys whose scores are kept together, and than a chunk of 1024 rows."""
    model_type, settings = CASES[case]
    pair = Pair(model_type, {**settings, "max_position_embeddings": 1200, "num_hidden_layers": 2})
    texts = pair.texts((3, 1100, 530))
    ours = ops.hidden_states(pair.encoder(), *packed(texts, None), ops.pool(2))
    theirs = np.concatenate([pair.reference(t, None) for t in texts])
    assert np.abs(ours - theirs).max() <= TOLERANCE


def test_refusals():
    pair = Pair(*CASES["bert"])
    encoder, pool = pair.encoder(), ops.pool(2)
    with pytest.raises(ValueError, match="text 1 has no tokens"):
        ops.embed(encoder, np.array([5], np.int32), np.array([1, 1], np.int64), None, ("cls",), pool)
    with pytest.raises(ValueError, match="81 tokens, the model has learned 80"):
        ops.embed(encoder, np.zeros(81, np.int32), np.array([81], np.int64), None, ("cls",), pool)
    with pytest.raises(ValueError, match="outside the vocabulary of 131"):
        ops.embed(encoder, np.array([131], np.int32), np.array([1], np.int64), None, ("cls",), pool)
    with pytest.raises(ValueError, match="token type 3"):
        ops.embed(encoder, *packed([[1, 2]], [[0, 3]]), ("cls",), pool)
    with pytest.raises(ValueError, match="unknown pooling 'avg'"):
        ops.embed(encoder, *packed([[1, 2]], None), ("avg",), pool)
    with pytest.raises(ValueError, match="no classification head"):
        ops.classify(encoder, *packed([[1, 2]], None), pool)
    with pytest.raises(ValueError, match="last end must be the number of tokens"):
        ops.embed(encoder, np.array([1, 2], np.int32), np.array([1], np.int64), None, ("cls",), pool)
    broken = tiny.packed(tiny.from_checkpoint(pair.family, pair.weights))
    del broken["layers.1.o.weight"]
    with pytest.raises(ValueError, match=r"bert encoder: the matrix layers\.1\.o\.weight is missing"):
        ops.encoder(pair.spec.to_dict(), broken)


def test_specs_cross_whole():
    assert sorted(ops.native().encoder_spec_fields()) == sorted(models.EncoderSpec.__dataclass_fields__)
    spec = Pair(*CASES["modernbert"]).spec
    assert models.EncoderSpec.from_dict(spec.to_dict()) == spec
