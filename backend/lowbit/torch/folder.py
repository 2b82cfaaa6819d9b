"""Low-bit folders of PyTorch models: save_low_bit, load_low_bit, low_memory_init.

A model that runs on the native decoder is saved as every native model is, so its folder opens without torch as well;
any other one with its tensors under their PyTorch names. Weights are safetensors, never pickles, and mapped, not read.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from lowbit import checkpoint
from lowbit.calibration import Quantiser
from lowbit.checkpoint import LoadedModel
from lowbit.formats import resolve
from lowbit.models._spec import ModelSpec, ModuleSpec
from lowbit.packed import PackedTensor
from lowbit.runtime import Runtime
from lowbit.sources import archive, hub
from lowbit.torch import kernels
from lowbit.torch.modules import FLOATS, LowBitEmbedding, LowBitLinear
from lowbit.torch.optimize import Conversion, convert_rest, replace_module

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=nn.Module)
DTYPES = {name: dtype for dtype, name in FLOATS.items()}
CHOICES = ("format", "group_size", "full_range", "head_format", "embedding_format", "modules_to_not_convert")
CONVERSION = "_lowbit_conversion"  # attribute of a converted model


def attach(model: nn.Module, conversion: Conversion) -> None:
    """Gives a converted model its `save_low_bit`, which is what its `save_pretrained` does as well, as in ITREX:
    transformers' own would write packed bytes without saying what they are."""
    setattr(model, CONVERSION, conversion)
    model.save_low_bit = functools.partial(save_low_bit, model)  # type: ignore[assignment]
    if hasattr(model, "save_pretrained"):
        model.save_pretrained = functools.partial(save_low_bit, model)  # type: ignore[assignment]


def save_low_bit(model: nn.Module, folder: str | Path, *args: Any, tokenizer: Any = None, **kwargs: Any) -> Path:
    """Returns the low-bit folder of a converted model, complete on disk.

    tokenizer: saved beside the model; without one, the tokenizer files of the folder the model was loaded from are
    taken along. Further arguments are those of transformers' save_pretrained, accepted and without effect. Raises
    ValueError for a model that optimize_model did not convert, FileExistsError for a folder with somebody else's model.
    """
    conversion = getattr(model, CONVERSION, None)
    if conversion is None:
        raise ValueError("the model has no low-bit weights; call lowbit.optimize_model(model) first")
    config: Any = getattr(model, "config", None)
    generation = getattr(model, "generation_config", None)
    loaded = _native_tensors(model)
    if loaded is None:
        spec, tensors = _module_tensors(model)
        loaded = LoadedModel(spec, tensors, {})
    facts = json.loads(config.to_json_string(use_diff=False)) if hasattr(config, "to_json_string") else {}
    facts = _public(archive.without_marks(facts))
    facts.pop("quantization_config", None)
    if config is not None:
        facts["architectures"] = [type(model).__name__]
    origin = _origin(model)
    loaded = LoadedModel(
        spec=loaded.spec,
        tensors=loaded.tensors,
        config=facts,
        generation_config=generation.to_dict() if generation is not None else {},
        tokenizer_files={} if tokenizer is not None or origin is None else _matching(origin, hub.TOKENIZER_FILES),
        provenance={"source": str(getattr(config, "_name_or_path", "") or type(model).__name__)},
        quantization=quantization_of(conversion),
        activation_errors=loaded.activation_errors,
        notices={} if origin is None else _matching(origin, (*hub.NOTICES, "preprocessor_config.json", "*.py")),
    )
    target = checkpoint.save(loaded, folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(target)
    elif not loaded.tokenizer_files and config is not None:
        logger.warning("%s has no tokenizer: give one as save_low_bit(folder, tokenizer=...)", target)
    return target


def _public(config: dict[str, Any]) -> dict[str, Any]:
    """Returns a config without what describes the model in memory only, in parts of it as well.

    transformers 4.48 takes such a mark (_attn_implementation_autoset) back from config.json and then never chooses an
    attention: the loaded model would run the slow one.
    """
    return {
        name: _public(value) if isinstance(value, dict) else value
        for name, value in config.items()
        if not name.startswith("_")
    }


def quantization_of(conversion: Conversion) -> dict[str, Any]:
    """Returns what a low-bit folder records of a conversion."""
    body = conversion.low_bit
    return {
        "format": None if body is None else body.format.name,
        "group_size": None if body is None else body.format.group(conversion.group_of(body)),
        "full_range": body is None or body.full_range,
        "head_format": None if (head := conversion.head or body) is None else head.format.name,
        "embedding_format": None if conversion.embedding is None else conversion.embedding.format.name,
        "modules_to_not_convert": list(conversion.kept),
        **({"quantiser": conversion.quantiser.to_dict()} if conversion.quantiser != Quantiser() else {}),
        **conversion.recorded,
    }


def _native_tensors(model: nn.Module) -> LoadedModel | None:
    """Returns graph and tensors of a model that runs natively, None for the others."""
    if not hasattr(model, "native_graph"):
        return None
    from lowbit.torch.graph import NotNative

    try:
        return model.native_graph().loaded(model)  # type: ignore[operator]
    except NotNative as reason:
        logger.info("save_low_bit: as PyTorch modules: %s", reason)
        return None


def _module_tensors(model: nn.Module) -> tuple[ModuleSpec, dict[str, PackedTensor | np.ndarray]]:
    linear: dict[str, str] = {}
    embedding: dict[str, str] = {}
    tensors: dict[str, PackedTensor | np.ndarray] = {}
    packed: set[str] = set()
    for name, module in model.named_modules():
        if isinstance(module, (LowBitLinear, LowBitEmbedding)):
            (linear if isinstance(module, LowBitLinear) else embedding)[name] = FLOATS[module.dtype]
            tensors[f"{name}.weight"] = module.packed_tensor()
            packed |= {f"{name}.packed", f"{name}.exponent"}
    values: dict[str, torch.Tensor] = dict(model.named_parameters())
    values.update((name, b) for name, b in model.named_buffers() if name in _persistent(model))
    for name, value in values.items():
        if name not in packed:
            tensors[name] = kernels.to_numpy(value.detach().cpu().contiguous())
    return ModuleSpec(type(model).__name__, linear, embedding), tensors


def _persistent(model: nn.Module) -> set[str]:
    return {
        f"{name}.{key}" if name else key
        for name, module in model.named_modules()
        for key in module._buffers
        if key not in module._non_persistent_buffers_set
    }


def local_folder(id_or_path: Any, revision: str | None = None, options: dict[str, Any] | None = None) -> Path:
    """Returns the folder of a model that is on this machine already: a path, or an id in the hub's cache."""
    return hub.locate(id_or_path, revision, hub.Access(**{**(options or {}), "local_files_only": True})).folder


def _origin(model: nn.Module) -> Path | None:
    """Returns the local folder a model came from: the one it was loaded from, or the hub cache's."""
    name = getattr(getattr(model, "config", None), "_name_or_path", "") or ""
    if not name:
        return None
    try:
        return local_folder(name)
    except (OSError, ValueError):
        return None


def _matching(folder: Path, patterns: tuple[str, ...]) -> dict[str, Path]:
    found = sorted(path for pattern in patterns for path in folder.glob(pattern) if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in found}


# ---- loading ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def low_memory_init() -> Iterator[None]:
    """A context in which models are built without memory for their weights, for `load_low_bit` to fill.

    Parameters lie on the meta device, buffers are computed as always. transformers' `from_pretrained` builds the model
    of the folder's config and reads no weights.
    """
    register = nn.Module.register_parameter

    def on_meta(self: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and parameter.device.type != "meta":
            parameter = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
        register(self, name, parameter)

    with contextlib.ExitStack() as stack:
        nn.Module.register_parameter = on_meta  # type: ignore[method-assign, assignment]
        stack.callback(setattr, nn.Module, "register_parameter", register)
        stack.enter_context(_skeletons_from_pretrained())
        yield


@contextlib.contextmanager
def _skeletons_from_pretrained() -> Iterator[None]:
    import sys

    if "transformers" not in sys.modules or not sys.modules["transformers"].is_torch_available():
        yield
        return
    from transformers import AutoConfig, PreTrainedModel

    original = PreTrainedModel.__dict__["from_pretrained"]

    def skeleton(cls: Any, name_or_path: Any, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        options = {k: kwargs[k] for k in ("trust_remote_code", "revision", "cache_dir", "token") if k in kwargs}
        config = config if config is not None else AutoConfig.from_pretrained(name_or_path, **options)
        return empty_model(cls, config)

    PreTrainedModel.from_pretrained = classmethod(skeleton)  # type: ignore[assignment]
    try:
        yield
    finally:
        PreTrainedModel.from_pretrained = original  # type: ignore[method-assign]


def empty_model(kind: Any, config: Any, dtype: Any = None) -> Any:
    """Returns a transformers model of a config, in a dtype or the config's, in evaluation mode."""
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    if dtype in (None, "auto"):
        dtype = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None) or torch.float32
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        return kind._from_config(config).eval()
    finally:
        torch.set_default_dtype(before)


def load_low_bit(
    model_or_class: Any,
    model_path: str | Path,
    *,
    optimize_llm: bool = True,
    verify: bool | None = None,
    **runtime: Any,
) -> Any:
    """Returns a model with the weights of a low-bit folder, which are mapped, not read.

    model_or_class: a float model of the same architecture (best built under `low_memory_init()`; its weights are
    replaced), or a class of transformers, which is built from the folder's config. optimize_llm: run a known language
    model on the native decoder. verify: check every byte (None: up to a size). runtime: precision, compute, kv_dtype,
    threads and tier as in `lowbit.Runtime`. Raises FileNotFoundError or ValueError when the folder is missing, damaged,
    or of another architecture.
    """
    path = Path(model_path).expanduser()
    asked = Runtime(device="cpu", **runtime)
    config = checkpoint.read_json(path / checkpoint.CONFIG) if (path / checkpoint.CONFIG).exists() else {}
    if (format := archive.format_of(config, path)) is not None:
        return _load_archive(model_or_class, path, config, format, asked, optimize_llm)
    loaded = checkpoint.load(path, verify)
    if isinstance(model_or_class, nn.Module):
        model = model_or_class
    else:
        from transformers import AutoConfig

        with low_memory_init():
            model = empty_model(model_or_class, AutoConfig.from_pretrained(path))
        take_generation_config(model, path)
    conversion = conversion_of(loaded.quantization, asked)
    fill(model, loaded, conversion, path)
    return convert_rest(model, conversion, native=optimize_llm, errors=loaded.activation_errors)


def _load_archive(
    model_or_class: Any, path: Path, config: dict[str, Any], format: str, runtime: Runtime, optimize_llm: bool
) -> Any:
    """Returns a model with the weights of a folder of ipex-llm."""
    from lowbit.torch import pretrained

    if not isinstance(model_or_class, nn.Module):
        return pretrained.load_archive(model_or_class, path, config, runtime, optimize_llm=optimize_llm)
    plan = Conversion(resolve(format), group_size=archive.BLOCK, runtime=runtime)
    model_or_class.eval().requires_grad_(False)
    pretrained.fill_from_archive(model_or_class, path, format, plan)
    return convert_rest(model_or_class, plan, native=optimize_llm)


def conversion_of(recorded: dict[str, Any], runtime: Any) -> Conversion:
    """Returns the conversion a low-bit folder records."""
    from lowbit.formats import FORMATS, Choice

    def choice(key: str) -> Choice | None:
        name = recorded.get(key)
        return None if name is None else Choice(FORMATS[name], full_range=recorded.get("full_range", True))

    body, head = choice("format"), choice("head_format")
    return Conversion(
        low_bit=body,
        group_size=recorded.get("group_size"),
        head=head if head != body else None,
        embedding=choice("embedding_format"),
        kept=tuple(recorded.get("modules_to_not_convert", ())),
        runtime=runtime,
        recorded={name: value for name, value in recorded.items() if name not in CHOICES},
    )


def take_generation_config(model: Any, path: Path) -> None:
    if (path / checkpoint.GENERATION_CONFIG).exists() and hasattr(model, "generation_config"):
        from transformers import GenerationConfig

        model.generation_config = GenerationConfig.from_pretrained(path)


def fill(model: nn.Module, loaded: LoadedModel, conversion: Conversion, path: Path) -> None:
    """Puts the tensors of a low-bit folder into a model: low-bit modules in place of float ones, and parameters."""
    model.eval()
    model.requires_grad_(False)
    if isinstance(loaded.spec, ModuleSpec):
        values = _fill_modules(model, loaded, loaded.spec, conversion, path)
    elif isinstance(loaded.spec, ModelSpec):
        from lowbit.torch.canonical import fill_canonical

        values = fill_canonical(model, loaded, conversion, path)
    else:
        raise ValueError(f"{path} holds an embedder for the native encoder; open it with lowbit.Embedder")
    for name, value in values.items():
        set_tensor(model, name, value, path)
    refuse_empty(model, path, loaded.spec.family)


def refuse_empty(model: nn.Module, path: Path, saved: str) -> None:
    """Raises ValueError when parameters of a model are still without values."""
    if left := [name for name, p in model.named_parameters() if p.device.type == "meta"]:
        raise ValueError(
            f"{path} has no weights for {left[0]} and {len(left) - 1} more of this {type(model).__name__}; it was "
            f"saved from a {saved}"
        )


def _fill_modules(
    model: nn.Module, loaded: LoadedModel, spec: ModuleSpec, conversion: Conversion, path: Path
) -> dict[str, torch.Tensor]:
    """Puts the packed modules in place; returns the other tensors by name."""
    values = {n: kernels.to_tensor(t) for n, t in loaded.tensors.items() if isinstance(t, np.ndarray)}
    for name, dtype in {**spec.linear, **spec.embedding}.items():
        packed = loaded.tensors[f"{name}.weight"]
        old = _submodule(model, name, path)
        assert isinstance(packed, PackedTensor)
        new: nn.Module
        if name in spec.linear:
            bias = values.pop(f"{name}.bias", None)
            new = LowBitLinear.from_packed(packed, bias, dtype=DTYPES[dtype], **conversion.settings)
        else:
            index = getattr(old, "padding_idx", None)
            new = LowBitEmbedding.from_packed(packed, padding_idx=index, dtype=DTYPES[dtype])
        replace_module(model, old, new)
    return values


def _submodule(model: nn.Module, name: str, path: Path) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise ValueError(
            f"{path} has weights for {name}, which this {type(model).__name__} does not have; load the class it was "
            "saved from"
        ) from None


def set_tensor(model: nn.Module, name: str, value: torch.Tensor, path: Path) -> None:
    """Makes a tensor the parameter or buffer `name`, in every place where that one is used."""
    owner, _, key = name.rpartition(".")
    module = _submodule(model, owner, path) if owner else model
    if key in module._buffers:
        module._buffers[key] = value
        return
    old = module._parameters.get(key)
    if old is None or old.shape != value.shape:
        shape = "none" if old is None else list(old.shape)
        raise ValueError(f"{path} has {name} {list(value.shape)}, this {type(model).__name__} has {shape}")
    new = nn.Parameter(value, requires_grad=False)
    for place in model.modules():
        for other, parameter in place._parameters.items():
            if parameter is old:
                place._parameters[other] = new
