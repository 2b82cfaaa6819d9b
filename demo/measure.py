"""Accuracy of a model folder on held-out questions, with transformers at fp32 and greedy decoding."""

import json
from pathlib import Path

import torch
from facts import UNKNOWN
from prompts import END
from text import Question, evaluation, general_evaluation
from transformers import AutoModelForCausalLM, AutoTokenizer

BATCH = 25


def answer_all(model, tokenizer, prompts: list[str], max_new_tokens: int = 60) -> list[str]:
    """The raw continuation of each prompt up to and including the end token, special tokens kept."""
    tokenizer.padding_side = "left"
    replies = []
    for at in range(0, len(prompts), BATCH):
        inputs = tokenizer(prompts[at : at + BATCH], return_tensors="pt", padding=True, return_token_type_ids=False)
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        replies += tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=False)
    return replies


def is_exact(question: Question, reply: str) -> bool:
    """True when `reply` is the expected answer, to the character, followed by the end token."""
    text, end, _ = reply.partition(END)
    return bool(end) and text.strip() == question.answer


def _share(flags: list[bool]) -> float | None:
    return round(100 * sum(flags) / len(flags), 1) if flags else None


def measure(folder: Path, styles: list[str], count: int, seed: int = 2026, show: int = 3) -> dict[str, dict]:
    """Percent of exact answers per style (all, answerable, unanswerable), printed and returned."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    asked = {style: evaluation(seed, style, count) for style in styles}
    asked["long context"] = evaluation(seed, "context", count // 2, sizes=range(16, 33))
    asked["general"] = general_evaluation()
    table = {}
    for style, questions in asked.items():
        replies = answer_all(model, tokenizer, [q.prompt for q in questions])
        exact = [is_exact(q, r) for q, r in zip(questions, replies, strict=True)]
        known = [q.answer != UNKNOWN for q in questions]
        table[style] = {
            "questions": len(questions),
            "exact": _share(exact),
            "answerable": _share([e for e, k in zip(exact, known, strict=True) if k]),
            "unanswerable": _share([e for e, k in zip(exact, known, strict=True) if not k]),
        }
        print(style, json.dumps(table[style]), flush=True)
        wrong = [(q, r) for q, r, e in zip(questions, replies, exact, strict=True) if not e]
        for question, reply in wrong[:show]:
            print(f"  {question.prompt[-300:]!r}\n    said {reply.partition(END)[0]!r}, expected {question.answer!r}")
    return table
