"""Rotary tables from configs, in the spellings of transformers 4 (rope_theta, rope_scaling) and 5 (rope_parameters).

Frequencies are computed in double precision. Formulas: RoPE (Su et al. 2021, arXiv 2104.09864), position interpolation
(Chen et al. 2023, 2306.15595), NTK-aware scaling (bloc97 and emozilla, 2023), YaRN (Peng et al. 2023, 2309.00071),
LongRoPE (Ding et al. 2024, 2402.13753), Llama 3.1's smooth interpolation.
"""

from __future__ import annotations

import math
from typing import Any

from lowbit.models._spec import Rope

_Settings = dict[str, Any]


def rope(config: _Settings, head_dim: int, *, kind: str = "half", default_theta: float = 10000.0) -> Rope:
    """Returns the rotary table of a config with one table for all layers.

    Raises ValueError for an unknown rope type and for a type that lacks its settings.
    """
    settings = _settings(config, default_theta)
    name = settings["rope_type"]
    if name not in _TYPES:
        raise ValueError(
            f"{config['model_type']} with rope type {name!r} is not supported; known are {', '.join(_TYPES)}"
        )
    dim = int(head_dim * settings.get("partial_rotary_factor", 1.0))
    try:
        return _TYPES[name](settings, kind, dim)
    except KeyError as error:
        raise ValueError(f"{config['model_type']}: rope type {name!r} needs the setting {error.args[0]!r}") from None


def _settings(config: _Settings, default_theta: float) -> _Settings:
    """Returns rope settings under their newest names; max_position_embeddings and its original among them."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if any(isinstance(value, dict) for value in given.values()):
        raise ValueError(f"{config['model_type']} with different rope settings per kind of layer is not supported")
    settings = {key: value for key, value in given.items() if value is not None}
    settings.setdefault("rope_type", settings.pop("type", "default"))
    for name, default in (("rope_theta", default_theta), ("partial_rotary_factor", 1.0)):
        settings.setdefault(name, config.get(name) if config.get(name) is not None else default)
    limit = config.get("max_position_embeddings")
    if limit is not None:
        settings["max_position_embeddings"] = limit
    original = config.get("original_max_position_embeddings")
    if original is not None:  # Phi-3 keeps it here, and there it is the one that counts
        settings["original_max_position_embeddings"] = original
    elif limit is not None:
        settings.setdefault("original_max_position_embeddings", limit)
    return settings


def _periods(theta: float, dim: int) -> list[float]:
    return [theta ** (2 * i / dim) for i in range(dim // 2)]


def _table(kind: str, dim: int, frequencies: list[float], scale: float = 1.0) -> Rope:
    return Rope(kind, dim, tuple(frequencies), scale)


def _default(s: _Settings, kind: str, dim: int) -> Rope:
    return _table(kind, dim, [1 / p for p in _periods(s["rope_theta"], dim)])


def _linear(s: _Settings, kind: str, dim: int) -> Rope:
    return _table(kind, dim, [1 / (p * s["factor"]) for p in _periods(s["rope_theta"], dim)])


def _dynamic(s: _Settings, kind: str, dim: int) -> Rope:
    """NTK scaling for the model's own context, at which upstream's formula leaves theta as it is."""
    s["factor"]  # required by the type, without effect up to max_position_embeddings
    return _default(s, kind, dim)


def _llama3(s: _Settings, kind: str, dim: int) -> Rope:
    factor, low, high = s["factor"], s["low_freq_factor"], s["high_freq_factor"]
    original = s["original_max_position_embeddings"]

    def scaled(period: float) -> float:
        turns = original / (2 * math.pi * period)  # in the original context
        if turns < low:
            return 1 / (period * factor)
        if turns > high:
            return 1 / period
        smooth = (turns - low) / (high - low)
        return (1 - smooth) / (period * factor) + smooth / period

    return _table(kind, dim, [scaled(p) for p in _periods(s["rope_theta"], dim)])


def _yarn(s: _Settings, kind: str, dim: int) -> Rope:
    original, theta = s["original_max_position_embeddings"], s["rope_theta"]
    factor = s.get("factor") or s["max_position_embeddings"] / original

    def magnitude(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    scale = s.get("attention_factor")
    if scale is None:
        both = s.get("mscale") and s.get("mscale_all_dim")
        scale = magnitude(s["mscale"]) / magnitude(s["mscale_all_dim"]) if both else magnitude(1.0)

    def dimension(turns: float) -> float:  # the index whose frequency makes that many turns in the original context
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(s.get("beta_fast") or 32), dimension(s.get("beta_slow") or 1)
    if s.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = (high - low) or 0.001
    frequencies = []
    for i, period in enumerate(_periods(theta, dim)):
        stretched = min(max((i - low) / width, 0.0), 1.0)
        frequencies.append(stretched / (factor * period) + (1 - stretched) / period)
    return _table(kind, dim, frequencies, scale)


def _longrope(s: _Settings, kind: str, dim: int) -> Rope:
    original = s["original_max_position_embeddings"]
    factor = s.get("factor") or s["max_position_embeddings"] / original
    scale = s.get("attention_factor")
    if scale is None:
        scale = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    periods = _periods(s["rope_theta"], dim)
    short, long = ([1 / (f * p) for f, p in zip(s[n], periods, strict=True)] for n in ("short_factor", "long_factor"))
    return Rope(kind, dim, tuple(short), scale, tuple(long), scale, original)


_TYPES = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "su": _longrope,  # its first name, in early Phi-3 files
}
