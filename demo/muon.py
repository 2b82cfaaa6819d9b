"""Muon: momentum whose update is orthogonalised, for the matrices of hidden layers (K. Jordan et al., 2024)."""

from collections import defaultdict

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # quintic whose iteration drives singular values towards 1 (ibid.)


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """bfloat16 `matrices` [count, rows, columns], rows <= columns, with all singular values moved close to one."""
    a, b, c = COEFFICIENTS
    x = matrices.bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


class Muon(torch.optim.Optimizer):
    """Muon over 2-D parameters; equal shapes are orthogonalised in one batch."""

    def __init__(self, parameters, lr: float, momentum: float = 0.95, weight_decay: float = 0.02):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            shapes = defaultdict(list)
            for p in group["params"]:
                shapes[tuple(sorted(p.shape))].append(p)
            for same in shapes.values():
                self._step_alike(same, group)

    def _step_alike(self, parameters: list[Tensor], group: dict) -> None:
        """One update of parameters that have one shape, or that shape transposed."""
        wanted = []
        for p in parameters:
            buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
            buffer.lerp_(p.grad, 1 - group["momentum"])
            update = p.grad.lerp(buffer, group["momentum"])  # Nesterov
            wanted.append(update if p.shape[0] <= p.shape[1] else update.mT)
        for p, update in zip(parameters, orthogonalise(torch.stack(wanted)), strict=True):
            update = update if p.shape[0] <= p.shape[1] else update.mT
            scale = max(1.0, p.shape[0] / p.shape[1]) ** 0.5
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(update.to(p.dtype), alpha=-group["lr"] * scale)
