"""The command line: `lowbit info | convert | run | embed`.

Built on argparse, so that a plain `pip install lowbit` has it and `lowbit --help` answers at once: commands
with flat options need nothing a framework adds. Results go to stdout; progress, statistics and errors to stderr. Exit
codes: 0 done, 2 an error (one line; --debug shows the traceback), 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

Arguments = argparse.Namespace
EMBEDDER = "BAAI/bge-small-en-v1.5"  # of `lowbit embed` where none is named

# Errors whose text is meant for users; any other kind is a defect of ours and says so.
_FOR_USERS = (ValueError, TypeError, OSError, ImportError, MemoryError, RuntimeError, NotImplementedError)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code of one command; `argv` defaults to the process's arguments."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO if arguments.verbose else logging.WARNING, format="lowbit: %(message)s")
    try:
        return int(arguments.command(arguments) or 0)
    except KeyboardInterrupt:
        _err("interrupted")
        return 130
    except BrokenPipeError:  # the reader of our stdout has left (| head): not an error of this command
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if arguments.debug:
            raise
        text = " ".join(str(error).split())
        if not isinstance(error, _FOR_USERS):
            text = f"{type(error).__name__}: {text} (a defect of lowbit; --debug shows where)"
        _err(f"error: {text or type(error).__name__}")
        return 2


def _err(text: str) -> None:
    sys.stderr.write(f"lowbit: {text}\n")


def _out(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def size(count: float | None) -> str:
    """Returns bytes in a unit people read, "unknown" for None."""
    if count is None:
        return "unknown"
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while count >= 1024 and len(units) > 1:
        count /= 1024
        units.pop(0)
    return f"{count:.{0 if units[0] == 'B' else 1}f} {units[0]}"


# ---- lowbit info ----


def info(arguments: Arguments) -> None:
    """Prints the machine and what would be chosen on it, with reasons."""
    import lowbit
    from lowbit.runtime import describe

    facts = {"version": lowbit.__version__, "python": ".".join(map(str, sys.version_info[:3])), **describe()}
    if arguments.json:
        _out(json.dumps(facts, indent=2) + "\n")
        return
    width = max(len(name) for name, _ in _info_lines(facts)) + 2
    _out("".join(f"{name:<{width}}{text}\n" for name, text in _info_lines(facts)))


def _info_lines(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    cpu, memory, pages = facts["cpu"], facts["memory"], facts["huge_pages"]
    cores = "" if cpu["physical_cores"] is None else f" on {cpu['physical_cores']} physical cores"
    yield "lowbit", f"{facts['version']}, Python {facts['python']}"
    yield "cpu", f"{cpu['brand'] or cpu['vendor'] or 'unknown'}, {len(cpu['allowed_cpus'])} CPUs allowed{cores}"
    yield "features", " ".join(cpu["features"]) or "none that count"
    yield "tiers", " ".join(cpu["tiers"])
    limit = "" if memory["limit"] is None else f", control group allows {size(memory['limit'])}"
    yield "memory", f"{size(memory['available'])} available of {size(memory['total'])}{limit}"
    advice = "; the weights get 4 KiB pages and stream slower" if pages["mode"] == "never" else ""
    yield "huge pages", f"{pages['mode'] or 'unknown'}, {size(pages['page_bytes'])} each{advice}"
    for device in facts["devices"]:
        state = "usable" if device["usable"] else f"not usable: {'; '.join(device['missing'])}"
        yield "device", f"{device['name']} ({device.get('pci') or device['kind']}): {state}"
    for decision in facts["decisions"]:
        yield decision["name"], f"{decision['value']} ({decision['reason']})"
    for decision in facts["environment"]:
        yield decision["name"], f"{decision['value']} ({decision['reason']})"


# ---- lowbit convert ----


def convert(arguments: Arguments) -> None:
    """Quantises a language model, an embedder or a reranker and writes a low-bit folder."""
    from lowbit import checkpoint, formats
    from lowbit.loading import TASKS, load_model, task_of
    from lowbit.runtime import Runtime
    from lowbit.sources.hub import Access

    out = Path(arguments.out)
    for name in filter(None, (arguments.low_bit, arguments.head_format, arguments.embedding_format)):
        formats.resolve(name)  # before anything is downloaded or read
    _refuse_to_replace(out)
    start = time.perf_counter()
    access = Access(arguments.cache_dir, arguments.token, arguments.local_files_only, _shows_progress(arguments))
    task = task_of(arguments.model, arguments.revision, access)
    loaded = load_model(
        arguments.model,
        arguments.low_bit or TASKS[task],
        task=task,
        group_size=arguments.group_size,
        head_format=arguments.head_format,
        embedding_format=arguments.embedding_format,
        modules_to_not_convert=arguments.skip,
        runtime=Runtime(threads=arguments.threads).resolve(),
        show_progress=_shows_progress(arguments),
        **_source_options(arguments),
    )
    checkpoint.save(loaded, out)
    seconds = time.perf_counter() - start
    _out(f"{out}: {loaded.quantization['format']}, {_stored(out)}, {seconds:.1f} s\n")


def _stored(folder: Path) -> str:
    return size(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()))


def _refuse_to_replace(out: Path) -> None:
    """Raises FileExistsError when `out` is something else than a free name, an empty folder or a low-bit folder.

    Stricter than `save_low_bit`, which may add to a folder of other files: a mistyped argument is likelier here.
    """
    from lowbit import checkpoint

    if out.exists() and not (out / checkpoint.MANIFEST).exists() and not (out.is_dir() and not any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not a low-bit folder: it is left alone; choose another name")


# ---- lowbit run ----


def run(arguments: Arguments) -> int:
    """Streams a model's answer to stdout; ends with a line of statistics on stderr."""
    import lowbit
    from lowbit.sampling import GenerationOptions

    prompt = _prompt(arguments)
    options = {name: getattr(arguments, name) for name in _GENERATION if getattr(arguments, name) is not None}
    for name in ("json_schema", "grammar"):
        if name in options:
            options[name] = Path(options[name]).read_text(encoding="utf-8")
    GenerationOptions.resolve(options)  # a bad value is told before the model is loaded
    runtime = {name: getattr(arguments, name) for name in _RUNTIME if getattr(arguments, name) is not None}
    model = lowbit.load(
        arguments.model,
        arguments.low_bit,
        show_progress=_shows_progress(arguments),
        **runtime,
        **_source_options(arguments),
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
                    _out(delta.text)
                else:
                    held.append(delta.text)
    except KeyboardInterrupt:
        reason = "interrupted"
    end = time.perf_counter()
    if held is not None and reason != "interrupted":
        check_finished(reason, True)
        _out("".join(held))
    _out("\n")
    tokens, rate = sum(counts), _rate(counts, start, first or end, end)
    _err(f"{tokens} tokens, {rate}, first after {(first or end) - start:.2f} s; prompt {len(ids)}; ended by {reason}")
    return 130 if reason == "interrupted" else 0


def _rate(counts: list[int], start: float, first: float, end: float) -> str:
    """The speed of steps. The first delta's time is the prompt's, so it is left out where enough tokens follow it."""
    later = sum(counts[1:])
    if later >= max(8, counts[0] if counts else 0):
        return f"{later / (end - first):.1f} tok/s"
    return f"{sum(counts) / (end - start):.1f} tok/s with the prompt"


# ---- lowbit embed ----


def embed(arguments: Arguments) -> None:
    """Embeds a file of passages into a folder, with an index; goes on where an earlier run was interrupted."""
    from lowbit import corpus, vector_index
    from lowbit.embed import Embedder

    passages = corpus.PassageFile(arguments.file, arguments.field or ("text",))
    if arguments.index != "none":  # told before hours of work
        faiss = vector_index.require_faiss()
        faiss.omp_set_num_threads(arguments.threads or faiss.omp_get_max_threads())
    start, progress = time.perf_counter(), _shows_progress(arguments)
    embedder = Embedder(
        arguments.model,
        arguments.low_bit,
        max_length=arguments.max_length,
        truncate=arguments.truncate or None,
        threads=arguments.threads,
        show_progress=progress,
        **_source_options(arguments),
    )
    try:
        done = corpus.embed_corpus(
            embedder,
            passages,
            arguments.out,
            batch_size=arguments.batch_size,
            prompt=arguments.prompt,
            prompt_name=arguments.prompt_name,
            show_progress=progress,
        )
    except KeyboardInterrupt:
        _err(f"{arguments.out} keeps what is embedded so far; the same command goes on")
        raise
    if arguments.index != "none":
        corpus.build_index(done.folder, arguments.index, arguments.metric, show_progress=progress)
    count, dimension = done.vectors.shape
    _out(
        f"{done.folder}: {count} passages, {dimension} dimensions, index {arguments.index}, {_stored(done.folder)}, "
        f"{time.perf_counter() - start:.1f} s\n"
    )


# ---- options ----

_GENERATION = (
    "max_new_tokens", "max_length", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "stop",
    "json_schema", "regex", "choice", "grammar",
)  # fmt: skip
_RUNTIME = ("device", "threads", "tier", "compute", "kv_dtype", "context")
_SOURCE = ("revision", "cache_dir", "token", "trust_remote_code", "local_files_only")


def _source_options(arguments: Arguments) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in _SOURCE if getattr(arguments, name)}


def _shows_progress(arguments: Arguments) -> bool:
    return not arguments.quiet and sys.stderr.isatty()


def _parser() -> argparse.ArgumentParser:
    import lowbit
    from lowbit.runtime import COMPUTE_TYPES, KV_DTYPES, TIERS

    parser = argparse.ArgumentParser(prog="lowbit", description="Language models in 3 to 8 bits on ordinary CPUs.")
    parser.add_argument("--version", action="version", version=f"lowbit {lowbit.__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, function: Callable[[Arguments], int | None], summary: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary)
        sub.set_defaults(command=function)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        sub.add_argument("-v", "--verbose", action="store_true", help="log what is done, on stderr")
        return sub

    def add_source(sub: argparse.ArgumentParser, name: str = "model", **options: Any) -> None:
        sub.add_argument(name, help="hub id, Hugging Face folder or low-bit folder", **options)
        sub.add_argument("--revision", help="branch, tag or commit of a hub model")
        sub.add_argument("--cache-dir", help="where downloads are kept")
        sub.add_argument("--token", help="access token of the hub")
        sub.add_argument("--local-files-only", action="store_true", help="never download")
        sub.add_argument("--trust-remote-code", action="store_true", help="accept models that bring their own code")
        sub.add_argument("--threads", type=int, help="native threads (default: one per physical performance core)")
        sub.add_argument("-q", "--quiet", action="store_true", help="no progress bar")

    sub = command("info", info, "Show CPU features, tier, threads, memory and devices, and why they were chosen.")
    sub.add_argument("--json", action="store_true", help="as JSON")

    sub = command("convert", convert, "Quantise a language model, an embedder or a reranker into a low-bit folder.")
    add_source(sub)
    sub.add_argument("out", help="the folder to write; an existing low-bit folder is replaced, anything else is not")
    sub.add_argument("--low-bit", metavar="FORMAT", help="default: sym_int4, sym_int8 for embedders and rerankers")
    sub.add_argument("--group-size", type=int, help="weights that share a scale: 32, 64 (default) or 128")
    sub.add_argument("--head-format", metavar="FORMAT", help="format of the head (default: sym_int8)")
    sub.add_argument("--embedding-format", metavar="FORMAT", help="format of the embeddings (default: sym_int8)")
    sub.add_argument("--skip", action="append", metavar="NAME", help="leave modules of that name float; repeatable")

    sub = command("run", run, "Stream a model's answer to a prompt.")
    add_source(sub)
    sub.add_argument("-p", "--prompt", help="the prompt; '-' or none reads stdin")
    sub.add_argument("--low-bit", default="sym_int4", metavar="FORMAT", help="default: sym_int4")
    style = sub.add_mutually_exclusive_group()
    style.add_argument("--chat", action="store_true", help="put the prompt into the model's chat template")
    style.add_argument("--raw", action="store_true", help="give the model the prompt as it is")
    sub.add_argument("--system", help="system message of the chat template")
    sub.add_argument("-n", "--max-new-tokens", type=int, help="generate at most so many tokens")
    sub.add_argument("--max-length", type=int, help="prompt and answer together at most so many tokens")
    sub.add_argument("--temperature", type=float, help="0 takes the likeliest token")
    sub.add_argument("--top-k", type=int)
    sub.add_argument("--top-p", type=float)
    sub.add_argument("--min-p", type=float)
    sub.add_argument("--repetition-penalty", type=float)
    sub.add_argument("--seed", type=int, help="the same seed gives the same text")
    sub.add_argument("--stop", action="append", metavar="TEXT", help="end before this text; repeatable")
    whole = "; printed when it is whole"
    sub.add_argument("--json-schema", metavar="FILE", help=f"the answer is JSON that the schema in FILE accepts{whole}")
    sub.add_argument("--regex", help=f"the answer matches this regular expression{whole}")
    sub.add_argument("--choice", action="append", metavar="TEXT", help="the answer is one of these; repeatable")
    sub.add_argument("--grammar", metavar="FILE", help=f"the answer keeps to the Lark or GBNF grammar in FILE{whole}")
    sub.add_argument("--device", help="auto, cpu, xpu or xpu:N")
    sub.add_argument("--tier", choices=TIERS, help="highest instruction set tier to use")
    sub.add_argument("--compute", choices=COMPUTE_TYPES)
    sub.add_argument("--kv-dtype", choices=KV_DTYPES)
    sub.add_argument("--context", type=int, help="longest sequence, in tokens")

    sub = command("embed", embed, "Embed a file of passages into a folder with an index; run again, it goes on.")
    sub.add_argument("file", help=".jsonl (an object a line) or .txt (a passage a line)")
    sub.add_argument("--out", required=True, metavar="DIR", help="the folder to write")
    add_source(sub, "--model", default=EMBEDDER)
    sub.add_argument("--low-bit", default="sym_int8", metavar="FORMAT", help="default: sym_int8")
    sub.add_argument(
        "--field", action="append", metavar="NAME", help="a field of each line with text (default: text); repeatable"
    )
    sub.add_argument("--index", choices=("flat", "ivf", "hnsw", "none"), default="flat", help="default: flat")
    sub.add_argument("--metric", choices=("cosine", "inner_product", "l2"), default="cosine", help="default: cosine")
    sub.add_argument("--prompt", help="put before every passage")
    sub.add_argument("--prompt-name", help="the same, one of the model's own prompts")
    sub.add_argument("--max-length", type=int, help="longest passage in tokens")
    sub.add_argument("--truncate", action="store_true", help="cut longer ones where the model's files do not say so")
    sub.add_argument("--batch-size", type=int, default=32, help="default: 32")
    return parser


if __name__ == "__main__":
    sys.exit(main())
