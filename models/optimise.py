"""How the shipped models are optimised: AdamW, one epoch of linear warm-up, then a cosine to zero."""

import math
from collections.abc import Callable

import torch

__all__ = ["Optimiser"]

_WEIGHT_DECAY = 0.05
_BETAS = (0.9, 0.98)
_LARGEST_NORM = 1.0


class Optimiser:
    """Takes the steps of a training.

    Parameters
    ----------
    model
        What is trained.
    decays
        Whether weights of this name decay; vectors (biases, scales) never do.
    learning_rate
        At its peak, after the first epoch.
    epochs, steps_per_epoch
        Length of the schedule.
    """

    def __init__(
        self, model: torch.nn.Module, decays: Callable[[str], bool], *,
        learning_rate: float, epochs: int, steps_per_epoch: int,
    ) -> None:  # fmt: skip
        decayed: list[torch.nn.Parameter] = []
        other: list[torch.nn.Parameter] = []
        for name, parameter in model.named_parameters():
            (decayed if parameter.ndim > 1 and decays(name) else other).append(parameter)
        self._model = model
        self._steps = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": _WEIGHT_DECAY}, {"params": other, "weight_decay": 0.0}],
            lr=learning_rate,
            betas=_BETAS,
        )
        warm, rest = steps_per_epoch, max(1, (epochs - 1) * steps_per_epoch)

        def scale(step: int) -> float:
            return (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / rest))

        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._steps, scale)

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return float(self._schedule.get_last_lr()[0])

    def step(self, loss: torch.Tensor) -> None:
        """One step down the gradient of a loss, whose norm is clipped."""
        self._steps.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), _LARGEST_NORM)
        self._steps.step()
        self._schedule.step()
