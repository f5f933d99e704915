"""Look at a model without disturbing its training: modes and random generators are put back.

Used by trainer.py: ``metrics = evaluate(model, val_loader, device)``; and by model.py, piece by piece:
``with torch.no_grad(), eval_mode(model), preserved_rng(device, loader): …``.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn

from training.distributed import Ranks
from training.objective import NextToken, Objective, to_device


def evaluate(
    model: nn.Module,
    loader: Iterable[dict[str, Tensor]],
    device: torch.device,
    autocast: AbstractContextManager | None = None,
    before_batch: Callable[[], None] = lambda: None,
    objective: Objective | None = None,
    ranks: Ranks | None = None,
) -> dict[str, float]:
    """Metrics over a loader: Σ loss / Σ targets, not a mean of batch means.

    Modes, gradients and random generators are afterwards as they were before, also after an exception.

    Args:
        model: ``model(input_ids) -> logits`` (B, T, V), on device.
        loader: batches {"input_ids": (B, T), "labels": (B, T)}, int64, -100 = no target.
        device: where to compute.
        autocast: entered around each forward; None: the weights' own precision.
        before_batch: called before each batch; it may end the evaluation with an exception.
        objective: None: NextToken.
        ranks: processes that all have the same batches in this order; rank r of N computes every N-th, from the
            r-th on. None: this process alone.

    Returns:
        What the objective reports, the same on all ranks: of NextToken {"loss": nats a token, "perplexity":
        exp(loss)}.

    Raises:
        ValueError: there is no target in the loader.
    """
    autocast = nullcontext() if autocast is None else autocast
    objective = NextToken() if objective is None else objective
    ranks = Ranks() if ranks is None else ranks
    totals: dict[str, Tensor] = {}
    num_targets = 0

    def forward(input_ids: Tensor) -> Tensor:
        with autocast:
            return model(input_ids)

    with torch.no_grad(), eval_mode(model), preserved_rng(device, loader):
        for batch in islice(loader, ranks.rank, None, ranks.world_size):
            before_batch()
            num_targets += objective.count(batch)
            for name, value in objective.sums(forward, to_device(batch, device)).items():
                totals[name] = totals[name] + value if name in totals else value
    parts = ranks.gather((num_targets, {name: value.item() for name, value in totals.items()}))
    num_targets = sum(count for count, _ in parts)
    if num_targets == 0:
        raise ValueError("val_loader has no target: it is empty, or every label is -100")
    names = dict.fromkeys(name for _, sums in parts for name in sums)
    totals_of_all = {name: sum(sums.get(name, 0.0) for _, sums in parts) for name in names}
    return objective.metrics({name: total / num_targets for name, total in totals_of_all.items()})


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
