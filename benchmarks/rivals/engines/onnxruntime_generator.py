"""ONNX Runtime GenAI on the CPU. Options: block (int4, weights per scale).

Built by its model builder with int8 activations (accuracy_level 4) and a head that computes the last token alone; the
head is int4 as well, which is the builder's default.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime_genai as genai

from . import bits


class Engine:
    def __init__(self, folder: Path, options: dict, threads: int) -> None:
        self.version = f"onnxruntime-genai {genai.__version__}"
        config = genai.Config(str(folder))
        own = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": own}}}))
        self._model = genai.Model(config)

    @staticmethod
    def prepare(source: Path, folder: Path, options: dict) -> dict[str, float]:
        extra = [f"block_size={options['block']}", "accuracy_level=4", "prune_lm_head=true"]
        with tempfile.TemporaryDirectory() as cache:
            arguments = ["-i", str(source), "-o", str(folder), "-p", "int4", "-e", "cpu", "-c", cache]
            command = [sys.executable, "-m", "onnxruntime_genai.models.builder", *arguments, "--extra_options", *extra]
            subprocess.run(command, check=True, stdout=sys.stderr)
        return stored(folder / "model.onnx")

    def _generator(self, prompts: list[list[int]], tokens: int):
        parameters = genai.GeneratorParams(self._model)
        length = len(prompts[0]) + tokens
        parameters.set_search_options(max_length=length, min_length=length, batch_size=len(prompts), do_sample=False)
        generator = genai.Generator(self._model, parameters)
        ids = np.array(prompts, np.int32)
        generator.append_tokens(ids if len(prompts) > 1 else ids[0])
        generator.generate_next_token()
        return generator

    def first(self, ids: list[int]) -> None:
        self._generator([ids], 4)

    def steps(self, prompts: list[list[int]], count: int) -> float:
        generator = self._generator(prompts, count + 4)
        start = time.perf_counter()
        for _ in range(count):
            generator.generate_next_token()
        return len(prompts) * count / (time.perf_counter() - start)


def stored(path: Path) -> dict[str, float]:
    """Returns bits per weight of the matrices of the model's quantised products, scales included."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    sizes = {t.name: (list(t.dims), onnx.helper.tensor_dtype_to_np_dtype(t.data_type)) for t in model.graph.initializer}
    found = {"body": [0, 0], "head": [0, 0]}
    for node in model.graph.node:
        if node.op_type != "MatMulNBits":
            continue
        shape = {a.name: a.i for a in node.attribute}
        part = found["head" if "lm_head" in node.name else "body"]
        part[1] += shape["N"] * shape["K"]
        for name in node.input[1:]:
            if name in sizes and "bias" not in name.lower():
                dims, kind = sizes[name]
                part[0] += int(np.prod(dims)) * kind.itemsize
    return bits(found)
