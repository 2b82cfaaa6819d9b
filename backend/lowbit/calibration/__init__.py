"""Quantisers that look at what a model does with text: AWQ, GPTQ, TEQ, and importance-weighted rounding.

Owns the walk over the layers: the numpy decoder (reference_decoder.py) runs one float layer at a time over the
calibration text, its linear layers' inputs are summed up, its weights are transformed and packed, and the text goes on
through the packed layer, so that later layers see what they will see at run time. In memory at any time: one layer in
float32, the hidden states of the text and the packed model so far. Needs neither torch nor the native decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from tqdm import tqdm  # type: ignore[import-untyped]

from lowbit.calibration._double_quant import TYPES as DOUBLE_QUANT_TYPES
from lowbit.calibration._double_quant import double_quantise
from lowbit.calibration._fold import Fold, folds
from lowbit.calibration._gptq import gptq
from lowbit.calibration._scaling import awq, teq
from lowbit.calibration._stats import Stats
from lowbit.calibration.imatrix import Importance, lookup, read_imatrix, write_imatrix
from lowbit.formats import FLOAT, Choice
from lowbit.models._spec import ModelSpec
from lowbit.packed import PackedTensor
from lowbit.quantize import CLIP_RATIOS, quantize
from lowbit.reference_decoder import Reference

__all__ = ["ALGORITHMS", "Importance", "Quantiser", "quantise_layers", "read_imatrix", "write_imatrix"]

ALGORITHMS = ("rtn", "awq", "teq", "gptq")
SAMPLE_ROWS = 512  # inputs of a layer that AWQ and TEQ judge factors by
LINEARS = ("qkv", "o", "gate_up", "up", "down")


@dataclass(frozen=True)
class Quantiser:
    """How weights are rounded; `lowbit.load(..., quantiser=Quantiser("awq", calibration=texts))`.

    algorithm: "rtn" (nearest), "awq", "teq" or "gptq". clip_search: each group takes the share of its range, 1 to
    0.805, with the least squared error (ITREX's mse_range); awq, teq and gptq always do. calibration: texts or
    sequences of token ids that the model reads; rtn uses them to weigh errors. imatrix: file of llama.cpp to weigh
    errors by instead (rtn). tokens, length: at most so many calibration tokens, in sequences of at most that length.
    damp, act_order: of GPTQ. double_quant: type the scales are rounded to, None for no rounding. seed: of the sampling
    of inputs. sweeps: how often GPTQ fits scales and codes anew when it is through; 0 is GPTQ as it was published.
    """

    DOUBLE_QUANT: ClassVar[tuple[str, ...]] = DOUBLE_QUANT_TYPES

    algorithm: str = "rtn"
    clip_search: bool = False
    calibration: Sequence[str] | Sequence[Sequence[int]] = ()
    imatrix: str | Path | None = None
    tokens: int = 16384
    length: int = 512
    damp: float = 0.01
    act_order: bool = True
    double_quant: str | None = None
    seed: int = 0
    sweeps: int = 4  # of what 8 gain, 4 give nine tenths

    def __post_init__(self) -> None:
        name = str(self.algorithm).lower()
        object.__setattr__(self, "algorithm", name)
        if name not in ALGORITHMS:
            raise ValueError(f"unknown algorithm {self.algorithm!r}; the algorithms are {', '.join(ALGORITHMS)}")
        if isinstance(self.calibration, str):
            raise TypeError("calibration is a list of texts (or of lists of token ids), not one text")
        object.__setattr__(self, "calibration", tuple(self.calibration))
        if name != "rtn" and not self.calibration:
            raise ValueError(f"{name} needs text to calibrate on: calibration=[...], a few dozen paragraphs")
        if name != "rtn" and self.imatrix is not None:
            raise ValueError(f"an importance matrix is for rtn; {name} measures its own from the calibration text")
        if self.double_quant not in (None, *self.DOUBLE_QUANT):
            raise ValueError(f"double_quant {self.double_quant!r} is not one of {', '.join(self.DOUBLE_QUANT)}")
        if self.tokens < 1 or self.length < 1:
            raise ValueError("tokens and length must be at least 1")
        if self.sweeps < 0:
            raise ValueError(f"sweeps is a number of times, 0 or more, got {self.sweeps}")

    @property
    def needs_layers(self) -> bool:
        """True when the model has to be walked layer by layer, False when tensors can be rounded one by one."""
        return bool(self.calibration)

    def sequences(self, encode: Callable[[str], Sequence[int]], context: int, vocab_size: int) -> list[list[int]]:
        """Returns the calibration text as token ids, cut to `length`, the context and `tokens` in all.

        Raises ValueError when ids are outside the vocabulary or fewer than two tokens remain.
        """
        length, left = min(self.length, context), self.tokens
        sequences: list[list[int]] = []
        for item in self.calibration:
            ids = list(encode(item)) if isinstance(item, str) else [int(i) for i in item]
            if any(not 0 <= i < vocab_size for i in ids):
                raise ValueError(f"the calibration ids go beyond the vocabulary (0 to {vocab_size - 1})")
            for start in range(0, len(ids), length):
                sequence = ids[start : min(len(ids), start + length, start + left)]
                if sequence:
                    sequences.append(sequence)
                    left -= len(sequence)
                if left <= 0:
                    return sequences
        if sum(map(len, sequences)) < 2:
            raise ValueError("the calibration text has fewer than two tokens")
        return sequences

    def to_dict(self) -> dict[str, Any]:
        """Returns what a low-bit folder records."""
        record: dict[str, Any] = {"algorithm": self.algorithm, "clip_search": self.clips}
        if self.double_quant is not None:
            record["double_quant"] = self.double_quant
        if self.imatrix is not None:
            record["imatrix"] = Path(self.imatrix).name
        return record

    @property
    def clips(self) -> bool:
        return self.clip_search or self.algorithm != "rtn"


class _Observed(Reference):
    """A reference decoder that shows each linear layer's inputs before it uses them."""

    def __init__(self, spec: ModelSpec, weights: dict[str, np.ndarray], see: Callable[[str, np.ndarray], None]) -> None:
        super().__init__(spec, weights, dtype=np.float32)
        self._see = see

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        self._see(name.rpartition(".")[2], x)
        return super().linear(name, x)


@dataclass(frozen=True)
class Weights:
    """How the walk reads a checkpoint: float32 arrays by canonical name."""

    names: frozenset[str]
    read: Callable[[str], np.ndarray]  # a whole tensor, float32
    rows: Callable[[str, np.ndarray], np.ndarray]  # some rows of a matrix, float32


def quantise_layers(
    spec: ModelSpec,
    weights: Weights,
    choice_of: Callable[[str], tuple[Choice, int | None]],
    quantiser: Quantiser,
    sequences: Sequence[Sequence[int]],
    pool: Any = None,
    show_progress: bool = False,
) -> Iterator[tuple[str, PackedTensor | np.ndarray]]:
    """Yields the tensors of every layer, quantised with the calibration sequences: matrices packed, vectors float32.

    choice_of: canonical name of a matrix -> its format and group size. What lies outside the layers (embedding, head)
    is not yielded. Raises ValueError when the text drives an activation to infinity.
    """
    hidden = list(_enter(spec, weights, sequences))
    total = sum(map(len, sequences))
    with tqdm(total=spec.layers, desc=f"Calibrating ({quantiser.algorithm})", disable=not show_progress) as bar:
        for i in range(spec.layers):
            at = f"layers.{i}."
            names = sorted(name.removeprefix(at) for name in weights.names if name.startswith(at))
            layer = {name: weights.read(at + name) for name in names}
            choices = {n: choice_of(f"{at}{n}.weight") for n in LINEARS if f"{n}.weight" in layer}
            stats = _observe(spec, i, layer, hidden, choices, quantiser, total)
            if quantiser.algorithm in ("awq", "teq"):
                _scale(spec, layer, choices, stats, quantiser, pool)
            packed = {n: _pack(layer[f"{n}.weight"], at + n, choices[n], stats[n], quantiser, pool) for n in choices}
            for tensor in packed.values():
                finish(tensor, quantiser)
            for name in names:
                module = name.removesuffix(".weight")
                is_matrix = name.endswith(".weight") and module in packed
                yield at + name, packed[module] if is_matrix else layer[name]
            rounded = {f"{n}.weight": tensor.dequantize(pool=pool) for n, tensor in packed.items()}
            run = Reference(spec, _full(i, {**layer, **rounded}), dtype=np.float32)
            hidden = [run.layer(i, x) for x in hidden]
            if not all(np.isfinite(x).all() for x in hidden):
                raise ValueError(f"layer {i} turns the calibration text into values that are not finite")
            bar.update()


def measure_importance(
    spec: ModelSpec, weights: Weights, sequences: Sequence[Sequence[int]], show_progress: bool = False
) -> Importance:
    """Returns the mean square of every linear layer's inputs over the sequences, in the float model."""
    hidden = list(_enter(spec, weights, sequences))
    result: Importance = {}
    for i in tqdm(range(spec.layers), desc="Measuring", unit="layer", disable=not show_progress):
        at = f"layers.{i}."
        layer = {name.removeprefix(at): weights.read(name) for name in weights.names if name.startswith(at)}
        widths = {n: layer[f"{n}.weight"].shape[1] for n in LINEARS if f"{n}.weight" in layer}
        stats = {n: Stats(k, 0.0, False, np.random.default_rng(0)) for n, k in widths.items()}
        run = _Observed(spec, _full(i, layer), lambda name, x, stats=stats: stats[name].add(x))  # type: ignore[misc]
        hidden = [run.layer(i, x) for x in hidden]
        result |= {at + n: s.importance for n, s in stats.items()}
    return result


def _enter(spec: ModelSpec, weights: Weights, sequences: Sequence[Sequence[int]]) -> Iterator[np.ndarray]:
    """Yields what enters the first layer, float32 [tokens, hidden] of each sequence."""
    outside = [n for n in weights.names if n.startswith(("position_embedding.", "embedding_norm.", "embedding_in."))]
    run = Reference(spec, {name: weights.read(name) for name in outside}, dtype=np.float32)
    for sequence in sequences:
        yield run.embed(sequence, weights.rows("embedding.weight", np.asarray(sequence)))


def _full(i: int, layer: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"layers.{i}.{name}": array for name, array in layer.items()}


def _observe(
    spec: ModelSpec,
    i: int,
    layer: dict[str, np.ndarray],
    hidden: list[np.ndarray],
    choices: dict[str, tuple[Choice, int | None]],
    quantiser: Quantiser,
    total: int,
) -> dict[str, Stats]:
    random, moments = np.random.default_rng((quantiser.seed, i)), quantiser.algorithm == "gptq"
    keep = SAMPLE_ROWS / total if quantiser.algorithm in ("awq", "teq") else 0.0
    stats = {n: Stats(layer[f"{n}.weight"].shape[1], keep, moments, random) for n in choices}

    def see(name: str, x: np.ndarray) -> None:
        if name in stats:
            stats[name].add(x)

    run = _Observed(spec, _full(i, layer), see)
    for x in hidden:
        run.layer(i, x)
    return stats


def _scale(
    spec: ModelSpec,
    layer: dict[str, np.ndarray],
    choices: dict[str, tuple[Choice, int | None]],
    stats: dict[str, Stats],
    quantiser: Quantiser,
    pool: Any,
) -> None:
    """Puts the factors of AWQ or TEQ into the layer's weights and out of its statistics."""
    widths = {n: layer[f"{n}.weight"].shape[1] for n, (choice, _) in choices.items() if choice.format.codes != FLOAT}
    for fold in folds(spec, widths):
        name, (choice, group) = fold.name, choices[fold.name]
        weight, seen = layer[f"{name}.weight"], stats[name]

        def rounded(w: np.ndarray, choice: Choice = choice, group: int | None = group) -> np.ndarray:
            return quantize(w, choice, group, pool=pool).dequantize(pool=pool)

        if quantiser.algorithm == "awq":
            factors = awq(weight, seen.sample, seen.magnitudes, fold.columns, rounded)
        else:
            size = choice.format.group(group if group is not None else choice.group_size)
            factors = teq(weight, seen.sample, fold.columns, size, choice.format.has_min, rounded)
        _apply(fold, layer, seen, factors)


def _apply(fold: Fold, layer: dict[str, np.ndarray], seen: Stats, factors: np.ndarray) -> None:
    fold.apply(layer, factors)
    seen.divide(factors[fold.columns])


def _pack(
    weight: np.ndarray, name: str, chosen: tuple[Choice, int | None], seen: Stats, quantiser: Quantiser, pool: Any
) -> PackedTensor:
    choice, group = chosen
    if choice.format.codes == FLOAT:
        return quantize(weight, choice, group, name=name, pool=pool)
    if quantiser.algorithm == "gptq":
        size = choice.format.group(group if group is not None else choice.group_size)
        assert seen.moments is not None
        return gptq(
            weight, seen.moments, choice, size,
            damp=quantiser.damp, act_order=quantiser.act_order, sweeps=quantiser.sweeps, ratios=CLIP_RATIOS,
        )  # fmt: skip
    return quantize(weight, choice, group, importance=seen.importance, name=name, pool=pool)


def finish(tensor: PackedTensor, quantiser: Quantiser) -> None:
    """Does to a freshly packed tensor what follows the choice of codes, in place."""
    if quantiser.double_quant is not None:
        double_quantise(tensor, quantiser.double_quant)


def importance_of(quantiser: Quantiser) -> Callable[[str], np.ndarray | None]:
    """Returns canonical module name -> float32 [k] from the quantiser's importance file, None for other modules."""
    if quantiser.imatrix is None:
        return lambda name: None
    table = read_imatrix(quantiser.imatrix)
    return lambda name: lookup(table, name)
