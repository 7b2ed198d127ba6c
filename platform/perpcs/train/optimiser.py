"""AdamW over a bank: one row of the buffer is one user, so clipping and the update are per user and element-wise."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def clip_rows_(grad_SD: Tensor, limit: float) -> Tensor:
    """Scale each row's gradient to a norm of at most `limit`, in place; returns the norms before, [S]."""
    norm_S = grad_SD.norm(dim=1)
    grad_SD.mul_((limit / (norm_S + 1e-6)).clamp(max=1.0).unsqueeze(1))
    return norm_S


def learning_rate(step: int, *, steps: int, warmup: int, peak: float) -> float:
    """Linear warm-up over `warmup` steps, then linear decay that would reach zero at step `steps`; step counts from 0."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (steps - step) / max(1, steps - warmup)


class RowAdamW:
    """Decoupled weight decay Adam (Loshchilov and Hutter) on a [S, D] buffer; betas (.9, .95) as in the papers' runs."""

    def __init__(
        self, flat_SD: Tensor, *, weight_decay: float, betas: tuple[float, float] = (0.9, 0.95)
    ) -> None:
        self.flat, self.decay, self.betas = flat_SD, weight_decay, betas
        self.mean, self.square = torch.zeros_like(flat_SD), torch.zeros_like(flat_SD)
        self.steps = 0

    @torch.no_grad()
    def step(self, grad_SD: Tensor, lr: float | Tensor) -> None:
        """One update with this step's learning rate, or one rate per row as [S]. A row with rate 0 keeps its bits."""
        self.steps += 1
        beta1, beta2 = self.betas
        self.mean.lerp_(grad_SD, 1 - beta1)
        self.square.mul_(beta2).addcmul_(grad_SD, grad_SD, value=1 - beta2)
        correction1, correction2 = 1 - beta1**self.steps, 1 - beta2**self.steps
        root = (self.square / correction2).sqrt_().add_(1e-8)
        if isinstance(lr, float):
            self.flat.mul_(1 - lr * self.decay)
            self.flat.addcdiv_(self.mean, root, value=-lr / correction1)
            return
        rate_S1 = lr.unsqueeze(1)
        change = (self.mean / root).mul_(rate_S1 / correction1)
        # where, not a product with zero: a row that is not finite must not move either.
        self.flat.copy_(torch.where(rate_S1 > 0, self.flat * (1 - rate_S1 * self.decay) - change, self.flat))

    def state(self) -> dict[str, Tensor]:
        """Parameters, moments and the number of steps: what `go_on` needs."""
        return {
            "flat": self.flat,
            "mean": self.mean,
            "square": self.square,
            "steps": torch.tensor(self.steps),
        }

    @torch.no_grad()
    def go_on(self, state: Mapping[str, Tensor]) -> int:
        """Take over a state, bit for bit; the number of steps that were made."""
        for name in ("flat", "mean", "square"):
            getattr(self, name).copy_(state[name])
        self.steps = int(state["steps"])
        return self.steps
