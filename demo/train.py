"""Train, export and measure the demo model: `python demo/train.py --out demo/model --minutes 60`, then `--eval`.

Training needs torch, numpy, tokenizers and safetensors; `--eval` also transformers. The text comes from `text.py`; stopping at
any time leaves the last checkpoint, saved every few minutes in the folder, usable.
"""

import argparse
import json
import logging
import random
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from llama import Config, Llama
from muon import Muon
from safetensors.torch import save_file
from text import BEGIN, CHAT_TEMPLATE, END, END_OF_TEXT, SPECIALS, STYLES, Document, documents, evaluation
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

log = logging.getLogger("train")

WEIGHTS = {"answer": 1.0, "story": 0.4, "question": 0.2, "context": 0.1, "free": 0.0}
# Capitalised names and digits never merge with the space before them, so a name has the same tokens wherever it is copied.
SPLIT = r" ?\p{Ll}+|\p{Lu}+\p{Ll}*|[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|\s"
TOKENS_PER_STEP = 6144
POOL = 768  # documents sorted by length together, so that a batch pads little
SAVE_SECONDS = 240


def train_tokenizer(vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer whose post-processor puts the begin token first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = ("".join(text for text, _ in document) for document in islice(documents(seed=0), 12000))
    plain = (_without_specials(text) for text in texts)
    tokenizer.train_from_iterator(plain, trainer)
    begin = tokenizer.token_to_id(BEGIN)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN} $B", special_tokens=[(BEGIN, begin)]
    )
    return tokenizer


def _without_specials(text: str) -> str:
    for special in SPECIALS:
        text = text.replace(special, "\n")
    return text


def encode(tokenizer: Tokenizer, batch: list[Document]) -> list[tuple[list[int], list[float]]]:
    """Token ids of each document and the loss weight of each token, that of the piece its first character lies in."""
    texts = ["".join(text for text, _ in document) for document in batch]
    encoded = []
    for document, result in zip(batch, tokenizer.encode_batch(texts, add_special_tokens=False), strict=True):
        ends, end = [], 0
        for text, role in document:
            end += len(text)
            ends.append((end, WEIGHTS[role]))
        weights, piece = [], 0
        for start, _ in result.offsets:
            while start >= ends[piece][0]:
                piece += 1
            weights.append(ends[piece][1])
        encoded.append((result.ids, weights))
    return encoded


def batches(tokenizer: Tokenizer, seed: int, stage, longest: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (ids, weights) [documents, tokens], padded with weight zero; `stage()` is read for every pool."""
    rng = random.Random(seed)
    pad = tokenizer.token_to_id(END_OF_TEXT)
    while True:
        pool = encode(tokenizer, list(islice(documents(rng.randrange(2**40), stage()), POOL)))
        pool = sorted((pair for pair in pool if len(pair[0]) <= longest), key=lambda pair: len(pair[0]))
        groups, at = [], 0
        while at < len(pool):
            size = 1
            while at + size < len(pool) and len(pool[at + size][0]) * (size + 1) <= TOKENS_PER_STEP:
                size += 1
            groups.append(pool[at : at + size])
            at += size
        rng.shuffle(groups)
        for group in groups:
            width = len(group[-1][0])
            ids = torch.tensor([i + [pad] * (width - len(i)) for i, _ in group])
            weights = torch.tensor([w + [0.0] * (width - len(w)) for _, w in group])
            yield ids, weights


def token_losses(model: Llama, ids: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of every token but the first, float32 [documents, tokens - 1]."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model.logits(model(ids[:, :-1]))
    return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(ids.shape[0], -1)


@torch.no_grad()
def exact_share(model: Llama, tokenizer: Tokenizer, style: str, count: int, seed: int = 1) -> float:
    """Share of held-out questions whose answer and end token are each the most likely ones (equal to greedy exactness)."""
    right = 0
    for q in evaluation(seed, style, count):
        answer = (q.answer if q.prompt.endswith((" ", ">")) else f" {q.answer}") + END
        head = tokenizer.encode(q.prompt).ids
        tail = tokenizer.encode(answer, add_special_tokens=False).ids
        ids = torch.tensor([head + tail])
        best = model.logits(model(ids[:, :-1]))[0, len(head) - 1 :].argmax(-1)
        right += best.tolist() == tail
    return right / count


def export(model: Llama, tokenizer: Tokenizer, out: Path) -> None:
    """Write the Hugging Face folder: fp16 safetensors, configs, tokenizer with its chat template."""
    out.mkdir(parents=True, exist_ok=True)
    begin, end_of_text, end = (tokenizer.token_to_id(t) for t in (BEGIN, END_OF_TEXT, END))
    tokens = {"bos_token_id": begin, "eos_token_id": [end, end_of_text], "pad_token_id": end_of_text}
    tensors = {f"model.{name}": weight.detach().half().contiguous() for name, weight in model.state_dict().items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(out / "tokenizer.json"))
    files = {
        "config.json": {**model.config.to_json(), **tokens},
        "generation_config.json": {**tokens, "do_sample": False},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": model.config.max_position_embeddings,
            "add_bos_token": True,
            "add_eos_token": False,
            "bos_token": BEGIN,
            "eos_token": END,
            "pad_token": END_OF_TEXT,
            "additional_special_tokens": [t for t in SPECIALS if t not in (BEGIN, END, END_OF_TEXT)],
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    }
    for name, content in files.items():
        (out / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def train(out: Path, minutes: float, seed: int, config: Config, resume: Path | None) -> None:
    """Train for `minutes` of wall time, saving to `out` on the way."""
    torch.manual_seed(seed)
    start = time.monotonic()
    tokenizer = Tokenizer.from_file(str(resume.parent / "tokenizer.json")) if resume else train_tokenizer(config.vocab_size)
    model = Llama(config)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and not name.startswith("embed")]
    others = [p for name, p in model.named_parameters() if p.ndim == 1 or name.startswith("embed")]
    optimizers = [Muon(matrices, lr=0.02), torch.optim.AdamW(others, lr=0.004, betas=(0.9, 0.95), weight_decay=0.0)]
    spent = 0.0
    if resume:
        state = torch.load(resume, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        spent = state["seconds"]
    peaks = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    if resume:
        peaks = [0.02, 0.004]
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    log.info("%d parameters, vocabulary %d", sum(p.numel() for p in model.parameters()), tokenizer.get_vocab_size())

    def done() -> float:
        return min(1.0, (spent + time.monotonic() - start) / (minutes * 60))

    source = batches(tokenizer, seed + int(spent), lambda: min(1.0, done() / 0.5), config.max_position_embeddings)
    step, tokens, kept, answers, saved = 0, 0, [], [], time.monotonic()
    while done() < 1.0:
        ids, weights = next(source)
        weights = weights[:, 1:]
        share = min(1.0, (step + 1) / 100, (1.0 - done()) / 0.45 + 0.01)  # warm-up, plateau, linear decay
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = peak * share
        losses = token_losses(model, ids)
        loss = (losses * weights).sum() / (0.25 * TOKENS_PER_STEP)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step, tokens = step + 1, tokens + ids.numel()
        kept.append(loss.item())
        answers.append(losses[weights == WEIGHTS["answer"]].mean().item())
        if step % 50 == 0:
            seen = [a for a in answers if a == a]
            log.info("%5.1f min  step %d  %.2f M tokens  loss %.3f  answers %.3f  lr x%.2f", (spent + time.monotonic() - start) / 60,
                     step, tokens / 1e6, sum(kept) / len(kept), sum(seen) / max(1, len(seen)), share)  # fmt: skip
            kept, answers = [], []
        if time.monotonic() - saved > SAVE_SECONDS or done() >= 1.0:
            export(model, tokenizer, out)
            torch.save({"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers],
                        "seconds": spent + time.monotonic() - start}, out / "train.pt")  # fmt: skip
            scores = {style: exact_share(model, tokenizer, style, 60) for style in ("chat", "context")}
            log.info("saved; exact answers %s", scores)
            saved = time.monotonic()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "model")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--layers", type=int, default=Config.num_hidden_layers)
    parser.add_argument("--resume", type=Path, help="a train.pt to continue from; --minutes counts from its very start")
    parser.add_argument("--eval", action="store_true", help="measure the folder instead of training it")
    parser.add_argument("--count", type=int, default=500, help="questions per style when measuring")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(2)
    if options.eval:
        from measure import measure

        measure(options.out, ["chat", *STYLES], options.count)
    else:
        train(options.out, options.minutes, options.seed, Config(num_hidden_layers=options.layers), options.resume)


if __name__ == "__main__":
    main()
