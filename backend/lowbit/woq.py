"""WeightOnlyQuantConfig: the settings of intel-extension-for-transformers, as options of `lowbit.load`.

Owns the names and defaults of ITREX 1.3 (and its later RtnConfig, AwqConfig, TeqConfig, GPTQConfig, AutoRoundConfig)
and what they mean here. Refuses what no format here is, with the nearest choice. Needs no torch.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from lowbit.calibration import Quantiser
from lowbit.formats import CODEBOOK, Choice, resolve

logger = logging.getLogger(__name__)

CONFIG_FILE = "quantize_config.json"  # where ITREX kept it
DEFAULT_DATASET = "NeelNanda/pile-10k"

_ASYMMETRIC = {"sym_int4": "asym_int4", "sym_int5": "asym_int5"}
_COMPUTE = {"fp32": "fp32", "float32": "fp32", "bf16": "bf16", "bfloat16": "bf16", "fp16": "fp32", "int8": "int8"}
_SCALES = (None, "fp32", "fp16", "bf16")  # all stored as fp16 over a power of two per tensor
_ALGORITHMS = {"RTN": "rtn", "AWQ": "awq", "TEQ": "teq", "GPTQ": "gptq", "AUTOROUND": "gptq"}
# Arguments of other backends: read, because scripts pass them, and without effect here.
_IGNORED = (
    "use_ggml", "use_quant", "use_gptq", "use_autoround", "use_neural_speed", "use_ipex", "low_bit_model", "device",
    "not_quant", "use_cache", "layer_wise", "blocksize", "static_groups", "true_sequential", "lr", "minmax_lr",
    "enable_quanted_input", "iters", "quant_method", "backend",
)  # fmt: skip
_OTHER_NAMES = {"alg": "scheme", "dataset": "calib_dataset", "desc_act": "act_order", "damp_percent": "damp"}


class WeightOnlyQuantConfig:
    """Weight-only quantisation as ITREX's documents describe it.

    weight_dtype: int8, int4, int4_fullrange, int4_clip, nf4, fp4, fp4_e2m1, fp8_e4m3, fp8_e5m2, or any format of
    lowbit; compute_dtype: fp32, bf16 or int8; group_size: 32, 64, 128 or -1 (per row); scheme: "sym" or
    "asym" (4 and 5 bits); mse_range: search the clip of every group from 0.805 to 1 in steps of 0.005;
    use_double_quant: round the scales themselves to double_quant_scale_dtype (int8, fp8_e4m3 or fp8_e5m2) in blocks of
    256, as QLoRA does (the file stays as large: the layout has 16 bits for a scale); algorithm: RTN, AWQ, TEQ, GPTQ
    (AUTOROUND becomes GPTQ); llm_int8_skip_modules: modules that stay float.
    Calibration (AWQ, TEQ, GPTQ): calib_dataset is a list of texts, a text file (paragraphs), or the name of a dataset
    that the `datasets` package loads; calib_dataloader yields token ids; nsamples and calib_len bound them.

    Raises ValueError for combinations no format here is. `alg` is accepted for `scheme`, a torch dtype for a name.

    >>> WeightOnlyQuantConfig(weight_dtype="int4_clip", group_size=128).load_options()["low_bit"].full_range
    False
    """

    quant_method = "woq"

    def __init__(
        self,
        llm_int8_skip_modules: Sequence[str] | None = None,
        compute_dtype: Any = None,
        weight_dtype: Any = None,
        scale_dtype: Any = None,
        mse_range: bool = False,
        use_double_quant: bool = False,
        double_quant_scale_dtype: Any = None,
        group_size: int = 32,
        scheme: str = "sym",
        algorithm: str = "RTN",
        algorithm_args: dict[str, Any] | None = None,
        tokenizer: Any = None,
        calib_dataset: Any = None,
        calib_dataloader: Iterable[Any] | None = None,
        calib_iters: int = 100,
        nsamples: int = 128,
        calib_len: int = 512,
        act_order: bool = False,
        damp: float = 0.01,
        **others: Any,
    ) -> None:
        options = {**others, **(algorithm_args or {})}
        renamed = {_OTHER_NAMES[name]: options.pop(name) for name in list(options) if name in _OTHER_NAMES}
        for name in [name for name in options if name in _IGNORED]:
            options.pop(name)
        double_quant_dtype = options.pop("double_quant_dtype", None)  # ITREX 1.2
        double_quant_scale_dtype = double_quant_scale_dtype or double_quant_dtype
        if options:
            raise TypeError(
                f"WeightOnlyQuantConfig got unknown arguments {', '.join(sorted(options))}; it has "
                "weight_dtype, compute_dtype, scale_dtype, group_size, scheme, algorithm, mse_range, use_double_quant, "
                "double_quant_scale_dtype, llm_int8_skip_modules, calib_dataset, calib_dataloader, nsamples, calib_len"
            )
        self.llm_int8_skip_modules = list(llm_int8_skip_modules or ())
        self.weight_dtype = _name(weight_dtype) or "nf4"
        self.compute_dtype = _name(compute_dtype) or "fp32"
        self.scale_dtype = _name(scale_dtype)
        self.mse_range = mse_range
        self.use_double_quant = use_double_quant
        self.double_quant_scale_dtype = _name(double_quant_scale_dtype)
        self.group_size = group_size
        self.scheme = renamed.get("scheme", scheme)
        self.algorithm = str(algorithm).upper()
        self.tokenizer = tokenizer
        self.calib_dataset = renamed.get("calib_dataset", calib_dataset)
        self.calib_dataloader = calib_dataloader
        self.calib_iters = calib_iters
        self.nsamples = nsamples
        self.calib_len = calib_len
        self.act_order = renamed.get("act_order", act_order)
        self.damp = renamed.get("damp", damp)
        self.post_init()

    # ---- what it means here ----

    def post_init(self) -> None:
        """Raises ValueError for a setting that cannot be met, naming the nearest one that can."""
        self._choice()
        if self.compute_dtype not in _COMPUTE:
            raise ValueError(f"compute_dtype {self.compute_dtype!r} is not one of fp32, bf16, int8")
        if self.scale_dtype not in _SCALES:
            raise ValueError(f"scale_dtype {self.scale_dtype!r} is not one of fp32, fp16, bf16")
        if self.algorithm not in _ALGORITHMS:
            raise ValueError(f"algorithm {self.algorithm!r} is not one of {', '.join(_ALGORITHMS)}")
        if self.use_double_quant and self.double_quant_scale_dtype not in (None, *Quantiser.DOUBLE_QUANT):
            raise ValueError(
                f"double_quant_scale_dtype {self.double_quant_scale_dtype!r} is not one of "
                f"{', '.join(Quantiser.DOUBLE_QUANT)}"
            )

    post_init_cpu = post_init_xpu = post_init_runtime = post_init

    def _choice(self) -> Choice:
        choice = resolve(self.weight_dtype)
        choice.format.group(self.group_size)
        if self.scheme not in ("sym", "asym"):
            raise ValueError(f"scheme {self.scheme!r} is not 'sym' or 'asym'")
        if self.scheme == "sym" or choice.format.has_min:
            return choice
        if choice.format.name in _ASYMMETRIC:
            return resolve(_ASYMMETRIC[choice.format.name])
        kind = "float codes, which have no minimum" if choice.format.codes == CODEBOOK else "no asymmetric variant here"
        raise ValueError(
            f"scheme 'asym' with weight_dtype {self.weight_dtype!r}: {choice.format.name} has {kind}; use "
            "weight_dtype='int4' (or 'int5'), or scheme='sym'"
        )

    def quantiser(self) -> Quantiser:
        """Returns how weights are rounded; reads the calibration data where the algorithm needs any."""
        name = _ALGORITHMS[self.algorithm]
        if self.algorithm == "AUTOROUND":
            logger.warning("AutoRound is not built here; GPTQ, which also minimises each layer's output error, is used")
        return Quantiser(
            name,
            clip_search=self.mse_range,
            calibration=() if name == "rtn" else self._calibration(),
            length=self.calib_len,
            tokens=self.nsamples * self.calib_len,
            act_order=self.act_order,
            damp=self.damp,
            double_quant=(self.double_quant_scale_dtype or "int8") if self.use_double_quant else None,
        )

    def load_options(self) -> dict[str, Any]:
        """Returns options of `lowbit.load`: low_bit, group_size, modules_to_not_convert, quantiser, compute."""
        return {
            "low_bit": self._choice(),
            "group_size": self.group_size,
            "modules_to_not_convert": self.llm_int8_skip_modules,
            "quantiser": self.quantiser(),
            "compute": _COMPUTE[self.compute_dtype],
        }

    def _calibration(self) -> Sequence[Any]:
        if self.calib_dataloader is not None:
            return [_ids(batch) for batch in islice(self.calib_dataloader, self.nsamples)]
        data = DEFAULT_DATASET if self.calib_dataset is None else self.calib_dataset
        if not isinstance(data, (str, Path)):
            return [item["text"] if isinstance(item, dict) else item for item in islice(data, self.nsamples)]
        if Path(data).is_file():
            paragraphs = [part.strip() for part in Path(data).read_text(encoding="utf-8").split("\n\n")]
            return [part for part in paragraphs if part][: self.nsamples]
        return _dataset(str(data), self.nsamples)

    # ---- as a file ----

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings, without calibration data."""
        left_out = {"tokenizer", "calib_dataset", "calib_dataloader"}
        return {"quant_method": self.quant_method} | {k: v for k, v in vars(self).items() if k not in left_out}

    def to_diff_dict(self) -> dict[str, Any]:
        """Returns the settings that differ from the defaults."""
        usual = WeightOnlyQuantConfig().to_dict()
        return {k: v for k, v in self.to_dict().items() if v != usual.get(k)}

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Returns the configuration of a dictionary, keyword arguments winning over it."""
        config = cls(**{**config_dict, **kwargs})
        return (config, {}) if return_unused_kwargs else config

    def to_json_string(self, use_diff: bool = True) -> str:
        """Returns the settings as JSON."""
        return json.dumps(self.to_diff_dict() if use_diff else self.to_dict(), indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path: str | Path, use_diff: bool = True) -> None:
        """Writes the settings as JSON."""
        Path(json_file_path).write_text(self.to_json_string(use_diff), encoding="utf-8")

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> None:
        """Writes quantize_config.json into a folder."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        self.to_json_file(Path(save_directory) / CONFIG_FILE, use_diff=False)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> WeightOnlyQuantConfig:
        """Returns the configuration in a folder's quantize_config.json. Raises FileNotFoundError without one."""
        path = Path(pretrained_model_name_or_path) / CONFIG_FILE
        if not path.is_file():
            raise FileNotFoundError(f"no {CONFIG_FILE} in {pretrained_model_name_or_path}")
        return cls(**{**json.loads(path.read_text(encoding="utf-8")), **kwargs})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WeightOnlyQuantConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string(use_diff=False)}"


def _bits_dtype(bits: int) -> str:
    if bits not in (4, 8):
        raise ValueError(f"bits={bits}: ITREX has 4 and 8; other formats by weight_dtype")
    return "int4_clip" if bits == 4 else "int8"


def _later_config(name: str, algorithm: str, bits: int, group_size: int, symmetric: bool) -> Any:
    """Returns one of ITREX 1.4's configuration functions: (bits, group_size, ...) onto WeightOnlyQuantConfig."""
    usual_bits, usual_group, usual_symmetric = bits, group_size, symmetric

    def config(
        bits: int = usual_bits,
        group_size: int = usual_group,
        *,
        sym: bool | None = None,
        zero_point: bool | None = None,
        weight_dtype: Any = None,
        max_input_length: int | None = None,
        **settings: Any,
    ) -> WeightOnlyQuantConfig:
        symmetric = sym if sym is not None else usual_symmetric if zero_point is None else not zero_point
        if max_input_length:
            settings.setdefault("calib_len", max_input_length)
        return WeightOnlyQuantConfig(
            weight_dtype=weight_dtype or _bits_dtype(bits),
            group_size=group_size,
            scheme="sym" if symmetric or bits == 8 else "asym",
            algorithm=algorithm,
            **settings,
        )

    config.__name__ = config.__qualname__ = name
    config.__doc__ = (
        f"Returns ITREX 1.4's {name} as a WeightOnlyQuantConfig with algorithm {algorithm}: bits {bits}, group size "
        f"{group_size}, {'symmetric' if symmetric else 'asymmetric (4 bits; 8 bits are symmetric here)'}."
    )
    return config


RtnConfig = _later_config("RtnConfig", "RTN", 4, 32, True)
GPTQConfig = _later_config("GPTQConfig", "GPTQ", 4, 32, True)
AwqConfig = _later_config("AwqConfig", "AWQ", 8, 32, False)
TeqConfig = _later_config("TeqConfig", "TEQ", 8, 32, True)
AutoRoundConfig = _later_config("AutoRoundConfig", "AUTOROUND", 4, 128, False)


def _name(dtype: Any) -> str | None:
    """A name of a torch dtype or of a string, None for None."""
    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.").lower()
    return {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}.get(name, name)


def _ids(batch: Any) -> list[int]:
    """Token ids of what a dataloader yields: ids, a mapping with input_ids, or a (batch, label) pair; one sequence."""
    if isinstance(batch, dict) or hasattr(batch, "input_ids"):
        batch = batch["input_ids"]
    elif isinstance(batch, tuple):
        return _ids(batch[0])
    batch = batch.tolist() if hasattr(batch, "tolist") else list(batch)
    while batch and isinstance(batch[0], list):
        if len(batch) > 1:
            raise ValueError("calib_dataloader must yield one sequence at a time (batch size 1)")
        batch = batch[0]
    return [int(i) for i in batch]


def _dataset(name: str, count: int) -> list[str]:
    try:
        from datasets import load_dataset  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        raise ImportError(
            f"calibration on the dataset {name!r} needs the datasets package: pip install datasets, or give texts or a "
            "text file of your own as calib_dataset"
        ) from None
    rows = load_dataset(name, split="train", streaming=True)
    return [row["text"] for row in islice(rows, count)]
