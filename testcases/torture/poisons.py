"""A small training, and what can be done to its numbers: NaN, inf and spikes, each put where it begins.

Used by nonfinite.py: ``trainer = build(folder)``; ``in_gradient(one_element(math.nan))(trainer)``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from testcases.training.work import VOCAB, make_batches
from training.model import GPT, GPTConfig
from training.optimizer import configure_optimizer
from training.scheduler import create_scheduler
from training.trainer import Trainer

Poison = Callable[[Trainer], object]


def build(folder: Path | None = None, **options: Any) -> Trainer:
    """AdamW, clipping, a schedule; eight micro-batches, two in a window; evaluated and saved after each update."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=VOCAB, block_size=8, n_layer=1, n_head=2, n_embd=16, dropout=0.0))
    optimizer = configure_optimizer(model, "adamw", 1e-2, 0.1)
    defaults: dict[str, Any] = {
        "scheduler": create_scheduler("cosine", optimizer, 2, 20),
        "grad_accum_steps": 2,
        "max_grad_norm": 0.5,
        "max_epochs": 2,
        "max_skips": 3,
        "keep_last": 1,
        "async_save": False,
    }
    saving = {} if folder is None else {"save_dir": folder, "save_interval": 1, "eval_interval": 1}
    return Trainer(
        model, optimizer, make_batches(*[2] * 8), make_batches(2), **{**defaults, **saving, **options}
    )


def in_loss(value: float) -> Poison:
    """One logit of the first micro-batch that comes."""

    def poison(trainer: Trainer) -> object:
        def hook(module: object, inputs: object, logits: Tensor) -> Tensor:
            handle.remove()
            return logits + torch.zeros_like(logits).index_fill_(0, torch.tensor([0]), value)

        handle = trainer.model.register_forward_hook(hook)
        return handle

    return poison


def in_gradient(change: Callable[[Tensor], Tensor]) -> Poison:
    """The gradient of the first micro-batch that comes, of one parameter."""

    def poison(trainer: Trainer) -> object:
        def hook(gradient: Tensor) -> Tensor:
            handle.remove()
            return change(gradient.clone())

        handle = trainer.params[0].register_hook(hook)
        return handle

    return poison


def one_element(value: float) -> Callable[[Tensor], Tensor]:
    return lambda gradient: gradient.index_put_((torch.tensor(1), torch.tensor(2)), torch.tensor(value))


def scale_of(value: float) -> Poison:
    return lambda trainer: setattr(trainer, "scaler", torch.amp.GradScaler("cpu", init_scale=value))


def fill(part: str, value: float) -> Poison:
    """A fault in memory: one number of the weights, or of the optimizer's state."""

    def poison(trainer: Trainer) -> object:
        param = trainer.params[0]
        tensor = param.data if part == "weight" else trainer.optimizer.state[param][part]
        return tensor.view(-1)[5].fill_(value)

    return poison
