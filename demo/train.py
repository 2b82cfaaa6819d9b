"""Train, export and measure the demo model: `python demo/train.py --out demo/model --minutes 60`, then `--eval`.

Training needs torch, tokenizers and safetensors; `--eval` also transformers. The folder is saved every few minutes and
when interrupted (Ctrl-C or SIGTERM); the state beside it (`demo/model.train.pt`) resumes it with `--resume`.
"""

import argparse
import logging
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # on a busy machine, threads that spin cost a factor of six here

import torch
import torch.nn.functional as F
from corpus import TOKENS_PER_STEP, WEIGHTS, batches, train_tokenizer
from export import export
from grow import deepen, is_matrix, layer_count
from llama import Config, Llama
from muon import Muon
from prompts import END, STYLES
from text import evaluation
from tokenizers import Tokenizer

log = logging.getLogger("train")

MUON_RATE, ADAM_RATE = 0.01, 0.002
WARM_UP_STEPS = 100
DECAY_SHARE = 0.35  # of the time, at the end: the learning rate falls in a line
STAGE_SHARE = 0.5  # of the time, at the start: contexts grow to their full length
USUAL_WEIGHT = 0.25  # mean loss weight of a token; keeps the loss of different batches comparable
LIGHT, LIGHT_SHARE = 0.1, 0.25  # of the tokens that weigh less than LIGHT, this share is enough
SAVE_SECONDS = 300
LOG_STEPS = 50


def token_losses(model: Llama, ids: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Cross-entropy, float32 [counted tokens], of the tokens that bool `counted` [documents, tokens - 1] chooses.

    The first token of a document is not among them.
    """
    with torch.autocast(ids.device.type, torch.bfloat16):
        logits = model.logits(model(ids[:, :-1])[counted])
    return F.cross_entropy(logits.float(), ids[:, 1:][counted], reduction="none")


def thin(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which tokens to compute the loss of, bool in the shape of `weights`, and the weights of these [counted tokens].

    Most tokens are of a prompt and count little: a random share of them, each counting more, estimates their loss.
    """
    light = (weights > 0) & (weights < LIGHT)
    counted = (weights >= LIGHT) | (light & (torch.rand_like(weights) < LIGHT_SHARE))
    return counted, torch.where(light, weights / LIGHT_SHARE, weights)[counted]


@torch.no_grad()
def exact_share(model: Llama, tokenizer: Tokenizer, style: str, count: int, seed: int = 1) -> float:
    """Share of held-out questions that greedy decoding answers to the letter, end token included."""
    right = 0
    for q in evaluation(seed, style, count):
        answer = (q.answer if q.prompt.endswith((" ", ">")) else f" {q.answer}") + END
        head = tokenizer.encode(q.prompt).ids
        tail = tokenizer.encode(answer, add_special_tokens=False).ids
        ids = torch.tensor([head + tail], device=model.cos.device)
        best = model.logits(model.forward(ids[:, :-1]))[0, len(head) - 1 :].argmax(-1)
        right += best.tolist() == tail
    return right / count


class Training:
    """A model, its optimizers and the time it has had; `run` trains until the budget is spent."""

    def __init__(
        self,
        out: Path,
        minutes: float,
        seed: int,
        config: Config,
        device: str,
        resume: bool,
        grow: tuple[int, ...] = (),
    ):
        torch.manual_seed(seed)
        self.out, self.budget, self.seed = out, minutes * 60, seed
        self.state_file = out.with_name(out.name + ".train.pt")
        self.new = not resume or bool(grow)
        self.spent, self.started = 0.0, time.monotonic()
        known = out / "tokenizer.json"
        self.tokenizer = Tokenizer.from_file(str(known)) if resume else train_tokenizer(config.vocab_size)
        kept = self._kept(grow) if resume else None
        if kept:
            config = replace(config, num_hidden_layers=layer_count(kept["model"]))
        self.model = Llama(config).to(device)
        named = list(self.model.named_parameters())
        matrices = [p for name, p in named if is_matrix(name, p)]
        others = [p for name, p in named if not is_matrix(name, p)]
        self.optimizers = [
            Muon(matrices, lr=MUON_RATE),
            torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.model.compile(dynamic=True)  # 1.5 times as fast on a CPU: the element-wise operations are fused
        if kept:
            self._restore(kept)
        log.info("%d parameters, vocabulary %d", sum(p.numel() for _, p in named), self.tokenizer.get_vocab_size())

    def seconds(self) -> float:
        """Wall seconds of training so far, earlier runs included."""
        return self.spent + time.monotonic() - self.started

    def done(self) -> float:
        """Share of the budget that is spent, 0 to 1."""
        return min(1.0, self.seconds() / self.budget)

    def _kept(self, grow: tuple[int, ...]) -> dict:
        state = torch.load(self.state_file, weights_only=True)
        return deepen(state, grow) if grow else state

    def _restore(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        self.spent = state["seconds"]

    def save(self) -> None:
        """Export the folder, keep the state to resume from, and log the accuracy on a few held-out questions."""
        export(self.model, self.tokenizer, self.out)
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        state = {"model": self.model.state_dict(), "optimizers": optimizers, "seconds": self.seconds()}
        torch.save(state, self.state_file)
        scores = {style: exact_share(self.model, self.tokenizer, style, 40) for style in ("chat", "context", "tools")}
        log.info("saved; exact answers %s", scores)

    def step(self, ids: torch.Tensor, weights: torch.Tensor, share: float) -> tuple[float, float]:
        """One update at `share` of the peak learning rates; (weighted loss, mean loss of the answer tokens)."""
        counted, weights = thin(weights[:, 1:])
        losses = token_losses(self.model, ids, counted)
        loss = (losses * weights).sum() / (USUAL_WEIGHT * TOKENS_PER_STEP)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for peak, optimizer in zip((MUON_RATE, ADAM_RATE), self.optimizers, strict=True):
            optimizer.param_groups[0]["lr"] = peak * share
            optimizer.step()
            optimizer.zero_grad()
        return loss.item(), losses[weights == WEIGHTS["answer"]].mean().item()

    def run(self) -> None:
        """Train until the budget is spent or a signal asks to stop, saving on the way and at the end."""
        stage = lambda: min(1.0, self.done() / STAGE_SHARE)  # noqa: E731
        source = batches(self.tokenizer, self.seed + int(self.spent), stage, self.model.config.max_position_embeddings)
        warm_up = WARM_UP_STEPS if self.new else 1  # optimizers that know their weights need none
        step, tokens, recent, saved = 0, 0, [], time.monotonic()
        stopped = []
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopped.append(True))
        while self.done() < 1.0 and not stopped:
            ids, weights = (tensor.to(self.model.cos.device) for tensor in next(source))
            share = min(1.0, (step + 1) / warm_up, (1.0 - self.done()) / DECAY_SHARE)
            recent.append(self.step(ids, weights, share))
            step, tokens = step + 1, tokens + ids.numel()
            if step % LOG_STEPS == 0:
                loss, answers = torch.tensor(recent).nanmean(0).tolist()  # a batch of stories has no answers
                log.info(
                    f"{self.seconds() / 60:5.1f} min  step {step}  {tokens / 1e6:.2f} M tokens  "
                    f"loss {loss:.3f}  answers {answers:.3f}  rate x{share:.2f}"
                )
                recent = []
            if time.monotonic() - saved > SAVE_SECONDS:
                self.save()
                saved = time.monotonic()
        self.save()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "model", help="folder to write or measure")
    parser.add_argument("--minutes", type=float, default=60.0, help="wall time of the whole training")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--layers", type=int, default=Config.num_hidden_layers)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--resume", action="store_true", help="continue with as many layers; --minutes still counts from the start"
    )
    parser.add_argument("--grow", type=int, nargs="+", default=(), help="resume with a new layer behind each of these")
    parser.add_argument("--eval", action="store_true", help="measure the folder instead of training it")
    parser.add_argument("--count", type=int, default=500, help="questions per style when measuring")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.eval:
        from measure import measure  # needs transformers, training does not

        measure(options.out, ["chat", *STYLES, "tools"], options.count)
    else:
        config = Config(num_hidden_layers=options.layers)
        Training(
            options.out, options.minutes, options.seed, config, options.device, options.resume, tuple(options.grow)
        ).run()


if __name__ == "__main__":
    main()
