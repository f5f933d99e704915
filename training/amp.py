"""Mixed precision: in which dtype the forward computes, and the loss scale that fp16 needs.

Used by trainer.py: ``with precision.autocast: logits = model(input_ids)``; ``precision.scaler.scale(loss)``.

fp16 ends at 6e-8: small gradients would vanish, so the loss is multiplied by a scale, and the gradients are
divided by it before anybody looks at them. bf16 reaches as far as float32 does and needs none.

Paper: Micikevicius et al. 2018, "Mixed Precision Training", https://arxiv.org/abs/1710.03740.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Precision:
    """What mixed precision adds to a training loop; with use_amp=False, nothing.

    Args:
        device: where the model computes.
        use_amp: whether forwards compute in amp_dtype; weights, gradients and losses stay float32.
        amp_dtype: "fp16" or "bf16".

    Attributes:
        autocast: a context for each forward, used again and again.
        scaler: torch.amp.GradScaler; disabled, it passes everything through.

    Raises:
        ValueError: another amp_dtype.
    """

    def __init__(self, device: torch.device, use_amp: bool, amp_dtype: str) -> None:
        if amp_dtype not in DTYPES:
            raise ValueError(f"amp_dtype must be one of {', '.join(DTYPES)}, got {amp_dtype!r}")
        self.autocast: AbstractContextManager = nullcontext()
        if use_amp:
            self.autocast = torch.autocast(device.type, DTYPES[amp_dtype])
        # with the device: GradScaler() alone means "cuda", and on a CPU it silently switches itself off
        self.scaler = torch.amp.GradScaler(device.type, enabled=use_amp and amp_dtype == "fp16")
