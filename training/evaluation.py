"""Look at a model without disturbing its training: modes and random generators are put back.

Used by trainer.py: ``metrics = evaluate(model, val_loader, device)``; and by model.py, piece by piece:
``with torch.no_grad(), eval_mode(model), preserved_rng(device, loader): …``.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from training.losses import count_tokens, token_loss


def evaluate(
    model: nn.Module,
    loader: Iterable[dict[str, Tensor]],
    device: torch.device,
    autocast: AbstractContextManager | None = None,
    before_batch: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Loss and perplexity over a loader: Σ −ln p / Σ targets, not a mean of batch means, and its exponential.

    Modes, gradients and random generators are afterwards as they were before, also after an exception.

    Args:
        model: ``model(input_ids) -> logits`` (B, T, V), on device.
        loader: batches {"input_ids": (B, T), "labels": (B, T)}, int64, -100 = no target.
        device: where to compute.
        autocast: entered around each forward; None: the weights' own precision.
        before_batch: called before each batch; it may end the evaluation with an exception.

    Returns:
        {"loss": nats a token, "perplexity": exp(loss)}.

    Raises:
        ValueError: there is no target in the loader.
    """
    autocast = nullcontext() if autocast is None else autocast
    loss_sum, num_tokens = torch.zeros((), device=device), 0
    with torch.no_grad(), eval_mode(model), preserved_rng(device, loader):
        for batch in loader:
            before_batch()
            num_tokens += count_tokens(batch["labels"])
            input_ids = batch["input_ids"].to(device, non_blocking=True)
            labels = batch["labels"].to(device, non_blocking=True)
            with autocast:
                logits = model(input_ids)  # (B, T, V)
            loss_sum += token_loss(logits, labels)
    if num_tokens == 0:
        raise ValueError("val_loader has no target: it is empty, or every label is -100")
    loss = loss_sum.item() / num_tokens
    return {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else loss * math.inf}


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every submodule is in the mode in which it was found.

    ``model.train()`` at the end would also wake a BatchNorm that somebody had frozen in evaluation mode.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def preserved_rng(device: torch.device, loader: object = None) -> Iterator[None]:
    """Put every generator back afterwards: python's, numpy's, torch's, the device's and the loader's own.

    Even a DataLoader that does not shuffle draws a seed when its iteration begins.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    generator = getattr(loader, "generator", None)
    loader_state = None if generator is None else generator.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
            if generator is not None:
                generator.set_state(loader_state)
