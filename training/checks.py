"""What a trainer asks of its arguments, each with one sentence that says what is wrong.

Used by trainer.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer


def owned_parameters(optimizer: Optimizer, model: nn.Module) -> list[Tensor]:
    """What the optimizer updates. If it was built before a parameter was replaced, it would train a ghost."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    own = {id(param) for param in model.parameters()}
    strangers = sum(id(param) not in own for param in params)
    if strangers:
        raise ValueError(
            f"the optimizer holds {strangers} tensors that are no parameters of the model: "
            "build it after the model"
        )
    return params


def require_positive(**numbers: float | None) -> None:
    """ValueError for a number that is not > 0; None stands for "not given"."""
    for name, value in numbers.items():
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be > 0, got {value}")


def require_batches(**loaders: Iterable[Any] | None) -> None:
    """ValueError for a loader that is known to be empty."""
    for name, loader in loaders.items():
        try:
            empty = loader is not None and len(loader) == 0  # type: ignore[arg-type]
        except TypeError:  # an iterable without a length: train() and validate() will see
            continue
        if empty:
            raise ValueError(f"{name} is empty: it has no batch")
