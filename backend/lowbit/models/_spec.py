"""ModelSpec and EncoderSpec: what differs between decoder and between encoder families, as plain data.

Owns the knobs the native decoder and encoder know (native/include/lowbit/spec.h mirrors them) and the canonical weight
names. Refuses code: a family is never a subclass. Standard library only.

Designed with these families in view: Llama 1/2/3, CodeLlama, Vicuna, Mistral, Qwen 1/2/2.5/3, Phi-3, Gemma 1/2/3,
GPT-2, OPT, GPT-J, GPT-NeoX and Dolly, MPT, Falcon (both), BLOOM, StarCoder 1/2, ChatGLM 2/3, GLM-4, Baichuan 1/2,
InternLM 1/2, StableLM, Cohere.

Canonical weight names (matrices are [out_features, in_features]; a bias beside `x.weight` is `x.bias`; i = layer):

    embedding.weight                [vocab, hidden]          token embedding
    position_embedding.weight       [positions, hidden]      learned positions (GPT-2, OPT)
    embedding_norm.weight/.bias                              norm right after the embedding (BLOOM)
    embedding_in.weight, head_in.weight                      projections between word and hidden size (OPT-350m)
    layers.i.attention_norm.weight/.bias
    layers.i.qkv.weight/.bias       [(heads + 2 kv_heads) * head_dim, hidden]   all q heads, all k heads, all v heads
    layers.i.q_norm.weight, layers.i.k_norm.weight           norms of q and k (Qwen3, Gemma 3): [head_dim] shared by the
                                                             heads, or [heads * head_dim] (Cohere, StableLM, MPT)
    layers.i.o.weight/.bias         [hidden, heads * head_dim]
    layers.i.attention_post_norm.weight/.bias                sandwich norms (Gemma 2/3, GLM-4)
    layers.i.ffn_norm.weight/.bias
    layers.i.gate_up.weight/.bias   [2 * ffn_rows, hidden]   gated MLP: 16-row panels of gate and up alternate
                                                             (gate 0-15, up 0-15, gate 16-31, ...), ffn_rows =
                                                             ffn_size rounded up to 16
    layers.i.up.weight/.bias        [ffn, hidden]            plain MLP
    layers.i.down.weight/.bias      [hidden, ffn]
    layers.i.ffn_post_norm.weight/.bias
    final_norm.weight/.bias
    head.weight/.bias               [vocab, hidden]          absent when the head is tied to the embedding

An encoder has embedding, embedding_norm, layers and final_norm under the same names, no kv_heads of its own, and

    position_embedding.weight       [positions, hidden]      learned positions
    token_type_embedding.weight     [token_types, hidden]
    relative_bias.weight            [buckets, heads]         added to attention scores by distance (MPNet)
    head_dense.weight/.bias         [hidden, hidden]         classification: pooled -> head_dense ->
                                                             activation -> head_norm -> head
    head_norm.weight/.bias
    head.weight/.bias               [labels, hidden]

Its attention_norm and ffn_norm stand behind the blocks where norm_place is "post" (BERT), before them if it is "pre".
"""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

NORMS = ("rms", "layer")
NORM_PLACES = ("pre", "post", "sandwich")
RESIDUALS = ("sequential", "parallel_shared", "parallel_separate")
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "quick_gelu")
ROPE_KINDS = ("half", "interleaved")
POOLINGS = ("cls", "mean", "max", "mean_sqrt_len", "last", "weighted_mean")
HEAD_ACTIVATIONS = ("tanh", "relu", "gelu")


@dataclass(frozen=True)
class Rope:
    """One rotary table. Angles are position * inv_freq; cos and sin are multiplied by `scale`."""

    kind: str  # "half": pairs (i, i + dim/2); "interleaved": pairs (2i, 2i + 1)
    dim: int  # rotated share of a head
    inv_freq: tuple[float, ...]  # [dim/2]
    scale: float = 1.0
    inv_freq_long: tuple[float, ...] = ()  # used when a session's context exceeds long_from (Phi-3 longrope)
    scale_long: float = 1.0
    long_from: int = 0


@dataclass(frozen=True)
class ModelSpec:
    """The graph of one decoder-only model. Sizes are logical (unpadded)."""

    family: str
    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_size: int
    context: int  # longest sequence the model was made for

    norm: str = "rms"
    norm_place: str = "pre"
    norm_eps: float = 1e-5
    norm_weight_offset: float = 0.0  # Gemma multiplies by (1 + weight)
    final_norm: bool = True
    qk_norm: str = "rms"  # kind of q_norm / k_norm where those weights exist
    qk_norm_whole: bool = False  # they run over all heads at once (MPT) instead of per head
    residual: str = "sequential"
    residual_scale: float = 1.0

    embedding_scale: float = 1.0
    learned_position_offset: int = 0

    ropes: tuple[Rope, ...] = ()
    layer_rope: tuple[int, ...] = ()  # per layer: index into ropes, -1 = none
    alibi_slopes: tuple[float, ...] = ()  # per head
    attention_scale: float = 0.0  # 0: 1 / sqrt(head_dim)
    attention_softcap: float = 0.0
    layer_attention_scale: tuple[float, ...] = ()  # per layer: factor on attention_scale
    attention_logn_from: int = 0  # n > 0: q of position p is multiplied by max(1, log(p + 1) / log(n)) (Qwen 1)
    layer_window: tuple[int, ...] = ()  # per layer: how many latest positions are seen, 0 = all
    clip_qkv: float = 0.0

    gated: bool = True
    activation: str = "silu"

    tied_head: bool = False
    logit_scale: float = 1.0
    logit_softcap: float = 0.0

    def to_dict(self) -> dict:
        """Returns a JSON-ready dictionary; `from_dict` is its inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict) -> ModelSpec:
        """Returns the spec a dictionary describes. Raises ValueError naming unknown or missing fields."""
        return _from_dict(cls, data)


@dataclass(frozen=True)
class EncoderSpec:
    """The graph of one encoder that turns a text into vectors. Sizes are logical; all norms are layer norms."""

    family: str
    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    head_dim: int
    ffn_size: int
    context: int  # longest text in tokens

    norm_place: str = "post"
    norm_eps: float = 1e-12
    final_norm: bool = False

    token_types: int = 0
    learned_position_offset: int = 0  # row of the first position (RoBERTa: padding id + 1)
    ropes: tuple[Rope, ...] = ()
    layer_rope: tuple[int, ...] = ()  # per layer: index into ropes, -1 = none
    layer_reach: tuple[int, ...] = ()  # per layer: how far a token sees to each side, 0 = everything
    relative_buckets: tuple[int, ...] = ()  # row of relative_bias for key - query = -d..d; the ends hold beyond

    gated: bool = False
    activation: str = "gelu"

    labels: int = 0  # of the classification head, 0 = none
    head_pooling: str = "cls"
    head_activation: str = "tanh"

    def to_dict(self) -> dict:
        """Returns a JSON-ready dictionary; `from_dict` is its inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict) -> EncoderSpec:
        """Returns the spec a dictionary describes. Raises ValueError naming unknown or missing fields."""
        return _from_dict(cls, data)


@dataclass(frozen=True)
class ModuleSpec:
    """A PyTorch model that no native graph describes: which of its modules are packed. Its class makes the rest.

    linear, embedding: for each low-bit module its name and the float type ("bf16", ...) of the weight it stands for;
    tensors are named as the parameters and buffers of the model, a packed weight `<module>.weight`.
    """

    family: str  # name of the model's class
    linear: dict[str, str]
    embedding: dict[str, str]

    def to_dict(self) -> dict:
        """Returns a JSON-ready dictionary; `from_dict` is its inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict) -> ModuleSpec:
        """Returns the spec a dictionary describes. Raises TypeError for unknown or missing fields."""
        return cls(**data)


AnySpec = ModelSpec | EncoderSpec | ModuleSpec
SPECS: dict[str, type[ModelSpec] | type[EncoderSpec] | type[ModuleSpec]] = {
    "decoder": ModelSpec,
    "encoder": EncoderSpec,
    "modules": ModuleSpec,
}
Spec = TypeVar("Spec", ModelSpec, EncoderSpec)


def _from_dict(cls: type[Spec], data: dict) -> Spec:
    known = cls.__dataclass_fields__
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise ValueError(
            f"unknown {cls.__name__} fields {unknown}: this folder was written by a newer lowbit; upgrade lowbit"
        )
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
    values["ropes"] = tuple(
        Rope(**{**r, "inv_freq": tuple(r["inv_freq"]), "inv_freq_long": tuple(r.get("inv_freq_long", ()))})
        for r in data.get("ropes", ())
    )
    try:
        return cls(**values)
    except TypeError as error:
        raise ValueError(f"incomplete {cls.__name__}: {error}") from None


@dataclass(frozen=True)
class Part:
    """Rows of one source tensor that go into a canonical tensor, in order.

    source: without the family's prefix. rows: None for all rows, or a tuple of (start, stop) ranges taken one after the
    other. transpose: the source is stored [in_features, out_features] (GPT-2's Conv1D).
    """

    source: str
    rows: tuple[tuple[int, int], ...] | None = None
    transpose: bool = False


@dataclass(frozen=True)
class Recipe:
    """How a canonical tensor is made of source tensors: parts concatenated along rows.

    kind: "matrix" (quantised), "embedding" (format of embeddings), "head" (format of the head), "table" (a small matrix
    kept in the checkpoint's float type) or "vector" (kept fp32). interleave: 16-row panels of the two halves of the
    result alternate (gate_up); each half is padded with zero rows to 16. optional: absent sources mean no tensor,
    not an error.
    """

    name: str
    parts: tuple[Part, ...]
    kind: str = "matrix"
    interleave: bool = False
    optional: bool = False


def _spellings(source: str) -> tuple[str, ...]:
    """Returns a tensor's name and, for a norm, the one that the first BERT checkpoints have for it."""
    old = source.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    return (source,) if old == source else (source, old)


@dataclass(frozen=True)
class Family:
    """What a family file returns for a config: the graph and where its weights come from.

    Checkpoints of one family differ in whether tensor names begin with the name of the base model: a source named `x`
    is the first of `prefix + x` that is there, over `prefixes`.
    """

    spec: ModelSpec | EncoderSpec
    recipes: tuple[Recipe, ...] = field(default_factory=tuple)
    prefixes: tuple[str, ...] = ("",)

    def located(self, names: Collection[str]) -> tuple[Recipe, ...]:
        """Returns the recipes with every source spelled as in `names`, without optional ones whose sources are absent.

        Raises ValueError naming the tensors that are missing.
        """
        found: list[Recipe] = []
        missing: list[str] = []
        for recipe in self.recipes:
            spelled = [
                next((p + name for p in self.prefixes for name in _spellings(part.source) if p + name in names), None)
                for part in recipe.parts
            ]
            if all(spelled):
                parts = tuple(
                    replace(part, source=name) for part, name in zip(recipe.parts, spelled, strict=True) if name
                )
                found.append(replace(recipe, parts=parts))
            elif not recipe.optional:
                missing += [
                    self.prefixes[0] + part.source
                    for part, name in zip(recipe.parts, spelled, strict=True)
                    if name is None
                ]
        if missing:
            near = difflib.get_close_matches(missing[0], names, n=2, cutoff=0.5)
            raise ValueError(
                f"the checkpoint has no tensor {missing[0]!r}"
                + (f" and lacks {len(missing) - 1} more" if len(missing) > 1 else "")
                + (f"; nearest: {', '.join(near)}" if near else "")
            )
        return tuple(found)
