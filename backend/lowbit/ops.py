"""The only importer of the native extension: thin Python functions over lowbit._native, and the bf16 dtype.

Owns the crossing from numpy to C++ (dtypes, contiguity, output arrays). Knows no files, models or text. Public
functions are Python functions, because nanobind functions do not pickle. Importing this module works without the
extension; calling it then raises an ImportError that says how to build it.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from lowbit.machine import read_cpus

try:
    from lowbit import _native
except ImportError as error:  # built for another Python, or not built
    _native = None  # type: ignore[assignment]
    _reason: ImportError | None = error
else:
    _reason = None

logger = logging.getLogger("lowbit")

BF16 = np.dtype([("bf16", "<u2")])  # numpy has no bfloat16; a structured dtype slices, reshapes and concatenates


def native() -> ModuleType:
    """Returns the extension module; raises ImportError that says how to get it when it is missing."""
    if _native is None:
        raise ImportError(
            "the native extension lowbit._native is missing or was built for another Python; "
            "install the package (pip install .) or, in a source checkout, run `make native`"
        ) from _reason
    return _native


def available() -> bool:
    """Returns True if the native extension can be used."""
    return _native is not None


def is_bf16(dtype: Any) -> bool:
    """Returns True for BF16 and for the bfloat16 dtype of ml_dtypes."""
    return dtype == BF16 or getattr(dtype, "name", "") == "bfloat16"


def bf16_to_fp32(array: np.ndarray) -> np.ndarray:
    """Returns a BF16 array as float32, exactly."""
    return (array.view("<u2").astype(np.uint32) << 16).view(np.float32)


def fp32_to_bf16(array: np.ndarray) -> np.ndarray:
    """Returns float32 values rounded to the nearest even BF16; NaN stays NaN."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2")
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.where(nan, ((bits >> 16) | 0x40).astype("<u2"), rounded).astype("<u2").view(BF16)


def to_fp32(array: np.ndarray) -> np.ndarray:
    """Returns a float array of any accepted dtype (fp32, fp16, BF16) as float32, exactly."""
    return bf16_to_fp32(array) if is_bf16(array.dtype) else array.astype(np.float32, copy=False)


def float_matrix(array: np.ndarray) -> np.ndarray:
    """Returns the [rows, k] array as the extension takes it: fp32, fp16, or uint16 holding bf16; rows contiguous.

    Copies only when a row is not contiguous or the dtype is another float (float64). Raises TypeError for other dtypes
    and ValueError when the array is not 2-D.
    """
    if array.ndim != 2:
        raise ValueError(f"expected a matrix [rows, k], got shape {array.shape}")
    if is_bf16(array.dtype):
        array = array.view("<u2")
    elif array.dtype == np.float64:
        array = array.astype(np.float32)
    elif array.dtype not in (np.float32, np.float16):
        raise TypeError(f"expected a float32, float16 or bf16 (ops.BF16) matrix, got {array.dtype}")
    row, element = array.strides
    straight = row >= 0 and row % array.dtype.itemsize == 0 and (element == array.dtype.itemsize or array.shape[1] < 2)
    return array if straight or not array.size else np.ascontiguousarray(array)


_pools: dict[int, Any] = {}


def pool(threads: int | None = None) -> Any:
    """Returns the shared thread pool with this many threads (None: all CPUs this process may use, within its quota)."""
    count = _usable_cpus() if threads is None else threads
    # No lock, which a fork could leave held: setdefault is atomic, and a pool has no threads before it is used.
    return _pools.get(count) or _pools.setdefault(count, native().ThreadPool(count))


@functools.cache
def _usable_cpus() -> int:
    cpus = read_cpus()
    return cpus.within_quota(len(cpus.allowed))


# ---- the machine (native/src/bind_runtime.cpp) --------------------------------------------------------------------


def cpu_features() -> dict[str, Any]:
    """Returns what the CPU has and the operating system allows: a flag per feature, "vendor", "brand", "l2_bytes"."""
    return dict(native().cpu_features())


def tiers() -> list[str]:
    """Returns the names of the tiers this process can run, lowest first."""
    return list(native().tiers())


def default_tier() -> str:
    """Returns the tier to use where none is asked for: the highest this process can run."""
    return tiers()[-1]


# ---- packing (native/src/bind_pack.cpp) ---------------------------------------------------------------------------


def format_table() -> list[dict[str, Any]]:
    """Returns the extension's format rows; formats.FORMATS holds the same."""
    return native().format_table()


def layout(format_id: int, rows: int, k: int, group_size: int) -> dict[str, int]:
    """Returns the sizes of the packed layout as the extension computes them."""
    return native().layout(format_id, rows, k, group_size)


def codebook(format_id: int) -> np.ndarray:
    """Returns the fp32 values of all codes of a codebook format, float32 [2^bits]."""
    return np.asarray(native().codebook(format_id), np.float32)


def abs_max(matrix: np.ndarray, pool: Any) -> float:
    """Returns the largest magnitude of a float matrix; NaN if any element is NaN, else inf if any is infinite."""
    return native().abs_max(pool, float_matrix(matrix))


def scale_multiplier(format_id: int, abs_max: float) -> float:
    """Returns the power of two by which the scales of a tensor with this abs_max are divided before fp16."""
    return native().scale_multiplier(format_id, abs_max)


def quantize(
    matrix: np.ndarray,
    format_id: int,
    group_size: int,
    multiplier: float,
    full_range: bool,
    out: np.ndarray,
    pool: Any,
    ratios: np.ndarray | None = None,
    importance: np.ndarray | None = None,
) -> None:
    """Packs a finite float matrix [rows, k] into `out` (uint8, exactly the layout's bytes).

    ratios: float32 clip ratios to try for every group; importance: float32 [k], the weight of each column's errors.
    """
    matrix = float_matrix(matrix)
    native().quantize(pool, matrix, format_id, group_size, multiplier, full_range, out, ratios, importance)


def pack_codes(
    codes: np.ndarray, scales: np.ndarray, minima: np.ndarray | None, format_id: int, group_size: int, out: np.ndarray,
    pool: Any,
) -> None:  # fmt: skip
    """Packs given codes, uint8 [rows, k], into `out` (uint8, exactly the layout's bytes).

    scales, minima: float16 [rows, groups], groups = ceil(k / group_size), 1 per row; minima None: all 0. Raises
    ValueError for other shapes and for codes of more bits than the format has.
    """
    halves = [None if a is None else np.ascontiguousarray(a, np.float16).view(np.uint16) for a in (scales, minima)]
    native().pack_codes(pool, codes, halves[0], halves[1], format_id, group_size, out)


WORD_ORDERS = ("along_k", "along_rows", "along_rows_awq")  # WordOrder of native/include/lowbit/pack.h


def unpack_words(words: np.ndarray, order: str, bits: int, first_row: int, out: np.ndarray, pool: Any) -> None:
    """Writes integer codes of 4 or 8 bits from 32-bit words into `out`, uint8 [rows, k], from row first_row on.

    words: uint32. "along_k" (GPTQ's weights): [k * bits / 32, rows], lowest bits first; "along_rows" (its zeros): [k,
    rows * bits / 32]; "along_rows_awq": the same with rows 0 2 4 6 1 3 5 7 in a word. In the latter two first_row is a
    multiple of 32 / bits. Raises IndexError for rows or inputs that the words do not hold.
    """
    native().unpack_words(pool, np.ascontiguousarray(words), WORD_ORDERS.index(order), bits, first_row, out)


def dequantize(packed: tuple[Any, ...], first_row: int, out: np.ndarray, pool: Any) -> None:
    """Writes rows first_row ... of a packed tensor (PackedTensor.native()) as float32 into `out` [count, k]."""
    native().dequantize(pool, *packed, first_row, out)


def gather_rows(packed: tuple[Any, ...], ids: np.ndarray) -> np.ndarray:
    """Returns rows `ids` (int32 [n]) of a packed tensor as float32 [n, k]; IndexError when an id is out of range."""
    out = np.empty((len(ids), packed[2]), np.float32)
    native().gather_rows(*packed, np.ascontiguousarray(ids, np.int32), out)
    return out


# ---- linear products (native/src/bind_linear.cpp) -----------------------------------------------------------------

TIERS = ("scalar", "avx2", "avx512", "amx", "avx2_without_vnni", "amx_model")  # the last two are for tests
COMPUTE = ("int8", "fp32", "bf16")


def _compute_index(compute: str) -> int:
    if compute not in COMPUTE:
        raise ValueError(f"unknown compute {compute!r}; use one of {', '.join(COMPUTE)}")
    return COMPUTE.index(compute)


def has_int8_compute(format_id: int) -> bool:
    """Returns True if products with this format can run on int8 activations; see `effective_compute` for the others."""
    return native().has_int8_compute(format_id)


def effective_compute(format_id: int, compute: str) -> str:
    """Returns the compute type that products with a format have where `compute` is asked for.

    "int8" is "bf16" (activations rounded to bf16) for bf16, fp6 and fp8, and either of them "fp32" for fp16 and fp32.
    """
    return COMPUTE[native().effective_compute(format_id, _compute_index(compute))]


def linear(
    packed: tuple[Any, ...], x: np.ndarray, *, tier: str, compute: str, pool: Any, bias: np.ndarray | None = None
) -> np.ndarray:
    """Returns x W^T (+ bias), float32 [m, rows], for a packed tensor (PackedTensor.native()) and x [m, k].

    Raises ValueError for a tier this machine lacks and for shapes that do not fit.
    """
    x = np.ascontiguousarray(x, np.float32)
    bias = None if bias is None else np.ascontiguousarray(bias, np.float32)
    return native().linear(pool, TIERS.index(tier), _compute_index(compute), *packed, x, bias)


def quantize_rows(x: np.ndarray, k_padded: int, *, tier: str, pool: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns activations as int8 compute sees them: int8 codes [m, k_padded], scales per 64 k, int32 sums per 32."""
    return native().quantize_rows(pool, TIERS.index(tier), np.ascontiguousarray(x, np.float32), k_padded)


# ---- the decoder (native/src/bind_decoder.cpp) --------------------------------------------------------------------


def decoder(
    spec: dict[str, Any],
    tensors: dict[str, Any],
    compute: str = "int8",
    tier: str | None = None,
    outliers: Iterable[str] = (),
) -> Any:
    """Returns a native decoder over shared, immutable weights.

    spec is ModelSpec.to_dict(); tensors are PackedTensor and float vectors by canonical name, viewed, not copied; tier
    None is `default_tier()`; outliers names matrices ("layers.0.down", "head") that compute on bf16 activations where
    the others do on int8. Raises ValueError naming the tensor that is missing or has another shape than the spec's. The
    result's profile(True) starts timing, phase_seconds() returns seconds by phase since then.
    """
    return native().Decoder(spec, *_weights(tensors), compute, tier or default_tier(), list(outliers))


def _weights(tensors: dict[str, Any]) -> tuple[dict[str, tuple[Any, ...]], dict[str, np.ndarray]]:
    packed = {name: t.native() for name, t in tensors.items() if not isinstance(t, np.ndarray)}
    vectors = {name: np.ascontiguousarray(to_fp32(t)) for name, t in tensors.items() if isinstance(t, np.ndarray)}
    return packed, vectors


def kv_cache(layers: int, kv_heads: int, head_dim: int, capacity: int, dtype: str = "int16") -> Any:
    """Returns an empty session for `capacity` positions, dtype "int16" or "int8" (with a scale
    for each key and value of a head), "fp16", "bf16" or "fp32".

    It takes memory as it grows. It has length, capacity, bytes_per_position; truncate(length), which keeps the first
    positions and frees the memory behind them; and fork(length), which returns a session that begins with them and
    shares their memory. Raises MemoryError for sizes that no address space holds.
    """
    return native().KvCache(layers, kv_heads, head_dim, capacity, dtype)


def kv_bytes(caches: Sequence[Any]) -> int:
    """Returns the bytes that sessions hold together, what forks share counted once."""
    return int(native().kv_bytes(list(caches)))


def forward(decoder: Any, parts: list[tuple[Any, np.ndarray, bool]], pool: Any) -> np.ndarray:
    """Returns logits float32 [n, vocab] after appending each part's tokens to its session.

    A part is (session, int32 token ids, all_logits): its rows are those of all tokens or of the last one, in the order
    of the parts. Raises ValueError, with every session unchanged, for a token id out of range, a session without room,
    a session given twice or made for another model. Safe from any thread; the interpreter lock is released.
    """
    return decoder.forward(pool, parts)


def decoder_hidden_states(decoder: Any, parts: list[tuple[Any, np.ndarray, bool]], pool: Any) -> np.ndarray:
    """Returns what the head would read, float32 [n, hidden]: final hidden states; arguments and errors as `forward`."""
    return decoder.hidden_states(pool, parts)


def decoder_activation_errors(decoder: Any, tokens: np.ndarray, pool: Any) -> dict[str, float]:
    """Returns what int8 activations do to each matrix that computes on them, by name ("layers.0.down", "head").

    A number is the root mean square, over int32 tokens [n] as one sequence, of the error of the matrix's output over
    that output, from exact inputs. The same for any number of threads. Raises ValueError as `forward`.
    """
    return decoder.activation_errors(pool, tokens)


# ---- the encoder (native/src/bind_encoder.cpp) --------------------------------------------------------------------


def encoder(
    spec: dict[str, Any],
    tensors: dict[str, Any],
    compute: str = "int8",
    tier: str | None = None,
    outliers: Iterable[str] = (),
) -> Any:
    """Returns a native encoder over shared, immutable weights; arguments, errors and profile as `decoder`."""
    return native().Encoder(spec, *_weights(tensors), compute, tier or default_tier(), list(outliers))


def hidden_states(
    encoder: Any, tokens: np.ndarray, ends: np.ndarray, types: np.ndarray | None, pool: Any
) -> np.ndarray:
    """Returns the last hidden state of every token, float32 [tokens, hidden].

    tokens: int32 ids of all texts one after the other; ends: int64, where each text ends in them; types: int32 token
    type of every token, None for 0. Raises ValueError for an empty text, an id out of range or a text longer than the
    positions the model has learned. Safe from any thread; the interpreter lock is released.
    """
    return encoder.hidden_states(pool, tokens, types, ends)


def embed(
    encoder: Any, tokens: np.ndarray, ends: np.ndarray, types: np.ndarray | None, poolings: tuple[str, ...], pool: Any
) -> np.ndarray:
    """Returns texts as vectors, float32 [texts, len(poolings) * hidden]; arguments and errors as `hidden_states`."""
    return encoder.embed(pool, tokens, types, ends, list(poolings))


def classify(encoder: Any, tokens: np.ndarray, ends: np.ndarray, types: np.ndarray | None, pool: Any) -> np.ndarray:
    """Returns the classification head's logits, float32 [texts, labels]; arguments and errors as `hidden_states`."""
    return encoder.classify(pool, tokens, types, ends)


def encoder_activation_errors(encoder: Any, tokens: np.ndarray, ends: np.ndarray, pool: Any) -> dict[str, float]:
    """Returns what `decoder_activation_errors` does, over texts given as for `hidden_states`."""
    return encoder.activation_errors(pool, tokens, None, ends)


# ---- sampling (native/src/bind_sampler.cpp) -----------------------------------------------------------------------


def sample(
    logits: np.ndarray,
    *,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repetition_penalty: float,
    presence_penalty: float,
    frequency_penalty: float,
    top_logprobs: int,
    prompt: np.ndarray,
    output: np.ndarray,
    mask: np.ndarray | None,
    seed: int,
    position: int,
) -> tuple[int, float, list[tuple[int, float]]]:
    """Returns (token, logprob, [(id, logprob), ...]) for one row of logits (float32 [vocab], scratch afterwards).

    prompt and output: int32 ids so far. mask: uint32 bit words of the allowed ids, or None. (seed, position) fixes the
    draw. native/include/lowbit/sampler.h has the meanings. Raises ValueError when a logit is NaN or +infinity, or no
    token is left.
    """
    return native().sample(
        logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty, frequency_penalty=frequency_penalty, top_logprobs=top_logprobs,
        prompt=prompt, output=output, mask=mask, seed=seed, position=position,
    )  # fmt: skip


def uniform_draw(seed: int, position: int) -> float:
    """Returns the uniform number in [0, 1) that belongs to (seed, position)."""
    return native().uniform_draw(seed, position)
