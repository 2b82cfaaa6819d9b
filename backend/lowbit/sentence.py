"""What sentence-transformers writes beside a model: how its rows become one vector, its prompts, its longest text.

Reads modules.json, the pooling and dense modules it names, sentence_bert_config.json and
config_sentence_transformers.json. Refuses modules it does not know: a vector made without one would be another model's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.ops import to_fp32
from lowbit.sources import open_source
from lowbit.tokenizer_files import read_json

# Its names for pooling modes -> ours (models/_spec.py POOLINGS), in the order in which it joins their results.
_POOLINGS = {
    "cls": "cls", "max": "max", "mean": "mean", "mean_sqrt_len": "mean_sqrt_len", "weightedmean": "weighted_mean",
    "lasttoken": "last",
}  # fmt: skip
_FLAGS = {
    "cls": "pooling_mode_cls_token", "max": "pooling_mode_max_tokens", "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len": "pooling_mode_mean_sqrt_len_tokens", "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}  # fmt: skip
_ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Identity": lambda x: x,
    "Tanh": np.tanh,
    "ReLU": lambda x: np.maximum(x, 0),
}


@dataclass(frozen=True)
class Dense:
    """A layer behind pooling: activation(x weight^T + bias), weight float32 [out, in]."""

    weight: np.ndarray
    bias: np.ndarray | None
    activation: str

    def __call__(self, x: np.ndarray) -> np.ndarray:
        y = x @ self.weight.T
        return _ACTIVATIONS[self.activation](y if self.bias is None else y + self.bias)


@dataclass(frozen=True)
class Settings:
    """How an embedder is meant to be used. max_length: tokens of a text, None where nothing is said.

    truncates: longer texts are cut, as sentence-transformers does with every folder of its own.
    """

    poolings: tuple[str, ...] = ("mean",)
    dense: tuple[Dense, ...] = ()
    normalize: bool = False
    max_length: int | None = None
    truncates: bool = False
    lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None


def read_settings(files: Mapping[str, Path]) -> Settings:
    """Returns the settings in the files of a folder (name relative to it -> path).

    A folder without modules.json has sentence-transformers' own defaults for such folders: the mean of all rows, not
    normalised. Raises ValueError naming the file for modules and settings that are not supported.
    """
    if "modules.json" not in files:
        return Settings()
    poolings: tuple[str, ...] = ()
    dense: list[Dense] = []
    normalize = False
    for module in _modules(files["modules.json"]):
        kind, folder = str(module.get("type", "")).rpartition(".")[2], str(module.get("path", ""))
        if kind == "Transformer":
            continue
        if kind == "Pooling":
            poolings = _poolings(files, folder)
        elif kind == "Dense":
            dense.append(_dense(files, folder))
        elif kind == "Normalize":
            normalize = True
        else:
            raise ValueError(
                f"{files['modules.json']} names a module {kind!r}, which is not supported; supported are Transformer, "
                "Pooling, Dense and Normalize"
            )
    if not poolings:
        raise ValueError(f"{files['modules.json']} names no Pooling module, so there is no vector for a text")
    own, about = (read_json(files.get(f"{name}.json")) for name in ("sentence_bert_config", _ABOUT))
    return Settings(
        poolings=poolings,
        dense=tuple(dense),
        normalize=normalize,
        max_length=own.get("max_seq_length"),
        truncates=True,
        lower_case=bool(own.get("do_lower_case")),
        prompts={name: text for name, text in (about.get("prompts") or {}).items() if text},
        default_prompt=about.get("default_prompt_name"),
    )


_ABOUT = "config_sentence_transformers"


def _modules(path: Path) -> list[dict[str, Any]]:
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); download it again") from None
    if not isinstance(modules, list) or not all(isinstance(m, dict) for m in modules):
        raise ValueError(f"{path} should hold a list of modules; download it again")
    return modules


def _module_config(files: Mapping[str, Path], folder: str) -> tuple[Path, dict[str, Any]]:
    name = f"{folder}/config.json"
    if name not in files:
        raise ValueError(f"{files['modules.json']} names the module {folder!r}, but there is no {name} beside it")
    return files[name], read_json(files[name])


def _poolings(files: Mapping[str, Path], folder: str) -> tuple[str, ...]:
    path, config = _module_config(files, folder)
    modes = config.get("pooling_mode", [name for name, flag in _FLAGS.items() if config.get(flag)])
    modes = [modes] if isinstance(modes, str) else list(modes)
    unknown = [m for m in modes if m not in _POOLINGS]
    if unknown or not modes:
        raise ValueError(f"{path} asks for pooling {unknown or 'of no kind'}; supported are {', '.join(_POOLINGS)}")
    if config.get("include_prompt") is False:
        raise ValueError(f"{path} leaves the prompt's tokens out of pooling (include_prompt), which is not supported")
    return tuple(_POOLINGS[name] for name in _POOLINGS if name in modes)


def _dense(files: Mapping[str, Path], folder: str) -> Dense:
    path, config = _module_config(files, folder)
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    if activation not in _ACTIVATIONS:
        raise ValueError(f"{path} has the activation {activation!r}; supported are {', '.join(_ACTIVATIONS)}")
    source = open_source(path.parent)
    try:
        arrays = {name: np.array(to_fp32(source.read(name)), np.float32) for name in source.names}
    finally:
        source.close()
    if "linear.weight" not in arrays:
        raise ValueError(f"{path.parent} holds no linear.weight; download it again")
    return Dense(arrays["linear.weight"], arrays.get("linear.bias"), activation)
