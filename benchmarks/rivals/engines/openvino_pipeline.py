"""OpenVINO GenAI's LLMPipeline on the CPU. Options: group (int4, symmetric), run: properties of the device.

Exported by optimum-intel in fp16 and compressed by nncf, whose default keeps embedding and head in int8.
"""

import re
import shutil
from pathlib import Path

import numpy as np
import openvino
import openvino_genai as genai

from . import bits, rate_beyond


class Engine:
    def __init__(self, folder: Path, options: dict, threads: int) -> None:
        self.version = "openvino-genai " + genai.__version__.split("-")[0]
        own = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
        self._pipeline = genai.LLMPipeline(str(folder), "CPU", **own, **options["run"])

    @staticmethod
    def prepare(source: Path, folder: Path, options: dict) -> dict[str, float]:
        import nncf
        from optimum.exporters.openvino import main_export
        from optimum.intel import OVConfig

        whole = folder / "fp16"
        main_export(
            str(source), whole, task="text-generation-with-past", ov_config=OVConfig(dtype="fp16"), device="cpu",
            library_name="transformers", convert_tokenizer=False,
        )  # fmt: skip
        model = openvino.Core().read_model(whole / "openvino_model.xml")
        mode = nncf.CompressWeightsMode.INT4_SYM
        model = nncf.compress_weights(model, mode=mode, group_size=options["group"], ratio=1.0)
        openvino.save_model(model, folder / "openvino_model.xml", compress_to_fp16=False)
        for path in whole.iterdir():
            if not path.name.startswith("openvino_model"):
                shutil.copy(path, folder)
        del model
        shutil.rmtree(whole)
        return stored(folder / "openvino_model.xml")

    def _generate(self, prompts: list[list[int]], tokens: int) -> None:
        config = genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = tokens, True, False
        ids = np.array(prompts, np.int64)
        inputs = genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        self._pipeline.generate(inputs, config)

    def first(self, ids: list[int]) -> None:
        self._generate([ids], 1)

    def steps(self, prompts: list[list[int]], count: int) -> float:
        return rate_beyond(lambda ids, tokens: self._generate(ids, tokens), prompts, count)


def stored(path: Path) -> dict[str, float]:
    """Returns bits per weight of a model's matrices, scales included."""
    found = {"body": [0, 0], "head": [0, 0]}
    for operation in openvino.Core().read_model(path).get_ordered_ops():
        name = operation.get_friendly_name()
        if operation.get_type_name() != "Constant" or not re.search(r"_proj\.|embed_tokens\.|lm_head\.", name):
            continue
        if "bias" in name:
            continue
        part = found["body" if re.search(r"layers\.\d", name) else "head"]
        shape, kind = operation.get_output_shape(0), operation.get_output_element_type(0)
        count = int(np.prod(list(shape)))
        part[0] += count * kind.bitwidth / 8
        part[1] += 0 if re.search(r"scale|zero_point", name) else count
    return bits(found)
