"""One system of compare.py in a process, and for rivals in an environment, of its own: measures when it is told to.

Started by compare.py with the name of a module of engines/ and a number of threads. Each line of standard input is a
request in JSON, answered with a line of JSON; the model stays loaded. What fails is answered with {"error"}.

    {"do": "prepare", "source", "folder", "options"}             -> bits
    {"do": "load", "folder", "options", "vocab_size"}            -> seconds, version
    {"do": "prefill", "tokens", "seed"}                          -> rate (tokens/s), others (share of all CPU time
    {"do": "decode", "batch", "steps", "seed"}                      that other processes took meanwhile)
    {"do": "memory"}                                             -> peak_mb of the process
"""

import json
import os
import random
import re
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

PROMPT = 32  # tokens before the steps that "decode" measures


class CpuOfOthers:
    """Share of all CPU time that other processes took inside the `with`; 0 where there is no /proc."""

    def __enter__(self) -> "CpuOfOthers":
        self._before = self._read()
        return self

    def __exit__(self, *_: object) -> None:
        whole, busy, own = (after - before for after, before in zip(self._read(), self._before, strict=True))
        self.share = max(0.0, (busy - own) / whole) if whole else 0.0

    @staticmethod
    def _read() -> tuple[float, float, float]:
        own = time.process_time()
        if not Path("/proc/stat").exists():
            return 0.0, 0.0, own
        user, nice, system, idle, wait, *rest = map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9])
        ticks = os.sysconf("SC_CLK_TCK")
        busy = (user + nice + system + sum(rest)) / ticks
        return busy + (idle + wait) / ticks, busy, own


class Worker:
    """A system and its model, once it is loaded."""

    def __init__(self, engine: type, threads: int) -> None:
        self._engine = engine
        self._threads = threads
        self._model: Any = None

    def prepare(self, source: str, folder: str, options: dict) -> dict[str, Any]:
        Path(folder).mkdir(parents=True, exist_ok=True)
        return {"bits": self._engine.prepare(Path(source), Path(folder), options)}

    def load(self, folder: str, options: dict, vocab_size: int) -> dict[str, Any]:
        self._vocab_size = vocab_size
        start = time.perf_counter()
        self._model = self._engine(Path(folder), options, self._threads)
        return {"seconds": time.perf_counter() - start, "version": self._model.version}

    def prefill(self, tokens: int, seed: int) -> dict[str, Any]:
        ids = self._prompt(tokens, seed)
        with CpuOfOthers() as cpu:
            start = time.perf_counter()
            self._model.first(ids)
            seconds = time.perf_counter() - start
        return {"rate": tokens / seconds, "others": cpu.share}

    def decode(self, batch: int, steps: int, seed: int) -> dict[str, Any]:
        with CpuOfOthers() as cpu:
            rate = self._model.steps([self._prompt(PROMPT, seed * 64 + row) for row in range(batch)], steps)
        return {"rate": rate, "others": cpu.share}

    def memory(self) -> dict[str, Any]:
        status = Path("/proc/self/status")
        found = re.search(r"VmHWM:\s+(\d+)", status.read_text()) if status.exists() else None
        return {"peak_mb": int(found[1]) * 1024 / 1e6} if found else {"error": "no /proc/self/status"}

    def _prompt(self, tokens: int, seed: int) -> list[int]:
        """Returns random ids; other seeds give other ones from the first on, so no system can reuse what it kept."""
        draw = random.Random(seed)
        return [draw.randrange(self._vocab_size) for _ in range(tokens)]


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not be taken for an answer
    worker = Worker(import_module(f"engines.{sys.argv[1]}").Engine, int(sys.argv[2]))
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("do"))(**request)
        except Exception as error:  # whatever a rival raises is its result
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
