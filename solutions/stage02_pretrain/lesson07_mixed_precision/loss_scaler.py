"""Lesson 07: a loss scale that finds its own size.  Tasks 7.1, 7.2, 7.3, 7.4.

Holds:    LossScaler
Test it:  pytest testcases/basic_test.py -k "scale or step or update"

Symbols:  s loss scale, a power of two as long as both factors are · g gradient of the loss itself
          found_inf: some gradient of an optimizer is inf or NaN

Paper: Micikevicius et al., "Mixed Precision Training", ICLR 2018, https://arxiv.org/abs/1710.03740
(loss scaling, section 3.2).
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import Optimizer


@dataclass
class OptimizerProgress:
    """What happened to one optimizer since the last `update()`.

    Attributes:
        stage: "ready", then "unscaled", then "stepped".
        found_inf: for each device that holds gradients, a bool tensor without dimensions on that device.
    """

    stage: str = "ready"
    found_inf: dict[torch.device, Tensor] = field(default_factory=dict)


class LossScaler:
    """Multiplies the loss by s, so that small gradients survive in float16, and looks for the right s.

    One update, in this order:
        scale(loss).backward()   for each micro-batch of the window
        unscale_(optimizer)      once; from here on the gradients have their true size, and may be clipped
        step(optimizer)          leaves the step out where a gradient is inf or NaN
        update()                 once, after every optimizer has stepped

    Args:
        init_scale: s at the beginning, > 0 and finite. float16 ends at 65504, so a few of the first steps may
            overflow, and s comes down: that is how it finds its size.
        growth_factor: s is multiplied by it after `growth_interval` updates in a row without overflow, > 1.
        backoff_factor: s is multiplied by it after an overflow, in (0, 1).
        growth_interval: in updates, ≥ 1.
        enabled: with False every method lets its work pass unscaled: `scale` returns the loss itself, `step`
            steps always, `get_scale` is 1, and the state is empty.

    Raises:
        ValueError: for numbers out of range.

    Differs from `torch.amp.GradScaler`: `step` returns whether the weights were updated; wrong order raises a
    RuntimeError, where torch has an AssertionError in places; one loss a call, and no sparse gradients.
    Scale, skipped steps and state are torch's, bit for bit, except that the scale does not fall to 0.
    """

    def __init__(
        self,
        init_scale: float = 65536.0,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ) -> None:
        if not (init_scale > 0 and math.isfinite(init_scale)):
            raise ValueError(f"init_scale must be > 0 and finite, got {init_scale}")
        if not growth_factor > 1:
            raise ValueError(f"growth_factor must be > 1, got {growth_factor}")
        if not 0 < backoff_factor < 1:
            raise ValueError(f"backoff_factor must be in (0, 1), got {backoff_factor}")
        if growth_interval < 1:
            raise ValueError(f"growth_interval must be >= 1, got {growth_interval}")
        self.enabled = enabled
        self.growth_factor = growth_factor
        self.backoff_factor = backoff_factor
        self.growth_interval = growth_interval
        self._scale = to_float32(init_scale)
        self._growth_tracker = 0  # updates in a row without overflow, since the scale last changed
        self._progress: dict[Optimizer, OptimizerProgress] = defaultdict(OptimizerProgress)

    def get_scale(self) -> float:
        """s; 1.0 where the scaler is disabled."""
        return self._scale if self.enabled else 1.0

    def scale(self, loss: Tensor) -> Tensor:
        """s · loss, on the device of the loss, with its graph.

        Args:
            loss: without dimensions, any floating dtype.

        Returns:
            A tensor of at least float32: a float16 loss is made float32 first, since 65536 is inf in float16.
            The loss itself is left as it was (it is what you log).
        """
        if not self.enabled:
            return loss
        # TODO 7.1 scale the loss, and unscale the gradients once
        # BEGIN SOLUTION
        # a tensor and not a number: number · float16 stays float16
        return loss * torch.full((), self._scale, device=loss.device)
        # END SOLUTION

    @torch.no_grad()
    def unscale_(self, optimizer: Optimizer) -> None:
        """Divide this optimizer's gradients by s, in place; note for each device whether one is not finite.

        Mathematics: g ← g · (1 / s), over all groups and all parameters that have a gradient.

        Reads nothing back from the device.

        Args:
            optimizer: the owner of the gradients. `gradients(optimizer)` goes through them.

        Raises:
            RuntimeError: the second time since the last `update()`, or after `step`: the gradients would be
                divided by s twice. They are left alone then.
            ValueError: a float16 gradient. Divided by s it would vanish again; see `MasterWeights`.
        """
        if not self.enabled:
            return
        progress = self._progress[optimizer]
        # TODO 7.1 scale the loss, and unscale the gradients once
        # progress.stage says what was done already; progress.found_inf[device] is one flag for all gradients
        # BEGIN SOLUTION
        if progress.stage != "ready":
            raise RuntimeError("unscale_() was already called for this optimizer since the last update()")
        inverse_scale = 1.0 / self._scale
        for grad in gradients(optimizer):
            not_finite = ~torch.isfinite(grad).all()  # stays on the device
            seen = progress.found_inf.get(grad.device)
            progress.found_inf[grad.device] = not_finite if seen is None else seen | not_finite
            grad.mul_(inverse_scale)
        progress.stage = "unscaled"
        # END SOLUTION

    def step(self, optimizer: Optimizer, *args, **kwargs) -> bool:
        """`optimizer.step(*args, **kwargs)`, unless a gradient is inf or NaN. Unscales first if you did not.

        A step that is left out changes neither the weights nor the optimizer's state. The scale waits for
        `update()`.

        Args:
            optimizer: any optimizer with torch's interface.
            args, kwargs: handed on. A closure is refused: its gradients would not be unscaled.

        Returns:
            True where the optimizer stepped, False where the step was left out. The learning-rate scheduler
            and the count of updates must follow it.

        Raises:
            RuntimeError: the second time since the last `update()`, or with a closure.
        """
        if not self.enabled:
            optimizer.step(*args, **kwargs)
            return True
        if "closure" in kwargs or any(callable(arg) for arg in args):
            raise RuntimeError("step() takes no closure: the gradients it computes would not be unscaled")
        progress = self._progress[optimizer]
        # TODO 7.2 leave out a step whose gradients are not finite
        # BEGIN SOLUTION
        if progress.stage == "stepped":
            raise RuntimeError("step() was already called for this optimizer since the last update()")
        if progress.stage == "ready":
            self.unscale_(optimizer)
        updated = not any(bool(flag) for flag in progress.found_inf.values())  # waits for the device
        if updated:
            optimizer.step(*args, **kwargs)
        progress.stage = "stepped"
        return updated
        # END SOLUTION

    def update(self) -> None:
        """Move s, and be ready for the next window.

        Mathematics, with t the number of updates in a row without overflow:
            a gradient of any optimizer was inf or NaN:   s ← s · backoff_factor,   t ← 0
            otherwise:                                    t ← t + 1
            and where t has reached growth_interval:      s ← s · growth_factor,    t ← 0

        s is a float32 number: `to_float32` rounds as torch does. A change to inf or to 0 is left out, and
        t ← 0 all the same (torch goes on to 0, where no gradient can be unscaled).

        Raises:
            RuntimeError: where no gradients were looked at since the last `update()`.
        """
        if not self.enabled:
            return
        if not self._progress:
            raise RuntimeError(
                "update() without unscale_() or step() before it: there is nothing to judge by"
            )
        # TODO 7.3 let the scale move
        # BEGIN SOLUTION
        flags = [flag for progress in self._progress.values() for flag in progress.found_inf.values()]
        if any(bool(flag) for flag in flags):
            # after some 150 overflows in a row there is nothing left to halve
            self._scale = to_float32(self._scale * self.backoff_factor) or self._scale
            self._growth_tracker = 0
        else:
            self._growth_tracker += 1
            if self._growth_tracker == self.growth_interval:
                grown = to_float32(self._scale * self.growth_factor)
                if math.isfinite(grown):
                    self._scale = grown
                self._growth_tracker = 0
        self._progress.clear()
        # END SOLUTION

    def state_dict(self) -> dict[str, float | int]:
        """What a checkpoint needs; call it after `update()`. Plain numbers.

        Returns:
            The keys of torch's GradScaler: "scale", "growth_factor", "backoff_factor", "growth_interval",
            "_growth_tracker". An empty dict where the scaler is disabled.
        """
        # TODO 7.4 save and load the scale
        # BEGIN SOLUTION
        if not self.enabled:
            return {}
        return {
            "scale": self._scale,
            "growth_factor": self.growth_factor,
            "backoff_factor": self.backoff_factor,
            "growth_interval": self.growth_interval,
            "_growth_tracker": self._growth_tracker,
        }
        # END SOLUTION

    def load_state_dict(self, state_dict: dict[str, float | int]) -> None:
        """Go on where the other scaler was (also torch's). Does nothing where this one is disabled.

        Raises:
            RuntimeError: an empty state (it comes from a disabled scaler).
        """
        if not self.enabled:
            return
        if not state_dict:
            raise RuntimeError("the state of the scaler is empty: it was saved by a disabled one")
        # TODO 7.4 save and load the scale
        # BEGIN SOLUTION
        self._scale = to_float32(state_dict["scale"])
        self.growth_factor = state_dict["growth_factor"]
        self.backoff_factor = state_dict["backoff_factor"]
        self.growth_interval = state_dict["growth_interval"]
        self._growth_tracker = state_dict["_growth_tracker"]
        # END SOLUTION


def gradients(optimizer: Optimizer) -> Iterator[Tensor]:
    """Every gradient that the optimizer's parameters have.

    Raises:
        ValueError: before the first one, if any of them is float16.
    """
    params = [param for group in optimizer.param_groups for param in group["params"]]
    grads = [param.grad for param in params if param.grad is not None]
    if any(grad.dtype == torch.float16 for grad in grads):
        raise ValueError("float16 gradients cannot be unscaled: let the optimizer own float32 master weights")
    return iter(grads)


def to_float32(number: float) -> float:
    """The float32 number nearest to it, as a Python float; inf beyond float32's largest."""
    return torch.tensor(number, dtype=torch.float32).item()
