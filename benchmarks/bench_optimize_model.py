"""What optimize_model gains in transformers' generate: float model, low-bit modules, native decoder; tokens per second.

python benchmarks/bench_optimize_model.py --hidden 1024 --layers 12 --low-bit sym_int4
"""

from __future__ import annotations

import argparse
import copy
import json
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lowbit import optimize_model


def seconds(model: LlamaForCausalLM, ids: torch.Tensor, tokens: int) -> float:
    """Returns the time of a greedy answer of `tokens` tokens."""
    start = time.perf_counter()
    model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--low-bit", default="sym_int4")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=given.hidden, intermediate_size=given.hidden * 11 // 4 // 64 * 64, num_hidden_layers=given.layers,
        num_attention_heads=given.hidden // 64, num_key_value_heads=given.hidden // 128, vocab_size=32000,
    )  # fmt: skip
    model = LlamaForCausalLM(config).bfloat16().eval()
    options = {"low_bit": given.low_bit, "threads": given.threads}
    models = {
        "float (bf16)": model,
        "low-bit modules": optimize_model(copy.deepcopy(model), optimize_llm=False, **options),
        "native decoder": optimize_model(copy.deepcopy(model), **options),
    }
    ids = torch.randint(3, 32000, (1, 64))
    best = dict.fromkeys(models, float("inf"))
    with torch.inference_mode():
        for _ in range(given.rounds):  # in turns, so that other work on the machine meets all of them
            for name, candidate in models.items():
                best[name] = min(best[name], seconds(candidate, ids, given.tokens))
    rates = {name: round(given.tokens / time_taken, 2) for name, time_taken in best.items()}
    parameters = sum(p.numel() for p in model.parameters())
    print(json.dumps({"parameters": parameters, **vars(given), "tokens_per_second": rates}, indent=2))


if __name__ == "__main__":
    main()
