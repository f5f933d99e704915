"""SGD from scratch: momentum, dampening, weight decay and Nesterov, with torch's groups, state and snapshots.

See it work, from the root of the repository:  python -m solutions.stage01_optimizers.lesson01_sgd.run
Check your file, from this lesson's folder:    pytest testcases/basic_test.py

Papers: H. Robbins, S. Monro, "A Stochastic Approximation Method", 1951.
        I. Sutskever, J. Martens, G. Dahl, G. Hinton, "On the importance of initialization and momentum in
        deep learning", ICML 2013 (Nesterov momentum in the form used here).

Symbol → name:  θ param    g param.grad       d direction    b momentum_buffer
                η lr       λ weight_decay     μ momentum     τ dampening
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor


def descend_(param: Tensor, direction: Tensor, lr: float) -> None:
    """Move `param` one step downhill, in place.

    θ ← θ − η·d, as one scaled addition (it rounds once; a product followed by a subtraction rounds twice).

    Args:
        param: θ, any shape. The tensor itself changes: the model holds this very object.
        direction: d, same shape. Left as it is.
        lr: η ≥ 0, the learning rate.
    """
    # TODO 1.1 take one step downhill, in place
    # BEGIN SOLUTION
    param.add_(direction, alpha=-lr)
    # END SOLUTION


class SGDFromScratch:
    """Stochastic gradient descent with momentum, as `torch.optim.SGD` computes it.

    For each parameter θ that has a gradient g:

        d ← g + λ·θ                     weight decay (L2, coupled: it enters the momentum below)
        b ← d                           at this parameter's first step: a copy, not scaled by 1 − τ
        b ← μ·b + (1 − τ)·d             at every later step
        d ← d + μ·b   or   d ← b        with, or without, Nesterov
        θ ← θ − η·d

    The decay line applies where λ ≠ 0, the momentum lines where μ ≠ 0. Every x + c·y is one scaled addition;
    the buffer's line first multiplies b by μ, then adds (1 − τ)·d. So every bit equals `torch.optim.SGD`.

    Args:
        params: tensors, or groups: dicts {"params": tensors, "lr": …} with hyperparameters of their own.
        lr: η ≥ 0, the default of every group that names none.
        momentum: μ ≥ 0.
        dampening: τ, usually in [0, 1].
        weight_decay: λ ≥ 0.
        nesterov: needs momentum > 0 and dampening = 0.

    Attributes:
        param_groups: dicts of "params" and the five hyperparameters, read at every step.
        state: parameter → {"momentum_buffer": tensor like it}, from its first step with momentum on.
        defaults: the five hyperparameters given here.

    Raises:
        ValueError: a hyperparameter out of range, no parameters, or a parameter that appears twice.
        TypeError: `params` is a tensor or a set, or holds something that is no tensor.

    Differs from torch: `lr` has no default; `state_dict` copies; a parameter twice in one group is an error;
    `param.grad` is never changed (torch's foreach path changes it under Nesterov).
    Differs from Sutskever et al.: η multiplies the finished direction and is no part of the buffer.

    References: https://docs.pytorch.org/docs/stable/generated/torch.optim.SGD.html
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        self.defaults: dict[str, Any] = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        }
        self.state: dict[Tensor, dict[str, Any]] = {}
        self.param_groups: list[dict[str, Any]] = []
        if isinstance(params, Tensor):
            raise TypeError("params must be an iterable of tensors or dicts, got one tensor: write [tensor]")
        groups = list(params)
        if not groups:
            raise ValueError("params is empty: there is nothing to optimize")
        if not isinstance(groups[0], dict):
            groups = [{"params": groups}]
        for group in groups:
            self.add_param_group(group)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Append a group; hyperparameters that it does not set are this optimizer's defaults.

        Args:
            param_group: "params" (tensor or iterable of tensors) and any hyperparameters. Stays as it is.

        Raises:
            ValueError, TypeError: as above; "twice" is in any group, or in this one. Nothing is added then.
        """
        params = _as_list(param_group["params"])
        # TODO 1.2 fill in the defaults, refuse a parameter that is here already
        # Make a new dict `group`. "Here already" means the same object, not the same numbers.
        # BEGIN SOLUTION
        group = {**self.defaults, **param_group, "params": params}
        seen = {id(param) for param in self._all_params()}
        for param in params:
            if id(param) in seen:
                raise ValueError(f"a parameter of shape {tuple(param.shape)} appears twice in this optimizer")
            seen.add(id(param))
        # END SOLUTION
        _check_hyperparameters(group)
        self.param_groups.append(group)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        A parameter whose gradient is None is passed over: no step, no decay, no state. The update is not
        recorded by autograd; the closure runs with recording on, even where the caller has switched it off.

        Args:
            closure: optional; zeroes the gradients, computes the loss, calls backward and returns the loss.
                Called once, before the update.

        Returns: what the closure returned; None without one.
        """
        # TODO 1.3 walk over every group and update the parameters that have a gradient
        # `self._direction(param, group)` gives d, `descend_` goes along it.
        # BEGIN SOLUTION
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                for param in group["params"]:
                    if param.grad is None:
                        continue
                    direction = self._direction(param, group)
                    descend_(param, direction, group["lr"])
        return loss
        # END SOLUTION

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, so that the next backward pass starts from nothing.

        Args:
            set_to_none: True: each becomes None. False: zeros, cut off from any graph; None stays None.
        """
        # TODO 1.4 forget the gradients of all groups
        # BEGIN SOLUTION
        for group in self.param_groups:
            for param in group["params"]:
                if set_to_none:
                    param.grad = None
                elif param.grad is not None:
                    param.grad = param.grad.detach().zero_()
        # END SOLUTION

    def _direction(self, param: Tensor, group: dict[str, Any]) -> Tensor:
        """The direction d in which `param` goes down, from its gradient; see the formulas of the class."""
        direction = param.grad
        if group["weight_decay"] != 0:
            # TODO 1.5 add the weight decay to the direction
            # param.grad belongs to the caller.
            # BEGIN SOLUTION
            direction = direction.add(param, alpha=group["weight_decay"])
            # END SOLUTION
        if group["momentum"] != 0:
            direction = self._with_momentum(param, direction, group)
        return direction

    def _with_momentum(self, param: Tensor, direction: Tensor, group: dict[str, Any]) -> Tensor:
        """Update the parameter's momentum buffer b with d; return b, or with Nesterov d + μ·b."""
        # TODO 1.6 keep a momentum buffer for each parameter, and look ahead if nesterov
        # The buffer lives in self.state, under the parameter, by the name "momentum_buffer".
        # BEGIN SOLUTION
        state = self.state.setdefault(param, {})
        buffer = state.get("momentum_buffer")
        if buffer is None:
            # A copy: the direction may be param.grad itself, which the next backward pass writes to.
            buffer = state["momentum_buffer"] = direction.clone()
        else:
            buffer.mul_(group["momentum"]).add_(direction, alpha=1 - group["dampening"])
        if group["nesterov"]:
            return direction.add(buffer, alpha=group["momentum"])
        return buffer
        # END SOLUTION

    def state_dict(self) -> dict[str, Any]:
        """A snapshot in torch's layout that does not change when training goes on.

        Parameters are numbered 0, 1, 2, … through all groups in order.

        Returns:
            {"state": {0: {"momentum_buffer": tensor}}, "param_groups": [{"lr": …, …, "params": [0, 1]}, …]},
            copies all of them (torch returns its live tensors), of types that safe `torch.load` reads.
        """
        ids = {param: number for number, param in enumerate(self._all_params())}
        # TODO 1.7 save and restore: numbers in place of parameters, copies of everything else
        # `_copied` (at the end of this file) copies one parameter's state.
        # BEGIN SOLUTION
        state = {ids[param]: _copied(entry, param.device) for param, entry in self.state.items()}
        groups = [{**group, "params": [ids[p] for p in group["params"]]} for group in self.param_groups]
        return {"state": state, "param_groups": groups}
        # END SOLUTION

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over hyperparameters and state from a snapshot (the parameters are the model's to restore).

        The n-th number of a saved group stands for the n-th parameter of that group here: keep their order.

        Args:
            state_dict: from `state_dict()` or `torch.optim.SGD`; it is copied. Tensors go to the parameter's
                device and keep their dtype (torch casts them). State that is not in it is forgotten.

        Raises:
            ValueError: it does not fit these groups. Nothing has changed then.
        """
        saved_groups = state_dict["param_groups"]
        # TODO 1.7 save and restore: numbers in place of parameters, copies of everything else
        # `_check_snapshot` (at the end of this file) raises if the snapshot does not fit.
        # BEGIN SOLUTION
        _check_snapshot(state_dict, self.param_groups, self.defaults)
        params = {}
        for group, saved in zip(self.param_groups, saved_groups, strict=True):
            params.update(zip(saved["params"], group["params"], strict=True))
            group.update({**saved, "params": group["params"]})
        self.state = {params[n]: _copied(entry, params[n].device) for n, entry in state_dict["state"].items()}
        # END SOLUTION

    def _all_params(self) -> Iterator[Tensor]:
        """Through all groups, in order."""
        return (param for group in self.param_groups for param in group["params"])


def _as_list(params: Any) -> list[Tensor]:
    """The "params" of a group as a list of tensors."""
    if isinstance(params, set):
        raise TypeError("params must have an order, and a set has none: use a list")
    tensors = [params] if isinstance(params, Tensor) else list(params)
    for param in tensors:
        if not isinstance(param, Tensor):
            raise TypeError(f"params must be tensors, got {type(param).__name__}")
        if not param.is_leaf:
            raise ValueError(f"params must be leaf tensors, got the result of {param.grad_fn}")
    return tensors


def _check_hyperparameters(group: dict[str, Any]) -> None:
    """Raise ValueError for a value that makes no sense."""
    for name in ("lr", "momentum", "weight_decay"):
        if not group[name] >= 0:  # written so that NaN is refused too
            raise ValueError(f"{name} must be >= 0, got {group[name]}")
    momentum, dampening = group["momentum"], group["dampening"]
    if group["nesterov"] and (momentum == 0 or dampening != 0):
        raise ValueError(f"nesterov needs momentum > 0 and dampening = 0, got {momentum} and {dampening}")


def _check_snapshot(state_dict: dict[str, Any], groups: list[dict], needed: Iterable[str]) -> None:
    """Raise ValueError if a snapshot does not fit these groups; change nothing."""
    saved_groups, shapes = state_dict["param_groups"], {}
    here, there = [len(g["params"]) for g in groups], [len(g["params"]) for g in saved_groups]
    if here != there:
        raise ValueError(f"state_dict has groups of {there} parameters, this optimizer has {here}")
    for group, saved in zip(groups, saved_groups, strict=True):
        missing = [name for name in needed if name not in saved]
        if missing or saved.get("maximize"):
            raise ValueError(
                f"state_dict has a group without {missing}, or with maximize: not supported here"
            )
        _check_hyperparameters(saved)
        shapes.update(zip(saved["params"], (p.shape for p in group["params"]), strict=True))
    for number, entry in state_dict["state"].items():
        if number not in shapes:
            raise ValueError(f"state_dict has state for parameter {number}, which is in no group")
        buffer = entry.get("momentum_buffer")
        if buffer is not None and buffer.shape != shapes[number]:
            got = f"{tuple(buffer.shape)} for a parameter of shape {tuple(shapes[number])}"
            raise ValueError(f"state_dict has a momentum_buffer of shape {got}")


def _copied(entry: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A parameter's state as independent copies on `device`, dtypes as they are."""
    return {
        name: value.to(device, copy=True) if isinstance(value, Tensor) else copy.deepcopy(value)
        for name, value in entry.items()
    }
