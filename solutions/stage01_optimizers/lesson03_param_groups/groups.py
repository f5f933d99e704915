"""Helpers that read a model's names and an optimizer's groups. Given: there is nothing to write in this file.

Holds ``describe_groups`` (the table of an optimizer's groups) and the look-ups that ``optimizer.py`` uses.

Run: ``python -m solutions.stage01_optimizers.lesson03_param_groups.run`` prints the table.

Source: https://docs.pytorch.org/docs/stable/optim.html (groups, and the layout of a state_dict).
"""

import difflib
import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


def describe_groups(optimizer: torch.optim.Optimizer) -> str:
    """A table with a line for each group: number of tensors and elements, lr, weight decay, first names."""
    lines = [f"{'group':>5}  {'tensors':>7}  {'elements':>8}  {'lr':>8}  {'decay':>6}  names"]
    for number, group in enumerate(optimizer.param_groups):
        elements = sum(param.numel() for param in group["params"])
        names = group.get("param_names", [])
        more = f" … +{len(names) - 2}" if len(names) > 2 else ""
        lines.append(
            f"{number:>5}  {len(group['params']):>7}  {elements:>8}  {group['lr']:>8.2e}  "
            f"{group['weight_decay']:>6.3g}  {', '.join(names[:2])}{more}"
        )
    return "\n".join(lines)


def accepted_options(optimizer_class: type[torch.optim.Optimizer]) -> list[str]:
    """The keywords of an optimizer class: lr, weight_decay, betas, …"""
    return [name for name in inspect.signature(optimizer_class).parameters if name != "params"]


def unknown(what: str, word: str, known: Iterable[str]) -> str:
    """An error message that names the nearest known word, where there is one, and all of them."""
    near = difflib.get_close_matches(word.lower(), list(known), n=1)
    guess = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {what} {word!r}: {guess}Known: {', '.join(known)}"


def all_names(model: nn.Module) -> dict[str, list[str]]:
    """First name of a tensor → all its names; several where weights are tied."""
    names: dict[int, list[str]] = {}
    for name, param in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(param), []).append(name)
    return {found[0]: found for found in names.values()}


def named_in_optimizer(optimizer: torch.optim.Optimizer) -> list[tuple[str, torch.Tensor]]:
    """(name, tensor) for every tensor in the groups; without names, "group 0 tensor 3"."""
    pairs = []
    for number, group in enumerate(optimizer.param_groups):
        unnamed = [f"group {number} tensor {i}" for i in range(len(group["params"]))]
        pairs += zip(group.get("param_names", unnamed), group["params"], strict=True)
    return pairs


def index_by_name(state_dict: dict[str, Any]) -> dict[str, int]:
    """Name → index in ``state_dict["state"]``. ValueError where the groups have no names."""
    index: dict[str, int] = {}
    for number, group in enumerate(state_dict["param_groups"]):
        if "param_names" not in group:
            raise ValueError(f"group {number} has no param_names: its state can only be loaded by position")
        index.update(zip(group["param_names"], group["params"], strict=True))
    return index


def check_loadable(optimizer: torch.optim.Optimizer, saved: dict, saved_index: dict[str, int]) -> None:
    """ValueError unless both sides have the same names, and each saved tensor its parameter's shape."""
    params = dict(named_in_optimizer(optimizer))
    if params.keys() != saved_index.keys():
        absent = sorted(params.keys() - saved_index.keys())
        surplus = sorted(saved_index.keys() - params.keys())
        raise ValueError(f"the state_dict lacks {absent}, and has {surplus}, which the optimizer does not")
    for name, param in params.items():
        for key, value in saved.get(saved_index[name], {}).items():
            if isinstance(value, torch.Tensor) and value.ndim > 0 and value.shape != param.shape:
                raise ValueError(f"{key} of {name}: shape {tuple(value.shape)}, not {tuple(param.shape)}")
