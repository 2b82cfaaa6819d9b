"""A transformers model with its tokenizer, streamed.

What WeightOnlyQuantPipeline runs where the native decoder does not: encoder-decoder models, families without a spec,
pipelines that the caller made.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lowbit.stop import StopMatcher

# What `generate` gets from the options that LangChain's callers use under other names.
_RENAMED = {"max_tokens": "max_new_tokens"}
_INPUTS = ("input_ids", "attention_mask")  # of what a tokenizer returns; generate refuses its token_type_ids


@dataclass
class TorchModel:
    """model: a transformers model with `generate`; defaults: keyword arguments of every `generate`; prefix: put before
    every prompt (T5's "summarize: ")."""

    model: Any
    tokenizer: Any
    defaults: dict[str, Any]
    prefix: str = ""

    def stream(self, prompt: str, stop: list[str] | None, options: Mapping[str, Any]) -> Iterator[str]:
        """Yields the answer's text in pieces, without the prompt, up to the first stop string.

        `generate` runs in a thread of its own, which ends at its next token when the iterator is closed. Its errors are
        raised here.
        """
        import torch
        from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

        closed = threading.Event()

        class Closed(StoppingCriteria):
            def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
                return torch.full((input_ids.shape[0],), closed.is_set(), dtype=torch.bool)

        streamer = TextIteratorStreamer(
            self.tokenizer, skip_prompt=not self.model.config.is_encoder_decoder, skip_special_tokens=True
        )
        arguments = {**self.defaults, **{_RENAMED.get(name, name): value for name, value in options.items()}}
        if arguments.get("temperature") == 0:
            arguments = {**arguments, "do_sample": False}
            del arguments["temperature"]
        encoded = self.tokenizer(self.prefix + prompt, return_tensors="pt").to(self.model.device)
        inputs = {name: encoded[name] for name in _INPUTS if name in encoded}
        failures: list[BaseException] = []

        def run() -> None:
            try:
                with torch.inference_mode():
                    self.model.generate(
                        **inputs, streamer=streamer, stopping_criteria=StoppingCriteriaList([Closed()]), **arguments
                    )
            except BaseException as error:
                failures.append(error)
                streamer.end()

        worker = threading.Thread(target=run, name="lowbit-generate", daemon=True)
        worker.start()
        matcher = StopMatcher(stop or [])
        try:
            for text in streamer:
                if certain := matcher.push(text):
                    yield certain
                if matcher.stopped:
                    return
            if rest := matcher.flush():
                yield rest
        finally:
            closed.set()
            worker.join()
        if failures:
            raise failures[0]


def of_pipeline(pipeline: Any) -> TorchModel:
    """Returns the model and tokenizer of a transformers pipeline. Raises TypeError for anything else."""
    if not hasattr(getattr(pipeline, "model", None), "generate") or getattr(pipeline, "tokenizer", None) is None:
        raise TypeError(
            f"pipeline must be a transformers text pipeline with a model and a tokenizer, not {type(pipeline).__name__}"
        )
    known = {"max_new_tokens", "max_length", "temperature", "do_sample", "top_k", "top_p", "num_beams", "min_length"}
    given = {name: value for name, value in getattr(pipeline, "_forward_params", {}).items() if name in known}
    return TorchModel(pipeline.model, pipeline.tokenizer, given, getattr(pipeline, "prefix", None) or "")
