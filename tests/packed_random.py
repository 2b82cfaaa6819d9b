"""Random packed weights and their exact values, from the layout's description in native/include/lowbit/formats.h alone.

Kernels are tested against this reading of the layout, not against the quantiser that writes it.
"""

from dataclasses import dataclass

import numpy as np

from lowbit import _native as n

FORMATS = {row["name"]: row for row in n.format_table()}
NAMES = list(FORMATS)
SCALED = [name for name in NAMES if FORMATS[name]["codes"] != 2]
INT8 = [name for name in NAMES if n.has_int8_compute(FORMATS[name]["id"])]

# fmt: off
_NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
_NF3 = [-1.0, -0.4786291718482971, -0.21714182198047638, 0.0, 0.16093020141124725, 0.33791524171829224,
        0.5626170039176941, 1.0]
# fmt: on


def _minifloat(bits: int, exponent_bits: int, bias: int) -> np.ndarray:
    """Values of all codes s.e.m of a small float; codes above the largest finite one are not special here."""
    mantissa_bits = bits - 1 - exponent_bits
    code = np.arange(1 << bits)
    e = code >> mantissa_bits & ((1 << exponent_bits) - 1)
    m = (code & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    value = np.where(e == 0, m * 2.0 ** (1 - bias), (1 + m) * 2.0 ** (e - bias))
    return np.where(code >> (bits - 1), -value, value)


CODEBOOKS = {
    "nf3": np.array(_NF3),
    "nf4": np.array(_NF4),
    "fp4": _minifloat(4, 2, 1),
    "fp6": _minifloat(6, 3, 3),
    "fp8_e4m3": _minifloat(8, 4, 7),
    "fp8_e5m2": _minifloat(8, 5, 15),
}
# Codebooks as int8 compute sees them: integers times a unit.
INT8_UNIT = {"nf3": 127.0, "nf4": 127.0, "fp4": 2.0}
_PLANES = {3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 8: (8,)}


@dataclass
class Packed:
    """A packed weight as the bindings take it."""

    name: str
    rows: int
    k: int
    group_size: int
    multiplier: float
    data: np.ndarray

    @property
    def native(self) -> tuple:
        return (FORMATS[self.name]["id"], self.rows, self.k, self.group_size, self.multiplier, self.data)

    @property
    def layout(self) -> dict:
        return n.layout(FORMATS[self.name]["id"], self.rows, self.k, self.group_size)


def random_packed(name: str, rows: int, k: int, group_size: int, seed: int = 0, scale: float = 0.01) -> Packed:
    """Returns a weight with random codes (the padding too), and random fp16 scales and minima of both signs."""
    rng = np.random.default_rng(seed)
    f = FORMATS[name]
    layout = n.layout(f["id"], rows, k, group_size)
    tiles = layout["panels"] * layout["tiles"]
    if f["codes"] == 2:
        values = rng.normal(0, 1, (layout["bytes"] * 8 // f["bits"],)).astype(np.float32)
        stored = {"fp32": values, "fp16": values.astype(np.float16), "bf16": (values.view("<u4") >> 16).astype("<u2")}
        return Packed(name, rows, k, group_size, 2.0, aligned_bytes(stored[name].view(np.uint8)))
    data = rng.integers(0, 256, (tiles, layout["tile_bytes"]), dtype=np.uint8)
    lines = 2 if f["has_min"] else 1
    codes = data[:, : layout["tile_bytes"] - 64 * lines]
    if name == "fp8_e4m3":
        codes[codes & 0x7F == 0x7F] ^= 1  # NaN
    if name == "fp8_e5m2":
        codes[codes & 0x7C == 0x7C] ^= 0x40  # infinity and NaN
    floats = rng.normal(0, scale, (tiles, 32 * lines)).astype(np.float16)
    data[:, -64 * lines :] = floats.view(np.uint8)
    return Packed(name, rows, k, group_size, 0.5, aligned_bytes(data.reshape(-1)))


def aligned_bytes(values: np.ndarray) -> np.ndarray:
    """Returns a copy whose first byte is 64-byte aligned."""
    room = np.empty(values.size + 64, np.uint8)
    start = -room.ctypes.data % 64
    room[start : start + values.size] = values
    return room[start : start + values.size]


def _plane(lines: np.ndarray, bits: int) -> np.ndarray:
    """Codes [atoms, 16 rows, 32 k] of a plane given as bytes [atoms, plane bytes]."""
    atoms = lines.shape[0]
    if bits == 1:  # mask j, bit 4r+b = k 4j+b
        mask_bits = np.unpackbits(lines, axis=1, bitorder="little").reshape(atoms, 8, 16, 4)  # j r b
        return mask_bits.transpose(0, 2, 1, 3).reshape(atoms, 16, 32)
    per_byte = 8 // bits  # byte 4r+b of line j holds k = 4 * (per_byte * j + i) + b in its i-th field
    fields = lines.reshape(atoms, -1, 16, 1, 4) >> (bits * np.arange(per_byte, dtype=np.uint8)).reshape(-1, 1)
    return (fields & ((1 << bits) - 1)).transpose(0, 2, 1, 3, 4).reshape(atoms, 16, 32)


def _atoms(w: Packed) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Codes [panels, 16, k_padded], scales and minima [panels, 16, groups] (fp64) of a scaled format."""
    layout, f = w.layout, FORMATS[w.name]
    panels, tiles = layout["panels"], layout["tiles"]
    lines = 2 if f["has_min"] else 1
    data = w.data.reshape(panels * tiles, layout["tile_bytes"])
    atom_bytes = 64 * f["bits"]
    atoms = np.ascontiguousarray(data[:, : -64 * lines]).reshape(-1, atom_bytes)
    codes, start, shift = 0, 0, 0
    for bits in _PLANES[f["bits"]]:
        codes = codes | _plane(atoms[:, start : start + 64 * bits], bits).astype(np.int64) << shift
        start, shift = start + 64 * bits, shift + bits
    codes = codes.reshape(panels, -1, 16, 32).transpose(0, 2, 1, 3).reshape(panels, 16, -1)

    def line(index: int) -> np.ndarray:
        halves = np.ascontiguousarray(data[:, data.shape[1] - 64 * (lines - index) :][:, :64]).view(np.float16)
        per_group = halves.reshape(panels, tiles, 2, 16)[:, :, : layout["groups_per_tile"]].astype(np.float64)
        return per_group.transpose(0, 3, 1, 2).reshape(panels, 16, -1)

    return codes, line(0), line(1) if f["has_min"] else None


def integer_codes(w: Packed) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Returns what int8 compute reads: integers [rows, k_padded] (int64), and the scale and minimum of each (fp32)."""
    codes, scales, minima = _atoms(w)
    if FORMATS[w.name]["codes"] == 1:
        codes = np.rint(CODEBOOKS[w.name] * INT8_UNIT[w.name]).astype(np.int64)[codes]
    else:
        codes = codes - FORMATS[w.name]["offset"]

    def spread(groups: np.ndarray) -> np.ndarray:
        per_weight = np.repeat(groups, w.layout["group_size"], axis=2).astype(np.float32)
        return per_weight.reshape(-1, w.layout["k_padded"])[: w.rows]

    integers = codes.reshape(-1, w.layout["k_padded"])[: w.rows]
    return integers, spread(scales), None if minima is None else spread(minima)


def exact_values(w: Packed, compute: str = "fp32") -> np.ndarray:
    """Returns the weight [rows, k] in fp64, as the compute type ("fp32" or "int8") sees it."""
    layout, f = w.layout, FORMATS[w.name]
    if f["codes"] == 2:
        if w.name == "bf16":
            lines = (w.data.view("<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            lines = w.data.view({"fp16": np.float16, "fp32": np.float32}[w.name])
        atoms = lines.astype(np.float64).reshape(layout["panels"], layout["tiles"], 32, 16)  # fp16, fp32: [k][row]
        if w.name == "bf16":  # [k / 2][row][k % 2]
            atoms = atoms.reshape(layout["panels"], layout["tiles"], 16, 16, 2).transpose(0, 1, 2, 4, 3)
            atoms = atoms.reshape(layout["panels"], layout["tiles"], 32, 16)
        values = atoms.transpose(0, 3, 1, 2).reshape(layout["panels"], 16, -1)
    else:
        codes, scales, minima = _atoms(w)
        if f["codes"] == 1:
            book = CODEBOOKS[w.name]
            if compute == "int8" and w.name in INT8_UNIT:
                book = np.rint(book * INT8_UNIT[w.name]) / INT8_UNIT[w.name]
            values = book[codes]
        else:
            values = codes - f["offset"]
        with np.errstate(invalid="ignore"):
            values = values * np.repeat(scales, layout["group_size"], axis=2)
        if minima is not None:
            values = values + np.repeat(minima, layout["group_size"], axis=2)
    return values.reshape(-1, layout["k_padded"])[: w.rows, : w.k] * w.multiplier
