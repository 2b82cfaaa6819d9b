"""A rival of bench_embed.py in an environment of its own: embeds the same shapes, timed one call at a time on demand.

Started by bench_embed.py --rivals PYTHON with a kind, a shape and a number of threads. Builds a BERT with random
weights, prints "ready", then answers each line "batch N T" on its standard input (N texts of T tokens) with the seconds
of one call. Needs torch and transformers; onnx and onnxruntime, or openvino and nncf, for those kinds.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path


def bert(shape: dict):
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30522, hidden_size=shape["hidden_size"], num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"], intermediate_size=shape["ffn_size"],
    )  # fmt: skip
    return BertModel(config, add_pooling_layer=False).eval()


def inputs(count: int, tokens: int):
    import numpy as np

    ids = np.random.default_rng(1).integers(1000, 30522, (count, tokens))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def run_torch(shape: dict, dtype: str, threads: int):
    import torch

    torch.set_num_threads(threads)
    model = bert(shape).to(getattr(torch, dtype))

    def call(feed):
        with torch.inference_mode():
            return model(**{k: torch.from_numpy(v) for k, v in feed.items()}).last_hidden_state.mean(1)

    return call


def to_onnx(shape: dict, folder: Path) -> Path:
    import torch

    model, path = bert(shape), folder / "model.onnx"
    model.config._attn_implementation = "eager"

    class Positional(torch.nn.Module):
        """The exporter passes inputs by position, in another order than the model's."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids, mask, types):
            return self.model(input_ids=ids, attention_mask=mask, token_type_ids=types).last_hidden_state

    names = ["input_ids", "attention_mask", "token_type_ids"]
    sample = tuple(torch.from_numpy(v) for v in inputs(2, 8).values())
    axes = {name: {0: "batch", 1: "tokens"} for name in [*names, "hidden"]}
    torch.onnx.export(
        Positional(), sample, str(path), input_names=names, output_names=["hidden"], dynamic_axes=axes, dynamo=False
    )
    return path


def run_onnx(shape: dict, int8: bool, threads: int):
    import onnxruntime as ort

    folder = Path(tempfile.mkdtemp())
    path = to_onnx(shape, folder)
    if int8:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(path, folder / "int8.onnx", weight_type=QuantType.QInt8)
        path = folder / "int8.onnx"
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda feed: session.run(None, feed)[0].mean(1)


def run_openvino(shape: dict, kind: str, threads: int):
    import openvino as ov

    model = ov.Core().read_model(str(to_onnx(shape, Path(tempfile.mkdtemp()))))
    if kind == "int8":
        import nncf

        data = nncf.Dataset([inputs(1, 64) for _ in range(32)])
        model = nncf.quantize(model, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=32)
    hint = {"INFERENCE_NUM_THREADS": str(threads), "PERFORMANCE_HINT": "LATENCY"}
    if kind != "int8":
        hint["INFERENCE_PRECISION_HINT"] = {"fp32": "f32", "bf16": "bf16"}[kind]
    request = ov.compile_model(model, "CPU", hint).create_infer_request()
    return lambda feed: request.infer(feed)[0].mean(1)


KINDS = {
    "torch-fp32": lambda shape, threads: run_torch(shape, "float32", threads),
    "torch-bf16": lambda shape, threads: run_torch(shape, "bfloat16", threads),
    "onnx-fp32": lambda shape, threads: run_onnx(shape, False, threads),
    "onnx-int8": lambda shape, threads: run_onnx(shape, True, threads),
    "openvino-fp32": lambda shape, threads: run_openvino(shape, "fp32", threads),
    "openvino-bf16": lambda shape, threads: run_openvino(shape, "bf16", threads),
    "openvino-int8": lambda shape, threads: run_openvino(shape, "int8", threads),
}


def main() -> None:
    kind, shape, threads = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what exporters print must not be taken for an answer
    call = KINDS[kind](shape, threads)
    call(inputs(2, 8))
    print("ready", file=answers)
    for line in sys.stdin:
        _, count, tokens = line.split()
        feed = inputs(int(count), int(tokens))
        start = time.perf_counter()
        call(feed)
        print(time.perf_counter() - start, file=answers)


if __name__ == "__main__":
    main()
