"""Is a loaded state what `state.capture` makes, whatever the model? Types and ranges, before anything is applied.

Used by resume.py: ``if problem := state_problem(state): …``. matching.py compares with a model and an optimizer.

A digest says that a file is as it was written, not that it makes sense. Applied unseen, a counter that is text or a
generator's state that is short ends the run later, in the middle of something, or, worse, does not end it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from training.run_log import Progress

LARGEST = 2**63
SAMPLER = {"epoch": int, "position": int, "num_samples": int, "seed": int, "shuffle": bool}


def state_problem(state: Mapping[str, Any], vocab_size: int) -> str | None:
    """The first thing that is not as it should be, a clause, or None. A part that is not there is no problem.

    Args:
        state: of load_checkpoint.
        vocab_size: tokens of a window are below it.
    """
    for name in ("epoch", "global_step"):
        if not _is_count(state.get(name, 0)):
            return f"{name} should be an integer >= 0"
    checks: dict[str, Callable[[Any], str | None]] = {
        "config": _config_problem,
        "progress": lambda progress: _progress_problem(progress, state),
        "interval": _interval_problem,
        "window": lambda window: _window_problem(window, vocab_size),
        "gradients": _gradients_problem,
        "data_state_dict": _data_problem,
        "rng_state": _rng_problem,
        "ranks": _ranks_problem,
    }
    for name, check in checks.items():
        if name in state and (problem := check(state[name])):
            return f"{name} {problem}"
    return None


def _is_count(value: Any, least: int = 0) -> bool:
    return type(value) is int and least <= value < LARGEST


def _config_problem(config: Any) -> str | None:
    if config is None:
        return None
    if not isinstance(config, Mapping) or any(isinstance(value, Tensor) for value in config.values()):
        return "should be a dict of plain values"
    return None


def _progress_problem(progress: Any, state: Mapping[str, Any]) -> str | None:
    if not isinstance(progress, Mapping):
        return "should be a dict"
    for field in fields(Progress):
        value, kind = progress.get(field.name, field.default), type(field.default)
        right = type(value) in ((int, float) if kind is float else (kind,))
        if not right or (kind is int and not _is_count(value, -1 if field.default == -1 else 0)):
            return f"has a {field.name} that is no {kind.__name__}" + (" >= 0" if kind is int else "")
    for name in ("epoch", "global_step"):
        if progress.get(name) != state.get(name):
            return f"has another {name} than the checkpoint"
    return None


def _interval_problem(interval: Any) -> str | None:
    for name in ("loss_sum", "grad_norm"):
        value = interval.get(name) if isinstance(interval, Mapping) else None
        if not isinstance(value, Tensor) or value.shape != () or not value.is_floating_point():
            return f"should have {name}, a tensor of one number"
    return None


def _window_problem(window: Any, vocab_size: int) -> str | None:
    if not isinstance(window, list) or not all(isinstance(batch, Mapping) for batch in window):
        return "should be a list of micro-batches"
    for batch in window:
        for name, ids in batch.items():
            if not isinstance(ids, Tensor):
                return f"has {name} that are no tensor"
            least = -100 if name == "labels" else 0
            if ids.dtype == torch.int64 and ids.numel() and (ids.min() < least or ids.max() >= vocab_size):
                return f"has {name} that are no tokens"
    return None


def _gradients_problem(gradients: Any) -> str | None:
    if not isinstance(gradients, Mapping):
        return "should be a dict of tensors"
    wrong = [name for name, value in gradients.items() if not isinstance(value, Tensor)]
    return f"has no tensor for {str(wrong[0])[:80]!r}" if wrong else None


def _data_problem(data: Any) -> str | None:
    if not isinstance(data, Mapping) or not {"batches", "sampler", "start", "generator"} <= data.keys():
        return "should be a dict of batches, sampler, start and generator"
    if not _is_count(data["batches"]):
        return "has batches that are no integer >= 0"
    sampler = data["sampler"]
    if sampler is not None:
        for name, kind in SAMPLER.items():
            value = sampler.get(name) if isinstance(sampler, Mapping) else None
            if type(value) is not kind or (kind is int and not _is_count(value)):
                return f"has a sampler whose {name} is no {kind.__name__}"
    if data["generator"] is not None and not _sets(lambda: torch.Generator().set_state(data["generator"])):
        return "has a generator whose state torch does not take"
    if data["start"] is not None:
        if not isinstance(data["start"], Mapping) or not {"rng_state", "generator"} <= data["start"].keys():
            return "has a start without rng_state and generator"
        return _rng_problem(data["start"]["rng_state"])
    return None


def _rng_problem(states: Any) -> str | None:
    """Each state is tried on a generator of its own. Numpy alone believes everything: it would read behind its end."""
    if not isinstance(states, Mapping) or not {"python", "numpy", "torch", "cuda"} <= states.keys():
        return "should be a dict of python, numpy, torch and cuda"
    python, numpy_state = states["python"], states["numpy"]
    if not isinstance(python, tuple) or not _sets(lambda: random.Random().setstate(python)):
        return "has a state of python that it does not take"
    plain = isinstance(numpy_state, tuple) and [type(value) for value in numpy_state] == [
        str,
        Tensor,
        int,
        int,
        float,
    ]
    if not plain or numpy_state[1].dtype != torch.int64 or numpy_state[1].shape != (624,):
        return "has a state of numpy that it does not take"
    kind, words, position, has_gauss, _ = numpy_state
    in_range = bool((words >= 0).all() and (words < 2**32).all()) and 0 <= position <= 624
    if kind != "MT19937" or not in_range or has_gauss not in (0, 1):
        return "has a state of numpy that it does not take"
    if not _sets(lambda: torch.Generator().set_state(states["torch"])):
        return "has a state of torch that it does not take"
    if not isinstance(states["cuda"], list) or not all(isinstance(each, Tensor) for each in states["cuda"]):
        return "has states of cuda that are no tensors"
    return None


def _ranks_problem(ranks: Any) -> str | None:
    """[{"rng_state", "loss_sum"}, …], one of each process."""
    if not isinstance(ranks, list):
        return "should be a list"
    for rank in ranks:
        loss_sum = rank.get("loss_sum") if isinstance(rank, Mapping) else None
        if not isinstance(loss_sum, Tensor) or loss_sum.shape != () or not loss_sum.is_floating_point():
            return "should have of each a loss_sum, a tensor of one number"
        if problem := _rng_problem(rank.get("rng_state")):
            return f"has an rng_state that {problem}"
    return None


def _sets(load: Callable[[], object]) -> bool:
    try:
        load()
    except (TypeError, ValueError, RuntimeError, AttributeError, OverflowError):
        return False
    return True
