"""lowbit's models in EleutherAI's lm-evaluation-harness (extra `harness`), under the model name "lowbit".

    python -m lowbit.harness --model lowbit --model_args pretrained=MODEL,low_bit=nf4 --tasks lambada_openai

is the harness's own command line with that name known; in Python `import lowbit.harness` makes
`lm_eval.simple_evaluate(model="lowbit", ...)` know it, or pass `model=LowBitLM(model)`. Neither needs torch.

Texts become tokens as in the harness's own "hf" model, so the numbers of both compare. Requests that share a context
(the choices of a question) share its KV cache: the context is computed once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm  # type: ignore[import-untyped]

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError:
    raise ImportError('lowbit.harness needs lm-evaluation-harness: pip install "lowbit[harness]"') from None

import lowbit
from lowbit import chat
from lowbit.perplexity import token_losses

LOGIT_BYTES = 64 << 20  # of logits computed at a time
BATCH_TOKENS = 2048  # of contexts whose caches are kept at a time, at least one context
PROMPTS = 64  # generated from together; the model decodes as many at once as it finds best
MAX_NEW_TOKENS = 256  # of a task that does not say, as in the harness's "hf"
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the first that is given counts


@dataclass
class _Continuation:
    """Tokens to be scored after what `cache` holds: `inputs` predict `targets`. loss in nats, summed up."""

    cache: Any
    inputs: np.ndarray
    targets: np.ndarray
    done: int = 0
    loss: float = 0.0
    greedy: bool = True


@dataclass
class _Context:
    """A context and the continuations of it that requests ask for: request index, tokens."""

    ids: tuple[int, ...]
    continuations: list[tuple[int, list[int]]] = field(default_factory=list)


@register_model("lowbit")
class LowBitLM(TemplateLM):  # type: ignore[misc, unused-ignore]
    """A model the harness can evaluate.

    pretrained: hub id, Hugging Face folder or low-bit folder, or a model from `lowbit.load`. max_length: longest
    sequence in tokens (default: the model's context). add_bos_token: whether texts begin with the tokenizer's special
    tokens (None: as the tokenizer does by itself). device, options: of `lowbit.load`; "cuda", which the harness passes
    where nobody names a device, counts as none. batch_size and max_batch_size are accepted and mean nothing: nothing is
    padded, and the batch is bounded by memory. Raises what `lowbit.load` raises;
    ValueError for options beside a model that is loaded already and for a tokenizer without any token to begin with.
    """

    def __init__(
        self,
        pretrained: Any,
        low_bit: str | None = "sym_int4",
        *,
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        device: str | None = None,
        batch_size: Any = None,
        max_batch_size: Any = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if device is not None and not device.startswith("cuda"):
            options["device"] = device
        if isinstance(pretrained, lowbit.TextModel):
            if options:
                raise ValueError(f"the model is loaded already; {', '.join(sorted(options))} cannot change it")
            self.model = pretrained
        else:
            self.model = lowbit.load(str(pretrained), low_bit, **options)
        self.tokenizer = self.model.tokenizer
        self.add_bos_token = add_bos_token
        self.max_length = self.model.context if max_length is None else int(max_length)
        if not 2 <= self.max_length <= self.model.context:
            raise ValueError(f"max_length={max_length}; the model's context allows 2 to {self.model.context}")
        if self.tokenizer.bos_id is None and not self.model.eos_ids:
            raise ValueError(
                "the tokenizer has neither a beginning nor an end of text, which a text without context needs"
            )

    # ---- text and tokens -----------------------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.model.eos_ids[0] if self.model.eos_ids else self.prefix_token_id

    @property
    def prefix_token_id(self) -> int:
        """The token that stands before a text without context."""
        bos = self.tokenizer.bos_id
        return self.model.eos_ids[0] if bos is None else bos

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Returns the ids of a text; by default with the tokenizer's special tokens, unless it begins with them."""
        wanted = self.add_bos_token if add_special_tokens is None else add_special_tokens
        prefix = self.tokenizer.token(self.prefix_token_id)
        if add_special_tokens is None and prefix and string.startswith(prefix):
            wanted = False
        return self.model.encode(string, add_special_tokens=wanted is not False)

    def tok_decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Returns the text of ids."""
        return self.model.decode(tokens, skip_special_tokens=skip_special_tokens)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Returns the prompt of a conversation in the model's own template."""
        return chat.render(self.tokenizer, chat_history, add_generation_prompt=add_generation_prompt)

    @property
    def tokenizer_name(self) -> str:
        """Tells the harness's request cache models apart."""
        return self.model.model_id.replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """Returns what the harness records beside its results: how the weights are stored, where they come from."""
        return {"quantization": self.model.quantization, **self.model.provenance}

    # ---- likelihoods ---------------------------------------------------------------------------------------------

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Returns the log-likelihood of whole texts in nats, each in windows of at most max_length tokens."""
        windows: list[tuple[Any, list[int], list[int]]] = []
        owner: list[int] = []
        for i, request in enumerate(requests):
            parts = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, continuation in map(make_disjoint_window, parts):
                windows.append((None, context, continuation))
                owner.append(i)
        totals = [0.0] * len(requests)
        for i, (value, _) in zip(owner, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            totals[i] += value
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """Returns (log-likelihood in nats, whether it is the greedy one) of each (texts, context, continuation)."""
        results: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        with tqdm(total=len(requests), desc="Likelihoods", disable=disable_tqdm) as bar:
            for batch in _batches(self._contexts(requests)):
                for i, scored in self._score(batch):
                    results[i] = (-scored.loss, scored.greedy)
                    if requests[i][0] is not None:
                        self.cache_hook.add_partial("loglikelihood", requests[i][0], results[i])
                    bar.update()
        return results

    def _contexts(self, requests: Sequence[tuple[Any, list[int], list[int]]]) -> list[_Context]:
        """Returns the different contexts, cut at their beginning to what the model's context leaves for them."""
        contexts: dict[tuple[int, ...], _Context] = {}
        for i, (_, context, continuation) in enumerate(requests):
            if not context or not continuation or len(continuation) > self.max_length:
                raise ValueError(
                    f"request {i} has a context of {len(context)} and a continuation of {len(continuation)} tokens; "
                    f"at least one of each and at most {self.max_length} of the latter can be scored"
                )
            ids = tuple(context[-(self.max_length + 1 - len(continuation)) :])
            contexts.setdefault(ids, _Context(ids)).continuations.append((i, continuation))
        return list(contexts.values())

    def _score(self, contexts: Sequence[_Context]) -> list[tuple[int, _Continuation]]:
        """Returns the scored continuations of some contexts, each with the index of its request."""
        engine = self.model.generator.engine
        caches = [
            engine.new_cache(engine.capacity(len(c.ids) - 1 + max(len(ids) for _, ids in c.continuations)))
            for c in contexts
        ]
        before = [
            (cache, np.asarray(c.ids[:-1], np.int32), False)
            for cache, c in zip(caches, contexts, strict=True)
            if len(c.ids) > 1
        ]
        if before:
            engine.forward(before)
        jobs = []
        for cache, context in zip(caches, contexts, strict=True):
            last = len(context.continuations) - 1
            for n, (i, ids) in enumerate(context.continuations):
                own = cache if n == last else cache.fork(cache.length)
                inputs = np.asarray([context.ids[-1], *ids[:-1]], np.int32)
                jobs.append((i, _Continuation(own, inputs, np.asarray(ids))))
        self._advance([job for _, job in jobs])
        return jobs

    def _advance(self, jobs: Sequence[_Continuation]) -> None:
        """Scores continuations, as many tokens of them per pass as LOGIT_BYTES allow."""
        engine = self.model.generator.engine
        rows = max(1, LOGIT_BYTES // (4 * engine.vocab_size))
        while waiting := [job for job in jobs if job.done < len(job.inputs)]:
            room, taken = rows, []
            for job in waiting:
                count = min(room, len(job.inputs) - job.done)
                if count:
                    taken.append((job, slice(job.done, job.done + count)))
                    room -= count
            logits = engine.forward([(job.cache, job.inputs[part], True) for job, part in taken])
            first = 0
            for job, part in taken:
                own, targets = logits[first : first + part.stop - part.start], job.targets[part]
                job.loss += float(token_losses(own, targets).sum())
                job.greedy = job.greedy and bool((own.argmax(1) == targets).all())
                job.done, first = part.stop, first + len(own)

    # ---- generation ----------------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Returns what the model goes on with, up to and without the strings that a task ends answers at.

        Greedy unless a task says do_sample. Other options are those of `lowbit.sampling.GenerationOptions`.
        """
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(i)
        texts = [""] * len(requests)
        with tqdm(total=len(requests), desc="Generating", disable=disable_tqdm) as bar:
            for members in groups.values():
                options = generation_options(requests[members[0]].args[1])
                room = self.max_length - options["max_new_tokens"]
                if room < 1:
                    raise ValueError(
                        f"the task wants {options['max_new_tokens']} new tokens, which leaves no room for a prompt in "
                        f"{self.max_length}; set max_gen_toks (--gen_kwargs) to less"
                    )
                for start in range(0, len(members), PROMPTS):
                    chunk = members[start : start + PROMPTS]
                    prompts = [self.tok_encode(requests[i].args[0])[-room:] for i in chunk]
                    completions = self.model.generate(prompts, **options)
                    for i, completion in zip(chunk, completions, strict=True):  # type: ignore[arg-type]
                        texts[i] = completion.text
                        self.cache_hook.add_partial("generate_until", requests[i].args, texts[i])
                    bar.update(len(chunk))
        return texts


def generation_options(given: dict[str, Any]) -> dict[str, Any]:
    """Returns a task's generation_kwargs as options of `TextModel.generate`."""
    options = {name: value for name, value in given.items() if name not in (*_LENGTHS, "until")}
    until = given.get("until") or []
    options["stop"] = [s for s in ([until] if isinstance(until, str) else until) if s]
    options["max_new_tokens"] = next((int(given[n]) for n in _LENGTHS if given.get(n) is not None), MAX_NEW_TOKENS)
    if not options.get("do_sample"):
        options |= {"do_sample": False, "temperature": 0.0}
    return options


def _batches(contexts: Sequence[_Context]) -> Iterator[list[_Context]]:
    """Yields contexts together up to BATCH_TOKENS of theirs and of their continuations."""
    batch: list[_Context] = []
    tokens = 0
    for context in contexts:
        size = len(context.ids) + sum(len(ids) for _, ids in context.continuations)
        if batch and tokens + size > BATCH_TOKENS:
            yield batch
            batch, tokens = [], 0
        batch.append(context)
        tokens += size
    if batch:
        yield batch


def main() -> None:
    """Runs the harness's command line with the model name "lowbit" known."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
