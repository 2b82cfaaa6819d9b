"""From text to batches: the tokenizer, the loss weight of every token, documents of like length padded together."""

import random
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import accumulate, islice

import torch
from prompts import BEGIN, END_OF_TEXT, SPECIALS
from text import Document, documents
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

WEIGHTS = {"answer": 1.0, "value": 1.0, "story": 0.4, "question": 0.05, "context": 0.03, "free": 0.0}
# Capitalised names and digits never merge with the space before them, so a name has the same tokens wherever it stands.
SPLIT = r" ?\p{Ll}+|\p{Lu}+\p{Ll}*|[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|\s"
TOKENS_PER_STEP = 3072
POOL = 768  # documents sorted by length together, so that a batch pads little


def train_tokenizer(vocab_size: int, documents_read: int = 12000) -> Tokenizer:
    """A byte-level BPE tokenizer whose post-processor puts the begin token first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = ("".join(text for text, _ in document) for document in islice(documents(seed=0), documents_read))
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
    """Token ids of each document and the loss weight of each token, that of the piece its first character lies in.

    An answer is tokenised apart from the prompt before it, as when the model writes it: no token spans the border.
    """
    parts = [(number, part) for number, document in enumerate(batch) for part in _cut_before_answers(document)]
    texts = ["".join(text for text, _ in part) for _, part in parts]
    encoded: list[tuple[list[int], list[float]]] = [([], []) for _ in batch]
    for (number, part), result in zip(parts, tokenizer.encode_batch(texts, add_special_tokens=False), strict=True):
        bounds = list(accumulate(len(text) for text, _ in part))
        ids, weights = encoded[number]
        ids += result.ids
        weights += [WEIGHTS[part[bisect_right(bounds, start)][1]] for start, _ in result.offsets]
    return encoded


def _cut_before_answers(document: Document) -> list[Document]:
    parts: list[Document] = [[]]
    for piece in document:
        if piece[1] == "answer":
            parts.append([])
        parts[-1].append(piece)
    return [part for part in parts if part]


def batches(
    tokenizer: Tokenizer, seed: int, stage: Callable[[], float], longest: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
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
