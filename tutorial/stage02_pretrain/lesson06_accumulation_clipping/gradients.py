"""Lesson 06: the gradient of a window of micro-batches, and how to bound it.  Tasks 6.1 – 6.5.

Holds:    total_norm, clip_grad_norm_, clip_grad_value_, windows, accumulate
Run it:   python -m solutions.stage02_pretrain.lesson06_accumulation_clipping.run
Test it:  pytest testcases/basic_test.py -k "norm or clip or windows or accumulate"

Words:    a micro-batch is what the loader gives; a window is several of them; a window makes one update
Symbols:  K accumulation_steps · S loss_sum of a micro-batch · N number of its labels that are not −100
          g all gradients as one long vector · p norm_type · c max_norm

Paper: Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks", ICML 2013,
https://arxiv.org/abs/1211.5063 (clipping by the norm).
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from training.losses import count_tokens, token_loss

Batch = dict[str, Tensor]
EPS = 1e-6  # added to the norm before dividing by it, as torch does


def total_norm(tensors: Iterable[Tensor], norm_type: float = 2.0) -> Tensor:
    """The norm of all tensors together, as if they were one long vector.

    Mathematics: ‖g‖_p = (Σ |g_i|^p)^(1/p) over every element of every tensor; for p = ∞, max |g_i|.
    A NaN anywhere gives NaN.

    Args:
        tensors: any shapes, on one device. Matrices count as vectors, too: no matrix norm.
        norm_type: p, > 0; `math.inf` is allowed.

    Returns:
        A tensor without dimensions, ≥ 0. It is 0.0 where there is no tensor.
    """
    tensors = list(tensors)
    if not tensors:
        return torch.tensor(0.0)
    # TODO 6.1 measure the norm of all gradients together
    raise NotImplementedError("task 6.1: measure the norm of all gradients together")


@torch.no_grad()
def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> Tensor:
    """Scale all gradients by one factor, so that their total norm is at most `max_norm`.

    Mathematics: g ← g · min(1, c / (‖g‖ + 10⁻⁶)), in place. The direction stays; only the length changes.
    Where the factor is 1, the gradients keep every bit.

    A norm of NaN makes every gradient NaN. A norm of inf makes finite gradients 0 and infinite ones NaN.
    Without `error_if_nonfinite`, nothing is read back from the device.

    Args:
        parameters: a tensor, or an iterable of them, a generator too. Those whose `.grad` is None do not
            count.
        max_norm: c, > 0, in the unit of the norm; `math.inf` measures and does not clip.
        norm_type: p, as in `total_norm`.
        error_if_nonfinite: refuse a norm of inf or NaN, with the gradients as they were.

    Returns:
        The total norm before clipping, a tensor without dimensions.

    Raises:
        ValueError: for a `max_norm` that is not > 0.
        RuntimeError: with the words "not finite", if `error_if_nonfinite` and the norm is not.

    Differs from torch: `torch.nn.utils.clip_grad_norm_` gives the same numbers, takes max_norm ≤ 0, too, and
    also has a `foreach` argument.
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm must be > 0, got {max_norm}")
    if isinstance(parameters, Tensor):
        parameters = [parameters]
    # TODO 6.2 clip by the global norm, and return the norm that was there before
    raise NotImplementedError("task 6.2: clip by the global norm, and return the norm that was there before")


@torch.no_grad()
def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float) -> None:
    """Cut each element of each gradient to [−clip_value, clip_value].

    Mathematics: g_i ← min(max(g_i, −v), v), element by element, in place. The direction changes: (3, 0.1)
    cut at 1 becomes (1, 0.1). An infinite element becomes ±v; NaN stays NaN.

    Args:
        parameters: a tensor, or an iterable of them. Those whose `.grad` is None are passed over.
        clip_value: v, > 0.

    Raises:
        ValueError: for a `clip_value` that is not > 0.

    Differs from torch: `torch.nn.utils.clip_grad_value_` gives the same numbers, and does not check
        clip_value.
    """
    if not clip_value > 0:
        raise ValueError(f"clip_value must be > 0, got {clip_value}")
    if isinstance(parameters, Tensor):
        parameters = [parameters]
    # TODO 6.3 clip by value
    raise NotImplementedError("task 6.3: clip by value")


def windows(loader: Iterable[Batch], accumulation_steps: int) -> Iterator[list[Batch]]:
    """Cut one pass over the loader into windows of `accumulation_steps` micro-batches.

    10 micro-batches with K = 4 give windows of 4, 4 and 2. No micro-batch is lost, none comes twice, and no
    window is empty. A window is read from the loader when it is asked for, not before: the loader may be
    endless.

    Args:
        loader: an iterable of micro-batches; a length is not needed.
        accumulation_steps: K, ≥ 1.

    Yields:
        Lists of K micro-batches, each list a new one; the last may be shorter.

    Raises:
        ValueError: for `accumulation_steps` < 1, when the first window is asked for.
    """
    if accumulation_steps < 1:
        raise ValueError(f"accumulation_steps must be >= 1, got {accumulation_steps}")
    # TODO 6.4 cut the loader into windows, and lose nothing
    raise NotImplementedError("task 6.4: cut the loader into windows, and lose nothing")


def accumulate(
    model: nn.Module, micro_batches: list[Batch], device: torch.device | str = "cpu"
) -> tuple[Tensor, int]:
    """Leave in `.grad` the gradient that one batch of all these micro-batches would give.

    Mathematics: g = ∇ (Σ S / Σ N), both sums over the whole window. So each token weighs the same, however
    the tokens are spread over micro-batches. A micro-batch without targets adds nothing. Where the window
    has none at all (Σ N = 0), no `.grad` is touched.

    Memory: the graph of one micro-batch at a time. That is the whole point.

    Args:
        model: `model(input_ids) -> logits`, (B, T) int64 → (B, T, V), on `device`. Its `.grad` are None:
            the caller has cleared them.
        micro_batches: a window: {"input_ids": (B, T), "labels": (B, T)} each, B and T may differ, on any
            device. A label of −100 is no target.
        device: where to compute.

    Returns:
        (Σ S, Σ N): the summed loss of the window in nats, a float32 tensor without dimensions and without a
        graph, on the device; and the token count.
    """
    # TODO 6.5 accumulate the gradient of the whole window's mean
    # `count_tokens(labels)` and `token_loss(logits, labels)` are those of lesson 05. Think of what must be
    # known before the first backward pass
    raise NotImplementedError("task 6.5: accumulate the gradient of the whole window's mean")
