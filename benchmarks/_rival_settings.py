"""How ours are stored beside a rival of quality_rivals.py: a ladder of settings, their bits, and which is chosen."""

import math
from dataclasses import dataclass

from lowbit.formats import FLOAT, resolve
from lowbit.packed import PackedTensor

# Layers: (format, group size, format of the last matrix of each MLP), most bits first. fp6 is left out: asym_int5 keeps
# more in fewer bits (the table of formats in README.md).
LAYERS = (
    ("sym_int8", 64, None), ("asym_int5", 32, None), ("sym_int5", 32, None), ("sym_int5", 64, None),
    ("asym_int4", 32, None), ("nf4", 32, "sym_int5"), ("nf4", 32, None), ("nf4", 64, None), ("nf4", 128, None),
)  # fmt: skip
# Against a whole file one step more, added because it was nearer to the original than nf4 in groups of 32 at as many
# bits: the embedded model on text of a seed of its own.
FILE_LAYERS = (*LAYERS[:6], ("nf4", 64, "sym_int5"), *LAYERS[6:])
DOWN = {"llama": "down_proj", "gpt2": "mlp.c_proj", "opt": "fc2"}  # family -> what that matrix is called
OUTER = ("fp16", "sym_int8", "asym_int5", "sym_int5", "asym_int4", "sym_int4")  # embedding and head
SLACK = 0.001  # bits per weight by which a rival's own rounding of sizes may put us above it

Shapes = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Setting:
    """How a model of ours is stored."""

    format: str
    group: int
    down: str | None  # format of the last matrix of each MLP, where it has its own
    outer: str

    def __str__(self) -> str:
        own = f" ({self.down} for down)" if self.down else ""
        return f"{self.format} {self.group}{own} / {self.outer}"

    def of(self, name: str) -> str:
        """Returns the format of a tensor by its canonical name."""
        if not name.startswith("layers."):
            return self.outer
        return self.down if self.down and name.endswith(".down.weight") else self.format

    def bits(self, shapes: Shapes, outer: bool | None = None) -> float:
        """Returns stored bits per weight of layers (False), of what is outside (True) or of all (None).

        The last group of a row counts whole.
        """
        stored = weights = 0
        for name, (rows, k) in shapes.items():
            if outer is None or name.startswith("layers.") != outer:
                row = resolve(self.of(name)).format
                per_group = 0 if row.codes == FLOAT else 16 * (1 + row.has_min)
                stored += rows * (k * row.bits + math.ceil(k / self.group) * per_group)
                weights += rows * k
        return stored / weights

    def options(self, family: str) -> dict:
        """Returns the options of `lowbit.load`."""
        modules = {DOWN[family]: self.down} if self.down else None
        outer = {"head_format": self.outer, "embedding_format": self.outer}
        return {"low_bit": self.format, "group_size": self.group, "module_formats": modules, **outer}


def settings_within(shapes: Shapes, layers: float, outer: float, total: float) -> list[Setting]:
    """Returns our settings beside a rival of so many bits in layers, outside and in all: none to two, without repeats.

    The first setting of LAYERS that takes no more in either place; and the first of FILE_LAYERS that takes no more in
    all, with what is outside in sym_int8, the library's own default, or in the next format of OUTER where nothing fits
    beside it.
    """
    found: list[Setting] = []
    ladder = [Setting(*step, other) for step in LAYERS for other in OUTER]
    both = (s for s in ladder if s.bits(shapes, False) <= layers + SLACK and s.bits(shapes, True) <= outer + SLACK)
    default = OUTER.index("sym_int8")
    fits = (Setting(*step, other) for other in OUTER[default:] for step in FILE_LAYERS)
    for candidates in (both, (s for s in fits if s.bits(shapes) <= total + SLACK)):
        setting = next(iter(candidates), None)
        if setting is not None and setting not in found:
            found.append(setting)
    return found


def shapes_of(model) -> Shapes:
    """Returns the shapes of a model's matrices by canonical name, learned positions left out."""
    tensors = model.loaded.tensors.items()
    return {name: t.shape for name, t in tensors if isinstance(t, PackedTensor) and "position" not in name}


def stored_bits(stored: dict[str, list[int]], outer: bool | None = None) -> tuple[float, str]:
    """Returns (bits per weight, types with their share of the weights) of a rival's layers, of what is outside or of
    all, by type -> [bytes, weights]."""
    parts = {name: v for name, v in stored.items() if outer is None or name.startswith("outer ") == outer}
    total = sum(weights for _, weights in parts.values())
    shares = sorted((name.removeprefix("outer "), weights / total) for name, (_, weights) in parts.items())
    words = shares[0][0] if len(shares) == 1 else " + ".join(f"{name} {share:.0%}" for name, share in shares)
    return 8 * sum(size for size, _ in parts.values()) / total, words
