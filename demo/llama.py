"""A compact Llama in plain torch, only as large as training it needs: no cache, no padding mask, tied embeddings.

Parameter names and the meaning of every weight are those of Hugging Face's `LlamaForCausalLM`.
"""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Config:
    """Shape of the model, in the names of a Hugging Face `config.json`."""

    vocab_size: int = 1536
    hidden_size: int = 256
    intermediate_size: int = 768
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    max_position_embeddings: int = 1024
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0

    def to_json(self) -> dict:
        """The `config.json` of this shape, but for the special token ids."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            **asdict(self),
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "mlp_bias": False,
            "rope_scaling": None,
            "tie_word_embeddings": True,
            "initializer_range": 0.02,
            "use_cache": True,
            "torch_dtype": "float16",
        }


def rotary(config: Config) -> tuple[Tensor, Tensor]:
    """Cosines and sines, float32 [max_position_embeddings, head_dim], of rotary positions (arXiv 2104.09864)."""
    frequency = config.rope_theta ** -(torch.arange(0, config.head_dim, 2).float() / config.head_dim)
    angle = torch.outer(torch.arange(config.max_position_embeddings).float(), frequency)
    angle = torch.cat((angle, angle), -1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`x` [batch, heads, tokens, head_dim] turned by its positions, halves paired as Hugging Face pairs them."""
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat((-right, left), -1) * sin


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention [batch, heads, tokens, head_dim]; a head of `k` and `v` may serve several neighbours in `q`.

    Written out: at these sizes torch's fused kernel takes three times as long on a CPU, backward above all.
    """
    batch, heads, tokens, size = q.shape
    groups, share = batch * k.shape[1], heads // k.shape[1]
    q = (q * size**-0.5).reshape(groups, share * tokens, size)
    k, v = k.reshape(groups, tokens, size), v.reshape(groups, tokens, size)
    future = torch.full((tokens, tokens), float("-inf"), dtype=q.dtype, device=q.device).triu(1)
    scores = torch.bmm(q, k.mT).view(groups, share, tokens, tokens) + future
    weights = scores.softmax(-1).to(v.dtype).view(groups, share * tokens, tokens)
    return torch.bmm(weights, v).view(batch, heads, tokens, size)


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        hidden, wide, narrow = config.hidden_size, self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.q_proj = nn.Linear(hidden, wide, bias=False)
        self.k_proj = nn.Linear(hidden, narrow, bias=False)
        self.v_proj = nn.Linear(hidden, narrow, bias=False)
        self.o_proj = nn.Linear(wide, hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        split = (batch, tokens, -1, self.head_dim)
        q = rotate(self.q_proj(x).view(split).transpose(1, 2), cos, sin)
        k = rotate(self.k_proj(x).view(split).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(split).transpose(1, 2)
        mixed = attend(q.to(v.dtype), k.to(v.dtype), v)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, tokens, -1))


class MLP(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """A decoder whose `state_dict` is the Hugging Face one without its "model." prefix."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        cos, sin = rotary(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                silent = name.endswith(("o_proj.weight", "down_proj.weight"))  # each layer begins as the identity
                nn.init.zeros_(weight) if silent else nn.init.normal_(weight, std=weight.shape[1] ** -0.5 * 0.6)

    def forward(self, ids: Tensor) -> Tensor:
        """Hidden states [batch, tokens, hidden] of int64 `ids` [batch, tokens], after the last norm."""
        tokens = ids.shape[1]
        x = self.embed_tokens(ids)
        cos, sin = self.cos[:tokens].to(x.dtype), self.sin[:tokens].to(x.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token: `hidden` times the tied embedding."""
        return F.linear(hidden, self.embed_tokens.weight)
