"""lowbit, through its own public names."""

import time
from pathlib import Path

import lowbit
import lowbit.loading
import lowbit.text
from lowbit.packed import PackedTensor
from lowbit.requests import Request

from . import bits

GREEDY = {"temperature": 0, "ignore_eos": True, "speculate": False}


class Engine:
    def __init__(self, folder: Path, options: dict, threads: int) -> None:
        self._model = lowbit.load(str(folder), threads=threads)
        self.version = f"lowbit {lowbit.__version__} ({self._model.runtime.tier})"

    @staticmethod
    def prepare(source: Path, folder: Path, options: dict) -> dict[str, float]:
        model = lowbit.load(str(source), **options)
        model.save_low_bit(str(folder))
        found = {"body": [0, 0], "head": [0, 0]}
        for name, tensor in model.loaded.tensors.items():
            part = "body" if name.startswith("layers.") else "head"
            if isinstance(tensor, PackedTensor) and (part == "body" or "head." in name or model.spec.tied_head):
                found[part][0] += tensor.data.nbytes
                found[part][1] += tensor.shape[0] * tensor.shape[1]
        return bits(found)

    def first(self, ids: list[int]) -> None:
        self._model.generate(ids, max_new_tokens=1, **GREEDY)

    def steps(self, prompts: list[list[int]], count: int) -> float:
        """Rows may enter and leave one by one, so what counts is the time in which all of them run."""
        options = self._model.options(max_new_tokens=1 + count, **GREEDY)
        taken = dict.fromkeys(range(len(prompts)), 0)  # tokens of each row since all run
        begun, start = set(), 0.0
        with self._model.generator.start([Request(ids, options, ()) for ids in prompts]) as batch:
            for event in batch:
                if start:
                    taken[event.row] += 1
                begun.add(event.row)
                if not start and len(begun) == len(prompts):
                    start = time.perf_counter()
                if event.finish_reason is not None:
                    break
            seconds = time.perf_counter() - start
        return len(prompts) * taken[event.row] / seconds
