"""What native/src/bind*.cpp exports; lowbit.ops is the only caller."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

# ---- bind_runtime.cpp ----

class ThreadPool:
    def __init__(self, threads: int) -> None: ...
    @property
    def size(self) -> int: ...

def cpu_features() -> dict[str, Any]: ...
def tiers() -> list[str]: ...
def format_table() -> list[dict[str, Any]]: ...
def layout(format: int, rows: int, k: int, group_size: int) -> dict[str, int]: ...

# ---- bind_pack.cpp: matrices are float32, float16, or uint16 holding bf16 ----

def codebook(format: int) -> list[float]: ...
def abs_max(pool: ThreadPool, matrix: np.ndarray) -> float: ...
def scale_multiplier(format: int, abs_max: float) -> float: ...
def quantize(
    pool: ThreadPool,
    matrix: np.ndarray,
    format: int,
    group_size: int,
    multiplier: float,
    full_range: bool,
    out: Bytes,
    ratios: np.ndarray | None = None,
    importance: np.ndarray | None = None,
) -> None: ...
def pack_codes(
    pool: ThreadPool,
    codes: np.ndarray,
    scales: np.ndarray,
    minima: np.ndarray | None,
    format: int,
    group_size: int,
    out: Bytes,
) -> None: ...
def unpack_words(
    pool: ThreadPool, words: np.ndarray, order: int, bits: int, first_row: int, out: np.ndarray
) -> None: ...
def dequantize(
    pool: ThreadPool,
    format: int,
    rows: int,
    k: int,
    group_size: int,
    multiplier: float,
    data: Bytes,
    first_row: int,
    out: Floats,
) -> None: ...
def gather_rows(
    format: int,
    rows: int,
    k: int,
    group_size: int,
    multiplier: float,
    data: Bytes,
    ids: NDArray[np.int32],
    out: Floats,
) -> None: ...

# ---- bind_linear.cpp ----

def linear(
    pool: ThreadPool,
    tier: int,
    compute: int,
    format: int,
    rows: int,
    k: int,
    group_size: int,
    multiplier: float,
    data: Bytes,
    x: Floats,
    bias: Floats | None = None,
) -> Floats: ...
def linear_input_bytes(m: int, k_padded: int, format: int, compute: int) -> int: ...
def has_bf16_kernels(tier: int) -> bool: ...
def effective_compute(format: int, compute: int) -> int: ...
def linear_into(
    pool: ThreadPool,
    tier: int,
    compute: int,
    format: int,
    rows: int,
    k: int,
    group_size: int,
    multiplier: float,
    data: Bytes,
    x: Floats,
    scratch: Bytes,
    y: Floats,
) -> None: ...
def quantize_rows(
    pool: ThreadPool, tier: int, x: Floats, k_padded: int
) -> tuple[NDArray[np.int8], Floats, NDArray[np.int32]]: ...
def has_int8_compute(format: int) -> bool: ...

# ---- bind_decoder.cpp ----

class KvCache:
    def __init__(self, layers: int, kv_heads: int, head_dim: int, capacity: int, dtype: str = "int16") -> None: ...
    @property
    def length(self) -> int: ...
    @property
    def capacity(self) -> int: ...
    @property
    def bytes_per_position(self) -> int: ...
    def fill(self, length: int) -> None: ...
    def truncate(self, length: int) -> None: ...
    def fork(self, length: int) -> KvCache: ...

def kv_bytes(caches: list[KvCache]) -> int: ...

class Decoder:
    def __init__(
        self,
        spec: dict[str, Any],
        packed: dict[str, tuple[int, int, int, int, float, Bytes]],
        vectors: dict[str, Floats],
        compute: str,
        tier: str,
        outliers: list[str],
    ) -> None: ...
    def forward(self, pool: ThreadPool, parts: list[tuple[KvCache, NDArray[np.int32], bool]]) -> Floats: ...
    def hidden_states(self, pool: ThreadPool, parts: list[tuple[KvCache, NDArray[np.int32], bool]]) -> Floats: ...
    def activation_errors(self, pool: ThreadPool, tokens: NDArray[np.int32]) -> dict[str, float]: ...
    def profile(self, on: bool) -> None: ...
    def phase_seconds(self) -> dict[str, float]: ...

def spec_fields() -> dict[str, list[str]]: ...

# ---- bind_vector.cpp, for tests ----

def vector_norm(
    tier: int, rms: bool, x: Floats, weight: Floats | None, bias: Floats | None, offset: float, eps: float, y: Floats
) -> None: ...
def vector_add(tier: int, y: Floats, x: Floats, scale: float) -> None: ...
def vector_max(tier: int, x: Floats) -> float: ...
def vector_exp_sum(tier: int, x: Floats, shift: float) -> float: ...
def vector_to_half(tier: int, bf16: bool, x: Floats, y: NDArray[np.uint16]) -> None: ...
def vector_activate(tier: int, f: int, x: Floats, y: Floats) -> None: ...
def vector_activate_gated(tier: int, f: int, gate_up: Floats, y: Floats) -> None: ...
def vector_attention(
    tier: int, values: bool, a: Floats, rows: int, block: Bytes, dtype: int, count: int, dim: int, out: Floats
) -> None: ...

# ---- bind_code_attention.cpp: codes are int16 or, as bytes, int8 or int16; ranges int32 ----

def code_vector(tier: int, x: Floats, most: float, codes: Any) -> float: ...
def code_widen(tier: int, codes: Any, wide: Any) -> None: ...
def code_scores(
    tier: int, q: Any, q_scales: Floats, keys: Bytes, scales: Floats, count: int, dim: int, out: Floats
) -> None: ...
def code_softmax(tier: int, scores: Floats, ranges: Any, scales: Floats, state: Floats, weights: Any) -> None: ...
def code_values(tier: int, weights: Any, values: Bytes, count: int, dim: int, state: Floats, out: Floats) -> None: ...
def tile_scores(
    tier: int, q: Any, q_scales: Floats, keys: Bytes, scales: Floats, count: int, dim: int, out: Floats
) -> None: ...
def tile_values(tier: int, weights: Any, values: Bytes, dim: int, state: Floats, out: Floats) -> None: ...

# ---- bind_sampler.cpp: ids are int32, mask uint32 bit words; logits are scratch afterwards ----

def sample(
    logits: Floats,
    *,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repetition_penalty: float,
    presence_penalty: float,
    frequency_penalty: float,
    top_logprobs: int,
    prompt: NDArray[np.int32],
    output: NDArray[np.int32],
    mask: NDArray[np.uint32] | None = None,
    seed: int,
    position: int,
) -> tuple[int, float, list[tuple[int, float]]]: ...
def uniform_draw(seed: int, position: int) -> float: ...

# ---- bind_encoder.cpp: tokens and types int32, ends int64; types None for all 0 ----

class Encoder:
    def __init__(
        self,
        spec: dict[str, Any],
        packed: dict[str, Any],
        vectors: dict[str, Floats],
        compute: str,
        tier: str,
        outliers: list[str],
    ) -> None: ...
    def hidden_states(
        self, pool: ThreadPool, tokens: np.ndarray, types: np.ndarray | None, ends: np.ndarray
    ) -> Floats: ...
    def embed(
        self, pool: ThreadPool, tokens: np.ndarray, types: np.ndarray | None, ends: np.ndarray, poolings: list[str]
    ) -> Floats: ...
    def classify(self, pool: ThreadPool, tokens: np.ndarray, types: np.ndarray | None, ends: np.ndarray) -> Floats: ...
    def activation_errors(
        self, pool: ThreadPool, tokens: np.ndarray, types: np.ndarray | None, ends: np.ndarray
    ) -> dict[str, float]: ...
    def profile(self, on: bool) -> None: ...
    def phase_seconds(self) -> dict[str, float]: ...

def encoder_spec_fields() -> list[str]: ...

# ---- bind_bench.cpp: (wall seconds, CPU seconds of the slowest thread) ----

def read_seconds(pool: ThreadPool, data: Bytes, streams: int, ahead: int) -> tuple[float, float]: ...
def peak_rate(pool: ThreadPool, tier: int, compute: int, seconds: float) -> tuple[float, float]: ...
def linear_seconds(
    pool: ThreadPool,
    tier: int,
    compute: int,
    format: int,
    rows: int,
    k: int,
    group_size: int,
    data: Bytes,
    x: Floats,
) -> tuple[float, float]: ...
