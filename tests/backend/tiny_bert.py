"""Writes tiny BERTs of random weights, as plain Hugging Face and as sentence-transformers folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tiny_hf import safetensors_bytes

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(60))]


def bert_tensors(config: dict, labels: int = 0) -> dict[str, np.ndarray]:
    """Returns seeded random weights of a tiny BERT under the Hugging Face names."""
    random = np.random.default_rng(0)
    hidden, ffn = config["hidden_size"], config["intermediate_size"]

    def linear(name: str, rows: int, k: int) -> dict[str, np.ndarray]:
        return {f"{name}.weight": random.normal(0, k**-0.5, (rows, k)), f"{name}.bias": random.normal(0, 0.1, rows)}

    def norm(name: str) -> dict[str, np.ndarray]:
        return {f"{name}.weight": 1 + random.normal(0, 0.1, hidden), f"{name}.bias": random.normal(0, 0.1, hidden)}

    tensors = {
        "embeddings.word_embeddings.weight": random.normal(0, 1, (config["vocab_size"], hidden)),
        "embeddings.position_embeddings.weight": random.normal(0, 0.3, (config["max_position_embeddings"], hidden)),
        "embeddings.token_type_embeddings.weight": random.normal(0, 0.3, (2, hidden)),
        **norm("embeddings.LayerNorm"),
    }
    for i in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{i}"
        for part in ("query", "key", "value"):
            tensors |= linear(f"{at}.attention.self.{part}", hidden, hidden)
        tensors |= linear(f"{at}.attention.output.dense", hidden, hidden) | norm(f"{at}.attention.output.LayerNorm")
        tensors |= linear(f"{at}.intermediate.dense", ffn, hidden) | linear(f"{at}.output.dense", hidden, ffn)
        tensors |= norm(f"{at}.output.LayerNorm")
    if labels:
        tensors = {f"bert.{name}": t for name, t in tensors.items()}
        tensors |= linear("bert.pooler.dense", hidden, hidden) | linear("classifier", labels, hidden)
    return {name: t.astype("<f4") for name, t in tensors.items()}


def write_bert(folder: Path, labels: int = 0, **changes) -> Path:
    """Writes a tiny BERT: a plain Hugging Face folder, 48 numbers, 24 positions."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["BertForSequenceClassification" if labels else "BertModel"], "model_type": "bert",
        "vocab_size": len(WORDS), "hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 2,
        "num_attention_heads": 3, "max_position_embeddings": 24, "type_vocab_size": 2, "hidden_act": "gelu",
        "layer_norm_eps": 1e-12, **changes,
    }  # fmt: skip
    if labels:
        config["id2label"] = {str(i): f"L{i}" for i in range(labels)}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(safetensors_bytes(bert_tensors(config, labels)))
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True, "model_max_length": 10**30}))
    return folder


def write_sentence_files(
    folder: Path, pooling: str = "mean_tokens", modules: tuple[str, ...] = ("Normalize",), **about
):
    """Adds what sentence-transformers keeps beside a model."""
    kinds = ("Transformer", "Pooling", *modules)
    listed = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{pooling}": True}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 16, "do_lower_case": False}))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(about))
    return folder
