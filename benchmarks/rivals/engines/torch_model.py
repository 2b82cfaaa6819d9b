"""transformers in bf16, eagerly; with torchao's int4 weights where options name a group (None: bf16), head in bf16."""

import json
import time
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM

from . import bits

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


class Engine:
    def __init__(self, folder: Path, options: dict, threads: int) -> None:
        torch.set_num_threads(threads)
        source = json.loads((folder / "source.json").read_text())
        self._model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).eval()
        self.version = f"transformers {transformers.__version__}, torch {torch.__version__.partition('+')[0]}"
        if options["group"] is not None:
            import torchao
            from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

            torchao.quantize_(self._model, PrototypeInt4WeightOnlyConfig(group_size=options["group"]), _in_layers)
            self.version = f"torchao {torchao.__version__.partition('+')[0]}, {self.version}"

    @staticmethod
    def prepare(source: Path, folder: Path, options: dict) -> dict[str, float]:
        """The checkpoint itself is what is loaded: torchao quantises in memory."""
        (folder / "source.json").write_text(json.dumps(str(source)))
        return bits(stored(Engine(folder, options, 1)._model))

    def _greedy(self, ids: torch.Tensor, cache=None):
        with torch.inference_mode():
            out = self._model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            return out.logits[:, -1:].argmax(-1), out.past_key_values

    def first(self, ids: list[int]) -> None:
        self._greedy(torch.tensor([ids]))

    def steps(self, prompts: list[list[int]], count: int) -> float:
        token, cache = self._greedy(torch.tensor(prompts))
        start = time.perf_counter()
        for _ in range(count):
            token, cache = self._greedy(token, cache)
        return len(prompts) * count / (time.perf_counter() - start)


def _in_layers(module: torch.nn.Module, name: str) -> bool:
    return isinstance(module, torch.nn.Linear) and "lm_head" not in name


def stored(model: torch.nn.Module) -> dict[str, list[int]]:
    """Returns [bytes, weights] of the matrices of layers and of the head."""
    found = {"body": [0, 0], "head": [0, 0]}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            weight = module.weight
            parts = [getattr(weight, n) for n in getattr(weight, "tensor_data_names", ())] or [weight]
            part = found["body" if _in_layers(module, name) else "head"]
            part[0] += sum(x.numel() * x.element_size() for x in parts)
            part[1] += module.in_features * module.out_features
    return found
