"""The predecessors' loaders on today's transformers (extra `torch`): Auto classes that load in low bits.

Owns the arguments of ipex_llm.transformers and intel_extension_for_transformers.transformers, and sorts them: what is
about formats goes to optimize_model, the rest to transformers' class of the same name. Changes nothing in transformers:
no generate is patched, and no code of a checkpoint runs unless trust_remote_code says so.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers as hf

from lowbit import checkpoint
from lowbit.calibration import Quantiser
from lowbit.loading import config_of
from lowbit.options import GENERATION_NAMES
from lowbit.runtime import Runtime, split_device
from lowbit.sources import archive, hub
from lowbit.sources.integers import settings_of
from lowbit.torch.optimize import conversion, convert
from lowbit.torch.plugin import LowBitConfig
from lowbit.torch.pretrained import HUB_OPTIONS, Maker, can_stream, load_archive, model_of, stream
from lowbit.woq import AutoRoundConfig, AwqConfig, GPTQConfig, RtnConfig, TeqConfig, WeightOnlyQuantConfig

__all__ = [
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForImageTextToText",
    "AutoModelForMaskedLM",
    "AutoModelForMultipleChoice",
    "AutoModelForNextSentencePrediction",
    "AutoModelForQuestionAnswering",
    "AutoModelForSeq2SeqLM",
    "AutoModelForSequenceClassification",
    "AutoModelForSpeechSeq2Seq",
    "AutoModelForTokenClassification",
    "AutoRoundConfig",
    "AwqConfig",
    "GPTQConfig",
    "LowBitConfig",
    "RtnConfig",
    "TeqConfig",
    "WeightOnlyQuantConfig",
]

if not hf.is_torch_available():  # it then holds no models, only stand-ins for them
    import torch

    raise ImportError(
        f"transformers {hf.__version__} offers no models with torch {torch.__version__}: it needs a newer torch. "
        'pip install -U torch, or an older transformers: with torch 2.4, pip install "transformers>=4.48,<4.52"'
    )

logger = logging.getLogger(__name__)

# Arguments of the predecessors that choose between runtimes they had, and have nothing to choose here.
WITHOUT_EFFECT = frozenset(
    (
        "cpu_embedding", "replace_embedding", "disk_embedding", "low_cpu_mem_usage", "use_llm_runtime",
        "use_neural_speed", "use_embedding_runtime", "use_vllm", "lightweight_bmm", "enable_mp",
    )
)  # fmt: skip
_OF_MODELS = frozenset(("pad_token_id", "bos_token_id", "eos_token_id"))  # settings of a config, too
DTYPE = "dtype" if tuple(int(n) for n in hf.__version__.split(".")[:2]) >= (4, 56) else "torch_dtype"


class _LowBitAuto:
    """An Auto class of transformers whose models are loaded in low bits."""

    hf_class: Any

    def __init__(self) -> None:
        name = type(self).__name__
        raise OSError(f"{name} is not made but loaded: {name}.from_pretrained(id) or {name}.load_low_bit(folder)")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *model_args: Any,
        load_in_4bit: bool = False,
        load_in_8bit: bool = False,
        load_in_low_bit: str | None = None,
        quantization_config: Any = None,
        optimize_model: bool = True,
        modules_to_not_convert: Sequence[str] | None = None,
        embedding_qtype: str | None = None,
        imatrix: Any = None,
        mixed_precision: bool = False,
        group_size: int | None = None,
        torch_dtype: Any = None,
        dtype: Any = None,
        trust_remote_code: bool = False,
        device_map: Any = None,
        model_hub: str = "huggingface",
        show_progress: bool = False,
        compute: str | None = None,
        precision: str | None = None,
        kv_dtype: str = "int16",
        threads: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Returns the model of a hub id or folder, its linear layers in low bits; `save_low_bit(folder)` saves it.

        load_in_low_bit: a name of `lowbit.formats`; load_in_4bit is "sym_int4", load_in_8bit "sym_int8"; with none of
        them and no quantization_config the model is loaded as transformers loads it. quantization_config: a
        LowBitConfig, a WeightOnlyQuantConfig, or a BitsAndBytesConfig (nf4, fp4 and int8 become our formats of those
        bits). optimize_model: run known language models on the native decoder; these are packed while they are read,
        so that no float model is ever in memory. imatrix: importance matrix of llama.cpp to weigh errors by. The other
        arguments are those of `lowbit.optimize_model`, generation options (temperature, max_length, ...), which become
        the model's defaults, and any further ones those of transformers' class. A low-bit folder is opened as it was
        saved. Raises ValueError for formats that cannot be, devices other than the CPU, and a model_hub other than
        "huggingface"; TypeError or OSError as transformers does.
        """
        kwargs = {name: value for name, value in kwargs.items() if name not in WITHOUT_EFFECT}
        _check_place(device_map, model_hub)
        if str(pretrained_model_name_or_path).endswith(".onnx"):
            raise ValueError(
                f"{pretrained_model_name_or_path} is a graph for ITREX's Neural Engine, which is gone; lowbit.Embedder "
                "(in LangChain QuantizedBgeEmbeddings of langchain_lowbit) quantises the float model instead"
            )
        for name, off in (("speculative", False), ("pipeline_parallel_stages", 1)):
            if kwargs.pop(name, off) is not off:
                raise ValueError(f"{name} is not supported; leave it out (generate takes assistant_model=)")
        low_bit: Any = load_in_low_bit or ("sym_int4" if load_in_4bit else "sym_int8" if load_in_8bit else None)
        options: dict[str, Any] = {
            "modules_to_not_convert": modules_to_not_convert, "embedding_qtype": embedding_qtype,
            "mixed_precision": mixed_precision, "group_size": group_size, "compute": compute,
            "precision": precision, "kv_dtype": kv_dtype, "threads": threads,
            "quantiser": None if imatrix is None else Quantiser(imatrix=imatrix),
        }  # fmt: skip
        asked = read_config(quantization_config)
        low_bit = low_bit or asked.pop("low_bit", None)
        optimize_model = optimize_model and asked.pop("optimize_llm", True)
        for name in options:
            if asked.get(name) is not None and (name == "kv_dtype" or not options[name]):
                options[name] = asked[name]
        generation = _take_generation(kwargs)
        hub_options = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        # Without a config.json transformers says what is missing, or reads an adapter's.
        config = config_of(pretrained_model_name_or_path, **hub_options, missing_ok=True)
        if checkpoint.is_low_bit(config):
            return cls.load_low_bit(
                pretrained_model_name_or_path, optimize_model=optimize_model, trust_remote_code=trust_remote_code,
                compute=options["compute"], precision=options["precision"], kv_dtype=options["kv_dtype"],
                threads=options["threads"], **hub_options, **generation,
            )  # fmt: skip
        dtype = dtype or torch_dtype or "auto"
        if low_bit is None and settings_of(config, Path(str(pretrained_model_name_or_path))) is not None:
            low_bit = "sym_int4"  # codes of GPTQ and AWQ are taken over, whichever zeros they have
        if low_bit is not None and optimize_model and not model_args and can_stream(cls.hf_class, config, kwargs):
            model = stream(
                cls.hf_class, pretrained_model_name_or_path, config, conversion(low_bit, **options), dtype=dtype,
                show_progress=show_progress, **hub_options,
            )  # fmt: skip
            return _generating_with(model, generation)
        kwargs[DTYPE] = dtype
        model = cls.hf_class.from_pretrained(
            pretrained_model_name_or_path, *model_args, trust_remote_code=trust_remote_code, **kwargs
        )
        model = _generating_with(model, generation)
        if low_bit is None:
            return model
        return convert(model, conversion(low_bit, **options), optimize_llm=optimize_model, show_progress=show_progress)

    @classmethod
    def load_low_bit(
        cls,
        pretrained_model_name_or_path: Any,
        *model_args: Any,
        optimize_model: bool = True,
        trust_remote_code: bool = False,
        verify: bool | None = None,
        compute: str | None = None,
        precision: str | None = None,
        kv_dtype: str = "int16",
        threads: int | None = None,
        revision: str | None = None,
        cache_dir: Any = None,
        token: Any = None,
        local_files_only: bool = False,
        **saved: Any,
    ) -> Any:
        """Returns the model of a low-bit folder, its weights mapped: what `save_low_bit` wrote, here or in lowbit.load.

        optimize_model: run known language models on the native decoder. verify: check every byte (None: up to a size).
        Other arguments that ipex-llm needed again at loading (modules_to_not_convert, torch_dtype, ...) are accepted
        and not needed: the folder records them. Raises FileNotFoundError or ValueError naming cause and fix.
        """
        _check_place(saved.pop("device_map", None), saved.pop("model_hub", "huggingface"))
        access = hub.Access(cache_dir, token, local_files_only)
        location = hub.locate(pretrained_model_name_or_path, revision, access)
        path = hub.fetch_weights(location, access).folder
        runtime = Runtime(device="cpu", compute=compute, precision=precision, kv_dtype=kv_dtype, threads=threads)
        make = Maker(cls.hf_class, trust_remote_code)
        generation, config = _take_generation(saved), config_of(path, missing_ok=True)
        if archive.format_of(config, path) is not None:
            model = load_archive(make, path, config, runtime, optimize_llm=optimize_model)
        else:
            model = model_of(make, checkpoint.load(path, verify), path, runtime, optimize_llm=optimize_model)
        return _generating_with(model, generation)

    @classmethod
    def from_config(cls, config: Any, **kwargs: Any) -> Any:
        """Returns an untrained model of a config, as transformers' class does."""
        return cls.hf_class.from_config(config, **kwargs)


def _take_generation(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Removes from loading arguments what is about generation, and returns it: `temperature` beside `load_in_4bit` is
    what the predecessors' documents show, and transformers refuses."""
    known = hf.GenerationConfig().to_dict().keys() & GENERATION_NAMES - _OF_MODELS
    return {name: kwargs.pop(name) for name in sorted(known & kwargs.keys())}


def _generating_with(model: Any, options: dict[str, Any]) -> Any:
    """The model, with options as the defaults of its `generate`; a temperature of 0 is greedy."""
    if options.get("temperature") == 0:
        options = {**{name: value for name, value in options.items() if name != "temperature"}, "do_sample": False}
    if options and getattr(model, "generation_config", None) is not None:
        model.generation_config.update(**options)
    if "use_cache" in options:
        model.config.use_cache = options["use_cache"]
    return model


def read_config(given: Any) -> dict[str, Any]:
    """Returns the arguments of `optimize_model` that a quantization_config stands for.

    A class in place of an instance stands for an instance with its defaults, as published examples pass it.
    """
    if isinstance(given, type):
        given = given()
    if given is None:
        return {}
    if isinstance(given, dict):
        given = LowBitConfig.from_dict(given)
    if isinstance(given, hf.BitsAndBytesConfig):
        given = LowBitConfig.from_bitsandbytes(given)
    if hasattr(given, "load_options"):
        return dict(given.load_options())
    raise ValueError(
        f"quantization_config is a {type(given).__name__}, which lowbit does not apply; give a LowBitConfig, a "
        "WeightOnlyQuantConfig or a BitsAndBytesConfig, or leave it out and use load_in_low_bit"
    )


def _check_place(device_map: Any, model_hub: str) -> None:
    places = device_map.values() if isinstance(device_map, dict) else [device_map]
    for place in places:
        if place not in (None, "auto", "balanced", "sequential") and split_device(str(place))[0] not in ("cpu", "auto"):
            raise ValueError(f"device_map={device_map!r}: models load into CPU memory; leave device_map out")
    if model_hub != "huggingface":
        raise ValueError(f"model_hub={model_hub!r} is not supported; download the model and give its folder")


def _auto(name: str) -> Any:
    doc = f"transformers.{name}, loading in low bits: from_pretrained(load_in_4bit=True), load_low_bit(folder)."
    return type(name, (_LowBitAuto,), {"__doc__": doc, "__module__": __name__, "hf_class": getattr(hf, name)})


AutoModel = _auto("AutoModel")
AutoModelForCausalLM = _auto("AutoModelForCausalLM")
AutoModelForImageTextToText = _auto("AutoModelForImageTextToText")
AutoModelForMaskedLM = _auto("AutoModelForMaskedLM")
AutoModelForMultipleChoice = _auto("AutoModelForMultipleChoice")
AutoModelForNextSentencePrediction = _auto("AutoModelForNextSentencePrediction")
AutoModelForQuestionAnswering = _auto("AutoModelForQuestionAnswering")
AutoModelForSeq2SeqLM = _auto("AutoModelForSeq2SeqLM")
AutoModelForSequenceClassification = _auto("AutoModelForSequenceClassification")
AutoModelForSpeechSeq2Seq = _auto("AutoModelForSpeechSeq2Seq")
AutoModelForTokenClassification = _auto("AutoModelForTokenClassification")
