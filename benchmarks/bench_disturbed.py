"""How much does another process slow decoding, and what does a loaded model cost when it is idle?

Tokens/s of single steps alone and beside a process pinned to one of the allowed CPUs that never rests, in turn, and
their ratio in percent. A fair scheduler gives that process half of its CPU: "in proportion" is what is left for us.
Then the CPU time that the process uses in a second of doing nothing.

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


@contextmanager
def busy_process(cpu: int) -> Iterator[None]:
    """Keeps a process busy on one CPU meanwhile."""
    code = f"import os; os.sched_setaffinity(0, {{{cpu}}}); print(flush=True)\nwhile True: pass"
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

        def beside(model: Any = model) -> float:
            with busy_process(allowed[-1]):
                return steps_per_second(model)

        samples = common.interleave({"alone": lambda m=model: steps_per_second(m), "beside": beside}, arguments.rounds)
        rows.append(
            {
                "shape": shape,
                "threads": model.runtime.threads,
                **{f"{name}_tok_s": round(common.median(values), 1) for name, values in samples.items()},
                "beside_percent": round(100 * common.ratio(samples["beside"], samples["alone"]), 1),
                "in_proportion": round(100 * (cpus - 0.5) / cpus, 1) if cpus == len(allowed) else 100.0,
                "idle_cpu_ms": round(idle_cpu_ms(), 2),
            }
        )
    common.report("disturbed", rows, arguments.json)


if __name__ == "__main__":
    main()
