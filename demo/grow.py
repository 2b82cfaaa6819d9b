"""Deeper models out of trained ones: layers that begin as the identity, put between those that are there.

A new layer is a copy of the one before it whose two output projections are zero, so that at first the model computes
what it did, while queries, keys and gates already mean something (after C. Wu et al., LLaMA Pro, arXiv 2401.02415).
"""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

SILENT = ("o_proj.weight", "down_proj.weight")  # what a layer adds to the stream goes through one of these


def is_matrix(name: str, weight: Tensor) -> bool:
    """True for the weights that Muon trains: the matrices of layers."""
    return weight.ndim == 2 and not name.startswith("embed")


def layer_count(model: dict[str, Tensor]) -> int:
    """The number of layers in a state dict of `llama.Llama`."""
    return 1 + max(int(found[1]) for name in model if (found := re.match(r"layers\.(\d+)\.", name)))


def deepen(state: dict[str, Any], after: Sequence[int]) -> dict[str, Any]:
    """A training state (`train.Training.save`) with one new layer behind each of the layers `after`, counted from 0.

    Old weights keep what their optimizers know of them; new ones have no history. Raises ValueError for a layer that
    is not there or named twice.
    """
    old = state["model"]
    count = layer_count(old)
    if len(set(after)) != len(after) or not set(after) <= set(range(count)):
        raise ValueError(f"layers {list(after)}: name some of 0 to {count - 1}, each once")
    sources = [(n, new) for n in range(count) for new in ((False, True) if n in after else (False,))]
    model = {name: weight for name, weight in old.items() if name.startswith("embed")}
    origin = {name: name for name in model}  # where an old weight was
    for place, (number, new) in enumerate(sources):
        for name, weight in old.items():
            if name.startswith(f"layers.{number}."):
                moved = f"layers.{place}.{name.split('.', 2)[2]}"
                model[moved] = torch.zeros_like(weight) if new and name.endswith(SILENT) else weight.clone()
                if not new:
                    origin[moved] = name
    rest = {name: weight for name, weight in old.items() if name not in model and not name.startswith("layers.")}
    model |= rest
    origin |= {name: name for name in rest}
    optimizers = [
        _reordered(kept, [n for n in old if is_matrix(n, old[n]) == matrices],
                   [n for n in model if is_matrix(n, model[n]) == matrices], origin)
        for kept, matrices in zip(state["optimizers"], (True, False), strict=True)
    ]  # fmt: skip
    return {**state, "model": model, "optimizers": optimizers}


def _reordered(kept: dict[str, Any], before: list[str], now: list[str], origin: dict[str, str]) -> dict[str, Any]:
    """An optimizer's state dict, which counts weights, for other weights."""
    place = {name: number for number, name in enumerate(before)}
    state = {
        i: kept["state"][place[origin[n]]]
        for i, n in enumerate(now)
        if n in origin and place[origin[n]] in kept["state"]
    }
    (group,) = kept["param_groups"]
    return {"state": state, "param_groups": [{**group, "params": list(range(len(now)))}]}
