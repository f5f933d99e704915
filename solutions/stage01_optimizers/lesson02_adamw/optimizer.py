"""AdamW, built by hand: the two moments, their corrections, the decay, and the bookkeeping around them.

Run it:    python -m solutions.stage01_optimizers.lesson02_adamw.run
Papers:    Kingma & Ba 2014, "Adam", https://arxiv.org/abs/1412.6980
           Loshchilov & Hutter 2017, "Decoupled Weight Decay Regularization", https://arxiv.org/abs/1711.05101

Symbols:   θ param · g grad · m exp_avg · v exp_avg_sq · t step · lr (the papers' α or η) · β1, β2 betas
           ε eps · λ weight_decay · c1 = 1 − β1^t, c2 = 1 − β2^t corrections

The result is bitwise that of `torch.optim.AdamW`. In floating point that is a matter of order: where a
docstring gives the mathematics, it gives it in the order in which the roundings happen.
"""

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def update_moments(grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, *, beta1: float, beta2: float) -> None:
    """Move both running averages towards the new gradient, in place.

        m ← m + (1 − β1)·(g − m)            one linear interpolation from m towards g
        v ← β2·v, and then v ← v + (1 − β2)·g·g

    Args:
        grad: g, any shape, dense. It is read, never changed.
        exp_avg, exp_avg_sq: m and v, of grad's shape and dtype; changed in place.
        beta1, beta2: share of m and of v that is kept, each in [0, 1).

    Differs from the paper: β1·m + (1 − β1)·g is the same number, but rounds differently.
    """
    # TODO 2.1 update both moments in place
    # m follows the gradient, v follows its square. Both tensors stay the same objects.
    # BEGIN SOLUTION
    exp_avg.lerp_(grad, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    # END SOLUTION


def bias_corrections(step: float, *, beta1: float, beta2: float) -> tuple[float, float]:
    """How much of its full weight each average has collected after `step` updates: c1 and c2.

    Args:
        step: t, the number of updates of this parameter, this one included; a Python number >= 1.
        beta1, beta2: each in [0, 1).

    Returns:
        (c1, c2), two Python floats in (0, 1]. Python's floats have 64 bits; in 32 bits 1 − 0.999 would
        already be wrong in its fifth digit.
    """
    # TODO 2.2 compute the two bias corrections
    # BEGIN SOLUTION
    return 1 - beta1**step, 1 - beta2**step
    # END SOLUTION


def apply_update(
    param: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, *, lr: float, eps: float, corrections: tuple
) -> None:
    """Move the parameter by the corrected ratio of its moments, in place.

        step_size = lr / c1
        denom     = √v / √c2 + ε            ε is added last, outside both roots
        θ         ← θ − step_size·m / denom

    This is θ − lr·m̂/(√v̂ + ε) with m̂ = m/c1, v̂ = v/c2; the corrections cost a number each, not a tensor.

    Args:
        param: θ, any shape; changed in place.
        exp_avg, exp_avg_sq: m and v, of param's shape. Read, never changed: the averages go on from here.
        lr, eps: as in `AdamWFromScratch`.
        corrections: (c1, c2), two floats in (0, 1].
    """
    correction1, correction2 = corrections
    # TODO 2.3 move the weights by the corrected ratio, eps outside the root
    # BEGIN SOLUTION
    step_size = lr / correction1
    denom = (exp_avg_sq.sqrt() / correction2**0.5).add_(eps)
    param.addcdiv_(exp_avg, denom, value=-step_size)
    # END SOLUTION


def single_tensor_adamw(params: list[Tensor], grads: list[Tensor], states: list[dict], group: dict) -> None:
    """One AdamW update of every parameter in the list, one parameter after the other.

        θ ← θ·(1 − lr·λ)                    the decay; the factor is one Python float
        m, v ← moments of g                 g as backward left it: no trace of λ
        θ ← θ − lr·m̂/(√v̂ + ε)

    Args:
        params: parameters; changed in place.
        grads: their gradients; never changed.
        states: their states, {"step", "exp_avg", "exp_avg_sq"}. "step" already counts this update.
        group: hyperparameters "lr", "betas", "eps", "weight_decay"; other keys are passed over.

    Differs from the paper: its schedule multiplier and its λ are one product here, lr·λ, as in torch.
    """
    lr, eps, weight_decay = group["lr"], group["eps"], group["weight_decay"]
    beta1, beta2 = group["betas"]
    for param, grad, state in zip(params, grads, states, strict=True):
        step, exp_avg, exp_avg_sq = state["step"].item(), state["exp_avg"], state["exp_avg_sq"]
        # TODO 2.4 decay the weights, decoupled from the gradient, and put one update together
        # BEGIN SOLUTION
        param.mul_(1 - lr * weight_decay)
        update_moments(grad, exp_avg, exp_avg_sq, beta1=beta1, beta2=beta2)
        corrections = bias_corrections(step, beta1=beta1, beta2=beta2)
        apply_update(param, exp_avg, exp_avg_sq, lr=lr, eps=eps, corrections=corrections)
        # END SOLUTION


def new_state(param: Tensor) -> dict[str, Tensor]:
    """The state of a parameter that has never been updated, under torch's names.

    Returns:
        "step": 0 as a float32 tensor of shape () on the CPU, whatever the parameter's dtype and device:
        bfloat16 cannot count past 256. "exp_avg", "exp_avg_sq": zeros with the parameter's shape, dtype,
        device and memory layout.
    """
    # TODO 2.5 keep a state for every parameter that has had a gradient, and step all groups
    # BEGIN SOLUTION
    return {
        "step": torch.zeros((), dtype=torch.float32),
        "exp_avg": torch.zeros_like(param, memory_format=torch.preserve_format),
        "exp_avg_sq": torch.zeros_like(param, memory_format=torch.preserve_format),
    }
    # END SOLUTION


def multi_tensor_adamw(params: list[Tensor], grads: list[Tensor], states: list[dict], group: dict) -> None:
    """The same update as `single_tensor_adamw`, every operation applied to all tensors in one call.

    For 200 parameters the loop launches 1600 small operations, this one 8: on a GPU the launches are most
    of the time. Each tensor sees the loop's operations in the loop's order. Arguments as there. (torch
    sorts the lists by device and dtype first, for the sake of its fast kernels.)

    References: `torch._foreach_mul_`, `_lerp_`, `_addcmul_`, `_sqrt`, `_div_`, `_add_`, `_addcdiv_`: tensor
    methods of these names over lists. A last scalar may be one for all tensors, or a list with one for each.
    """
    lr, eps, weight_decay = group["lr"], group["eps"], group["weight_decay"]
    beta1, beta2 = group["betas"]
    if not params:  # a foreach call refuses an empty list
        return
    steps = [state["step"].item() for state in states]
    exp_avgs = [state["exp_avg"] for state in states]
    exp_avg_sqs = [state["exp_avg_sq"] for state in states]
    # TODO 2.6 do the same update with one foreach call per operation
    # BEGIN SOLUTION
    torch._foreach_mul_(params, 1 - lr * weight_decay)
    torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
    torch._foreach_mul_(exp_avg_sqs, beta2)
    torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - beta2)
    corrections = [bias_corrections(step, beta1=beta1, beta2=beta2) for step in steps]
    denoms = torch._foreach_sqrt(exp_avg_sqs)
    torch._foreach_div_(denoms, [correction2**0.5 for _, correction2 in corrections])
    torch._foreach_add_(denoms, eps)
    step_sizes = [lr / correction1 for correction1, _ in corrections]
    torch._foreach_addcdiv_(params, exp_avgs, denoms, [-step_size for step_size in step_sizes])
    # END SOLUTION


class AdamWFromScratch:
    """AdamW: Adam with a weight decay that bypasses the gradient. Bitwise `torch.optim.AdamW`.

    `param_groups` is a list of dicts with "params" and the hyperparameters. `state` is a dict
    {parameter: {"step", "exp_avg", "exp_avg_sq"}}; its key is the parameter object itself.

    Args:
        params: tensors, or dicts {"params": tensors, "lr": …} whose entries override the defaults.
        lr: learning rate, >= 0.
        betas: (β1, β2), each in [0, 1).
        eps: ε, >= 0, in units of the gradient.
        weight_decay: λ, >= 0; per update a weight loses the share lr·λ.
        foreach: update with `multi_tensor_adamw` instead of `single_tensor_adamw`.

    Raises:
        ValueError: a hyperparameter out of range, no parameters, one parameter twice.

    Differs from torch: no amsgrad, maximize, capturable or fused; dense gradients; `state_dict` copies.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        foreach: bool = False,
    ) -> None:
        self.defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        self.foreach = foreach
        self.param_groups: list[dict] = []
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        entries = list(params)
        if not entries:
            raise ValueError("params must hold at least one parameter, got none")
        for group in entries if isinstance(entries[0], dict) else [{"params": entries}]:
            self.add_param_group(group)

    def add_param_group(self, param_group: dict) -> None:
        """Add {"params": tensors, …}; what is missing comes from the defaults. This was lesson 01."""
        group = {**self.defaults, **param_group}
        params = group["params"]
        group["params"] = [params] if isinstance(params, Tensor) else list(params)
        for name in ("lr", "eps", "weight_decay"):
            if not group[name] >= 0:
                raise ValueError(f"{name} must be >= 0, got {group[name]}")
        if not all(0 <= beta < 1 for beta in group["betas"]):
            raise ValueError(f"betas must be in [0, 1), got {group['betas']}")
        ids = [id(param) for other in [*self.param_groups, group] for param in other["params"]]
        if len(ids) != len(set(ids)):
            raise ValueError("a parameter may appear once in the param groups, got one twice")
        self.param_groups.append(group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients, or fill them with zeros. None means "not updated", zeros "decayed"."""
        for param in (param for group in self.param_groups for param in group["params"]):
            if param.grad is not None:
                param.grad = None if set_to_none else torch.zeros_like(param.grad)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update every parameter that has a gradient; return the closure's loss, if there is a closure.

        A parameter whose grad is None is passed over: no decay, no state, no count. Its state is made at
        its first gradient, and its own step counts its own updates from there. Every group uses its own
        hyperparameters, as they are now.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        update = multi_tensor_adamw if self.foreach else single_tensor_adamw
        # TODO 2.5 keep a state for every parameter that has had a gradient, and step all groups
        # BEGIN SOLUTION
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            for param in params:
                if param not in self.state:
                    self.state[param] = new_state(param)
                self.state[param]["step"] += 1
            grads = [param.grad for param in params]
            states = [self.state[param] for param in params]
            update(params, grads, states, group)
        # END SOLUTION
        return loss

    def state_dict(self) -> dict:
        """A snapshot in torch's layout: {"state": {id: {"step": …}}, "param_groups": [{"params": [id]}]}.

        Ids are ints, since a file cannot hold a tensor as a key. Every tensor is a copy: later steps leave
        the snapshot alone. (torch returns the live tensors.)
        """
        ids = {p: i for i, p in enumerate(p for group in self.param_groups for p in group["params"])}
        groups = [{**group, "params": [ids[p] for p in group["params"]]} for group in self.param_groups]
        # TODO 2.7 copy the state out, and copy it back to the right parameters
        # BEGIN SOLUTION
        state = {ids[p]: {name: value.clone() for name, value in s.items()} for p, s in self.state.items()}
        return {"state": state, "param_groups": copy.deepcopy(groups)}
        # END SOLUTION

    def load_state_dict(self, state_dict: dict) -> None:
        """Take over a snapshot of this class or of `torch.optim.AdamW`, and copy what it holds.

        An id is a label, not a position: its parameter stands where the id stands in the saved groups.
        The moments take the parameter's dtype and device, as in torch; "step" is as `new_state` says.

        Raises:
            ValueError: groups, ids or shapes do not fit, or amsgrad or maximize is on. Then nothing changes.
        """
        saved_groups = copy.deepcopy(state_dict["param_groups"])
        sizes, saved_sizes = ([len(g["params"]) for g in gs] for gs in (self.param_groups, saved_groups))
        if sizes != saved_sizes:
            raise ValueError(f"param groups must have {sizes} parameters, got {saved_sizes}")
        if any(group.get("amsgrad") or group.get("maximize") for group in saved_groups):
            raise ValueError("amsgrad and maximize must be off, got a state that uses one of them")
        params = [param for group in self.param_groups for param in group["params"]]
        saved_ids = [saved_id for group in saved_groups for saved_id in group["params"]]
        if unknown := set(state_dict["state"]) - set(saved_ids):
            raise ValueError(f"state ids must appear in the param groups, got {sorted(unknown)}")
        state: dict[Tensor, dict[str, Tensor]] = {}
        # TODO 2.7 copy the state out, and copy it back to the right parameters
        # Fill `state`; what stands below checks it before anything changes.
        # BEGIN SOLUTION
        param_of = dict(zip(saved_ids, params, strict=True))
        for saved_id, saved in state_dict["state"].items():
            param = param_of[saved_id]
            state[param] = {"step": torch.tensor(float(saved["step"]), dtype=torch.float32)}
            for name in ("exp_avg", "exp_avg_sq"):
                state[param][name] = saved[name].to(device=param.device, dtype=param.dtype, copy=True)
        # END SOLUTION
        for param, entry in state.items():
            if entry["exp_avg"].shape != param.shape or entry["exp_avg_sq"].shape != param.shape:
                raise ValueError(f"moments must have shape {param.shape}, got {entry['exp_avg'].shape}")
        self.state = state
        for group, saved_group in zip(self.param_groups, saved_groups, strict=True):
            group.update({**saved_group, "params": group["params"]})
