"""Lesson 05: what keeps an evaluation from disturbing the training.  Task 5.5.

Holds:    evaluation_mode (modes and graph), preserve_rng (random numbers)
Test it:  pytest testcases/basic_test.py -k "evaluation or rng"
Source:   torch's notes on reproducibility, https://docs.pytorch.org/docs/stable/notes/randomness.html
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Inside the `with` block the model is in eval mode and records no graph. Afterwards all is as it was.

    "As it was" holds for each submodule by itself. A BatchNorm that its owner froze with `.eval()`, in a
    model in train mode, is frozen afterwards too; a model that was in eval mode stays there. It also holds
    when the block ends with an exception.

    Args:
        model: any module.
    """
    # TODO 5.5 evaluate without leaving a trace: modes, graph, random numbers
    # the body of the `with` block runs where this function yields
    raise NotImplementedError("task 5.5: evaluate without leaving a trace: modes, graph, random numbers")


@contextmanager
def preserve_rng(device: torch.device | str = "cpu") -> Iterator[None]:
    """Inside the `with` block draw as you like. Afterwards every global generator is as it was.

    The generators: Python's `random`, `np.random`, torch's of the CPU, and that of `device` where it is a
    CUDA device. Also when the block ends with an exception.

    Why an evaluation draws at all: starting to iterate a `DataLoader`, shuffled or not, takes a seed for
    its workers from torch's global generator. Without this, a run's dropout masks would depend on how
    often it was evaluated.

    Args:
        device: the device on which the block computes.
    """
    device = torch.device(device)
    # TODO 5.5 evaluate without leaving a trace: modes, graph, random numbers
    raise NotImplementedError("task 5.5: evaluate without leaving a trace: modes, graph, random numbers")
