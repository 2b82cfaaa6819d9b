"""Who keeps more of a model at the same size: we, llama.cpp's Q4_0 and Q4_K_M, or bitsandbytes' nf4?

The models and texts of quality.py. A rival (rivals/quality.py, in an environment of its own) quantises each model its
own way and returns its own logits for the same sequences of ids; perplexity, and the Kullback-Leibler divergence from
the original's predictions, which chance moves far less, are computed alike for all. Against each of a
rival's files we put the settings of the ladder below that take no more bits than it does: the first format for the
layers, with the first format for embedding and head that fits beside it. Nothing is chosen by the measured text.

    python benchmarks/quality_rivals.py --llama-cpp PYTHON --bitsandbytes PYTHON --json FILE

PYTHON: the interpreter of an environment with gguf, llama-cpp-python and safetensors; one with bitsandbytes, torch,
transformers and accelerate. Results are kept in FILE, and what stands there is not computed again.
"""

import argparse
import json
import math
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import _common as common
import numpy as np
from quality import CASES, ROOT
from quality_quantisers import calibration

import lowbit
from lowbit.calibration import Quantiser
from lowbit.eval import divergence
from lowbit.formats import FLOAT, resolve
from lowbit.loading import measure
from lowbit.packed import PackedTensor
from lowbit.perplexity import token_losses

# Layers: (format, group size, format of the last matrix of each MLP), most bits first. fp6 is left out: asym_int5 keeps
# more in fewer bits (the table of formats in README.md).
LAYERS = (
    ("sym_int8", 64, None), ("asym_int5", 32, None), ("sym_int5", 32, None), ("sym_int5", 64, None),
    ("asym_int4", 32, None), ("nf4", 32, "sym_int5"), ("nf4", 32, None), ("nf4", 64, None), ("nf4", 128, None),
)  # fmt: skip
DOWN = {"llama": "down_proj", "gpt2": "mlp.c_proj", "opt": "fc2"}  # family -> what that matrix is called
OUTER = ("fp16", "sym_int8", "asym_int5", "sym_int5", "asym_int4", "sym_int4")  # embedding and head
QUANTISERS: dict[str, Callable[[list], Quantiser]] = {
    "rtn": lambda ids: Quantiser(),
    "gptq": lambda ids: Quantiser("gptq", calibration=ids),
}
# A module of ours -> the GGUF tensors that read the same inputs.
GGUF_NAMES = {
    "llama": {
        "qkv": ("attn_q", "attn_k", "attn_v"),
        "o": ("attn_output",),
        "gate_up": ("ffn_gate", "ffn_up"),
        "down": ("ffn_down",),
    },
    "gpt2": {"qkv": ("attn_qkv",), "o": ("attn_output",), "up": ("ffn_up",), "down": ("ffn_down",)},
}


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

    def bits(self, shapes: dict[str, tuple[int, int]], outer: bool) -> float:
        """Returns stored bits per weight of layers or of what is outside; the last group of a row counts whole."""
        stored = weights = 0
        for name, (rows, k) in shapes.items():
            if name.startswith("layers.") != outer:
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


def setting_within(shapes: dict[str, tuple[int, int]], layers: float, outer: float) -> Setting | None:
    """Returns the first setting of at most so many bits in layers and outside, None where nothing fits."""
    for format, group, down in LAYERS:
        for other in OUTER:
            setting = Setting(format, group, down, other)
            if setting.bits(shapes, False) <= layers + 0.001 and setting.bits(shapes, True) <= outer + 0.001:
                return setting
    return None


def shapes_of(model) -> dict[str, tuple[int, int]]:
    """Returns the shapes of a model's matrices by canonical name, learned positions left out."""
    tensors = model.loaded.tensors.items()
    return {name: t.shape for name, t in tensors if isinstance(t, PackedTensor) and "position" not in name}


def stored_bits(stored: dict[str, list[int]], outer: bool) -> tuple[float, str]:
    """Returns (bits per weight, types with their share of the weights) of a rival's layers or of what is outside."""
    parts = {name.removeprefix("outer "): v for name, v in stored.items() if name.startswith("outer ") == outer}
    total = sum(weights for _, weights in parts.values())
    words = " + ".join(f"{name} {weights / total:.0%}" for name, (_, weights) in sorted(parts.items()))
    return 8 * sum(size for size, _ in parts.values()) / total, words


def run_rival(kind: str, python: str, case, folder: Path, model, sequences: list, ids: list) -> list[dict]:
    """Returns what a rival prints for a model; nothing where it does not run such models."""
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        request = {
            "model": str(folder.resolve()),
            "vocab_size": model.spec.vocab_size,
            "sequences": [[int(i) for i in sequence] for sequence in sequences],
        }
        (work / "request.json").write_text(json.dumps(request))
        np.save(work / "exact.npy", np.concatenate([model.logits(ids) for ids in sequences]))
        names = GGUF_NAMES.get(model.spec.family, {})
        if kind == "llama.cpp" and names:
            arrays = {}
            for name, values in measure(folder, ids)[0].items():
                _, layer, module = name.split(".")
                arrays |= {f"blk.{layer}.{tensor}.weight": values for tensor in names[module]}
            np.savez(work / "imatrix.npz", **arrays)
        script = Path(__file__).parent / "rivals" / "quality.py"
        done = subprocess.run([python, str(script), scratch, kind], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        print(f"{case.name}: {kind} failed (above)", flush=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def until(sequences: Iterable, tokens: int) -> list:
    """Returns the sequences up to the one in which so many predictions are reached, as `perplexity` counts."""
    taken, count = [], 0
    for sequence in sequences:
        if len(sequence) > 1 and count < tokens:
            taken.append(sequence)
            count += len(sequence) - 1
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--llama-cpp", metavar="PYTHON")
    parser.add_argument("--bitsandbytes", metavar="PYTHON")
    parser.add_argument("--models", nargs="+", help="names of cases (default: all)")
    parser.add_argument("--tokens", type=int, default=10_000)
    parser.add_argument("--json", type=Path, required=True, help="file of the figures, read first and added to")
    args = parser.parse_args()

    known: dict[str, dict] = json.loads(args.json.read_text())["cells"] if args.json.exists() else {}

    def cell(key: str, compute: Callable[[], dict]) -> dict:
        if key not in known:
            known[key] = compute()
            args.json.write_text(json.dumps({"machine": common.machine(), "tokens": args.tokens, "cells": known}))
        return known[key]

    pythons = {"llama.cpp": args.llama_cpp, "bitsandbytes": args.bitsandbytes}
    for case in CASES:
        folder = case.folder(args.data)
        if not folder.exists() or (args.models and case.name not in args.models) or "Phi-3" in case.name:
            continue  # the Phi-3 is the same weights once more
        exact = lowbit.load(str(folder), low_bit="fp32")
        ids = calibration(case, args.data, exact)
        sequences = until(case.sequences(args.data, exact), args.tokens)

        def measured(model, exact=exact, sequences=sequences):
            losses, divergences = [], []
            for sequence in sequences:
                logits = model.logits(sequence)[:-1]
                losses.append(token_losses(logits, np.asarray(sequence[1:])))
                divergences.append(divergence(exact.logits(sequence)[:-1], logits))
            return {
                "loss": float(np.concatenate(losses).mean()),
                "divergence": float(np.concatenate(divergences).mean()),
            }

        def ours(setting, quantiser, folder=folder, ids=ids, measured=measured, family=exact.spec.family):
            return measured(lowbit.load(str(folder), quantiser=QUANTISERS[quantiser](ids), **setting.options(family)))

        fp32 = cell(f"{case.name}|fp32", lambda m=measured, e=exact: m(e))
        print(f"\n{case.name}, fp32 {math.exp(fp32['loss']):.4g}\n")
        print("| rival | bits | types | quality | ours | bits | " + " | ".join(QUANTISERS) + " |")
        print("|---|--:|---|--:|---|--:|" + "--:|" * len(QUANTISERS), flush=True)
        for kind, python in pythons.items():
            key = f"{case.name}|{kind}"
            if python is None and key not in known:
                continue
            results = cell(
                key, lambda k=kind, p=python, c=case, f=folder, m=exact, s=sequences, i=ids: {
                    "results": run_rival(k, p, c, f, m, s, i)
                },
            )["results"]  # fmt: skip
            for result in results:
                row_of(case, kind, result, exact, lambda key, compute, ours=ours: cell(key, lambda: ours(*compute)))


def words(figures: dict, beside: dict | None = None) -> str:
    """Returns perplexity and divergence; in italics what is worse than the figures beside it."""
    text = [f"{math.exp(figures['loss']):.4g}", f"{figures['divergence']:.4f}"]
    for i, name in enumerate(("loss", "divergence")):
        if beside is not None and figures[name] > beside[name]:
            text[i] = f"*{text[i]}*"
    return " / ".join(text)


def row_of(case, kind: str, result: dict, model, cell: Callable[[str, tuple], dict]) -> None:
    """Prints a rival's row with our perplexities at its size."""
    (layers, inner), (outer, outside) = (stored_bits(result["stored"], is_outer) for is_outer in (False, True))
    cells = [f"{kind} {result['kind']}", f"{layers:.2f} / {outer:.2f}", f"{inner} / {outside}"]
    cells.append(words(result))
    shapes = shapes_of(model)
    setting = setting_within(shapes, layers, outer) if result["kind"] != "F32" else None
    if setting is None:
        print("| " + " | ".join([*cells, "", "", *([""] * len(QUANTISERS))]) + " |", flush=True)
        return
    cells += [str(setting), f"{setting.bits(shapes, False):.2f} / {setting.bits(shapes, True):.2f}"]
    for quantiser in QUANTISERS:
        cells.append(words(cell("|".join((case.name, str(setting), quantiser)), (setting, quantiser)), result))
    print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
