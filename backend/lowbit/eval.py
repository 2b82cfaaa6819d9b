"""How good is a model on a text: perplexity over sliding windows, and formats compared side by side.

`perplexity` is what transformers' page "Perplexity of fixed-length models" describes; `compare` loads a model in
several formats and measures size, perplexity, distance from the original's predictions, and speed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from tqdm import tqdm  # type: ignore[import-untyped]

from lowbit.packed import PackedTensor
from lowbit.perplexity import Perplexity, token_losses

SPEED_TOKENS = 32  # steps that the speed is measured over


def windows(count: int, ctx: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Yields (begin, end, scored): windows of at most ctx tokens of `count`, of which the last `scored` are new.

    The first token of all is never predicted. Each window but the first starts stride tokens after the one before.
    """
    before = 0
    for begin in range(0, count, stride):
        end = min(begin + ctx, count)
        scored = min(end - before, end - begin - 1)  # the first token of a window has nothing before it
        if scored > 0:
            yield begin, end, scored
        before = end
        if end == count:
            return


def perplexity(
    model: Any,
    text: str | Sequence[int],
    *,
    ctx: int | None = None,
    stride: int | None = None,
    max_tokens: int | None = None,
    show_progress: bool = False,
) -> Perplexity:
    """Returns the perplexity of a text under a model (`lowbit.load`), predicted in sliding windows.

    text: a string or its token ids. ctx: tokens of a window (default: the model's context, at most 2048). stride:
    tokens by which windows advance (default: ctx, so that they do not overlap; smaller is slower and nearer to the
    truth). max_tokens: of the text that are used. Raises ValueError for fewer than two tokens, a window larger than
    the context, a stride larger than the window, or logits that are not finite.
    """
    ids, ctx, stride = _prepared(model, text, ctx, stride, max_tokens)
    total, count = 0.0, 0
    parts = list(windows(len(ids), ctx, stride))
    for begin, end, scored in tqdm(parts, desc="Perplexity", unit="window", disable=not show_progress):
        losses = token_losses(model.logits(ids[begin:end])[-scored - 1 : -1], ids[end - scored : end])
        total += float(losses.sum())
        count += scored
    return Perplexity(total / count, count)


def _prepared(
    model: Any, text: str | Sequence[int], ctx: int | None, stride: int | None, max_tokens: int | None
) -> tuple[np.ndarray, int, int]:
    ids = np.asarray(model.encode(text) if isinstance(text, str) else text, np.int32)[:max_tokens]
    if ids.size < 2:
        raise ValueError(f"the text has {ids.size} tokens; perplexity needs at least two")
    if ctx is None:
        ctx = min(model.context, 2048)
    if not 2 <= ctx <= model.context:
        raise ValueError(f"a window of {ctx} tokens; the model's context allows 2 to {model.context}")
    stride = ctx if stride is None else stride
    if not 1 <= stride <= ctx:
        raise ValueError(f"a stride of {stride} tokens; windows of {ctx} allow 1 to {ctx}")
    return ids, ctx, stride


@dataclass(frozen=True)
class Row:
    """One format of `compare`. size: packed bytes; divergence: mean Kullback-Leibler divergence from the original's
    predictions in nats per token (None where the original was not run); tokens_per_second: of one stream's steps."""

    format: str
    algorithm: str
    size: int
    bits_per_weight: float
    perplexity: float
    divergence: float | None
    tokens_per_second: float

    def to_dict(self) -> dict[str, Any]:
        """Returns the row for JSON."""
        return asdict(self)


def compare(
    model: str,
    text: str,
    formats: Iterable[str],
    *,
    reference: str | None = "fp32",
    ctx: int | None = None,
    stride: int | None = None,
    max_tokens: int | None = None,
    quantiser: Any = None,
    show_progress: bool = False,
    **options: Any,
) -> Iterator[Row]:
    """Yields a row for each format a model is loaded in, in their order.

    reference: the format whose predictions the others are compared with, None for no comparison. It is loaded beside
    each of them and reads the text again with each: its predictions are not kept (10,000 tokens of a vocabulary of
    150,000 are 6 GB), nor is more than one format in memory. quantiser: how weights are rounded
    (calibration.Quantiser). options: of `lowbit.load`. The text is read as `perplexity` reads it.
    """
    import lowbit

    original = None if reference is None else lowbit.load(model, reference, **options)
    for name in formats:
        candidate = lowbit.load(model, name, quantiser=quantiser, show_progress=show_progress, **options)
        ids, window, step = _prepared(candidate, text, ctx, stride, max_tokens)
        parts = list(windows(len(ids), window, step))
        total, distance, count = 0.0, 0.0, 0
        for begin, end, scored in tqdm(parts, desc=name, unit="window", disable=not show_progress):
            logits = candidate.logits(ids[begin:end])[-scored - 1 : -1]
            total += float(token_losses(logits, ids[end - scored : end]).sum())
            if original is not None:
                exact = original.logits(ids[begin:end])[-scored - 1 : -1]
                distance += float(divergence(exact, logits).sum())
            count += scored
        tensors = candidate.loaded.tensors.values()
        matrices = [t for t in tensors if isinstance(t, PackedTensor)]
        yield Row(
            name,
            "rtn" if quantiser is None else quantiser.algorithm,
            sum(t.nbytes for t in tensors),
            8 * sum(t.nbytes for t in matrices) / sum(math.prod(t.shape) for t in matrices),
            math.exp(total / count),
            None if original is None else distance / count,
            _speed(candidate, ids),
        )


def divergence(exact: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Returns the Kullback-Leibler divergence of predictions from the exact ones in nats, float64 [n].

    Both are logits, [n, vocab].
    """
    p, q = (_log_softmax(x) for x in (exact, logits))
    result: np.ndarray = (np.exp(p) * (p - q)).sum(1)
    return result


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    x = np.asarray(logits, np.float64)
    x = x - x.max(1, keepdims=True)
    result: np.ndarray = x - np.log(np.exp(x).sum(1, keepdims=True))
    return result


def _speed(model: Any, ids: np.ndarray) -> float:
    prompt = ids[: max(1, min(16, model.context - SPEED_TOKENS - 1))].tolist()
    room = min(SPEED_TOKENS, model.context - len(prompt))
    times = []
    for _ in model.stream(prompt, max_new_tokens=room, ignore_eos=True, temperature=0):
        times.append(time.perf_counter())
    return (room - 1) / (times[-1] - times[0]) if len(times) > 1 else float("nan")
