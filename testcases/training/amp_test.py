"""Tests of training/amp.py, in the Trainer: what mixed precision changes in an update, and what it does not."""

import pytest
import torch
from torch import nn

from testcases.training.work import make_batches, weights
from training.losses import token_loss


def test_bf16_computes_the_forward_in_bf16_and_the_loss_and_the_weights_in_float32(make_trainer):
    seen = []
    trainer = make_trainer(make_batches(2), use_amp=True, amp_dtype="bf16")
    trainer.model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    row = trainer.train()[0]
    assert seen == [torch.bfloat16]
    assert {param.dtype for param in trainer.model.parameters()} == {torch.float32}
    assert not trainer.scaler.is_enabled()
    assert "loss_scale" not in row
    # bf16 has 8 bits: a logit of about 0.1 is off by 4e-4
    assert row["train_loss"] == pytest.approx(
        make_trainer(make_batches(2)).train()[0]["train_loss"], abs=5e-3
    )


def test_fp16_steps_as_a_loop_by_hand_with_grad_scaler_does(make_trainer):
    """Scale → unscale → clip → step → update, with overflows: scale, skips and weights agree bit for bit."""
    batches = make_batches(*[2] * 12)
    options = {"max_grad_norm": 0.1, "momentum": 0.9, "scheduler": "cosine"}
    scaling = {"init_scale": 2.0**20, "growth_interval": 2}
    trainer = make_trainer(batches, use_amp=True, amp_dtype="fp16", log_interval=1, **options)
    trainer.scaler = torch.amp.GradScaler("cpu", **scaling)
    trainer.train()
    hand = make_trainer(batches, **options)
    model, optimizer, scaler = hand.model, hand.optimizer, torch.amp.GradScaler("cpu", **scaling)
    norms, skipped = [], 0
    for batch in batches:
        with torch.autocast("cpu", torch.float16):
            logits = model(batch["input_ids"])
        scaler.scale(token_loss(logits, batch["labels"]) / 16).backward()
        scaler.unscale_(optimizer)
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.1).item())
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        if scaler.get_scale() >= before:
            hand.scheduler.step()
        else:
            skipped += 1
        optimizer.zero_grad()
    assert 0 < skipped < 12, "the scale was to overflow sometimes"
    assert trainer.progress.skipped_steps == skipped
    assert trainer.scaler.state_dict() == scaler.state_dict()
    assert [repr(row["grad_norm"]) for row in trainer.history] == [repr(norm) for norm in norms]
    assert torch.equal(weights(trainer.model), weights(model))
