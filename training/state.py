"""All that the rest of a run depends on: out of a Trainer into a dict, and back.

Used by trainer.py: ``state = capture(trainer)``; ``notes = restore(trainer, state)``.

In the dict, besides what the parts themselves call their state: the *open window* (the micro-batches of the
update under way), the gradients that its first micro_step micro-batches have left, the place in the data, the
random generators, and the counters. So a run may be left after any micro-step and goes on to the same bits.

Several processes are left between two windows. What differs among them is in "ranks"; all else is the same in all,
and what rank 0 has is where one process has it: any number of processes goes on from a file of any other number.
"""

from __future__ import annotations

import random
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from training.checkpoint import CheckpointError, check_fits
from training.rng import GENERATORS, get_rng_state, set_rng_state
from training.run_log import Progress
from training.sampler import mix_seed, share

if TYPE_CHECKING:
    from training.trainer import Trainer

EXACT_KEYS = ("progress", "interval", "window", "gradients", "data_state_dict", "rng_state")


def capture(trainer: Trainer) -> dict[str, Any]:
    """The state between two micro-steps. Its tensors are the live ones: whoever keeps it copies them.

    Collective: several ranks call it, between two windows; ValueError within one.
    """
    progress, scheduler, scaler = trainer.progress, trainer.scheduler, trainer.scaler
    grads = {name: param.grad for name, param in trainer.model.named_parameters() if param.grad is not None}
    state: dict[str, Any] = {
        "epoch": progress.epoch,
        "global_step": progress.global_step,
        "train_loss": progress.train_loss,
        "val_loss": progress.val_loss,
        "best_metric": progress.best_metric,
        "config": trainer.config,
        "model_state_dict": trainer.model.state_dict(),
        "optimizer_state_dict": trainer.optimizer.state_dict(),
        "scheduler_state_dict": None if scheduler is None else scheduler.state_dict(),
        "scaler_state_dict": scaler.state_dict() if scaler.is_enabled() else None,
        "progress": asdict(progress),
        "interval": {"loss_sum": trainer.run_log.loss_sum, "grad_norm": trainer.run_log.grad_norm},
        "window": trainer.window,
        "gradients": grads,  # who has none is not here: None is not 0, which an optimizer would step with
        "data_state_dict": trainer.data.state_dict(),
        "rng_state": get_rng_state(),
    }
    if trainer.ranks.world_size > 1:
        if trainer.window:
            raise ValueError("several processes can only be saved between two windows")
        own = {"rng_state": state["rng_state"], "loss_sum": trainer.run_log.loss_sum.cpu()}
        state["ranks"] = trainer.ranks.gather(own)
        state["interval"]["loss_sum"] = sum(each["loss_sum"] for each in state["ranks"])
    return state


def restore(trainer: Trainer, state: dict[str, Any], reset_optimizer: bool = False) -> list[str]:
    """Put a trainer that was built in the same way into a state: all of it, or nothing.

    Order: weights → optimizer → scheduler → scaler → counters → data → gradients → random generators, which
    come last because a part may draw while it loads.

    Args:
        trainer: built like the one of `capture`.
        state: of `capture`, by way of a file; or of a plain torch script, with "model_state_dict",
            "optimizer_state_dict" and perhaps "epoch", "global_step", "scheduler_state_dict", ….
        reset_optimizer: take the weights, the progress and the place in the data; the optimizer, the schedule
            and the loss scale stay as they were built, and an open window is begun again.

    Returns:
        What could not be taken from the state, a clause each; nothing for an exact resume.

    Raises:
        CheckpointError: the state does not fit; the trainer is as it was.
    """
    parts = (trainer.optimizer, trainer.scheduler, trainer.scaler)
    optimizer, scheduler, scaler = (None, None, None) if reset_optimizer else parts
    scheduler = scheduler if state.get("scheduler_state_dict") else None
    scaler = scaler if state.get("scaler_state_dict") and trainer.scaler.is_enabled() else None
    check_fits(state, trainer.model, optimizer, scheduler, scaler)
    exact = all(key in state for key in EXACT_KEYS)
    if problem := _mismatch(trainer, state, exact):
        raise CheckpointError(f"the checkpoint does not fit: {problem}")
    trainer.model.load_state_dict(state["model_state_dict"])
    if optimizer is not None:
        load_optimizer(optimizer, state["optimizer_state_dict"])
    for part, key in ((scheduler, "scheduler_state_dict"), (scaler, "scaler_state_dict")):
        if part is not None:
            part.load_state_dict(state[key])
    if exact:
        _load_exact(trainer, state, reset_optimizer)
    else:
        trainer.progress.load({key: state.get(key, 0) for key in ("epoch", "global_step")})
    return [] if reset_optimizer else _what_is_missing(trainer, state)


def _load_exact(trainer: Trainer, state: dict[str, Any], reset_optimizer: bool) -> None:
    trainer.progress.load(state["progress"])
    own = _own_part(trainer, state)
    trainer.run_log.loss_sum = own["loss_sum"].to(trainer.device, copy=True)
    trainer.run_log.grad_norm = state["interval"]["grad_norm"].to(trainer.device, copy=True)
    trainer.window = state["window"]
    if trainer.ranks.world_size > 1:
        trainer.window = [share(micro_batch, trainer.ranks) for micro_batch in state["window"]]
    trainer.data.load_state_dict(state["data_state_dict"])
    for name, param in trainer.model.named_parameters():
        grad = (
            state["gradients"].get(name) if trainer.ranks.is_main else None
        )  # the ranks' sum is taken later
        param.grad = None if grad is None else grad.to(param.device, copy=True)
    if reset_optimizer:
        trainer.optimizer.zero_grad(set_to_none=True)
        trainer.progress.micro_step = 0  # the open window begins again
        trainer.progress.schedule_start = trainer.progress.global_step
    # from here on nothing may draw before the next micro-batch
    if own["rng_state"] is None:
        seed_additional_rank(trainer)
    else:
        set_rng_state(own["rng_state"])


def _own_part(trainer: Trainer, state: dict[str, Any]) -> dict[str, Any]:
    """{"rng_state", "loss_sum"} of this rank: its own, where as many ranks have saved as are here.

    Else rank 0 has what one process would have; to the others there is none, so their rng_state is None.
    """
    ranks, saved = trainer.ranks, state.get("ranks") or []
    if ranks.world_size == len(saved):
        return saved[ranks.rank]
    loss_sum = state["interval"]["loss_sum"]
    if ranks.is_main:
        return {"rng_state": state["rng_state"], "loss_sum": loss_sum}
    return {"rng_state": None, "loss_sum": torch.zeros_like(loss_sum)}


def seed_additional_rank(trainer: Trainer) -> None:
    """A rank above 0 draws numbers of its own; rank 0 draws those of a training in one process."""
    if trainer.ranks.rank > 0 and trainer.data.sampler is not None:
        seed = mix_seed(trainer.data.sampler.seed, trainer.ranks.rank, trainer.progress.global_step)
        random.seed(seed), np.random.seed(seed % 2**32), torch.manual_seed(seed)


def load_optimizer(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Load an optimizer's state without a change of a bit.

    torch casts every floating-point state but "step" to the dtype of its parameter: fp32 moments of a bf16
    parameter would lose 16 bits. What has changed its dtype is put back as it was saved.
    """
    optimizer.load_state_dict(saved)
    params = [param for group in optimizer.param_groups for param in group["params"]]
    indices = [index for group in saved["param_groups"] for index in group["params"]]
    for index, param in zip(indices, params, strict=True):
        for name, value in saved["state"].get(index, {}).items():
            if isinstance(value, Tensor) and optimizer.state[param][name].dtype != value.dtype:
                optimizer.state[param][name] = value.to(param.device, copy=True)


def _mismatch(trainer: Trainer, state: dict[str, Any], exact: bool) -> str | None:
    """The first reason why the parts that `check_fits` does not know are of another run, or None."""
    for name in ("epoch", "global_step"):
        value = state.get(name, 0)
        if type(value) is not int or value < 0:
            return f"{name} is {value!r}, and should be an integer >= 0"
    if not exact:
        return None
    names = {field.name for field in fields(Progress)}
    if not isinstance(state["progress"], dict) or set(state["progress"]) != names:
        return "its progress has other counters than this version's"
    for part in (state, *state.get("ranks", [])):
        if missing := [name for name in GENERATORS if name not in part["rng_state"]]:
            return f"its rng_state has no {', '.join(missing)}"
    if not 0 <= state["progress"]["micro_step"] <= len(state["window"]):
        return f"micro_step is {state['progress']['micro_step']} in a window of {len(state['window'])}"
    if trainer.ranks.world_size > 1 and 0 < state["progress"]["micro_step"] == len(state["window"]):
        return "the last gradients of its window were not applied: go on with one process first"
    shapes = {name: param.shape for name, param in trainer.model.named_parameters()}
    for name, grad in state["gradients"].items():
        if grad.shape != shapes.get(name):
            return f"the gradient of {name} is {tuple(grad.shape)}, its parameter {shapes.get(name)}"
    return trainer.data.mismatch(state["data_state_dict"])


def _what_is_missing(trainer: Trainer, state: dict[str, Any]) -> list[str]:
    notes = []
    if missing := [key for key in EXACT_KEYS if key not in state]:
        notes.append(
            f"no {', '.join(missing)}: the epoch begins anew, and not bit for bit as it would have been"
        )
    if trainer.scheduler is not None and not state.get("scheduler_state_dict"):
        notes.append("no scheduler_state_dict: the schedule begins anew")
    if trainer.scaler.is_enabled() and not state.get("scaler_state_dict"):
        notes.append("no scaler_state_dict: the loss scale begins anew")
    return notes
