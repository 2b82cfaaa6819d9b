"""The format table: equal to the native one, aliases that never change bits, errors that name the way out."""

import math
import subprocess
import sys
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from lowbit import formats, ops
from lowbit.formats import BY_ID, FORMATS, GROUP_SIZES, bits_per_weight, resolve
from lowbit.packed import layout_of

CODES = {0: formats.GRID, 1: formats.CODEBOOK, 2: formats.FLOAT}


def test_rows_equal_the_native_table():
    native = [(r["name"], r["id"], r["bits"], CODES[r["codes"]], r["offset"], r["has_min"]) for r in ops.format_table()]
    assert [(f.name, f.id, f.bits, f.codes, f.offset, f.has_min) for f in FORMATS.values()] == native
    assert sorted(BY_ID) == list(range(1, len(FORMATS) + 1))


@pytest.mark.parametrize("name", [f.name for f in FORMATS.values() if f.codes == formats.CODEBOOK])
def test_codebooks_equal_the_native_ones(name):
    ours = np.array(FORMATS[name].codebook, np.float32)
    assert len(ours) == 2 ** FORMATS[name].bits
    assert np.array_equal(ours, ops.codebook(FORMATS[name].id), equal_nan=True)


@pytest.mark.parametrize("bits", [3, 4])
def test_normal_float_values_are_quantiles(bits):
    offset, half, q = 0.9677083, 2 ** (bits - 1), NormalDist().inv_cdf
    positive = [q(offset + (0.5 - offset) * i / half) for i in range(half)]
    negative = [-q(offset + (0.5 - offset) * i / (half - 1)) for i in range(half - 1)]
    values = np.array(sorted([*positive, 0.0, *negative])) / max(positive)
    assert np.abs(values - FORMATS[f"nf{bits}"].codebook).max() < 2e-7


def test_small_floats_by_the_standards():
    assert FORMATS["fp4"].codebook[:8] == (0, 0.5, 1, 1.5, 2, 3, 4, 6)
    fp6, e4m3, e5m2 = (FORMATS[n].codebook for n in ("fp6", "fp8_e4m3", "fp8_e5m2"))
    assert (fp6[1], fp6[4], fp6[31], fp6[32 + 31]) == (0.0625, 0.25, 28.0, -28.0)
    assert (e4m3[1], e4m3[0x08], e4m3[0x7E]) == (2.0**-9, 2.0**-6, 448.0)
    assert math.isnan(e4m3[0x7F])
    assert math.isnan(e4m3[0xFF])
    # e5m2 is the upper byte of fp16
    halves = (np.arange(256, dtype=np.uint16) << 8).view(np.float16).astype(np.float64)
    assert np.array_equal(e5m2, halves, equal_nan=True)


@pytest.mark.parametrize(
    ("name", "format", "group_size", "full_range"),
    [
        ("sym_int4", "sym_int4", None, True),
        ("SYM-INT4", "sym_int4", None, True),
        ("woq_int4", "sym_int4", None, True),
        ("sym_int4_rtn", "sym_int4", 0, True),
        ("asym_int4_rtn", "asym_int4", 0, True),
        ("sym_int8_rtn", "sym_int8", 0, True),
        ("fp8", "fp8_e5m2", None, True),
        ("fp8_e4m3fn", "fp8_e4m3", None, True),
        ("fp4_e2m1", "fp4", None, True),
        ("int3", "sym_int3", None, True),
        ("int4", "sym_int4", None, True),
        ("int4_fullrange", "sym_int4", None, True),
        ("int4_clip", "sym_int4", None, False),
        ("s4_clip", "sym_int4", None, False),
        ("s4fullrange", "sym_int4", None, True),
        ("int5", "sym_int5", None, True),
        ("int8", "sym_int8", None, True),
        ("s8", "sym_int8", None, True),
        ("nf4", "nf4", None, True),
        ("bnb_nf4", "nf4", 64, True),
        ("Q4_0", "sym_int4", 32, True),
        ("Q4_1", "asym_int4", 32, True),
        ("Q5_0", "sym_int5", 32, True),
        ("Q5_1", "asym_int5", 32, True),
        ("Q8_0", "sym_int8", 32, True),
        ("F16", "fp16", None, True),
        ("BF16", "bf16", None, True),
        ("F32", "fp32", None, True),
        ("float16", "fp16", None, True),
        ("bfloat16", "bf16", None, True),
        ("half", "fp16", None, True),
    ],
)
def test_aliases(name, format, group_size, full_range):
    choice = resolve(name)
    assert (choice.format.name, choice.group_size, choice.full_range) == (format, group_size, full_range)
    assert resolve(choice) is choice


def test_every_alias_resolves():
    for name in formats.names():
        assert resolve(name).format.name in FORMATS
    assert resolve(FORMATS["nf4"]).format is FORMATS["nf4"]


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("mixed_fp4", "sym_int4"), ("mixed_fp8", "sym_int8"), ("torch_fp8_e4m3", "fp8_e4m3"), ("torch_fp8", "fp8_e5m2"),
        ("fp4_e2m1_bnb", "fp4"), ("fp6_k", "fp6"), ("q2_k", "sym_int3"), ("q4_k", "asym_int4"), ("Q4_K_M", "asym_int4"),
        ("gguf_q4k_s", "asym_int4"), ("q5_k", "asym_int5"), ("q6_k", "fp6"), ("Q3_K_L", "sym_int3"),
        ("gguf_iq2_xxs", "sym_int3"), ("gguf_iq1_s", "sym_int3"), ("gguf_iq1_m", "sym_int3"), ("iq4_nl", "nf4"),
        ("int2", "sym_int3"), ("int6", "fp6"), ("int7", "sym_int8"), ("mxfp4", "fp4"),
    ],
)  # fmt: skip
def test_upstream_names_without_a_format_are_refused_by_name(name, nearest):
    with pytest.raises(ValueError, match=f"'{name}' is not supported.*nearest is '{nearest}'"):
        resolve(name)


def test_unknown_names_get_the_nearest_and_the_list():
    with pytest.raises(ValueError, match=r"unknown format 'sym_in4'\. Did you mean 'sym_int4'.*fp8_e5m2"):
        resolve("sym_in4")
    with pytest.raises(ValueError, match=r"The formats are sym_int3, .*fp32"):
        resolve("quux")
    with pytest.raises(TypeError, match="not int"):
        resolve(4)


def test_group_sizes():
    row = FORMATS["nf4"]
    assert [row.group(g) for g in (None, 32, 128, 0, -1)] == [64, 32, 128, 0, 0]
    with pytest.raises(ValueError, match=r"group_size 48 is not supported.*The nearest is (32|64)"):
        row.group(48)
    assert FORMATS["bf16"].group(128) == 0


@pytest.mark.parametrize("format", FORMATS.values(), ids=lambda f: f.name)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_bits_per_weight_is_what_lies_in_memory(format, group_size):
    rows, k = 160, 1024  # whole tiles, so padding adds nothing but the other half of a per-row scale line
    stored = 8 * layout_of(format, rows, k, format.group(group_size)).bytes / (rows * k)
    per_row_padding = (1 + format.has_min) * 16 / k if format.codes != formats.FLOAT and group_size == 0 else 0
    assert stored == pytest.approx(bits_per_weight(format, group_size, k) + per_row_padding)


def test_bits_per_weight_of_upstream():
    for name, bits in {"sym_int4": 4.25, "asym_int4": 4.5, "sym_int5": 5.25, "asym_int5": 5.5, "nf4": 4.25, "nf3": 3.25,
                       "fp4": 4.25, "fp6": 6.25, "sym_int8": 8.25, "Q4_0": 4.5, "Q8_0": 8.5}.items():  # fmt: skip
        assert bits_per_weight(name) == bits


def test_int8_compute_is_five_bits_or_int8():
    assert {f.name for f in FORMATS.values() if not f.int8_compute} == {
        "fp6", "fp8_e4m3", "fp8_e5m2", "fp16", "bf16", "fp32"
    }  # fmt: skip


def test_the_table_needs_the_standard_library_only():
    folder = str(Path(formats.__file__).parent)
    code = f"import sys; sys.path.insert(0, {folder!r}); import formats; print('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_the_document_shows_the_table():
    text = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    for row in FORMATS.values():
        sizes = " | ".join(f"{bits_per_weight(row, g):g}" for g in GROUP_SIZES)
        line = next(line for line in text.splitlines() if line.startswith(f"| `{row.name}` | {row.about} |"))
        assert line.startswith(f"| `{row.name}` | {row.about} | {sizes} | ")
        assert line.endswith(" | yes |" if row.int8_compute else " | no |")
