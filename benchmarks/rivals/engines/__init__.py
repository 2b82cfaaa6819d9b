"""What compare.py measures: one module per system, each with a class `Engine` of the same five methods.

`prepare(source, folder, options)` (static) converts a Hugging Face folder and returns bits per weight of body and head;
the constructor loads what it wrote, which is what load seconds mean; `version` says what runs; `first(ids)` computes
a prompt and chooses a token greedily; `steps(prompts, count)` computes prompts together, then returns tokens/s of about
`count` greedy steps over all of them, prompts not counted. Modules import their system when they are imported, so
that importing is not part of loading.
"""

import time
from collections.abc import Callable


def bits(matrices: dict[str, list[int]]) -> dict[str, float]:
    """Returns bits per weight by part ("body", "head") of [bytes, weights]."""
    return {part: 8 * size / weights for part, (size, weights) in matrices.items()}


def rate_beyond(run: Callable[[list, int], None], prompts: list[list[int]], count: int) -> float:
    """Returns tokens/s of steps where prompt and steps are one call: that of 1 + count tokens less that of one.

    The two calls have other prompts, so that nothing kept of one serves the other.
    """
    start = time.perf_counter()
    run([ids[::-1] for ids in prompts], 1)
    first = time.perf_counter() - start
    start = time.perf_counter()
    run(prompts, 1 + count)
    return len(prompts) * count / (time.perf_counter() - start - first)
