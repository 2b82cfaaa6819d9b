"""A transformers causal language model whose forward pass is the native decoder's, where the call allows it.

Owns the decision, call by call: what the decoder computes equals what the modules compute, or the modules run. The
class of the model becomes a subclass of its own class under the same name, so isinstance, generate, config and loss
stay what they were.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from lowbit.models._spec import ModelSpec
from lowbit.precision import measure, outlier_matrices
from lowbit.runtime import Runtime
from lowbit.torch.cache import NativeCache, take_over
from lowbit.torch.graph import ERRORS, NativeGraph, NotNative, allow_outliers

logger = logging.getLogger(__name__)

# Arguments of a forward call that the native path understands; any other one that is not None goes to the modules.
UNDERSTOOD = frozenset(
    (
        "input_ids", "attention_mask", "position_ids", "past_key_values", "use_cache", "labels", "logits_to_keep",
        "num_logits_to_keep", "cache_position", "return_dict",
    )
)  # fmt: skip


class NativeDecoding:
    """The forward pass of a model whose graph the native decoder knows (mixed in by `enable`)."""

    _lowbit_base: type
    _lowbit_runtime: Runtime
    _lowbit_graph: NativeGraph | None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Returns what the model's own forward returns, with float32 logits where the native decoder computed them."""
        call = _bind(self._lowbit_base, self, args, kwargs)
        prepared = _prepare(self, call)
        if isinstance(prepared, str):
            logger.debug("running the modules: %s", prepared)
            past = call.get("past_key_values")
            if isinstance(past, NativeCache):
                past.to_modules()
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        return prepared.run()

    def run_modules(self, ids: np.ndarray, real: np.ndarray, positions: np.ndarray, cache: DynamicCache) -> None:
        """Fills a DynamicCache with the keys and values of tokens [batch, n]."""
        arguments = {
            "input_ids": torch.from_numpy(np.ascontiguousarray(ids)),
            "attention_mask": torch.from_numpy(real.astype(np.int64)),
            "past_key_values": cache,
            "use_cache": True,
        }
        if "position_ids" in _signature(self._lowbit_base).parameters:
            arguments["position_ids"] = torch.from_numpy(np.ascontiguousarray(positions))
        with torch.no_grad():
            super().forward(**arguments)  # type: ignore[misc]

    def native_graph(self) -> NativeGraph:
        """Returns the engine over the model as it is now, made anew after a change. Raises NotNative."""
        graph = self._lowbit_graph
        if graph is None or not graph.is_current():
            self._lowbit_graph = None
            graph = self._lowbit_graph = NativeGraph(self, self._lowbit_runtime)  # type: ignore[arg-type]
        return graph

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickles as an instance of the model's own class that is made native again when it is loaded or copied."""
        state = {**self.__dict__, "_lowbit_graph": None}
        return _new_instance, (self._lowbit_base,), state


@functools.cache
def native_class(base: type) -> type:
    """Returns the subclass of a model class that runs natively, under the same name."""
    namespace = {"__module__": base.__module__, "__qualname__": base.__qualname__, "_lowbit_base": base}
    kind = type(base.__name__, (NativeDecoding, base), namespace)
    kind.forward = functools.wraps(base.forward)(_forward)  # type: ignore[attr-defined]
    return kind


def _forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    return NativeDecoding.forward(self, *args, **kwargs)


def _new_instance(base: type) -> Any:
    kind: Any = native_class(base)
    return kind.__new__(kind)


def enable(model: nn.Module, runtime: Runtime, errors: Mapping[str, float] | None = None) -> None:
    """Makes a converted model run natively. Raises NotNative, with the model unchanged.

    errors: of int8 activations, by matrix; None: not measured yet, which precision "auto" makes up for.
    """
    graph = NativeGraph(model, runtime)
    if errors is None:
        errors = measure(graph.loaded(model), runtime.resolve()) if runtime.precision == "auto" else {}
    setattr(model, ERRORS, dict(errors))
    if outliers := outlier_matrices(errors, runtime.resolve().precision):
        allow_outliers(model, graph.family, outliers)
        graph = NativeGraph(model, runtime)
    kind: Any = type(model)
    model.__class__ = native_class(kind)
    model._lowbit_runtime = runtime  # type: ignore[assignment]
    model._lowbit_graph = graph  # type: ignore[assignment]


@functools.cache
def _signature(base: type) -> inspect.Signature:
    return inspect.signature(base.forward)  # type: ignore[attr-defined]


def _bind(base: type, model: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """Returns the arguments of a forward call by name."""
    signature = _signature(base)
    bound = signature.bind(model, *args, **kwargs).arguments
    bound.pop(next(iter(signature.parameters)))
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            bound.update(bound.pop(name, {}))
    return dict(bound)


class _Prepared:
    """A call the native path can answer."""

    def __init__(self, model: Any, call: dict[str, Any], cache: NativeCache, tokens: tuple[np.ndarray, ...]) -> None:
        self.model, self.call, self.cache, self.tokens = model, call, cache, tokens

    def run(self) -> Any:
        ids, real, positions = self.tokens
        keep = self.call.get("logits_to_keep", self.call.get("num_logits_to_keep", 0))
        last_only = isinstance(keep, int) and keep == 1 and bool(real[:, -1].all()) and self.call.get("labels") is None
        rows = self.cache.advance(ids, real, positions, last_only)
        vocab = self.cache._native_engine.vocab_size
        if last_only:
            logits = torch.from_numpy(np.stack(rows))
        else:
            every = np.zeros((*ids.shape, vocab), np.float32)
            for i, row in enumerate(rows):
                every[i, real[i]] = row
            logits = torch.from_numpy(every)
            if self.call.get("labels") is None:
                logits = logits[:, slice(-keep, None) if isinstance(keep, int) else keep]
        loss = None
        if (labels := self.call.get("labels")) is not None:
            loss = self.model.loss_function(logits=logits, labels=labels, vocab_size=vocab)
            logits = logits[:, slice(-keep, None) if isinstance(keep, int) else keep]
        uses_cache = self.call.get("use_cache")
        if uses_cache is None:
            uses_cache = self.call.get("past_key_values") is not None or getattr(self.model.config, "use_cache", True)
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=self.cache if uses_cache else None,  # type: ignore[arg-type]
        )
        wants_dict = self.call.get("return_dict")
        if wants_dict is None:
            wants_dict = getattr(self.model.config, "return_dict", True)
        return output if wants_dict else output.to_tuple()


def _prepare(model: Any, call: dict[str, Any]) -> _Prepared | str:
    """Returns the call made ready for the native decoder, or why the modules have to run it."""
    if model.training or torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[no-untyped-call]
        return "the model is being trained or recorded"
    if unknown := [n for n, v in call.items() if n not in UNDERSTOOD and v is not None and v is not False]:
        return f"the call has {', '.join(unknown)}"
    config = model.config
    if getattr(config, "output_attentions", False) or getattr(config, "output_hidden_states", False):
        return "the config asks for attentions or hidden states"
    ids = call.get("input_ids")
    if type(ids) is not torch.Tensor or ids.device.type != "cpu" or ids.dim() != 2 or not ids.numel():
        return "there are no token ids in CPU memory"
    if call.get("labels") is not None and not hasattr(model, "loss_function"):
        return "this model computes its loss itself"
    try:
        graph = model.native_graph()
    except NotNative as error:
        return str(error)
    if graph.is_watched():
        return "a module has a hook"
    past = call.get("past_key_values")
    if isinstance(past, NativeCache):
        if past._native_model is not model:
            return "the cache belongs to another model"
        past._native_engine = graph.engine
    elif past is not None and not (type(past) is DynamicCache and past.get_seq_length() == 0):
        return f"the cache is a {type(past).__name__} of its own"
    tokens = _tokens(call, ids, past if isinstance(past, NativeCache) else None, graph.spec)
    if isinstance(tokens, str):
        return tokens
    if not isinstance(past, NativeCache):
        past = take_over(past, model, graph.engine)
    return _Prepared(model, call, past, tokens)


def _tokens(
    call: dict[str, Any], input_ids: torch.Tensor, past: NativeCache | None, spec: ModelSpec
) -> tuple[np.ndarray, ...] | str:
    """Returns the new tokens' ids, which of them are real, and their positions, each [batch, n]; or why not."""
    ids = input_ids.numpy().astype(np.int64, copy=False)
    if ids.min() < 0 or ids.max() >= spec.vocab_size:
        return "a token id is outside the vocabulary"
    batch, new = ids.shape
    seen = past.get_seq_length() if past is not None else 0
    old_real = np.empty((batch, 0), bool)
    old_positions = np.empty((batch, 0), np.int64)
    if past is not None and seen:
        _, old_real, old_positions = past.native_state
        if len(old_real) != batch:
            return "the cache holds another number of rows"
    mask = call.get("attention_mask")
    if mask is None:
        real = np.ones((batch, new), bool)
        if not old_real.all():
            return "padding was seen before and there is no attention_mask now"
    else:
        if not isinstance(mask, torch.Tensor) or mask.device.type != "cpu" or tuple(mask.shape) != (batch, seen + new):
            return "the attention_mask is not one number per token"
        values = mask.numpy() if mask.dtype != torch.bfloat16 else mask.float().numpy()
        real = values[:, seen:] == 1
        if not np.array_equal(values[:, :seen] == 1, old_real) or not np.isin(values, (0, 1)).all():
            return "the attention_mask hides tokens that were seen before"
    counted = old_real.sum(1, keepdims=True) + np.cumsum(real, 1) - 1
    if int(counted.max(initial=0)) + 1 > spec.context:
        return f"the sequence is longer than the {spec.context} tokens the model was made for"
    asked = call.get("cache_position")
    if asked is not None and not np.array_equal(asked.numpy(), np.arange(seen, seen + new)):
        return "cache_position skips tokens"
    positions = np.broadcast_to(np.arange(seen, seen + new), (batch, new))
    if (given := call.get("position_ids")) is not None:
        if given.dim() != 2 or given.shape[-1] != new or given.shape[0] not in (1, batch):
            return "position_ids is not one number per token"
        positions = np.broadcast_to(given.numpy(), (batch, new))
    elif not (real.all() and old_real.all()) and spec.family in POSITIONS_FROM_MASK:
        positions = np.maximum(counted, 0)
    shifts = np.concatenate([old_positions - (np.cumsum(old_real, 1) - 1), positions - counted], 1)
    all_real = np.concatenate([old_real, real], 1)
    for row_shifts, row_real in zip(shifts, all_real, strict=True):
        own = row_shifts[row_real]
        if own.size and (own != own[0]).any():
            return "position_ids have gaps"
        if own.size and own[0] != 0 and not _only_distances(spec):
            return "position_ids are shifted, and this model's positions are absolute"
    return ids, real, np.ascontiguousarray(positions)


# Families whose own forward counts positions by the attention mask when no position_ids are given.
POSITIONS_FROM_MASK = frozenset({"opt"})


def _only_distances(spec: ModelSpec) -> bool:
    """Returns whether attention depends on how far tokens are from each other and on nothing else of their place."""
    rotary = bool(spec.ropes) and all(i >= 0 for i in spec.layer_rope) and not any(r.long_from for r in spec.ropes)
    return (rotary or bool(spec.alibi_slopes)) and not spec.attention_logn_from
