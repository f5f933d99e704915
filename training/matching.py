"""Does a checkpoint fit? Names, shapes and dtypes are compared before anything is applied: all of it, or nothing.

``check_fits(state, model, optimizer)`` returns, or raises CheckpointError with the differences.

torch's own ``Module.load_state_dict`` copies what fits before it raises for what does not; its
``Optimizer.load_state_dict`` compares no shapes at all, and the run dies in the next update.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from training.checkpoint_file import CheckpointError
from training.untrusted import all_finite

SHOWN = 4  # differences in one message: a wrong width makes hundreds
# What an optimizer has stored for a parameter once it was updated; without all of it the next update fails.
STORED = {"betas": {"step", "exp_avg", "exp_avg_sq"}}
PREFIXES = {"module.": "(Distributed)DataParallel", "_orig_mod.": "torch.compile"}


def check_fits(
    state: Mapping[str, Any],
    model: nn.Module,
    optimizer: Optimizer | None = None,
    scheduler: LRScheduler | None = None,
    scaler: Any = None,
) -> None:
    """Compare a loaded state with the objects that should take it. Changes nothing.

    Nothing is cast, stripped or skipped: float32 weights would be rounded into a bf16 model, and names that begin
    with "module." would load no weight at all under `strict=False`, both in silence.

    Args:
        state: of load_checkpoint.
        model: its state_dict() has the names, shapes and dtypes that "model_state_dict" must have.
        optimizer: with it, "optimizer_state_dict" must be of such an optimizer over such parameters in this
            order. None: not looked at.
        scheduler, scaler: with them, their states must have the keys that these have. None: not looked at.

    Raises:
        CheckpointError: the first differences, and how many there are.
    """
    problems = model_mismatches(state.get("model_state_dict"), model)
    if optimizer is not None:
        problems += optimizer_mismatches(state.get("optimizer_state_dict"), optimizer)
    for key, part in (("scheduler_state_dict", scheduler), ("scaler_state_dict", scaler)):
        if part is not None:
            problems += _part_mismatches(key, state.get(key), part.state_dict())
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise CheckpointError(f"the checkpoint does not fit: {'; '.join(problems[:SHOWN])}{more}")


def model_mismatches(found: Any, model: nn.Module) -> list[str]:
    """Why `found` is no state of this model, a clause for each difference."""
    if not isinstance(found, Mapping):
        return ["it has no model_state_dict"]
    want = model.state_dict()
    for prefix, wrapper in PREFIXES.items():
        if found and all(str(name).startswith(prefix) for name in found) and not set(found) & set(want):
            return [f"its names begin with {prefix!r}, which {wrapper} adds: save the model inside"]
    versions = getattr(found, "_metadata", {})
    if not _is_metadata(
        versions
    ):  # it can tell load_state_dict to replace parameters that an optimizer holds
        return ["the _metadata of its weights have more than versions"]
    problems = [f"{name} is missing" for name in want if name not in found]
    problems += [f"{_printable(name)} is not in the model" for name in found if name not in want]
    for name in [name for name in want if name in found]:
        if isinstance(want[name], Tensor):  # else the extra state of a module, which may be anything
            problems += _tensor_mismatch(name, found[name], want[name], "the model")
    return problems


def _is_metadata(found: Any) -> bool:
    if not isinstance(found, Mapping) or not all(isinstance(entry, Mapping) for entry in found.values()):
        return False
    return all(
        entry.keys() <= {"version"} and type(entry.get("version", 1)) is int for entry in found.values()
    )


def _printable(name: Any) -> str:
    text = "".join(letter for letter in str(name)[:100] if letter.isprintable())
    return text if text == str(name) else f"{text}…"


def optimizer_mismatches(found: Any, optimizer: Optimizer) -> list[str]:
    """Why `found` is no state of this optimizer; its values, such as the learning rate, may differ."""
    groups = found.get("param_groups") if isinstance(found, Mapping) else None
    if not isinstance(groups, list) or not isinstance(found.get("state"), Mapping):
        return ["it has no optimizer_state_dict"]
    if not all(isinstance(group, Mapping) and isinstance(group.get("params"), list) for group in groups):
        return ["its param_groups are malformed"]
    sizes = [len(group["params"]) for group in groups]
    want = [len(group["params"]) for group in optimizer.param_groups]
    if sizes != want:
        return [f"its optimizer has groups of {sizes} parameters, and this one of {want}"]
    problems = []
    for number, (theirs, ours) in enumerate(zip(groups, optimizer.param_groups, strict=True)):
        problems += _group_mismatches(number, theirs, ours)
        for index, param in zip(theirs["params"], ours["params"], strict=True):
            moments = found["state"].get(index, {})
            problems += _moment_mismatches(index, moments, param)
            if moments and "betas" in ours and not problems and (lost := STORED["betas"] - moments.keys()):
                problems.append(f"parameter {index} has no {', '.join(sorted(lost))}")
    return problems


def _group_mismatches(number: int, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    # The numbers tell optimizers apart (betas, momentum); flags come and go with versions of torch.
    numbers = [
        key for key, value in ours.items() if type(value) in (int, float, tuple) and key != "initial_lr"
    ]
    problems = [
        f"group {number} has no {key!r}: another optimizer made it" for key in numbers if key not in theirs
    ]
    for key in [key for key in numbers if key in theirs]:
        if not _same_kind(theirs[key], ours[key]):
            problems.append(f"group {number} has a {key} that is no finite number, or not as many")
    for key, why in (
        ("param_names", "the parameters of group {} are others, or in another order"),
        ("decoupled_weight_decay", "group {} is of Adam in one and of AdamW in the other"),
    ):
        if key in theirs and key in ours and theirs[key] != ours[key]:
            problems.append(why.format(number))
    return problems


def _moment_mismatches(index: int, moments: Any, param: Tensor) -> list[str]:
    if not isinstance(moments, Mapping):
        return [f"the state of parameter {index} is a {type(moments).__name__}"]
    problems = []
    for name, moment in moments.items():
        # "step" is a scalar; every other tensor is a moment, an element for each of the parameter's
        shape = torch.Size() if name == "step" else param.shape
        if isinstance(moment, Tensor) and moment.shape != shape:
            shapes = f"{tuple(moment.shape)}, its parameter {tuple(param.shape)}"
            problems.append(f"{_printable(name)} of parameter {index} is {shapes}")
        elif isinstance(moment, Tensor) and not (moment.is_floating_point() and all_finite(moment)):
            problems.append(f"{_printable(name)} of parameter {index} is not of finite numbers")
        elif name in STORED["betas"] - {"step"} and not isinstance(moment, Tensor):
            problems.append(f"{name} of parameter {index} is a {type(moment).__name__} and no tensor")
    return problems


def _tensor_mismatch(name: str, found: Any, want: Tensor, where: str) -> list[str]:
    if not isinstance(found, Tensor):
        return [f"{name} is a {type(found).__name__} and no tensor"]
    if found.shape != want.shape or found.dtype != want.dtype:
        kinds = [f"{tuple(tensor.shape)} {tensor.dtype}" for tensor in (found, want)]
        return [f"{name} is {kinds[0]}, and {kinds[1]} in {where}"]
    return []


def _part_mismatches(key: str, found: Any, want: Mapping[str, Any]) -> list[str]:
    if not want:  # a disabled scaler
        return [f"{key} has no use here"] if found else []
    if not found:
        return [f"it has no {key}"]
    if not isinstance(found, Mapping) or set(found) != set(want):
        return [f"{key} was made by another kind of object"]
    return [
        f"{name} in {key} is not as it should be" for name in want if not _same_kind(found[name], want[name])
    ]


def _same_kind(found: Any, want: Any) -> bool:
    """Whether a number stands where one belongs, finite, and as many in a list; anything else may differ."""
    if type(want) is bool:
        return type(found) is bool
    if isinstance(want, int | float):
        if type(found) not in (int, float) or math.isnan(found):
            return False
        return math.isfinite(found) or math.isinf(want)  # the best so far of a plateau schedule begins at inf
    if isinstance(want, list | tuple):
        same = isinstance(found, list | tuple) and len(found) == len(want)
        return same and all(map(_same_kind, found, want))
    return True
