"""Lesson 09: the state of every random generator, as plain numbers and tensors.  Tasks 9.1, 9.2.

Holds:    get_rng_state, set_rng_state
Test it:  pytest testcases/basic_test.py -k rng
Source:   torch's notes on reproducibility, https://docs.pytorch.org/docs/stable/notes/randomness.html

Paper: Matsumoto, Nishimura, "Mersenne Twister: a 623-dimensionally equidistributed uniform pseudo-random
number generator", ACM TOMACS 8 (1998), https://doi.org/10.1145/272991.272995 (the generator behind
`random`, `np.random` and torch on the CPU: 624 words and a position among them).
"""

import random

import numpy as np
import torch

GENERATORS = ("python", "numpy", "torch", "cuda")


def get_rng_state() -> dict:
    """The state of the four global generators, now.

    The next numbers drawn are a function of this state and of nothing else: a seed alone does not say how
    many numbers have been drawn since.

    The normal distribution comes in pairs: `random.gauss` and `np.random.randn` compute two numbers, return
    one and keep the other for the next call. The kept one is part of the state.

    Returns:
        {"python": …, "numpy": …, "torch": …, "cuda": […]}. "cuda" has one entry a device, in the order of
        their indices, and is empty where there is no CUDA. Every leaf is a tensor, an int, a float, a str or
        None, in dicts, lists and tuples: `torch.load(weights_only=True)` refuses numpy's arrays and
        numpy's scalars. The tensors are copies.

    Differs from torch: `torch.get_rng_state` knows torch's own CPU generator only.
    """
    # TODO 9.1 write the state of every generator down as plain numbers and tensors
    # np.random.get_state() is a tuple of five: name, an array of 624 uint32, position, and two about a
    # number kept back
    raise NotImplementedError("task 9.1: write the state of every generator down as plain numbers and tensors")


def set_rng_state(state: dict) -> None:
    """Put the four global generators into a state that `get_rng_state` returned, also in another process.

    Draws nothing, and does not change `state`. Devices that exist on only one of the two machines are left
    out: their numbers could not be repeated anyway.

    Args:
        state: from `get_rng_state`, possibly by way of a file.

    Raises:
        ValueError: where an entry is missing; no generator was touched then.
    """
    missing = [name for name in GENERATORS if name not in state]
    if missing:
        raise ValueError(
            f"the RNG state must hold {', '.join(GENERATORS)}, but it lacks {', '.join(missing)}"
        )
    # TODO 9.2 put every generator back
    # a tuple may come back from a file as a list, and random.setstate insists on tuples
    raise NotImplementedError("task 9.2: put every generator back")
