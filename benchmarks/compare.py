"""How fast are we beside llama.cpp, OpenVINO GenAI, ONNX Runtime GenAI, torchao and transformers, at equal bits?

Synthetic models of real shapes (make_model.py), converted by each rival's own tools. Every system is a process of its
own (rivals/speed.py), a rival's in an environment of its own; all keep their model loaded and are measured in turn
(A, B, C, A, B, C ...) at equal threads: tokens/s of a prompt up to its first token, tokens/s of greedy steps for one
and for several sequences at once, seconds of loading the converted model from the page cache, and peak memory of the
process. Beside each rival stands lowbit in formats of as many bits; ratios are medians of those of single rounds. Each
round also reads memory as fast as this machine can: what a step reads over that says how near to the limit it is.

    python benchmarks/compare.py --llama-cpp ENV/bin/python --json FILE --table TABLE.md --plot PLOT.svg

An environment needs: llama.cpp: gguf, llama-cpp-python. OpenVINO: openvino-genai, optimum-intel, nncf. ONNX Runtime:
onnxruntime-genai, onnx, onnx-ir, torch, transformers. torchao: torchao, torch, transformers. transformers: torch.
A rival without one is left out. FILE keeps the samples of every run, so that short ones (--rivals, --shapes,
--measures) add up; --prepare only converts models, and without any environment the table of FILE is made anew.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _common as common
from _compare_report import plot, tables
from make_model import SHAPES, make_model, tensor_shapes

import lowbit
from lowbit.runtime import Runtime, pool

# environment's option -> module of rivals/engines/ that it runs
ENGINES = {
    "llama_cpp": "llama",
    "openvino": "openvino_pipeline",
    "onnxruntime": "onnxruntime_generator",
    "torchao": "torch_model",
    "transformers": "torch_model",
}
MEASURES = ("load", "prefill", "decode", "batch")
PAUSE = 0.2  # seconds before a system's turn: threads of the one before spin for a while after its last call
READ_BYTES = 512 << 20  # of the bandwidth reference: far more than any cache


@dataclass(frozen=True)
class System:
    """A row of the table: what runs, on which converted model, and which formats of ours have as many bits."""

    name: str
    environment: str  # a key of ENGINES, or "" for lowbit
    options: dict[str, Any]
    ours: dict[str, Any] | None = None  # options of lowbit.load

    @property
    def engine(self) -> str:
        return ENGINES.get(self.environment, "ours")

    @property
    def folder(self) -> str:
        """The converted model's folder below the shape's; systems that differ in settings of a run alone share it."""
        convert = {key: value for key, value in self.options.items() if key != "run"}
        words = "-".join(str(value) for value in convert.values() if value is not None)
        return f"{self.engine}-{words}"


def ours(options: dict[str, Any]) -> System:
    """Returns lowbit with these options of lowbit.load."""
    group = f" {options['group_size']}" if "group_size" in options else ""
    return System(f"{options['low_bit']}{group} / {options['head_format']}", "", options)


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


class Worker:
    """A process that measures one system when it is told to."""

    def __init__(self, python: str, engine: str, threads: int) -> None:
        script = Path(__file__).parent / "rivals" / "speed.py"
        environment = dict(os.environ)
        if engine == "ours":
            environment["PYTHONPATH"] = str(Path(lowbit.__file__).parents[1])
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [python, str(script), engine, str(threads)], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
        )  # fmt: skip

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Returns the answer; {"error": ...} where the system failed or died."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError):
            code = self._process.wait()
            self._errors.seek(0)
            last = self._errors.read().strip().splitlines()[-1:]
            return {"error": f"ended with {code}: {' '.join(last)}"}

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._errors.close()


class Comparison:
    """The systems of one shape, and what was measured of them. A system that fails is left out, with its error."""

    def __init__(self, shape: str, root: Path, pythons: dict[str, str], threads: int, systems: list[System]) -> None:
        self.shape = shape
        self.systems = systems
        self.bits: dict[str, dict[str, float]] = {}
        self.versions: dict[str, str] = {}
        self.samples: dict[str, dict[str, list[float]]] = {system.name: {} for system in systems}
        self.others: list[float] = []
        self.reads: list[float] = []  # GB/s of a plain reader, one per round
        self._root, self._pythons, self._threads = root, pythons, threads
        self._workers: dict[str, Worker] = {}
        self._seed = 0

    def prepare(self) -> None:
        """Converts what has not been converted; bits.json is written last."""
        source = self._root / self.shape
        for system in list(self.systems):
            done = self._folder(system) / "bits.json"
            if not done.exists():
                if not (source / "config.json").exists():
                    make_model(self.shape, source)
                worker = self._start(system)
                folders = {"source": str(source.resolve()), "folder": str(done.parent)}
                answer = worker.ask("prepare", options=system.options, **folders)
                worker.close()
                if "error" in answer:
                    self._leave_out(system, answer["error"])
                    continue
                done.write_text(json.dumps(answer["bits"]))
            self.bits[system.name] = json.loads(done.read_text())

    def measure(self, measures: list[str], prompts: list[int], batch: int, steps: int, rounds: int) -> None:
        """Samples the systems in turn. The first load and a short first round do not count."""
        for i in range(1 + rounds if "load" in measures else 1):
            for system in list(self.systems):
                self._load(system, counted=i > 0)
        parts: list[tuple[str, str, dict[str, int]]] = []
        if "prefill" in measures:
            parts += [(f"prefill {tokens}", "prefill", {"tokens": tokens}) for tokens in prompts]
        parts += [("decode", "decode", {"batch": 1, "steps": steps})] * ("decode" in measures)
        parts += [(f"decode x {batch}", "decode", {"batch": batch, "steps": steps})] * ("batch" in measures)
        for system in list(self.systems):
            for _, do, arguments in parts:
                self._rate(system, None, do, **{k: min(v, 8) if k == "steps" else v for k, v in arguments.items()})
            if parts and system in self.systems:
                self._note(system, "memory", self._workers[system.name].ask("memory"), "peak_mb")
        _, read = common.reader(pool(self._threads), common.buffer(READ_BYTES))
        for i in range(rounds):
            time.sleep(PAUSE)
            self.reads.append(common.median([read() for _ in range(5)]))
            for system in list(self.systems):
                time.sleep(PAUSE)
                for name, do, arguments in parts:
                    self._rate(system, name, do, **arguments)
            print(f"{self.shape}: round {i + 1} of {rounds}", file=sys.stderr, flush=True)

    def close(self) -> None:
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()

    def _folder(self, system: System) -> Path:
        return (self._root / f"{self.shape}-{system.folder}").resolve()

    def _start(self, system: System) -> Worker:
        return Worker(self._pythons.get(system.environment, sys.executable), system.engine, self._threads)

    def _load(self, system: System, counted: bool) -> None:
        if system.name in self._workers:
            self._workers.pop(system.name).close()
        worker = self._workers[system.name] = self._start(system)
        vocab = SHAPES[self.shape]["vocab_size"]
        answer = worker.ask("load", folder=str(self._folder(system)), options=system.options, vocab_size=vocab)
        self._note(system, "load" if counted else None, answer, "seconds")
        if "version" in answer:
            self.versions[system.name] = answer["version"]

    def _rate(self, system: System, name: str | None, do: str, **arguments: int) -> None:
        if system in self.systems:
            self._seed += 1
            answer = self._workers[system.name].ask(do, seed=self._seed, **arguments)
            self._note(system, name, answer, "rate")
            if name and "others" in answer:
                self.others.append(answer["others"])

    def _note(self, system: System, name: str | None, answer: dict[str, Any], key: str) -> None:
        """Keeps a sample under a name (None: it does not count)."""
        if "error" in answer:
            self._leave_out(system, answer["error"])
        elif name:
            self.samples[system.name].setdefault(name, []).append(answer[key])

    def _leave_out(self, system: System, error: str) -> None:
        print(f"{self.shape}, {system.name}: left out: {error}", file=sys.stderr, flush=True)
        self.systems.remove(system)
        self.samples[system.name] = {}
        if system.name in self._workers:
            self._workers.pop(system.name).close()


def weights_of(shape: str) -> dict[str, int]:
    """Returns how many weights the layers' matrices and the head have; a step reads all of them."""
    config = SHAPES[shape]
    layers = [s for name, s in tensor_shapes(config).items() if ".layers." in name and len(s) == 2]
    return {"body": sum(rows * k for rows, k in layers), "head": config["vocab_size"] * config["hidden_size"]}


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
