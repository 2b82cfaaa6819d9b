"""From a checkpoint straight to a low-bit transformers model: no float model is ever in memory.

The weights of a known family are read, quantised and packed one by one by lowbit.loading, then put into the modules of
the transformers class. Owns when that is possible; everything else is loaded by transformers and converted afterwards.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import transformers as hf

from lowbit import models
from lowbit.checkpoint import LoadedModel
from lowbit.formats import resolve
from lowbit.loading import load_model
from lowbit.models._spec import ModelSpec
from lowbit.quantize import quantize
from lowbit.runtime import Runtime
from lowbit.sources import archive, open_source
from lowbit.sources.integers import METHODS
from lowbit.torch import folder, graph, kernels
from lowbit.torch.modules import FLOATS, LowBitLinear
from lowbit.torch.optimize import Conversion, convert_rest, linear_layers, replace_module

HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only")


def model_of(
    make: Any, loaded: LoadedModel, path: Path, runtime: Runtime, *, dtype: Any = None, optimize_llm: bool = True
) -> Any:
    """Returns a transformers model with the tensors of a loaded one. make: config -> model of the right class."""
    config = hf.AutoConfig.for_model(**loaded.config) if not path.exists() else hf.AutoConfig.from_pretrained(path)
    with folder.low_memory_init():
        model = folder.empty_model(make, config, dtype)
    folder.take_generation_config(model, path)
    conversion = folder.conversion_of(loaded.quantization, runtime)
    folder.fill(model, loaded, conversion, path)
    model.config._name_or_path = str(path)
    return convert_rest(model, conversion, native=optimize_llm, errors=loaded.activation_errors)


def can_stream(hf_class: Any, config: dict[str, Any], options: dict[str, Any]) -> bool:
    """Returns whether a checkpoint can be packed while it is read: a known family, nothing else asked for."""
    if hf_class is not hf.AutoModelForCausalLM or set(options) - set(HUB_OPTIONS):
        return False
    given = config.get("quantization_config") or {}
    if given and str(given.get("quant_method", "")).lower() not in METHODS:
        return False
    try:
        family = models.family(config)
    except ValueError:
        return False
    return isinstance(family.spec, ModelSpec) and _joins(family.spec)


def _joins(spec: ModelSpec) -> bool:
    """Returns whether q, k and v end on panels, so that modules can be parts of the canonical tensors."""
    return not any(heads * spec.head_dim % graph.PANEL_ROWS for heads in (spec.heads, spec.kv_heads))


def stream(
    hf_class: Any,
    id_or_path: Any,
    config: dict[str, Any],
    conversion: Conversion,
    *,
    dtype: Any = None,
    show_progress: bool = False,
    **hub_options: Any,
) -> Any:
    """Returns the low-bit causal language model of a float checkpoint of a known family.

    Embeddings keep the checkpoint's float type and the head gets the format of the other layers, unless the conversion
    says otherwise; an embedding that is also the head is one tensor, sym_int8 where nothing else is asked for.
    """
    tied = bool(models.family(config).spec.tied_head)  # type: ignore[union-attr]
    body, head, embedding = conversion.low_bit, conversion.head or conversion.low_bit, conversion.embedding
    if tied:
        head = conversion.head
    elif embedding is None:
        embedding = resolve(_float_of(config))
    loaded = load_model(
        id_or_path, body, group_size=conversion.group_size, modules_to_not_convert=conversion.kept, head_format=head,  # type: ignore[arg-type]
        embedding_format=embedding, quantiser=conversion.quantiser, runtime=conversion.runtime,  # type: ignore[arg-type]
        show_progress=show_progress, **hub_options,
    )  # fmt: skip
    access = {k: v for k, v in hub_options.items() if k != "revision"}
    path = folder.local_folder(id_or_path, hub_options.get("revision"), access)
    return model_of(Maker(hf_class), loaded, path, conversion.runtime, dtype=dtype)


def _float_of(config: dict[str, Any]) -> str:
    """Returns the float format a config says its checkpoint is stored in."""
    name = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    known = {str(dtype).removeprefix("torch."): short for dtype, short in FLOATS.items()}
    return known.get(name, "fp32")


def load_archive(make: Any, path: Path, config: dict[str, Any], runtime: Runtime, *, optimize_llm: bool = True) -> Any:
    """Returns the model of a low-bit folder of ipex-llm. make: an Auto class, as Maker, or a model class."""
    format = archive.format_of(config, path)
    assert format is not None
    plan = Conversion(resolve(format), group_size=archive.BLOCK, runtime=runtime)
    hf_class = getattr(make, "hf_class", None)
    if optimize_llm and can_stream(hf_class, config, {}):
        return stream(hf_class, path, config, plan)
    model_config = hf.AutoConfig.from_pretrained(path)
    with folder.low_memory_init():
        model = folder.empty_model(make, model_config)
    folder.take_generation_config(model, path)
    fill_from_archive(model, path, format, plan)
    return convert_rest(model, plan, native=optimize_llm)


def fill_from_archive(model: Any, path: Path, format: str, plan: Conversion) -> None:
    """Puts an archive's weights into a model: blocks as low-bit layers in its format, other tensors as they are.

    Raises ValueError where the archive's modules are not the model's (ipex-llm merged some for certain families).
    """
    source = open_source(path)
    try:
        names = set(source.names)
        layer: Any
        for name, layer in list(linear_layers(model)):
            weight = f"{name}.weight"
            if weight not in names or not archive.is_packed(*source.info(weight), format):
                continue
            rows, k = layer.weight.shape
            values = archive.decode(source.read(weight), format)
            if values.size != rows * k:
                raise ValueError(f"{path} has {values.size} weights for {name}, the model {rows} x {k}")
            packed = quantize(values.reshape(rows, k), format, archive.BLOCK, name=name, pool=plan.pool)
            low = LowBitLinear.from_packed(packed, layer.bias, dtype=layer.weight.dtype, **plan.settings)
            replace_module(model, layer, low)
            names.remove(weight)
        own = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
        for name in names & set(own):
            value = kernels.to_tensor(np.array(source.read(name)))
            folder.set_tensor(model, name, value.to(own[name].dtype), path)
    finally:
        source.close()
    folder.refuse_empty(model, path, f"{format} archive of ipex-llm with other modules")


class Maker:
    """An Auto class where a model class is asked for."""

    def __init__(self, hf_class: Any, trust_remote_code: bool = False) -> None:
        self.hf_class, self._trust_remote_code = hf_class, trust_remote_code

    def _from_config(self, config: Any) -> Any:
        return self.hf_class.from_config(config, trust_remote_code=self._trust_remote_code)
