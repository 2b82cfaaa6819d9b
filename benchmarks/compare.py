"""How fast are we beside llama.cpp, OpenVINO GenAI, ONNX Runtime GenAI, torchao and transformers, at equal bits?

Synthetic models of real shapes (make_model.py), converted by each rival's own tools. Every system is a process of its
own (rivals/speed.py), a rival's in an environment of its own; all keep their model loaded and are measured in turn
(A, B, C, A, B, C ...) at equal threads: tokens/s of a prompt up to its first token, tokens/s of greedy steps for one
and for several sequences at once, seconds of loading the converted model from the page cache, and peak memory of the
process. Beside each rival stands lowbit in formats of as many bits; ratios are medians of those of single rounds. Each
round also reads memory as fast as this machine can: what a step reads over that says how near to the limit it is.

    python benchmarks/compare.py --llama-cpp ENV/bin/python --json FILE --table TABLE.md --plot PLOT.svg

An environment needs: llama.cpp: gguf, llama-cpp-python. OpenVINO: openvino-genai, optimum-intel, nncf. ONNX Runtime:
onnxruntime-genai, onnx, onnx-ir, torch, transformers. torchao: torchao, torch, transformers. transformers: torch too.
A rival without one is left out. FILE keeps the samples of every run, so that short ones (--rivals, --shapes,
--measures) add up; --prepare only converts models, and without any environment the table of FILE is made anew.
LOWBIT_ISA=avx2 lowers the tier of lowbit; each tier, number of threads and CPU has tables of its own.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import _common as common
from _compare_report import plot, tables
from _compare_run import ENGINES, Comparison, System, ours, weights_of
from make_model import SHAPES

from lowbit.runtime import Runtime

MEASURES = ("load", "prefill", "decode", "batch")


def _int4(group: int, head: str) -> dict[str, Any]:
    return {"low_bit": "sym_int4", "group_size": group, "head_format": head}


BF16 = {"low_bit": "bf16", "head_format": "bf16"}
INT8 = {"low_bit": "sym_int8", "group_size": 32, "head_format": "sym_int8"}
F32_HINT = {"INFERENCE_PRECISION_HINT": "f32"}
RIVALS = (
    System("llama.cpp Q4_0, head Q8_0", "llama_cpp", {"type": "Q4_0", "head": "Q8_0"}, _int4(32, "sym_int8")),
    System("llama.cpp Q8_0", "llama_cpp", {"type": "Q8_0", "head": None}, INT8),
    System("OpenVINO GenAI int4", "openvino", {"group": 128, "run": {}}, _int4(64, "sym_int8")),
    System("OpenVINO GenAI int4, f32 hint", "openvino", {"group": 128, "run": F32_HINT}, _int4(64, "sym_int8")),
    System("ONNX Runtime GenAI int4", "onnxruntime", {"block": 128}, _int4(64, "sym_int4")),
    System("torchao int4", "torchao", {"group": 128}, _int4(64, "bf16")),
    System("transformers bf16", "transformers", {"group": None}, BF16),
)


def chosen(names: list[str] | None, pythons: dict[str, str]) -> list[System]:
    """Returns the rivals to run, each behind the lowbit of as many bits where that is not there yet."""
    found: dict[str, System] = {}
    for rival in RIVALS:
        if names and not any(name.lower() in rival.name.lower() for name in names):
            continue
        if rival.environment not in pythons:
            option = "--" + rival.environment.replace("_", "-")
            print(f"{rival.name}: left out, no environment given ({option} PYTHON)", file=sys.stderr)
            continue
        assert rival.ours is not None
        mine = ours(rival.ours)
        found.setdefault(mine.name, mine)
        found[rival.name] = rival
    return list(found.values())


def run(args: argparse.Namespace, shape: str, systems: list[System], root: Path) -> dict[str, Any] | None:
    """Returns what a run over one shape measured; None where it only prepares."""
    runtime = Runtime(threads=args.threads).resolve()
    pythons = {name: getattr(args, name) for name in ENGINES if getattr(args, name)}
    comparison = Comparison(shape, root, pythons, runtime.threads, systems)
    comparison.prepare()
    if args.prepare:
        return None
    try:
        comparison.measure(args.measures, args.prompts, args.batch, args.steps, args.rounds)
    finally:
        comparison.close()
    left = {system.name for system in comparison.systems}
    against = {s.name: ours(s.ours).name for s in comparison.systems if s.ours and ours(s.ours).name in left}
    return {
        "machine": common.machine(),
        "tier": runtime.tier,
        "threads": runtime.threads,
        "shape": shape,
        "steps": args.steps,
        "versions": comparison.versions,
        "weights": weights_of(shape),
        "bits": comparison.bits,
        "against": against,
        "samples": comparison.samples,
        "others": comparison.others,
        "reads": comparison.reads,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ENGINES:
        parser.add_argument("--" + name.replace("_", "-"), metavar="PYTHON", help="interpreter of its environment")
    parser.add_argument("--shapes", nargs="+", default=["qwen2-0.5b", "llama-1b"], choices=SHAPES)
    parser.add_argument("--rivals", nargs="+", metavar="WORDS", help="only rivals with one of these in their names")
    parser.add_argument("--measures", nargs="+", default=list(MEASURES), choices=MEASURES)
    parser.add_argument("--prompts", type=int, nargs="+", default=[512], help="lengths for prefill")
    parser.add_argument("--batch", type=int, default=4, help="sequences at once")
    parser.add_argument("--steps", type=int, default=32, help="tokens of each sequence")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--models", type=Path, help="folder that keeps the models between runs (default: temporary)")
    parser.add_argument("--prepare", action="store_true", help="only convert models")
    parser.add_argument("--json", type=Path, help="file of all runs, read first and added to")
    parser.add_argument("--table", type=Path, help="file for the tables (default: standard output)")
    parser.add_argument("--plot", type=Path, help="file for a plot, such as PLOT.svg (needs matplotlib)")
    args = parser.parse_args()

    runs: list[dict[str, Any]] = json.loads(args.json.read_text())["runs"] if args.json and args.json.exists() else []
    systems = chosen(args.rivals, {name: python for name in ENGINES if (python := getattr(args, name))})
    with tempfile.TemporaryDirectory() as scratch:
        for shape in args.shapes if systems else ():
            done = run(args, shape, list(systems), args.models or Path(scratch))
            if done is not None:
                runs.append(done)
                if args.json:
                    args.json.write_text(json.dumps({"benchmark": "compare", "runs": runs}, indent=1) + "\n")
    if args.prepare:
        return
    text = tables(runs)
    if args.table:
        args.table.write_text(text)
    else:
        print(text)
    if args.plot:
        plot(runs, args.plot)


if __name__ == "__main__":
    main()
