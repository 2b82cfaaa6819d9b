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
def allowed_cpus() -> int: ...
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
def quantize_rows(
    pool: ThreadPool, tier: int, x: Floats, k_padded: int
) -> tuple[NDArray[np.int8], Floats, NDArray[np.int32]]: ...
def has_int8_compute(format: int) -> bool: ...

# ---- sampling ----

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
    mask: np.ndarray | None = None,
    seed: int,
    position: int,
) -> tuple[int, float, list[tuple[int, float]]]: ...
def uniform_draw(seed: int, position: int) -> float: ...
