"""LowBitConfig: `quantization_config=LowBitConfig(...)` in plain transformers, by its registration for quantisers.

Importing this module registers the method "lowbit" with transformers: `from_pretrained` then converts a float model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers.quantizers import HfQuantizer, auto
from transformers.utils.quantization_config import BitsAndBytesConfig, QuantizationConfigMixin

from lowbit.checkpoint import QUANT_METHOD
from lowbit.torch import optimize

OPTIONS = (
    "low_bit", "group_size", "modules_to_not_convert", "mixed_precision", "embedding_qtype", "optimize_llm", "compute",
    "precision", "kv_dtype", "threads",
)  # fmt: skip


class _Method(str):
    """The name of a method, with the `value` that transformers 4 reads of its own enumeration."""

    @property
    def value(self) -> str:
        return str(self)


class LowBitConfig(QuantizationConfigMixin):
    """How transformers' from_pretrained is to convert a model; the arguments are those of `lowbit.optimize_model`.

    >>> LowBitConfig("nf4").low_bit
    'nf4'
    """

    def __init__(
        self,
        low_bit: str = "sym_int4",
        *,
        group_size: int | None = None,
        modules_to_not_convert: Sequence[str] | None = None,
        mixed_precision: bool = False,
        embedding_qtype: str | None = None,
        optimize_llm: bool = True,
        compute: str | None = None,
        precision: str | None = None,
        kv_dtype: str = "fp16",
        threads: int | None = None,
        **recorded: Any,
    ) -> None:
        self.quant_method = _Method(QUANT_METHOD)  # type: ignore[assignment]
        self.low_bit = low_bit
        self.group_size = group_size
        self.modules_to_not_convert = None if modules_to_not_convert is None else list(modules_to_not_convert)
        self.mixed_precision = mixed_precision
        self.embedding_qtype = embedding_qtype
        self.optimize_llm = optimize_llm
        self.compute = compute
        self.precision = precision
        self.kv_dtype = kv_dtype
        self.threads = threads
        recorded.pop("quant_method", None)
        self.recorded = recorded  # of a low-bit folder: format, graph, spec, ...

    def load_options(self) -> dict[str, Any]:
        """Returns the keyword arguments for `optimize_model`."""
        return {name: getattr(self, name) for name in OPTIONS}

    @classmethod
    def from_bitsandbytes(cls, config: BitsAndBytesConfig) -> LowBitConfig:
        """Returns our format of the same bits: nf4 and fp4 in groups of 64 for 4 bits, sym_int8 for 8."""
        skipped = config.llm_int8_skip_modules
        if config.load_in_4bit:
            name = config.bnb_4bit_quant_type
            return cls({"int4": "sym_int4"}.get(name, name), group_size=64, modules_to_not_convert=skipped)
        if config.load_in_8bit:
            return cls("sym_int8", modules_to_not_convert=skipped)
        raise ValueError("the BitsAndBytesConfig asks for neither 4 nor 8 bits; set load_in_4bit=True")


class LowBitHfQuantizer(HfQuantizer):
    """What transformers' from_pretrained calls: after the weights are loaded, the model is converted."""

    requires_calibration = False
    quantization_config: LowBitConfig

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        """Raises ValueError for a device_map that puts modules elsewhere than in CPU memory, and for saved folders."""
        if isinstance(device_map, dict) and any(str(place) != "cpu" for place in device_map.values()):
            raise ValueError(f"device_map={device_map!r}: low-bit models load into CPU memory; leave device_map out")
        if self.pre_quantized:
            raise ValueError(
                "this is a low-bit folder: open it with lowbit.load, lowbit.load_low_bit or load_low_bit of the Auto "
                "classes in lowbit.transformers"
            )

    def update_torch_dtype(self, torch_dtype: Any) -> Any:
        """Returns the dtype unchanged (transformers 4 asks)."""
        return torch_dtype

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        return model

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        config = self.quantization_config
        return optimize.optimize_model(model, **config.load_options())

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        """False: save_pretrained writes float models; save_low_bit saves this one."""
        return False

    @property
    def is_trainable(self) -> bool:
        """False: packed weights have no gradient."""
        return False


def _register() -> None:
    """Makes "lowbit" a method that transformers knows."""
    if hasattr(auto, "register_quantizer"):
        auto.register_quantization_config(QUANT_METHOD)(LowBitConfig)
        auto.register_quantizer(QUANT_METHOD)(LowBitHfQuantizer)
    else:  # transformers 4.48 has the tables and not the functions yet
        auto.AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD] = LowBitConfig
        auto.AUTO_QUANTIZER_MAPPING[QUANT_METHOD] = LowBitHfQuantizer


_register()
