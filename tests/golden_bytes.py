"""The golden bytes: one tiny tensor per format, packed by the numpy specification, one cache line per text line.

A changed file in tests/golden/ is a changed layout or a changed rounding: old low-bit folders stop meaning what they
meant. Run this file to write them anew, and raise the layout version of the checkpoint when bytes of existing formats
move.
"""

from pathlib import Path

import numpy as np

from lowbit import reference
from lowbit.formats import FORMATS, Format
from lowbit.packed import LINE

FOLDER = Path(__file__).parent / "golden"
GROUP = 32


def weight() -> np.ndarray:
    """Returns the tensor: 3 rows x 40, so rows, k and groups are padded; exact in every float format."""
    row, k = np.mgrid[0:3, 0:40]
    return (((37 * row + 11 * k) % 64 - 31) / 64).astype(np.float32)


def text(data: bytes) -> str:
    """Returns bytes as hex, 64 bytes a line; a run of equal lines is written once, then "*"."""
    lines = [data[i : i + LINE].hex() for i in range(0, len(data), LINE)]
    out: list[str] = []
    for previous, line in zip([None, *lines], lines, strict=False):
        if line != previous:
            out.append(line)
        elif out[-1] != "*":
            out.append("*")
    return f"{len(lines)} lines\n" + "\n".join(out) + "\n"


def golden(format: Format) -> Path:
    """Returns the golden file of a format."""
    return FOLDER / f"{format.name}.hex"


if __name__ == "__main__":
    for row in FORMATS.values():
        golden(row).write_text(text(reference.quantize(weight(), row, row.group(GROUP))[0]))
