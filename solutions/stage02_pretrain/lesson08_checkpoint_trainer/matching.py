"""Lesson 08: does a checkpoint fit? Everything is compared before anything is applied.  Task 8.7.

Holds:    find_mismatches, and its parts model_mismatches and optimizer_mismatches
Run it:   python -m solutions.stage02_pretrain.lesson08_checkpoint_trainer.run
Test it:  pytest testcases/advanced_test.py -k fit

Source:   torch.nn.Module.load_state_dict, which copies what fits before it raises for what does not.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

MOMENTS = ("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")


def find_mismatches(
    state: Mapping[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None,
    scaler: torch.amp.GradScaler,
) -> list[str]:
    """Why a loaded state does not fit these objects, one clause each; empty if it fits. Changes nothing."""
    counts = ("epoch", "step")
    problems = [f"{key!r} is no number >= 0" for key in counts if not _is_count(state.get(key))]
    weights = state.get("model_state_dict")
    if not isinstance(weights, Mapping):
        return [*problems, "it has no 'model_state_dict'"]
    problems += model_mismatches(weights, model)
    problems += optimizer_mismatches(state.get("optimizer_state_dict"), optimizer)
    live = {
        "scheduler_state_dict": None if scheduler is None else scheduler.state_dict(),
        "scaler_state_dict": scaler.state_dict() or None,  # empty where the scaler is disabled
    }
    for key, want in live.items():
        found = state.get(key)
        if (found is None) != (want is None):
            problems.append(f"{key!r} is {'missing' if found is None else 'there, and has no use here'}")
        elif want is not None and (not isinstance(found, Mapping) or set(found) != set(want)):
            problems.append(f"{key!r} was made by another kind of object")
    return problems


def model_mismatches(found: Mapping[str, Any], model: nn.Module) -> list[str]:
    """Why `found` is not a state of this model; empty where it is.

    Compared are the names, and for each name that both have: a tensor or not, its shape, its dtype. Nothing
    is stripped, cast or skipped: a file whose names begin with "module." would load *no* weight into a bare
    model under `strict=False`, and float32 weights would be rounded into a bf16 model, both in silence.

    Args:
        found: the "model_state_dict" of a file.
        model: the model that should take it. It is not changed.

    Returns:
        One clause for each difference, with the name of the tensor.
    """
    want = model.state_dict()
    # TODO 8.7 put everything back, or nothing
    # BEGIN SOLUTION
    problems = [f"{name} is missing" for name in want if name not in found]
    problems += [f"{name} is not in the model" for name in found if name not in want]
    for name, tensor in want.items():
        other = found.get(name, tensor)
        if not isinstance(other, Tensor):
            problems.append(f"{name} is a {type(other).__name__} and no tensor")
        elif other.shape != tensor.shape or other.dtype != tensor.dtype:
            kinds = [f"{tuple(t.shape)} {t.dtype}" for t in (other, tensor)]
            problems.append(f"{name} is {kinds[0]}, and {kinds[1]} in the model")
    return problems
    # END SOLUTION


def optimizer_mismatches(found: Any, optimizer: torch.optim.Optimizer) -> list[str]:
    """Compares the sizes of the groups, and the shapes of the moments. torch compares only the first."""
    groups = found.get("param_groups") if isinstance(found, Mapping) else None
    if not isinstance(groups, list) or not isinstance(found.get("state"), Mapping):
        return ["it has no 'optimizer_state_dict'"]
    sizes = [len(group["params"]) for group in groups]
    want = [len(group["params"]) for group in optimizer.param_groups]
    if sizes != want:
        return [f"its optimizer has groups of {sizes} parameters, and this one of {want}"]
    problems = []
    indices = [index for group in groups for index in group["params"]]
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for index, param in zip(indices, params, strict=True):
        for name in MOMENTS:
            moment = found["state"].get(index, {}).get(name)
            if moment is not None and moment.shape != param.shape:
                shapes = f"{tuple(moment.shape)}, its parameter {tuple(param.shape)}"
                problems.append(f"{name} of parameter {index} has the shape {shapes}")
    return problems


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0
