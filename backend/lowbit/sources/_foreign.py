"""Kinds of weights that lowbit recognises and does not read (yet): each is refused by name, with what to do instead."""

from __future__ import annotations

from pathlib import Path

ORIGINAL = "load the original (unquantised) Hugging Face model instead and let lowbit quantise it"

# quant_method of a Hugging Face config.json -> what it is
QUANT_METHODS = {
    "bitsandbytes": "a bitsandbytes checkpoint",
    "fp8": "an fp8 checkpoint",
    "compressed-tensors": "a compressed-tensors checkpoint",
    "mxfp4": "an mxfp4 checkpoint",
    "hqq": "an HQQ checkpoint",
    "intel/auto-round": "an AutoRound checkpoint",
    "auto-round": "an AutoRound checkpoint",
}


def refuse_foreign(path: Path, config: dict | None = None) -> None:
    """Raises ValueError when a folder, a file or a config.json belongs to a kind of weights that is not read here."""
    kind = _kind_of_config(config or {}) or (_kind_of_folder(path, config) if path.is_dir() else _kind_of_file(path))
    if kind:
        raise ValueError(f"{path} is {kind}, which lowbit does not read yet; {ORIGINAL}")


def _kind_of_config(config: dict) -> str | None:
    if low_bit := config.get("bigdl_transformers_low_bit"):
        return f"a low-bit folder saved by ipex-llm or bigdl-llm ({low_bit})"
    quantization = config.get("quantization_config")
    if not isinstance(quantization, dict):
        return None
    method = str(quantization.get("quant_method", "")).lower()
    if not method and (quantization.get("load_in_4bit") or quantization.get("load_in_8bit")):
        method = "bitsandbytes"
    if method in ("lowbit", "gptq", "awq"):  # the latter two: integers.py
        return None
    return QUANT_METHODS.get(method, f"quantised by {method or 'an unknown method'}")


def _kind_of_folder(folder: Path, config: dict | None = None) -> str | None:
    if (folder / "bigdl_config.json").exists():
        return "a low-bit folder saved by ipex-llm or bigdl-llm (bigdl_config.json)"
    if (folder / "quantize_config.json").exists() and not isinstance((config or {}).get("quantization_config"), dict):
        return "an intel-extension-for-transformers checkpoint (quantize_config.json)"
    if any(folder.glob("*.gguf")):
        return "a folder of GGUF files"
    for pattern, kind in (("tf_model.h5", "a TensorFlow"), ("flax_model.msgpack", "a Flax"), ("*.onnx", "an ONNX")):
        if any(folder.glob(pattern)):
            return f"{kind} model"
    return None


def _kind_of_file(file: Path) -> str | None:
    with file.open("rb") as stream:
        magic = stream.read(4)
    if magic == b"GGUF" or file.suffix == ".gguf":
        return "a GGUF file"
    if magic in (b"lmgg", b"tjgg", b"fmgg"):  # ggml, ggjt, ggmf: the three spellings before GGUF, little endian
        return "a file of the ggml family from before GGUF"
    return None
