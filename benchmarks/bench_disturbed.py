"""How much does another process slow decoding, and what does a loaded model cost when it is idle?

Tokens/s of single steps alone and beside a process pinned to one of the allowed CPUs, in turn, and their ratio in
percent. That process never rests (busy), never rests and has a low priority (low), or works and rests for 30 ms in
turn (comes). A fair scheduler gives a busy one half of its CPU: "in proportion" is what is left for us. Then the CPU
time that the process uses in a second of doing nothing.

    python benchmarks/bench_disturbed.py --shapes qwen2-0.5b --rounds 21
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import _common as common
import numpy as np

SECONDS = 0.3  # of steps per sample: many turns of the scheduler
CONTEXT = 512


OTHERS = {  # what the other process does, once it says that it is there
    "busy": "print(flush=True)\nwhile True: pass",
    "low": "os.nice(15); print(flush=True)\nwhile True: pass",
    "comes": """print(flush=True)
while True:
    end = time.perf_counter() + 0.03
    while time.perf_counter() < end: pass
    time.sleep(0.03)""",
}


@contextmanager
def other_process(cpu: int, code: str) -> Iterator[None]:
    """Has a process run `code` on one CPU meanwhile."""
    code = f"import os, time; os.sched_setaffinity(0, {{{cpu}}}); {code}"
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        other.stdout.readline()
        yield
    finally:
        other.kill()
        other.communicate()


def steps_per_second(model: Any) -> float:
    """Returns the rate of bare passes over one token."""
    engine = model.generator.engine
    cache = engine.new_cache(engine.capacity(CONTEXT))
    token = int(engine.forward([(cache, np.arange(300, 316, dtype=np.int32), False)])[0].argmax())
    count, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < SECONDS and count < CONTEXT - 16:
        token = int(engine.forward([(cache, np.array([token], np.int32), False)])[0].argmax())
        count += 1
    return count / spent


def idle_cpu_ms() -> float:
    """Returns the milliseconds of CPU time that this process uses in a second of sleep."""
    time.sleep(0.1)  # waiting threads spin for a moment before they sleep
    before = time.process_time()
    time.sleep(1)
    return (time.process_time() - before) * 1e3


def main() -> None:
    arguments = common.model_parser(__doc__, rounds=11).parse_args()
    allowed = sorted(os.sched_getaffinity(0))
    rows = []
    for shape, model in common.models_of(arguments):
        cpus = min(len(allowed), model.runtime.threads)

        def beside(other: str, model: Any = model) -> float:
            with other_process(allowed[-1], OTHERS[other]):
                return steps_per_second(model)

        ways: dict[str, Any] = {"alone": lambda m=model: steps_per_second(m)}
        ways |= {other: lambda o=other: beside(o) for other in OTHERS}
        samples = common.interleave(ways, arguments.rounds)
        rows.append(
            {
                "shape": shape,
                "threads": model.runtime.threads,
                **{f"{name}_tok_s": round(common.median(values), 1) for name, values in samples.items()},
                **{
                    f"{other}_percent": round(100 * common.ratio(samples[other], samples["alone"]), 1)
                    for other in OTHERS
                },
                "in_proportion": round(100 * (cpus - 0.5) / cpus, 1) if cpus == len(allowed) else 100.0,
                "idle_cpu_ms": round(idle_cpu_ms(), 2),
            }
        )
    common.report("disturbed", rows, arguments.json)


if __name__ == "__main__":
    main()
