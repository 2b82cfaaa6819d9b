"""The format table: how a number format is stored and what its codes mean, and every name it is known by.

Owns one row per format (native/include/lowbit/formats.h has the same rows; a test holds the two equal), the codebooks,
the group sizes and the aliases of ipex-llm, ITREX, Neural Speed, bitsandbytes and GGUF. Refuses guesses: a name never
means other bits than it meant upstream, and a name we do not carry is an error that says what comes nearest. Standard
library only.
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass

GRID, CODEBOOK, FLOAT = "grid", "codebook", "float"
PER_ROW = 0  # group size: one scale for a whole row
GROUP_SIZES = (32, 64, 128, 256, PER_ROW)
DEFAULT_GROUP_SIZE = 64  # what ipex-llm used, so its users keep their bits per weight


@dataclass(frozen=True)
class Minifloat:
    """A sign, exponent and mantissa packed in few bits: value = (-1)^s 2^(e - bias) 1.m, subnormal at e = 0."""

    exponent_bits: int
    mantissa_bits: int
    bias: int
    max_code: int  # largest finite magnitude code; rounding saturates here

    def value(self, code: int) -> float:
        """Returns the number a code stands for; codes above max_code are NaN or infinity, as OCP FP8 defines them."""
        sign_bit = 1 << (self.exponent_bits + self.mantissa_bits)
        sign, magnitude = (-1.0 if code & sign_bit else 1.0), code & (sign_bit - 1)
        if magnitude > self.max_code:
            # e5m2 keeps IEEE's infinity (all exponent bits, mantissa 0); e4m3fn has only NaN there.
            ieee = self.max_code >> self.mantissa_bits < (1 << self.exponent_bits) - 1
            return sign * math.inf if ieee and magnitude == self.max_code + 1 else math.nan
        exponent, mantissa = magnitude >> self.mantissa_bits, magnitude & ((1 << self.mantissa_bits) - 1)
        if exponent == 0:
            return sign * math.ldexp(mantissa, 1 - self.bias - self.mantissa_bits)
        return sign * math.ldexp((1 << self.mantissa_bits) + mantissa, exponent - self.bias - self.mantissa_bits)

    def values(self) -> tuple[float, ...]:
        """Returns the values of all codes."""
        return tuple(self.value(code) for code in range(2 << (self.exponent_bits + self.mantissa_bits)))


@dataclass(frozen=True)
class Format:
    """One row of the table.

    grid:     value = (code - offset) * scale [+ min]
    codebook: value = codebook[code] * scale
    float:    the code is the number itself; no groups, no scales
    """

    name: str
    id: int  # on disk, never reused
    bits: int
    codes: str  # GRID, CODEBOOK or FLOAT
    offset: int = 0
    has_min: bool = False
    codebook: tuple[float, ...] = ()  # fp32 values by code
    minifloat: Minifloat | None = None  # set where the codebook is a small float
    about: str = ""

    @property
    def int8_compute(self) -> bool:
        """True if products can run in int8 (codes, or a codebook rounded to int8): at most 5 bits, or sym_int8."""
        return self.codes != FLOAT and (self.bits <= 5 or self.codes == GRID)

    @property
    def default_group_size(self) -> int:
        """The group size used when none is asked for; 0 for float formats, which have no groups."""
        return 0 if self.codes == FLOAT else DEFAULT_GROUP_SIZE

    def group(self, group_size: int | None) -> int:
        """Returns the group size to store: the default for None, 0 for per row (-1, as ITREX spells it) and for floats.

        Raises ValueError for a size that is not in GROUP_SIZES, naming the nearest one.
        """
        if self.codes == FLOAT:
            return 0
        if group_size is None:
            return DEFAULT_GROUP_SIZE
        if group_size == -1:
            return PER_ROW
        if group_size not in GROUP_SIZES:
            nearest = min((g for g in GROUP_SIZES if g), key=lambda g: abs(g - group_size))
            raise ValueError(
                f"group_size {group_size} is not supported for {self.name}; use 32, 64, 128, 256, or -1 (per row). "
                f"The nearest is {nearest}."
            )
        return group_size


# NormalFloat (Dettmers et al., QLoRA, arXiv:2305.14314, appendix E): quantiles of N(0, 1), asymmetric so that 0 is one
# of them, scaled to [-1, 1]. With q = NormalDist().inv_cdf, o = 0.9677083, n = 2^(bits-1): q at n points from o down
# towards 1/2, -q at n-1 such points, and 0. nf4 is the published table bit for bit; nf3 shares every second positive
# value.
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_NF3 = (-1.0, -0.4786291718482971, -0.21714182198047638, 0.0, *_NF4[9::2])

# Small floats: OCP Microscaling (MX) v1.0 for e2m1 and e3m2 (no infinity, no NaN), OCP FP8 v1.0 for e4m3 (fn) and e5m2.
_E2M1 = Minifloat(2, 1, 1, 7)
_E3M2 = Minifloat(3, 2, 3, 31)
_E4M3 = Minifloat(4, 3, 7, 0x7E)
_E5M2 = Minifloat(5, 2, 15, 0x7B)


def _small_float(name: str, id: int, bits: int, minifloat: Minifloat, about: str) -> Format:
    return Format(name, id, bits, CODEBOOK, codebook=minifloat.values(), minifloat=minifloat, about=about)


FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format("sym_int3", 1, 3, GRID, 4, about="integers -4..3"),
        Format("sym_int4", 2, 4, GRID, 8, about="integers -8..7 (Q4_0)"),
        Format("asym_int4", 3, 4, GRID, 0, True, about="integers 0..15 plus a minimum per group (Q4_1)"),
        Format("sym_int5", 4, 5, GRID, 16, about="integers -16..15 (Q5_0)"),
        Format("asym_int5", 5, 5, GRID, 0, True, about="integers 0..31 plus a minimum per group (Q5_1)"),
        Format("sym_int8", 6, 8, GRID, 128, about="integers -127..127 (Q8_0)"),
        Format("nf3", 7, 3, CODEBOOK, codebook=_NF3, about="NormalFloat, 8 quantiles of a normal distribution"),
        Format("nf4", 8, 4, CODEBOOK, codebook=_NF4, about="NormalFloat, 16 quantiles of a normal distribution"),
        _small_float("fp4", 9, 4, _E2M1, "float e2m1: 0, 0.5, 1, 1.5, 2, 3, 4, 6 with a sign"),
        _small_float("fp6", 10, 6, _E3M2, "float e3m2, up to 28"),
        _small_float("fp8_e4m3", 11, 8, _E4M3, "float e4m3fn, up to 448"),
        _small_float("fp8_e5m2", 12, 8, _E5M2, "float e5m2, up to 57344"),
        Format("fp16", 13, 16, FLOAT, about="IEEE half precision, not quantised"),
        Format("bf16", 14, 16, FLOAT, about="bfloat16, not quantised"),
        Format("fp32", 15, 32, FLOAT, about="IEEE single precision, not quantised"),
    )
}
BY_ID: dict[int, Format] = {f.id: f for f in FORMATS.values()}


@dataclass(frozen=True)
class Choice:
    """What a name stands for: a format, and the group size and grid that name implies."""

    format: Format
    group_size: int | None = None  # None: the caller's, or the default
    full_range: bool = True  # False: symmetric grids leave out their most negative code (ITREX int4_clip)


# alias: (format, group size or None, full range). Compared in lower case with "-" read as "_".
_ALIASES: dict[str, tuple[str, int | None, bool]] = {
    # ipex-llm, bigdl-llm: sym_int4 is spelled woq_int4 under torch >= 2.6, same bytes; "fp8" is e5m2 since ipex-llm.
    "woq_int4": ("sym_int4", None, True),
    "fp8": ("fp8_e5m2", None, True),
    "sym_int4_rtn": ("sym_int4", PER_ROW, True),
    "sym_int8_rtn": ("sym_int8", PER_ROW, True),
    "asym_int4_rtn": ("asym_int4", PER_ROW, True),
    # ITREX and Neural Speed; their group_size is a separate argument.
    "int3": ("sym_int3", None, True),
    "int4": ("sym_int4", None, True),
    "int4_fullrange": ("sym_int4", None, True),
    "int4_clip": ("sym_int4", None, False),
    "int5": ("sym_int5", None, True),
    "int8": ("sym_int8", None, True),
    "s4": ("sym_int4", None, True),
    "s4_fullrange": ("sym_int4", None, True),
    "s4fullrange": ("sym_int4", None, True),
    "s4_clip": ("sym_int4", None, False),
    "s4clip": ("sym_int4", None, False),
    "s8": ("sym_int8", None, True),
    "fp4_e2m1": ("fp4", None, True),
    "fp6_e3m2": ("fp6", None, True),
    "fp8_e4m3fn": ("fp8_e4m3", None, True),
    # bitsandbytes: nf4 in blocks of 64.
    "bnb_nf4": ("nf4", 64, True),
    "normalfloat4": ("nf4", None, True),
    # GGUF: groups of 32.
    "q4_0": ("sym_int4", 32, True),
    "q4_1": ("asym_int4", 32, True),
    "q5_0": ("sym_int5", 32, True),
    "q5_1": ("asym_int5", 32, True),
    "q8_0": ("sym_int8", 32, True),
    # floats
    "f16": ("fp16", None, True),
    "float16": ("fp16", None, True),
    "half": ("fp16", None, True),
    "bfloat16": ("bf16", None, True),
    "f32": ("fp32", None, True),
    "float32": ("fp32", None, True),
    "float": ("fp32", None, True),
}

# Names that meant something upstream which no format here means: pattern, what it was, the nearest format.
_REFUSED: tuple[tuple[str, str, str], ...] = (
    (r"mixed_(fp4|4bit)", "chose sym_int4 or fp4 for each tensor", "sym_int4"),
    (r"mixed_fp8", "chose sym_int8 or fp8_e4m3 for each tensor", "sym_int8"),
    (r"torch_fp8(_e5m2)?", "is e5m2 with one scale per tensor", "fp8_e5m2"),
    (r"torch_fp8_e4m3", "is e4m3 with one scale per tensor", "fp8_e4m3"),
    (r"fp4_e2m1_bnb|bnb_fp4|fp4_bnb", "is bitsandbytes' own 4-bit float, whose values are not those of e2m1", "fp4"),
    (r"mxfp4|nvfp4", "has scales of another float type", "fp4"),
    (r"fp6_k", "is a k-quant (super-blocks of 256)", "fp6"),
    (r"(gguf_)?i?q[12]_.*", "is a k-quant or codebook format of GGUF below 3 bits", "sym_int3"),
    (r"(gguf_)?i?q3_.*", "is a k-quant or codebook format of GGUF", "sym_int3"),
    (r"(gguf_)?iq4_.*", "is a codebook format of GGUF", "nf4"),
    (r"(gguf_)?q4_?k.*", "is a k-quant (super-blocks of 256)", "asym_int4"),
    (r"(gguf_)?q5_?k.*", "is a k-quant (super-blocks of 256)", "asym_int5"),
    (r"(gguf_)?q6_?k.*", "is a k-quant (super-blocks of 256)", "fp6"),
    (r"(gguf_)?q8_[1k]", "is a GGUF format for activations", "sym_int8"),
    (r"int[12]", "has fewer bits than any format here", "sym_int3"),
    (r"int6", "is a 6-bit integer format", "fp6"),
    (r"int7", "is a 7-bit integer format", "sym_int8"),
)  # fmt: skip


def names() -> list[str]:
    """Returns every accepted name: the formats, then the aliases."""
    return [*FORMATS, *_ALIASES]


def resolve(name: str | Format | Choice) -> Choice:
    """Returns the Choice a name stands for (case and "-" for "_" do not matter); formats and choices pass through.

    Raises ValueError for a name that upstream had and no format here equals, and for unknown names; both name the
    nearest valid choice. Raises TypeError for anything that is not a name.

    >>> resolve("Q4_0").format.name, resolve("Q4_0").group_size
    ('sym_int4', 32)
    """
    if isinstance(name, Choice):
        return name
    if isinstance(name, Format):
        return Choice(name)
    if not isinstance(name, str):
        raise TypeError(f"a format is named by a string such as 'sym_int4', not {type(name).__name__}")
    key = name.strip().lower().replace("-", "_")
    if key in FORMATS:
        return Choice(FORMATS[key])
    if key in _ALIASES:
        format_name, group_size, full_range = _ALIASES[key]
        return Choice(FORMATS[format_name], group_size, full_range)
    for pattern, was, nearest in _REFUSED:
        if re.fullmatch(pattern, key):
            raise ValueError(
                f"format {name!r} is not supported: it {was}, which no format here is. The nearest is {nearest!r}."
            )
    close = difflib.get_close_matches(key, names(), n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
    raise ValueError(f"unknown format {name!r}. {hint}The formats are {', '.join(FORMATS)}.")


def bits_per_weight(format: str | Format | Choice, group_size: int | None = None, k: int | None = None) -> float:
    """Returns the stored bits per weight, scales and minima included, padding not.

    group_size None is the name's own or the default. For per-row scales k (input features) is needed to count them;
    without it they are left out.

    >>> bits_per_weight("sym_int4"), bits_per_weight("asym_int4", 32)
    (4.25, 5.0)
    """
    choice = resolve(format)
    row = choice.format
    group = row.group(choice.group_size if group_size is None else group_size)
    if row.codes == FLOAT:
        return float(row.bits)
    per_scale = 16 * (2 if row.has_min else 1)
    span = group or k
    return row.bits + (per_scale / span if span else 0.0)
