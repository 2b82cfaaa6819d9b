"""What does each format cost in quality? Perplexity per format on real trained models.

The embedded model (demo/model) on freshly generated text of its own kind, and, where the evaluation data lies beside
the checkout (or at --data), small models trained by others on stories, poems and Shakespeare. Conventions as in that
data's SOURCE.md: stories and poems each start with BOS and are cut to the model's context; Shakespeare is one stream
cut into windows.

    python benchmarks/quality.py            # prints a Markdown table
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import _common as common

import lowbit
from lowbit.formats import FORMATS, bits_per_weight
from lowbit.perplexity import perplexity, windows

ROOT = Path(__file__).resolve().parents[1]
MAX_TOKENS = 40_000
EVALUATION_SEED = 987_654_321  # of the embedded model's text


@dataclass(frozen=True)
class Case:
    """A model folder and a function from (data root, loaded model) to token sequences."""

    name: str
    folder: Callable[[Path], Path]
    sequences: Callable


def stories(data: Path, model) -> list[list[int]]:
    text = (data / "corpora/tinystories/eval.txt").read_text()
    return [with_bos(model, story) for story in text.split("\n<|endoftext|>\n") if story.strip()]


def poems(data: Path, model) -> list[list[int]]:
    eos = model.tokenizer.eos_id
    lines = (data / "corpora/zh-tang-poems/eval.txt").read_text().splitlines()
    return [[*with_bos(model, line), eos][: model.context] for line in lines if line.strip()]


def shakespeare(data: Path, model) -> list[list[int]]:
    text = (data / "corpora/tinyshakespeare/val.txt").read_text()
    return list(windows(model.tokenizer.encode(text, add_special_tokens=False), model.context))


def generated(_: Path, model) -> list[list[int]]:
    """Documents of a seed that training never used, as it packs them: special tokens are in the text."""
    sys.path.insert(0, str(ROOT / "demo"))
    from text import documents

    texts = ("".join(piece for piece, _ in document) for document in islice(documents(EVALUATION_SEED), 400))
    return [model.tokenizer.encode(text, add_special_tokens=False)[: model.context] for text in texts]


def with_bos(model, text: str) -> list[int]:
    """Returns the ids of a text, cut to the model's context; the first is BOS where the model has one."""
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    bos = model.tokenizer.bos_id
    return [*([] if bos is None else [bos]), *ids][: model.context]


CASES = [
    Case("embedded model", lambda data: ROOT / "demo/model", generated),
    Case("stories260k", lambda data: data / "models/stories260k", stories),
    Case("babyllama", lambda data: data / "models/babyllama-tok105", stories),
    Case("babyllama as Phi-3", lambda data: data / "models/babyllama-tok105-as-phi3", stories),
    Case("zh-poem-llama", lambda data: data / "models/zh-poem-llama", poems),
    Case("shakespeare GPT-2", lambda data: data / "models/shakespeare-char-gpt2", shakespeare),
    Case("shakespeare OPT", lambda data: data / "models/shakespeare-char-opt", shakespeare),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--formats", nargs="+", default=[*FORMATS])
    parser.add_argument("--group-size", type=int)
    parser.add_argument("--tokens", type=int, default=MAX_TOKENS)
    parser.add_argument("--json", help="file for the figures, - for standard output")
    args = parser.parse_args()

    cases = [case for case in CASES if case.folder(args.data).exists()]
    rows: dict[str, dict[str, float]] = {name: {} for name in args.formats}
    for case in cases:
        for name in args.formats:
            model = lowbit.load(str(case.folder(args.data)), low_bit=name, group_size=args.group_size, precision="fast")
            result = perplexity(model.logits, case.sequences(args.data, model), args.tokens)
            rows[name][case.name] = round(result.value, 4)
            print(
                f"{case.name:20} {name:12} {result.value:10.4f}  ({result.tokens} tokens)", file=sys.stderr, flush=True
            )

    print("| format | bits per weight | " + " | ".join(case.name for case in cases) + " |")
    print("|---|--:|" + "--:|" * len(cases))
    for name, values in rows.items():
        bits = bits_per_weight(FORMATS[name], args.group_size)
        cells = " | ".join(
            f"{values[case.name]:.4g}" if values[case.name] >= 100 else f"{values[case.name]:.3f}" for case in cases
        )
        print(f"| `{name}` | {bits:g} | {cells} |")
    common.report("quality", [{"format": name, **values} for name, values in rows.items()], args.json)


if __name__ == "__main__":
    main()
