"""optimize_model: the linear layers of any PyTorch model in a low-bit format, in place.

Owns which modules are converted and to what. A causal language model of a family lowbit knows additionally runs on the
native decoder (causal.py).
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn
from tqdm import tqdm  # type: ignore[import-untyped]

from lowbit.calibration import Quantiser, finish, importance_of
from lowbit.formats import FLOAT, Choice, resolve
from lowbit.packed import PackedTensor
from lowbit.quantize import CLIP_RATIOS, quantize_rows
from lowbit.runtime import Runtime, pool
from lowbit.tensor_formats import OUTER_FORMAT
from lowbit.torch import kernels
from lowbit.torch.modules import FLOATS, LowBitEmbedding, LowBitLinear, is_conv1d

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Conversion:
    """What is converted and how. low_bit None: linear layers keep their float type and run on the native kernels.

    head: format of the output layer of a language model (None: low_bit). embedding: format of embeddings (None: they
    stay). kept: modules whose dotted name contains one of these strings stay as they are. quantiser: how weights are
    rounded, as far as that needs no text.
    """

    low_bit: Choice | None
    group_size: int | None = None
    head: Choice | None = None
    embedding: Choice | None = None
    kept: tuple[str, ...] = ()
    quantiser: Quantiser = field(default_factory=Quantiser)
    runtime: Runtime = field(default_factory=lambda: Runtime(device="cpu"))
    recorded: dict[str, Any] = field(default_factory=dict)  # what else the low-bit folder says that it came from

    @property
    def settings(self) -> dict[str, Any]:
        """The fields of LowBitLinear that say how it computes."""
        runtime = self.runtime
        return {"compute": runtime.compute, "tier": runtime.tier or "", "threads": runtime.threads or 0}

    def of(self, name: str, module: nn.Module, head: nn.Module | None) -> Choice | None:
        """Returns the format of a linear layer, None where it stays as it is."""
        dtype = module.weight.dtype
        if dtype not in FLOATS or any(key in name for key in self.kept):
            return None
        if module is head and self.head is not None:
            return self.head
        return self.low_bit or resolve(FLOATS[dtype])  # type: ignore[index]

    def group_of(self, choice: Choice) -> int | None:
        """Returns the group size for a format: what was asked for, else what its name implies."""
        return self.group_size if self.group_size is not None else choice.group_size

    def pack(
        self,
        read: Callable[[int, int], Any],
        shape: tuple[int, ...],
        choice: Choice,
        name: str,
        canonical: str | None = None,
    ) -> PackedTensor:
        """Returns a matrix rounded as this conversion says; canonical: its name in an importance matrix."""
        scaled = choice.format.codes != FLOAT
        importance = importance_of(self.quantiser)(canonical) if canonical and scaled else None
        packed = quantize_rows(
            read, shape, choice, self.group_of(choice), name=name, importance=importance,
            clip_ratios=CLIP_RATIOS if self.quantiser.clips and scaled else None, pool=self.pool,
        )  # fmt: skip
        if scaled:
            finish(packed, self.quantiser)
        return packed

    @property
    def pool(self) -> Any:
        """The threads that quantise."""
        settings = self.settings
        return pool(kernels.resolved(settings["tier"], settings["threads"]).threads)


def optimize_model(
    model: Model,
    low_bit: str | None = "sym_int4",
    optimize_llm: bool = True,
    modules_to_not_convert: Sequence[str] | None = None,
    cpu_embedding: bool = False,
    *,
    group_size: int | None = None,
    mixed_precision: bool = False,
    embedding_qtype: str | None = None,
    quantiser: Quantiser | str | None = None,
    torch_dtype: Any = "auto",
    compute: str | None = None,
    precision: str | None = None,
    kv_dtype: str = "fp16",
    threads: int | None = None,
    tier: str | None = None,
    show_progress: bool = False,
    replace_embedding: bool = False,
    disable_optimize_pre: bool = False,
) -> Model:
    """Returns the model, changed in place: its linear layers hold low-bit weights and run on the native kernels.

    low_bit: a name of `lowbit.formats`, or None for the model's own float type. optimize_llm: run a causal language
    model of a known family on the native decoder; whatever a call asks that it cannot do runs on the modules.
    modules_to_not_convert: modules whose dotted name contains one of these strings stay as they are. group_size:
    weights per scale. mixed_precision: the output layer in sym_int8. embedding_qtype: a format for `nn.Embedding`
    layers, which otherwise keep their values. quantiser: how weights are rounded (`lowbit.calibration.Quantiser`: clip
    search, double quantisation, an importance matrix). torch_dtype: cast the model first ("auto": leave it).
    precision, compute, threads, tier, kv_dtype: as in `lowbit.Runtime`; "auto" measures models that run on the native
    decoder, others compute as "fast". cpu_embedding, replace_embedding and disable_optimize_pre are
    accepted as ipex-llm has them and have nothing to change on a CPU.

    The model is put in evaluation mode and its parameters require no gradient any more: packed weights cannot be
    trained. It gains `save_low_bit(folder)`. Raises ValueError for an unknown format and for weights that are not in
    CPU memory, TypeError for what is no module.

    >>> model = optimize_model(torch.nn.Sequential(torch.nn.Linear(64, 64)), "nf4")
    >>> model[0].format.name
    'nf4'
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"optimize_model takes a torch.nn.Module, got {type(model).__name__}")
    plan = conversion(
        low_bit, group_size=group_size, modules_to_not_convert=modules_to_not_convert, mixed_precision=mixed_precision,
        embedding_qtype=embedding_qtype, quantiser=quantiser, compute=compute, precision=precision, kv_dtype=kv_dtype,
        threads=threads, tier=tier,
    )  # fmt: skip
    if torch_dtype not in (None, "auto"):
        model.to(getattr(torch, torch_dtype) if isinstance(torch_dtype, str) else torch_dtype)
    return convert(model, plan, optimize_llm=optimize_llm, show_progress=show_progress)


def conversion(
    low_bit: str | Choice | None,
    *,
    group_size: int | None = None,
    modules_to_not_convert: Sequence[str] | None = None,
    mixed_precision: bool = False,
    embedding_qtype: str | None = None,
    quantiser: Quantiser | str | None = None,
    compute: str | None = None,
    precision: str | None = None,
    kv_dtype: str = "fp16",
    threads: int | None = None,
    tier: str | None = None,
) -> Conversion:
    """Returns what arguments of `optimize_model` mean. Raises ValueError or TypeError for those that mean nothing."""
    if isinstance(modules_to_not_convert, str):
        raise TypeError(f"modules_to_not_convert is a list of strings; use [{modules_to_not_convert!r}]")
    body = None if low_bit is None else resolve(low_bit)
    if body is not None:
        body.format.group(group_size)
    return Conversion(
        low_bit=body,
        group_size=group_size,
        head=resolve(OUTER_FORMAT) if mixed_precision and body and body.format.codes != FLOAT else None,
        embedding=None if embedding_qtype is None else resolve(embedding_qtype),
        kept=tuple(modules_to_not_convert or ()),
        quantiser=Quantiser(quantiser) if isinstance(quantiser, str) else quantiser or Quantiser(),
        runtime=Runtime(
            device="cpu", compute=compute, precision=precision, kv_dtype=kv_dtype, threads=threads, tier=tier
        ),
    )


def convert(model: Model, conversion: Conversion, *, optimize_llm: bool = True, show_progress: bool = False) -> Model:
    """Returns the model converted in place; `optimize_model` with its arguments already read."""
    if conversion.quantiser.needs_layers:
        raise ValueError(
            f"{conversion.quantiser.algorithm} with a calibration text reads a checkpoint layer by layer; use it with "
            "AutoModelForCausalLM.from_pretrained of lowbit.transformers (known families) or with lowbit.load"
        )
    layers = dict(linear_layers(model))
    _check_memory(layers)
    _warn_of_unused(conversion.kept, layers)
    model.eval()
    model.requires_grad_(False)
    with tqdm(total=len(layers), desc="Converting", unit="layer", disable=not show_progress) as bar, torch.no_grad():
        native = optimize_llm and _convert_joined(model, conversion, bar)
        head = head_of(model)
        for name, layer in linear_layers(model):
            choice = conversion.of(name, layer, head)
            if choice is not None:
                replace_module(model, layer, _low_bit(name, layer, choice, conversion))
            bar.update(1)
        _convert_embeddings(model, conversion, native)
    _tell_what_stays_float(model)
    return convert_rest(model, conversion, native=native)


def convert_rest(
    model: Model, conversion: Conversion, *, native: bool, errors: Mapping[str, float] | None = None
) -> Model:
    """Returns a model whose layers are converted, made ready: native where that is wanted and possible, saveable.

    errors: of int8 activations, which a low-bit folder keeps; None: this model was quantised just now.
    """
    from lowbit.torch import folder

    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0  # its fast path reads float weights; this is how it is left out
    if native and "transformers" in type(model).__module__:
        _enable(model, conversion.runtime, errors)
    folder.attach(model, conversion)
    return model


def _low_bit(name: str, layer: Any, choice: Choice, conversion: Conversion) -> LowBitLinear:
    weight = kernels.to_numpy(layer.weight.t() if is_conv1d(layer) else layer.weight)
    packed = conversion.pack(lambda start, stop: weight[start:stop], weight.shape, choice, f"{name}.weight")
    return LowBitLinear.from_packed(packed, layer.bias, dtype=layer.weight.dtype, **conversion.settings)


def _tell_what_stays_float(model: nn.Module) -> None:
    """Warns where most of a model is in parameters that no linear layer holds, such as experts in one tensor."""
    packed = sum(m.rows * m.k for m in model.modules() if isinstance(m, (LowBitLinear, LowBitEmbedding)))
    others = [(p.numel(), name) for name, p in model.named_parameters() if p.ndim > 2]
    if (rest := sum(count for count, _ in others)) > packed:
        logger.warning(
            "optimize_model: %.0f %% of the weights are no linear layers and stay float, for example %s",
            100 * rest / (rest + packed),
            max(others)[1],
        )


def linear_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yields name and module of every layer that can be converted: nn.Linear and Conv1D.

    Not those inside nn.MultiheadAttention, which multiplies with their weights itself.
    """
    apart = [f"{name}." for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)]
    for name, module in list(model.named_modules()):
        plain = isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward
        if (plain or is_conv1d(module)) and not name.startswith(tuple(apart)):
            yield name, module


def head_of(model: nn.Module) -> nn.Module | None:
    """Returns the output layer of a transformers language model, None where there is none."""
    get = getattr(model, "get_output_embeddings", None)
    try:
        return get() if get is not None else None
    except (AttributeError, NotImplementedError):  # transformers 4 raises for models without one
        return None


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Puts a module where another one stands, in every place it stands. Raises ValueError when that is the model."""
    if model is old:
        raise ValueError(f"the model is itself a {type(old).__name__}; use LowBitLinear.from_linear")
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            if child is old:
                parent._modules[key] = new


def _convert_joined(model: nn.Module, conversion: Conversion, bar: Any) -> bool:
    """Converts the layers that the native decoder joins; False where it does not know the model."""
    if "transformers" not in type(model).__module__:
        return False
    from lowbit.torch import graph

    head = head_of(model)
    try:
        family = graph.describe(model)
        graph.check_joinable(model, family, lambda name: conversion.of(name, model.get_submodule(name), head))
    except graph.NotNative as reason:
        logger.info("optimize_model: layer by layer, without the native decoder: %s", reason)
        return False
    for recipe in graph.matrices(family):
        old = graph.modules_of(model, recipe)
        choice = conversion.of(recipe.parts[0].source.rpartition(".")[0], old[0], head)
        if choice is None:
            continue
        new = graph.quantize_joined(model, recipe, choice, conversion)
        for before, after in zip(old, new, strict=True):
            replace_module(model, before, after)
        bar.update(len(old))
    return True


def _convert_embeddings(model: nn.Module, conversion: Conversion, native: bool) -> None:
    """Packs embeddings where a format is asked for, and the word embedding of a native model, which shares it."""
    words: Any = model.get_input_embeddings() if native else None  # type: ignore[operator]
    module: Any
    for name, module in list(model.named_modules()):
        if type(module) is not nn.Embedding or module.max_norm is not None or module.weight.dtype not in FLOATS:
            continue
        choice = None if any(key in name for key in conversion.kept) else conversion.embedding
        if choice is None and module is words:
            choice = resolve(FLOATS[words.weight.dtype])
        if choice is not None:
            group = conversion.group_of(choice)
            replace_module(model, module, LowBitEmbedding.from_embedding(module, choice, group))


def _enable(model: nn.Module, runtime: Runtime, errors: Mapping[str, float] | None) -> None:
    from lowbit.torch import causal, graph

    try:
        causal.enable(model, runtime, errors)
    except graph.NotNative as reason:
        logger.info("optimize_model: without the native decoder: %s", reason)


def _check_memory(layers: dict[str, nn.Module]) -> None:
    for name, layer in layers.items():
        if layer.weight.device.type != "cpu":
            raise ValueError(
                f"{name}.weight is on {layer.weight.device}; optimize_model takes models in CPU memory: load the model "
                "without device_map, or call model.to('cpu') first"
            )


def _warn_of_unused(kept: Sequence[str], layers: dict[str, nn.Module]) -> None:
    for key in kept:
        if not any(key in name for name in layers):
            parts = {part for name in layers for part in name.split(".") if not part.isdecimal()}
            close = ", ".join(difflib.get_close_matches(key, parts, n=3)) or "none"
            logger.warning("modules_to_not_convert: no linear layer is called %r; nearest: %s", key, close)
