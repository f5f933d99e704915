"""The gradients of a window: their norm, clipped or not, and their mean.

Used by trainer.py. Paper: Pascanu, Mikolov and Bengio 2013, "On the difficulty of training recurrent neural
networks", https://arxiv.org/abs/1211.5063 (clipping by the global norm).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, get_total_norm


def clip_gradients(params: list[Tensor], max_norm: float | None) -> Tensor:
    """Scale the gradients to a global norm of at most max_norm (None: leave them); returns the norm before that."""
    if max_norm is not None:
        return clip_grad_norm_(params, max_norm)
    return get_total_norm([param.grad for param in params if param.grad is not None])


def mean_gradient(params: list[Tensor]) -> Tensor:
    """Mean of all gradient elements together, each with its sign; on the device, nothing is read back."""
    grads = [param.grad for param in params if param.grad is not None]
    return torch.stack([grad.sum() for grad in grads]).sum() / sum(grad.numel() for grad in grads)
