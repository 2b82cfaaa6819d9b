"""A copy of a model in which a few channels are much larger, as those of large language models are.

The weights of every norm are multiplied by a factor at a few channels, and the columns of the matrices behind it
divided by it; in gated layers likewise rows of `up` and the columns of `down`. Without rounding the model computes what
it did, to the last bits of fp32: what changes is how well 8 bits hold its activations.

    python benchmarks/plant_outliers.py demo/model planted --factor 200
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

# By model_type: what is made larger in a layer, and what reads it, of which a checkpoint has some. GPT-2's matrices are
# [inputs, outputs].
LLAMA = {
    "input_layernorm": "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.qkv_proj",
    "post_attention_layernorm": "mlp.gate_proj mlp.up_proj mlp.gate_up_proj",
    "mlp.up_proj": "mlp.down_proj",
}
READERS = {
    "llama": LLAMA,
    "phi3": LLAMA,
    "gpt2": {"ln_1": "attn.c_attn", "ln_2": "mlp.c_fc"},
    "opt": {"self_attn_layer_norm": "self_attn.q_proj self_attn.k_proj self_attn.v_proj", "final_layer_norm": "fc1"},
}


def plant(tensors: dict[str, np.ndarray], model_type: str, factor: float, channels: int, seed: int = 0) -> None:
    """Makes a few channels of every input that a model's layers normalise, and of `down`'s, `factor` times as large."""
    random = np.random.default_rng(seed)
    for name in sorted(tensors):
        stem, _, kind = name.rpartition(".")
        place = next((p for p in READERS[model_type] if stem.endswith("." + p)), None)
        if place is None or kind != "weight":
            continue
        before = stem.removesuffix(place)
        readers = [f"{before}{name}.weight" for name in READERS[model_type][place].split()]
        readers = [name for name in readers if name in tensors]
        if not readers:  # a norm of the same name behind the last layer
            continue
        chosen = random.choice(len(tensors[name]), channels, replace=False)
        for part in ("weight", "bias"):
            if (own := f"{stem}.{part}") in tensors:
                tensors[own] = tensors[own].astype(np.float32)
                tensors[own][chosen] *= factor
        for reader in readers:
            tensors[reader] = tensors[reader].astype(np.float32)
            columns = tensors[reader] if model_type == "gpt2" else tensors[reader].T
            columns[chosen] /= factor


def planted(folder: Path, out: Path, factor: float, channels: int = 2, seed: int = 0) -> Path:
    """Returns `out`, a copy of a model's folder with planted channels. ValueError for a model_type it does not know."""
    model_type = json.loads((folder / "config.json").read_text())["model_type"]
    if model_type not in READERS:
        raise ValueError(f"{folder} holds a {model_type}; this knows {', '.join(READERS)}")
    shutil.copytree(folder, out)
    tensors = load_file(folder / "model.safetensors")
    plant(tensors, model_type, factor, channels, seed)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--factor", type=float, default=200.0)
    parser.add_argument("--channels", type=int, default=2)
    args = parser.parse_args()
    print(planted(args.model, args.out, args.factor, args.channels))


if __name__ == "__main__":
    main()
