"""A rival of bench_embed.py in an environment of its own: embeds the same shapes, timed one call at a time on demand.

Started by bench_embed.py --rivals PYTHON with a kind, a shape, a number of threads and a folder that keeps converted
models. Builds a BERT with random weights, prints "ready", then answers each line on its standard input, the lengths of
a batch of texts as a JSON list, with the seconds of one call. Texts are padded to the longest and masked, as all of
them do. Needs torch and transformers; onnx and onnxruntime, or openvino and nncf, for those kinds.
"""

import json
import os
import sys
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


def inputs(lengths: list[int]):
    import numpy as np

    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    ids = np.random.default_rng(1).integers(1000, 30522, mask.shape) * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def mean(hidden, mask):
    """Returns the mean row of each text, padding left out. Arrays of numpy or of torch."""
    return (hidden * mask[:, :, None]).sum(1) / mask.sum(1)[:, None]


def run_torch(shape: dict, dtype: str, threads: int, keep: Path):
    import torch

    torch.set_num_threads(threads)
    model = bert(shape).to(getattr(torch, dtype))

    def call(feed):
        with torch.inference_mode():
            given = {k: torch.from_numpy(v) for k, v in feed.items()}
            return mean(model(**given).last_hidden_state, given["attention_mask"])

    return call


def to_onnx(shape: dict, keep: Path) -> Path:
    path = keep / "model.onnx"
    if path.exists():
        return path
    import torch

    model = bert(shape)
    model.config._attn_implementation = "eager"

    class Positional(torch.nn.Module):
        """The exporter passes inputs by position, in another order than the model's."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids, mask, types):
            return self.model(input_ids=ids, attention_mask=mask, token_type_ids=types).last_hidden_state

    names = ["input_ids", "attention_mask", "token_type_ids"]
    sample = tuple(torch.from_numpy(v) for v in inputs([8, 8]).values())
    axes = {name: {0: "batch", 1: "tokens"} for name in [*names, "hidden"]}
    torch.onnx.export(
        Positional(), sample, str(path), input_names=names, output_names=["hidden"], dynamic_axes=axes, dynamo=False
    )
    return path


def run_onnx(shape: dict, int8: bool, threads: int, keep: Path):
    import onnxruntime as ort

    path = keep / ("int8.onnx" if int8 else "model.onnx")
    if not path.exists():
        from onnxruntime.quantization import QuantType, quantize_dynamic

        plain = to_onnx(shape, keep)
        if int8:
            quantize_dynamic(plain, path, weight_type=QuantType.QInt8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda feed: mean(session.run(None, feed)[0], feed["attention_mask"])


def run_openvino(shape: dict, kind: str, threads: int, keep: Path):
    import openvino as ov

    path = keep / "int8.xml"
    if kind == "int8" and not path.exists():
        import nncf

        data = nncf.Dataset([inputs([64]) for _ in range(32)])
        plain = ov.Core().read_model(str(to_onnx(shape, keep)))
        ov.save_model(nncf.quantize(plain, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=32), path)
    model = ov.Core().read_model(str(path if kind == "int8" else to_onnx(shape, keep)))
    hint = {"INFERENCE_NUM_THREADS": str(threads), "PERFORMANCE_HINT": "LATENCY"}
    if kind != "int8":
        hint["INFERENCE_PRECISION_HINT"] = {"fp32": "f32", "bf16": "bf16"}[kind]
    request = ov.compile_model(model, "CPU", hint).create_infer_request()
    return lambda feed: mean(request.infer(feed)[0], feed["attention_mask"])


KINDS = {
    "torch-fp32": lambda shape, threads, keep: run_torch(shape, "float32", threads, keep),
    "torch-bf16": lambda shape, threads, keep: run_torch(shape, "bfloat16", threads, keep),
    "onnx-fp32": lambda shape, threads, keep: run_onnx(shape, False, threads, keep),
    "onnx-int8": lambda shape, threads, keep: run_onnx(shape, True, threads, keep),
    "openvino-fp32": lambda shape, threads, keep: run_openvino(shape, "fp32", threads, keep),
    "openvino-bf16": lambda shape, threads, keep: run_openvino(shape, "bf16", threads, keep),
    "openvino-int8": lambda shape, threads, keep: run_openvino(shape, "int8", threads, keep),
}


def main() -> None:
    kind, shape, threads, keep = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what exporters print must not be taken for an answer
    keep.mkdir(parents=True, exist_ok=True)
    call = KINDS[kind](shape, threads, keep)
    call(inputs([8, 8]))
    print("ready", file=answers)
    for line in sys.stdin:
        feed = inputs(json.loads(line))
        start = time.perf_counter()
        call(feed)
        print(time.perf_counter() - start, file=answers)


if __name__ == "__main__":
    main()
