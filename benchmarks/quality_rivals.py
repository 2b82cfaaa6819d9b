"""Who keeps more of a model at the same size: we, llama.cpp's Q4_0 and Q4_K_M, or bitsandbytes' nf4?

The models and texts of quality.py. A rival (rivals/quality.py, in an environment of its own) quantises each model its
own way and returns its own logits for the same sequences of ids; perplexity, and the Kullback-Leibler divergence from
the original's predictions, which chance moves far less, are computed alike for all. Against each of a
rival's files we put the settings of _rival_settings.py that take no more bits than it does: nothing is chosen by the
measured text. Differences are paired by token, with their standard errors (_paired.py).

    python benchmarks/quality_rivals.py --llama-cpp PYTHON --bitsandbytes PYTHON --json FILE

PYTHON: the interpreter of an environment with gguf, llama-cpp-python and safetensors; one with bitsandbytes, torch,
transformers and accelerate. Results are kept in FILE, and what stands there is not computed again. FILE has the sums of
each sequence, and under "comparisons" each difference with its standard error.
"""

import argparse
import json
import math
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path

import _common as common
import numpy as np
from _paired import Difference, Sums, paired
from _rival_settings import Setting, settings_within, shapes_of, stored_bits
from quality import CASES, ROOT, Case
from quality_quantisers import calibration

import lowbit
from lowbit.calibration import Quantiser
from lowbit.eval import divergence
from lowbit.loading import measure
from lowbit.perplexity import token_losses

FIGURES = ("loss", "divergence")
Figures = dict[str, list[float]]  # of FIGURES: sums over each sequence
QUANTISERS: dict[str, Callable[[list], Quantiser]] = {
    "rtn": lambda ids: Quantiser(),
    "importance": lambda ids: Quantiser(calibration=ids),
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


class Text:
    """The sequences a case is measured on, with the original's logits for them in a file once they are asked for."""

    def __init__(self, sequences: list, exact, folder: Path) -> None:
        self.sequences = [[int(i) for i in sequence] for sequence in sequences]
        self.counts = np.array([len(sequence) - 1 for sequence in sequences])
        self._exact, self._folder = exact, folder

    @cached_property
    def logits(self) -> Path:
        """The file: float32 [ids of all sequences, vocabulary], as numpy saves it."""
        file = self._folder / "exact.npy"
        shape = (sum(map(len, self.sequences)), self._exact.spec.vocab_size)
        logits = np.lib.format.open_memmap(file, "w+", np.float32, shape)
        for sequence, rows in self._rows(logits):
            rows[:] = self._exact.logits(sequence)
        logits.flush()
        return file

    def _rows(self, logits: np.ndarray) -> Iterator[tuple[list[int], np.ndarray]]:
        at = 0
        for sequence in self.sequences:
            yield sequence, logits[at : at + len(sequence)]
            at += len(sequence)

    def measured(self, model) -> Figures:
        """Returns the sums of loss and of divergence from the original's predictions over each sequence."""
        found: Figures = {name: [] for name in FIGURES}
        for sequence, true in self._rows(np.load(self.logits, mmap_mode="r")):
            logits = model.logits(sequence)[:-1]
            found["loss"].append(float(token_losses(logits, np.asarray(sequence[1:])).sum()))
            found["divergence"].append(float(divergence(true[:-1], logits).sum()))
        return found

    def sums(self, figures: Figures, name: str) -> Sums:
        """Returns one of the figures."""
        return Sums(np.array(figures[name]), self.counts)


def run_rival(kind: str, python: str, case: Case, folder: Path, model, text: Text, ids: list) -> list[dict]:
    """Returns what a rival prints for a model; nothing where it does not run such models."""
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        request = {
            "model": str(folder.resolve()),
            "vocab_size": model.spec.vocab_size,
            "sequences": text.sequences,
        }
        (work / "request.json").write_text(json.dumps(request))
        (work / "exact.npy").symlink_to(text.logits)
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


class Cells:
    """What was computed so far, by name, kept in a file."""

    def __init__(self, file: Path, tokens: int) -> None:
        self.file, self.tokens, self.comparisons = file, tokens, []
        kept = json.loads(file.read_text()) if file.exists() else {"tokens": tokens, "cells": {}}
        if kept["tokens"] != tokens:
            raise SystemExit(
                f"{file} has figures of {kept['tokens']} tokens; give --tokens {kept['tokens']} or a new file"
            )
        self.known: dict[str, dict] = kept["cells"]

    def get(self, key: str, compute: Callable[[], dict]) -> dict:
        if key not in self.known:
            self.known[key] = compute()
            self.write()
        return self.known[key]

    def compare(self, row: dict, differences: dict[str, Difference]) -> None:
        """Notes the differences of a cell of the table."""
        found = {n: {"difference": d.value, "standard_error": d.error} for n, d in differences.items()}
        self.comparisons.append(row | found)

    def write(self) -> None:
        """Writes the file."""
        result = {"machine": common.machine(), "tokens": self.tokens, "comparisons": self.comparisons}
        self.file.write_text(json.dumps(result | {"cells": self.known}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--llama-cpp", metavar="PYTHON")
    parser.add_argument("--bitsandbytes", metavar="PYTHON")
    parser.add_argument("--models", nargs="+", help="names of cases (default: all)")
    parser.add_argument("--tokens", type=int, default=10**9, help="at most (default: all of each text)")
    parser.add_argument("--threads", type=int, help="of ours (default: all cores); rivals have one")
    parser.add_argument("--json", type=Path, required=True, help="file of the figures, read first and added to")
    args = parser.parse_args()

    cells = Cells(args.json, args.tokens)
    for case in CASES:
        folder = case.folder(args.data)
        if not folder.exists() or (args.models and case.name not in args.models) or "Phi-3" in case.name:
            continue  # the Phi-3 is the same weights once more
        with tempfile.TemporaryDirectory() as scratch:
            compare(case, folder, Path(scratch), args, cells)
    cells.write()
    print(f"\n{summary(cells.comparisons)}")


def compare(case: Case, folder: Path, scratch: Path, args: argparse.Namespace, cells: Cells) -> None:
    """Prints the table of a case."""
    exact = lowbit.load(str(folder), low_bit="fp32", threads=args.threads)
    ids = calibration(case, args.data, exact)
    text = Text(until(case.sequences(args.data, exact), args.tokens), exact, scratch)

    def ours(setting: Setting, quantiser: str) -> Figures:
        options = setting.options(exact.spec.family) | {"threads": args.threads}
        return text.measured(lowbit.load(str(folder), quantiser=QUANTISERS[quantiser](ids), **options))

    fp32 = text.sums(cells.get(f"{case.name}|fp32", lambda: text.measured(exact)), "loss").mean
    size = f"{text.counts.sum():,} tokens in {len(text.counts)} sequences"
    print(f"\n**{case.name}, fp32 {math.exp(fp32):#.4g}, {size}**\n")
    print("| rival | bits | quality | ours | bits | " + " | ".join(QUANTISERS) + " |")
    print("|---|--:|--:|---|--:|" + "--:|" * len(QUANTISERS), flush=True)
    for kind, python in (("llama.cpp", args.llama_cpp), ("bitsandbytes", args.bitsandbytes)):
        key = f"{case.name}|{kind}"
        if python is None and key not in cells.known:
            continue

        def results(kind=kind, python=python) -> dict:
            return {"results": run_rival(kind, python, case, folder, exact, text, ids)}

        found = cells.get(key, results)["results"]
        if not found:
            print(f"| {kind} | | does not run it |" + " |" * (2 + len(QUANTISERS)), flush=True)
        for result in found:
            for line in rows(case, result, exact, text, ours, cells):
                print(f"| {line} |", flush=True)


def bits(*of: float) -> str:
    """Returns bits per weight of layers, of embedding and head, and of all."""
    return " / ".join(f"{x:.2f}" for x in of)


def quality(text: Text, figures: Figures) -> str:
    """Returns perplexity and divergence in thousandths."""
    loss, away = (text.sums(figures, name).mean for name in FIGURES)
    return f"{math.exp(loss):#.4g} / {1000 * away:.2f}"


def rows(case: Case, result: dict, exact, text: Text, ours: Callable[[Setting, str], Figures], cells: Cells):
    """Yields the rows of a rival's file: for each of our settings beside it one."""
    parts = [stored_bits(result["stored"], which) for which in (False, True, None)]
    sizes, shapes = [size for size, _ in parts], shapes_of(exact)
    theirs = [f"{result['rival']} {result['kind']}: {parts[0][1]} / {parts[1][1]}", bits(*sizes)]
    theirs.append(quality(text, result["sums"]))
    settings = settings_within(shapes, *sizes) if result["kind"] != "F32" else []
    for setting in settings:
        line = [str(setting), bits(*(setting.bits(shapes, which) for which in (False, True, None)))]
        for name in QUANTISERS:
            figures = cells.get(f"{case.name}|{setting}|{name}", lambda s=setting, n=name: ours(s, n))
            found = {f: paired(text.sums(figures, f), text.sums(result["sums"], f)) for f in FIGURES}
            line.append(f"{quality(text, figures)}<br>{found['loss']} / {found['divergence']}")
            row = {"model": case.name, "rival": f"{result['rival']} {result['kind']}", "ours": str(setting)}
            cells.compare(row | {"quantiser": name}, found)
        yield " | ".join([*theirs, *line])
        theirs = [""] * len(theirs)
    if not settings:
        yield " | ".join([*theirs, *([""] * (2 + len(QUANTISERS)))])


def summary(comparisons: list[dict]) -> str:
    """Returns how many comparisons are better and worse by more than two standard errors, by quantiser and figure."""
    lines = [
        "| ours | figure | comparisons | better | within two standard errors | worse |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for quantiser in QUANTISERS:
        for figure in FIGURES:
            found = [c[figure] for c in comparisons if c["quantiser"] == quantiser]
            differences = [Difference(x["difference"], x["standard_error"]) for x in found]
            better, worse = sum(d.better for d in differences), sum(d.worse for d in differences)
            counts = (len(found), better, len(found) - better - worse, worse)
            lines.append(f"| {quantiser} | {figure} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
