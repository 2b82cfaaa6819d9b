"""The native decoder's view of a transformers model: its spec, and its canonical tensors over the modules' memory.

A canonical tensor such as qkv is several modules of the model. Their packed weights are parts of one piece of memory,
so the decoder and the modules (which run whatever the decoder cannot) share it. Owns how modules become such parts and
how they are found again; refuses, with NotNative, any model whose graph no family file describes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lowbit import models
from lowbit.checkpoint import LoadedModel
from lowbit.engine import NativeEngine
from lowbit.formats import Choice, resolve
from lowbit.models._spec import Family, ModelSpec, Part, Recipe
from lowbit.ops import to_fp32
from lowbit.packed import LINE, PANEL_ROWS, PackedTensor, layout_of
from lowbit.packed import empty as empty_bytes
from lowbit.quantize import quantize_rows
from lowbit.runtime import Runtime
from lowbit.sources.gather import gather
from lowbit.torch import kernels
from lowbit.torch.modules import FLOATS, LowBitEmbedding, LowBitLinear, is_conv1d

logger = logging.getLogger(__name__)


ERRORS = "_lowbit_activation_errors"  # attribute of a native model: what `precision.measure` returned


class NotNative(Exception):
    """Why a model, or its present state, cannot run on the native decoder."""


class ModuleSource:
    """A model's parameters as a `Source`: arrays over their memory."""

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        self._tensors = tensors
        self.names: Sequence[str] = list(tensors)

    def info(self, name: str) -> tuple[np.dtype, tuple[int, ...]]:
        array = kernels.to_numpy(self._tensors[name][:0])
        return array.dtype, tuple(self._tensors[name].shape)

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> np.ndarray:
        return kernels.to_numpy(self._tensors[name][start:stop])

    def file_of(self, name: str) -> Path:
        return Path("the model in memory")

    def release(self, name: str) -> None:
        """Nothing to give back: the model owns its memory."""

    def close(self) -> None:
        """Nothing to end."""


def describe(model: nn.Module) -> Family:
    """Returns spec and recipes of a transformers causal language model, every source a parameter name of this model.

    The head is a tensor of its own even where it is tied: as a module it has a format of its own. Raises NotNative.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config = getattr(model, "config", None)
    model_type: str = getattr(config, "model_type", "")
    kind = type(model)
    if MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type) != kind.__name__:
        raise NotNative(f"{kind.__name__} is not the causal language model of a family of transformers")
    try:
        family = models.family(config.to_dict())  # type: ignore[union-attr]
        spec = family.spec
        if not isinstance(spec, ModelSpec):
            raise NotNative(f"{model_type} is no decoder")
        names = {name.replace(".packed", ".weight") for name in model.state_dict()}
        recipes = list(family.located(names))
        if spec.tied_head:
            head = _name_of(model, model.get_output_embeddings())  # type: ignore[operator]
            recipes.append(Recipe("head.weight", (Part(f"{head}.weight"),), "head"))
            spec = replace(spec, tied_head=False)
    except ValueError as error:
        raise NotNative(str(error)) from None
    return Family(spec, tuple(recipes))


def _name_of(model: nn.Module, wanted: nn.Module | None) -> str:
    for name, module in model.named_modules():
        if module is wanted:
            return name
    raise NotNative("the model has no head")


def modules_of(model: nn.Module, recipe: Recipe) -> list[nn.Module]:
    """Returns the modules whose weights a matrix recipe joins."""
    return [model.get_submodule(part.source.rpartition(".")[0]) for part in recipe.parts]


def matrices(family: Family) -> Iterator[Recipe]:
    """Yields the recipes of what linear layers hold."""
    for recipe in family.recipes:
        if recipe.kind in ("matrix", "head"):
            yield recipe


def check_joinable(model: nn.Module, family: Family, choose: Callable[[str], Choice | None]) -> None:
    """Raises NotNative where modules that form one tensor cannot be parts of one piece of memory.

    choose: the format of a linear layer by its name, None where it stays as it is.
    """
    for recipe in matrices(family):
        choices = {choose(part.source.rpartition(".")[0]) for part in recipe.parts}
        if len(choices) > 1:
            raise NotNative(f"the parts of {recipe.name} have different formats")
        if any(part.rows for part in recipe.parts):
            raise NotNative(f"the rows of {recipe.name} are in another order in the model")
        rows = [_rows(module) for module in modules_of(model, recipe)]
        in_panels = rows[:-1] if not recipe.interleave else []
        if any(n % PANEL_ROWS for n in in_panels) or (recipe.interleave and len(set(rows)) > 1):
            raise NotNative(f"the parts of {recipe.name} do not end on a panel of {PANEL_ROWS} rows")
        if recipe.interleave and len(rows) != 2 and rows[0] % (2 * PANEL_ROWS):
            raise NotNative(f"the halves of {recipe.name} do not end on a panel of {PANEL_ROWS} rows")


def _rows(module: nn.Module) -> int:
    if isinstance(module, LowBitLinear):
        return module.rows
    weight: Any = module.weight
    return weight.shape[1] if is_conv1d(module) else weight.shape[0]


def quantize_joined(model: nn.Module, recipe: Recipe, choice: Choice, conversion: Any) -> list[LowBitLinear]:
    """Returns low-bit layers for the modules of a recipe, their weights parts of one tensor, quantised as one.

    conversion: an optimize.Conversion.
    """
    modules = modules_of(model, recipe)
    names = [part.source for part in recipe.parts]
    weights = {name: module.weight for name, module in zip(names, modules, strict=True)}
    parts = tuple(replace(part, transpose=is_conv1d(m)) for part, m in zip(recipe.parts, modules, strict=True))
    joined = gather(replace(recipe, parts=parts), ModuleSource(weights))  # type: ignore[arg-type]
    canonical = recipe.name.removesuffix(".weight")
    packed = conversion.pack(joined.read, joined.shape, choice, joined.where, canonical)
    layers = split(packed, [_rows(module) for module in modules], recipe.interleave)
    for layer, module in zip(layers, modules, strict=True):
        layer.dtype = module.weight.dtype  # type: ignore[assignment]
        layer.compute, layer.tier, layer.threads = conversion.settings.values()
        layer._take_bias(module.bias)  # type: ignore[arg-type]
    return layers


def split(packed: PackedTensor, rows: list[int], interleave: bool) -> list[LowBitLinear]:
    """Returns layers over parts of a packed tensor: its rows one after the other, or its alternating panels.

    Where the alternating halves are one layer, its weight is a view in which they follow each other.
    """
    panels = kernels.to_tensor(packed.data).reshape(packed.layout.panels, packed.layout.panel_bytes)
    layers, start = [], 0
    for i, count in enumerate(rows):
        layer = LowBitLinear(
            packed.shape[1], count, False, Choice(packed.format), packed.group_size or -1, device="meta"
        )
        if interleave and len(rows) == 2:
            layer.part = i
            layer._fill(panels[i::2], packed.multiplier)
        elif interleave:
            layer._fill(panels.unflatten(0, (-1, 2)).transpose(0, 1), packed.multiplier)
        else:
            layer._fill(panels[start : start + -(-count // PANEL_ROWS)], packed.multiplier)
        layers.append(layer)
        start += count // PANEL_ROWS
    return layers


def join(layers: list[LowBitLinear], interleave: bool) -> PackedTensor:
    """Returns the packed tensor whose parts the layers are, over their memory.

    Layers with memory of their own (they were loaded or replaced one by one) are copied into one piece and become parts
    of it. Raises NotNative where their numbers cannot share a tensor.
    """
    first = layers[0]
    if len({(layer.format_id, layer.group_size, layer.k, int(layer.exponent)) for layer in layers}) > 1:
        raise NotNative("layers that form one tensor are stored in different formats")
    if any(layer.packed.device.type != "cpu" for layer in layers):
        raise NotNative("the model is not in CPU memory")
    count = sum(layer.packed.numel() for layer in layers) // first.packed.shape[-1]
    rows = count * PANEL_ROWS if interleave else sum(layer.rows for layer in layers)
    size = layout_of(first.format, rows, first.k, first.group_size).panel_bytes
    if not _are_parts(layers, size, interleave):
        host = kernels.to_tensor(empty_bytes(count * size)).reshape(count, size)
        start = 0
        for i, layer in enumerate(layers):
            if interleave and len(layers) == 1:
                view = host.unflatten(0, (-1, 2)).transpose(0, 1)
            elif interleave:
                view, layer.part = host[i::2], i
            else:
                view = host[start : start + layer.packed.shape[0]]
            view.copy_(layer.packed.reshape(view.shape))
            start += layer.packed.shape[0]
            layer.packed = view
    data = first.packed.detach().as_strided((count * size,), (1,), first.packed.storage_offset()).numpy()
    return PackedTensor(first.format, first.group_size, (rows, first.k), 2.0 ** int(first.exponent), data)


def _are_parts(layers: list[LowBitLinear], size: int, interleave: bool) -> bool:
    """Returns whether the layers' weights are the parts of one tensor in memory, as `split` makes them."""
    first = layers[0].packed
    at = first.storage_offset()
    strides = {(False, 2): (size, 1), (True, 2): (2 * size, 1), (True, 3): (size, 2 * size, 1)}
    for i, layer in enumerate(layers):
        packed = layer.packed
        if packed.untyped_storage().data_ptr() != first.untyped_storage().data_ptr() or packed.storage_offset() != at:
            return False
        if packed.stride() != strides.get((interleave, packed.dim())) or (interleave and layer.part not in (i, -1)):
            return False
        at += size if interleave else packed.numel()
    return first.data_ptr() % LINE == 0


class NativeGraph:
    """The native engine of a model as it is now, and what tells whether the model has changed since."""

    def __init__(self, model: nn.Module, runtime: Runtime) -> None:
        if not getattr(model, "_supports_cache_class", True):  # GPT-2 and OPT in transformers 4.48: tuples, no Cache
            raise NotNative(f"{type(model).__name__} of this transformers version generates without a Cache")
        self.family = describe(model)
        spec = self.family.spec
        assert isinstance(spec, ModelSpec)
        self.spec = spec
        self.tensors = _tensors(model, self.family)
        outliers = [r.name.removesuffix(".weight") for r in matrices(self.family) if _has_outliers(model, r)]
        self.engine = NativeEngine(self.loaded(model), runtime.resolve(), outliers)
        self._modules = [(m._modules, key, child) for m in model.modules() for key, child in m._modules.items()]
        self._values = [
            (table, key, value, _version(value))
            for module in model.modules()
            for table in (module._parameters, module._buffers)
            for key, value in table.items()
            if value is not None
        ]

    def loaded(self, model: nn.Module) -> LoadedModel:
        """Returns the model as lowbit loads and saves it."""
        config: dict[str, Any] = model.config.to_dict()  # type: ignore[union-attr, operator, assignment]
        return LoadedModel(self.spec, self.tensors, config, activation_errors=getattr(model, ERRORS, {}))

    def is_current(self) -> bool:
        """Returns whether modules and weights are still those that the engine was made of."""
        return all(table.get(key) is module for table, key, module in self._modules) and all(
            table.get(key) is value and _version(value) == version for table, key, value, version in self._values
        )

    def is_watched(self) -> bool:
        """Returns whether somebody hooked a module inside the model, which the engine would pass by.

        transformers' own hooks do not count: it leaves them behind once attentions were asked for, to no effect.
        """
        return any(
            not (getattr(hook, "__module__", None) or "").startswith("transformers.")
            for _, _, module in self._modules
            if module is not None and (module._forward_hooks or module._forward_pre_hooks)
            for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        )


def _has_outliers(model: nn.Module, recipe: Recipe) -> bool:
    """Returns whether modules compute on more than int8 activations; the decoder does as they do."""
    return any(isinstance(m, LowBitLinear) and m.compute != "int8" for m in modules_of(model, recipe))


def allow_outliers(model: nn.Module, family: Family, roles: Sequence[str]) -> None:
    """Makes the modules of some matrices compute on bf16 activations."""
    for recipe in matrices(family):
        if recipe.name.removesuffix(".weight") in roles:
            for module in modules_of(model, recipe):
                if isinstance(module, LowBitLinear):
                    module.compute = "bf16"


def _version(value: torch.Tensor) -> int:
    return -1 if value.is_inference() else value._version


def _tensors(model: nn.Module, family: Family) -> dict[str, PackedTensor | np.ndarray]:
    tensors: dict[str, PackedTensor | np.ndarray] = {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for recipe in family.recipes:
        if recipe.kind == "vector":
            tensors[recipe.name] = _vector(recipe, parameters)
            continue
        modules = modules_of(model, recipe)
        if all(isinstance(m, LowBitLinear) for m in modules):
            tensors[recipe.name] = join(modules, recipe.interleave)  # type: ignore[arg-type]
        elif len(modules) == 1 and isinstance(modules[0], LowBitEmbedding):
            tensors[recipe.name] = modules[0].packed_tensor()
        elif all(type(m) is nn.Linear or isinstance(m, nn.Embedding) or is_conv1d(m) for m in modules):
            tensors[recipe.name] = _float_copy(recipe, modules)
        else:
            kinds = ", ".join(sorted({type(m).__name__ for m in modules}))
            raise NotNative(f"{recipe.name} is made of {kinds}")
    return tensors


def _vector(recipe: Recipe, parameters: dict[str, nn.Parameter]) -> np.ndarray:
    missing = [part.source for part in recipe.parts if part.source not in parameters]
    if missing:
        raise NotNative(f"the model has no parameter {missing[0]}")
    rows = gather(recipe, ModuleSource({p.source: parameters[p.source] for p in recipe.parts}))
    return np.array(to_fp32(rows.read(0, rows.rows)), np.float32)


def _float_copy(recipe: Recipe, modules: list[nn.Module]) -> PackedTensor:
    """Returns the weights of float modules in the packed layout, in their own float type."""
    weights = {part.source: module.weight for part, module in zip(recipe.parts, modules, strict=True)}
    dtypes = {weight.dtype for weight in weights.values()}  # type: ignore[union-attr]
    if len(dtypes) > 1 or not dtypes <= set(FLOATS):
        raise NotNative(f"{recipe.name} is stored as {', '.join(map(str, dtypes))}")
    parts = tuple(replace(p, transpose=is_conv1d(m)) for p, m in zip(recipe.parts, modules, strict=True))
    joined = gather(replace(recipe, parts=parts), ModuleSource(weights))  # type: ignore[arg-type]
    return quantize_rows(joined.read, joined.shape, resolve(FLOATS[dtypes.pop()]), name=joined.where)  # type: ignore[index]
