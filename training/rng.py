"""The state of every global random generator, in a form that safe loading accepts.

Used by state.py and sampler.py: ``state = get_rng_state(); …; set_rng_state(state)``.

`random.gauss` and numpy's normal draws come in pairs, of which one is kept for the next call: the kept one is
part of the state. `np.random.get_state()` itself holds an array, which ``torch.load(weights_only=True)`` refuses.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

GENERATORS = ("python", "numpy", "torch", "cuda")


def seed_everything(seed: int) -> None:
    """Begin all global generators anew: python's, numpy's (with the lowest 32 bits), torch's on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def get_rng_state() -> dict[str, Any]:
    """{"python", "numpy", "torch", "cuda"} of plain values and tensors; "cuda" has one tensor a device."""
    kind, words, position, has_gauss, cached_gaussian = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        # int64: not every operation of torch knows uint32
        "numpy": (
            str(kind),
            torch.from_numpy(np.asarray(words).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(cached_gaussian),
        ),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Put the generators into a state of `get_rng_state`. Draws nothing.

    Devices that only one of the two machines has are left out: their numbers could not be repeated anyway.

    Raises:
        ValueError: an entry is missing; nothing was touched then.
    """
    if missing := [name for name in GENERATORS if name not in state]:
        raise ValueError(f"the RNG state lacks {', '.join(missing)}")
    version, words, kept = state["python"]
    random.setstate((version, tuple(words), kept))
    kind, numpy_words, *rest = state["numpy"]
    np.random.set_state((kind, numpy_words.cpu().numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available():
        for index, device_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(device_state.cpu(), index)
