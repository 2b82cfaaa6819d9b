"""`lowbit run`: a model's answer, streamed."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from lowbit.cli._common import PRECISION_HELP, Arguments, add_source, err, out, shows_progress, source_options

SUMMARY = "Stream a model's answer to a prompt."

_GENERATION = (
    "max_new_tokens", "max_length", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "stop",
    "json_schema", "regex", "choice", "grammar",
)  # fmt: skip
_LOADING = ("device", "threads", "tier", "precision", "compute", "kv_dtype", "context", "draft_model")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    from lowbit.runtime import COMPUTE_TYPES, KV_DTYPES, PRECISIONS, TIERS

    add_source(parser)
    parser.add_argument("-p", "--prompt", help="the prompt; '-' or none reads stdin")
    parser.add_argument("--low-bit", default="sym_int4", metavar="FORMAT", help="default: sym_int4")
    style = parser.add_mutually_exclusive_group()
    style.add_argument("--chat", action="store_true", help="put the prompt into the model's chat template")
    style.add_argument("--raw", action="store_true", help="give the model the prompt as it is")
    parser.add_argument("--system", help="system message of the chat template")
    parser.add_argument("-n", "--max-new-tokens", type=int, help="generate at most so many tokens")
    parser.add_argument("--max-length", type=int, help="prompt and answer together at most so many tokens")
    parser.add_argument("--temperature", type=float, help="0 takes the likeliest token")
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--min-p", type=float)
    parser.add_argument("--repetition-penalty", type=float)
    parser.add_argument("--seed", type=int, help="the same seed gives the same text")
    parser.add_argument("--stop", action="append", metavar="TEXT", help="end before this text; repeatable")
    whole = "; printed when it is whole"
    parser.add_argument(
        "--json-schema", metavar="FILE", help=f"the answer is JSON that the schema in FILE accepts{whole}"
    )
    parser.add_argument("--regex", help=f"the answer matches this regular expression{whole}")
    parser.add_argument("--choice", action="append", metavar="TEXT", help="the answer is one of these; repeatable")
    parser.add_argument(
        "--grammar", metavar="FILE", help=f"the answer keeps to the Lark or GBNF grammar in FILE{whole}"
    )
    parser.add_argument("--device", help="auto, cpu, xpu or xpu:N")
    parser.add_argument("--tier", choices=TIERS, help="highest instruction set tier to use")
    parser.add_argument("--precision", choices=PRECISIONS, help=PRECISION_HELP)
    parser.add_argument("--compute", choices=COMPUTE_TYPES, help="int8 is --precision fast, bf16 is bf16, fp32 is high")
    parser.add_argument("--kv-dtype", choices=KV_DTYPES, help="type of the key and value cache; int8 halves it")
    parser.add_argument("--context", type=int, help="longest sequence, in tokens")
    parser.add_argument(
        "--draft-model", metavar="MODEL", help="a smaller model of the same vocabulary, to guess tokens"
    )


def execute(arguments: Arguments) -> int:
    """Streams a model's answer to stdout; ends with a line of statistics on stderr."""
    import lowbit
    from lowbit.sampling import GenerationOptions

    prompt = _prompt(arguments)
    options = {name: getattr(arguments, name) for name in _GENERATION if getattr(arguments, name) is not None}
    for name in ("json_schema", "grammar"):
        if name in options:
            options[name] = Path(options[name]).read_text(encoding="utf-8")
    GenerationOptions.resolve(options)  # a bad value is told before the model is loaded
    loading = {name: getattr(arguments, name) for name in _LOADING if getattr(arguments, name) is not None}
    model = lowbit.load(
        arguments.model,
        arguments.low_bit,
        show_progress=shows_progress(arguments),
        **loading,
        **source_options(arguments),
    )
    ids = _encode(model, prompt, arguments)
    return _stream(model, ids, options)


def _prompt(arguments: Arguments) -> str:
    if arguments.prompt is not None and arguments.prompt != "-":
        return str(arguments.prompt)
    if arguments.prompt is None and sys.stdin.isatty():
        raise ValueError("no prompt: give -p TEXT, or pipe it to stdin")
    return sys.stdin.read()


def _encode(model: Any, prompt: str, arguments: Arguments) -> list[int]:
    """The prompt's ids: through the chat template where the model has one, unless --raw says otherwise."""
    from lowbit import chat

    wants_chat = arguments.chat or arguments.system is not None
    if arguments.raw and wants_chat:
        raise ValueError("--system needs the chat template, which --raw leaves out: give one of them")
    if arguments.raw or not (wants_chat or chat.has_template(model.tokenizer)):
        ids: list[int] = model.encode(prompt)
        return ids
    messages = [{"role": "user", "content": prompt}]
    if arguments.system is not None:
        messages.insert(0, {"role": "system", "content": arguments.system})
    return chat.encode(model.tokenizer, messages)


def _stream(model: Any, ids: list[int], options: dict[str, Any]) -> int:
    from lowbit.grammar import check_finished
    from lowbit.sampling import is_constrained

    counts: list[int] = []  # tokens per delta
    held: list[str] | None = [] if is_constrained(options) else None  # half a JSON object is worth nothing to a reader
    first, reason = 0.0, "cancelled"
    start = time.perf_counter()
    try:
        with closing(model.stream(ids, **options)) as deltas:
            for delta in deltas:
                first = first or time.perf_counter()
                counts.append(len(delta.token_ids))
                reason = delta.finish_reason or reason
                if held is None:
                    out(delta.text)
                else:
                    held.append(delta.text)
    except KeyboardInterrupt:
        reason = "interrupted"
    end = time.perf_counter()
    if held is not None and reason != "interrupted":
        check_finished(reason, True)
        out("".join(held))
    out("\n")
    tokens, rate = sum(counts), _rate(counts, start, first or end, end)
    err(f"{tokens} tokens, {rate}, first after {(first or end) - start:.2f} s; prompt {len(ids)}; ended by {reason}")
    return 130 if reason == "interrupted" else 0


def _rate(counts: list[int], start: float, first: float, end: float) -> str:
    """The speed of steps. The first delta's time is the prompt's, so it is left out where enough tokens follow it."""
    later = sum(counts[1:])
    if later >= max(8, counts[0] if counts else 0):
        return f"{later / (end - first):.1f} tok/s"
    return f"{sum(counts) / (end - start):.1f} tok/s with the prompt"
