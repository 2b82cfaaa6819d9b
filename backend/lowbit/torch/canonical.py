"""A native model's canonical tensors back in the modules of its transformers class, over the same memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from lowbit.checkpoint import LoadedModel
from lowbit.formats import FLOAT
from lowbit.models._spec import ModelSpec, Recipe
from lowbit.packed import PANEL_ROWS, PackedTensor
from lowbit.torch import graph
from lowbit.torch.modules import LowBitEmbedding
from lowbit.torch.optimize import Conversion, replace_module


def fill_canonical(
    model: nn.Module, loaded: LoadedModel, conversion: Conversion, path: Path
) -> dict[str, torch.Tensor]:
    """Puts low-bit modules over a folder's canonical tensors in place; returns the parameters by name.

    Raises ValueError where the model's class is not the one of the folder or its modules are no parts of the tensors.
    """
    assert isinstance(loaded.spec, ModelSpec)
    try:
        family = graph.describe(model)
        graph.check_joinable(model, family, lambda name: None)
    except graph.NotNative as reason:
        raise ValueError(f"{path} holds a {loaded.spec.family} model for lowbit.load; as modules: {reason}") from None
    values: dict[str, torch.Tensor] = {}
    for recipe in family.recipes:
        name = "embedding.weight" if loaded.spec.tied_head and recipe.name == "head.weight" else recipe.name
        if name not in loaded.tensors:
            raise ValueError(f"{path} lacks {name}, which a {type(model).__name__} has")
        tensor = loaded.tensors[name]
        if isinstance(tensor, np.ndarray):
            values.update(_parameters(model, recipe, tensor))
        elif recipe.kind in ("matrix", "head"):
            values.update(_linear(model, recipe, tensor, conversion))
        else:
            values.update(_table(model, recipe, tensor))
    for recipe in family.recipes:  # biases of packed layers: their modules are in place now
        for part in recipe.parts:
            owner, _, key = part.source.rpartition(".")
            module = model.get_submodule(owner)
            if key == "bias" and isinstance(module, graph.LowBitLinear):
                module._take_bias(values.pop(part.source))
    return values


def _linear(model: nn.Module, recipe: Recipe, packed: PackedTensor, conversion: Conversion) -> dict[str, torch.Tensor]:
    old = graph.modules_of(model, recipe)
    layers = graph.split(packed, [graph._rows(module) for module in old], recipe.interleave)
    kept: dict[str, torch.Tensor] = {}
    for part, before, after in zip(recipe.parts, old, layers, strict=True):
        name = part.source.rpartition(".")[0]
        after.dtype = before.weight.dtype  # type: ignore[assignment]
        after.compute, after.tier, after.threads = conversion.settings.values()
        if packed.format.codes == FLOAT and any(key in name for key in conversion.kept):
            values = after.dequantize()
            kept[part.source] = values.t().contiguous() if graph.is_conv1d(before) else values
        else:
            replace_module(model, before, after)
    return kept


def _table(model: nn.Module, recipe: Recipe, packed: PackedTensor) -> dict[str, torch.Tensor]:
    (old,) = graph.modules_of(model, recipe)
    dtype = old.weight.dtype
    table = LowBitEmbedding.from_packed(packed, padding_idx=getattr(old, "padding_idx", None), dtype=dtype)  # type: ignore[arg-type]
    if type(old) is nn.Embedding and old is model.get_input_embeddings():  # type: ignore[operator]
        replace_module(model, old, table)
        return {}
    return {recipe.parts[0].source: table.dequantize()}


def _parameters(model: nn.Module, recipe: Recipe, vector: np.ndarray) -> dict[str, torch.Tensor]:
    """Returns the parameters that were joined to a vector, each in its own dtype."""
    old = [_parameter(model, part.source) for part in recipe.parts]
    if recipe.interleave:
        halves = vector.reshape(-1, 2, PANEL_ROWS).transpose(1, 0, 2).reshape(2, -1)
        half = sum(p.shape[0] for p in old) // 2
        vector = np.concatenate([halves[0][:half], halves[1][:half]])
    values, start = {}, 0
    for part, parameter in zip(recipe.parts, old, strict=True):
        stop = start + parameter.shape[0]
        values[part.source] = torch.from_numpy(np.array(vector[start:stop])).to(parameter.dtype)
        start = stop
    return values


def _parameter(model: nn.Module, name: str) -> torch.Tensor:
    """Returns a parameter of the float model; a layer that was replaced had its bias in its weight's dtype and rows."""
    owner, _, key = name.rpartition(".")
    module = model.get_submodule(owner)
    found = module._parameters.get(key)
    if found is None and isinstance(module, graph.LowBitLinear):
        return torch.empty(module.rows, dtype=module.dtype, device="meta")
    if found is None:
        raise ValueError(f"a {type(model).__name__} has no parameter {name}")
    return found
