"""Look at a model without disturbing its training: modes and random generators are put back.

Used by trainer.py and model.py: ``with torch.no_grad(), eval_mode(model), preserved_rng(device, loader): …``.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


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
