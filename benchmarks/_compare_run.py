"""What compare.py runs: systems, each as a process that answers requests, and the order in which they are asked."""

from __future__ import annotations

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
from make_model import SHAPES, make_model, tensor_shapes

import lowbit
from lowbit.runtime import pool

# environment's option -> module of rivals/engines/ that it runs
ENGINES = {
    "llama_cpp": "llama",
    "openvino": "openvino_pipeline",
    "onnxruntime": "onnxruntime_generator",
    "torchao": "torch_model",
    "transformers": "torch_model",
}
PAUSE = 0.2  # seconds before a system's turn: threads of the one before spin for a while after its last call
WARM_UP = {"tokens": 512, "steps": 8}  # at most so much of each measure, and then the peak of memory is read
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
        return "-".join([self.engine, *(str(value) for value in convert.values() if value is not None)])


def ours(options: dict[str, Any]) -> System:
    """Returns lowbit with these options of lowbit.load."""
    group = f" {options['group_size']}" if "group_size" in options else ""
    return System(f"{options['low_bit']}{group} / {options['head_format']}", "", options)


class Worker:
    """A process that measures one system when it is told to."""

    def __init__(self, python: str, engine: str, threads: int) -> None:
        script = Path(__file__).parent / "rivals" / "speed.py"
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
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
                self._rate(system, None, do, **{name: min(v, WARM_UP.get(name, v)) for name, v in arguments.items()})
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
