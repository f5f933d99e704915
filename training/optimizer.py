"""Optimizers by name, and the parameter groups of a model.

Run: ``optimizer = configure_optimizer(model, "adamw", lr=3e-4, weight_decay=0.1)``, after the model is on its
device, tied and frozen as it will be trained.

Paper: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", https://arxiv.org/abs/1711.05101.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
}
FUSED_DEVICES = {"cpu", "cuda"}  # where torch's fused kernels exist for every dtype that we train in


def create_optimizer(
    optimizer_type: str, params: Iterable[Any], lr: float, weight_decay: float = 0.0, **options: Any
) -> torch.optim.Optimizer:
    """The torch optimizer that a name stands for; "adam" and "adamw" fused where the device has it.

    Args:
        optimizer_type: "adamw", "adam" (L2 in the gradient) or "sgd", in upper or lower case.
        params: tensors, (name, tensor) pairs, or group dicts with the key "params".
        lr: learning rate, finite, >= 0. A group's own value wins, here and below.
        weight_decay: >= 0.
        options: any other argument of that optimizer: betas, eps, momentum, fused, …

    Raises:
        ValueError: a name or option that is not known (the message has the nearest), or a value out of range.
    """
    name = optimizer_type.lower()
    if name not in OPTIMIZERS:
        raise ValueError(unknown("optimizer", optimizer_type, OPTIMIZERS))
    if not math.isfinite(lr) or lr < 0:
        raise ValueError(f"lr must be finite and >= 0, got {lr}")
    if not math.isfinite(weight_decay) or weight_decay < 0:
        raise ValueError(f"weight_decay must be finite and >= 0, got {weight_decay}")
    optimizer_class = OPTIMIZERS[name]
    known = [key for key in inspect.signature(optimizer_class).parameters if key != "params"]
    for option in options:
        if option not in known:
            raise ValueError(unknown(f"option of {name}", option, known))
    params = list(params)
    if name != "sgd" and not options.keys() & {"fused", "foreach", "capturable", "differentiable"}:
        # Fused reads and writes every moment once. It rounds differently from the loop (about 1e-8), and so
        # needs to be the same for a whole run: it depends on the device alone.
        options["fused"] = all(tensor.device.type in FUSED_DEVICES for tensor in _tensors(params))
    return optimizer_class(params, lr=lr, weight_decay=weight_decay, **options)


def configure_optimizer(
    model: nn.Module,
    optimizer_type: str = "adamw",
    lr: float = 1e-3,
    weight_decay: float = 0.01,
    **options: Any,
) -> torch.optim.Optimizer:
    """The optimizer of a model: matrices and embeddings decay, biases and norm gains do not.

    The rule goes by dimension (2 or more decay), so it knows norms that no list of types has heard of. Tied
    weights are in once, frozen ones not at all. Groups and parameters are in the model's order, since a
    state_dict refers to them by position; "param_names" in each group says which is which.

    Args:
        model: on its device, tied and frozen as it will be trained.
        optimizer_type, lr, options: as in create_optimizer.
        weight_decay: of the group that decays; the other's is 0.

    Raises:
        ValueError: as in create_optimizer, or if the model has no trainable parameter.
    """
    groups: dict[float, list[tuple[str, nn.Parameter]]] = {}
    for name, param in model.named_parameters():  # names a tied tensor once
        if param.requires_grad:
            groups.setdefault(weight_decay if param.ndim >= 2 else 0.0, []).append((name, param))
    if not groups:
        raise ValueError(f"{type(model).__name__} has no trainable parameter")
    params = [{"params": named, "weight_decay": decay} for decay, named in groups.items()]
    return create_optimizer(optimizer_type, params, lr, weight_decay, **options)


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """The message for a name that is not known: the nearest known one, or all of them."""
    known = sorted(known)
    nearest = difflib.get_close_matches(name.lower(), known, n=1)
    return f"unknown {what} {name!r}: " + (
        f"did you mean {nearest[0]!r}?" if nearest else f"known are {known}"
    )


def _tensors(params: list[Any]) -> Iterable[torch.Tensor]:
    for item in params:
        if isinstance(item, dict):
            inner = item["params"]
            yield from _tensors([inner] if isinstance(inner, torch.Tensor) else list(inner))
        else:
            yield item[1] if isinstance(item, tuple) else item
