"""Tests of training/trainer.py: updates, the schedule and the log, the run.

See also amp_test.py, validation_test.py and resume_test.py.
"""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from testcases.training.work import concatenate, make_batches, weights
from training.data import TokenDataset, make_loader
from training.losses import count_tokens, token_loss
from training.trainer import Trainer, windows

# ---- accumulation and clipping


@pytest.mark.parametrize(
    ("sizes", "ignored", "steps"),
    [((4, 4, 4, 4), (), 4), ((4, 1, 2), (0, 7, 3), 3), ((3, 3, 2), (0, 0, 6), 4)],
    ids=["equal", "unequal token counts", "partial window"],
)
def test_window_of_micro_batches_equals_one_large_batch(make_trainer, sizes, ignored, steps):
    batches = make_batches(*sizes, ignored=ignored)
    accumulated = make_trainer(batches, grad_accum_steps=steps)
    large = make_trainer([concatenate(batches)])
    rows = [trainer.train()[0] for trainer in (accumulated, large)]
    assert accumulated.global_step == large.global_step == 1
    # float32 sums in another order: errors of about 1e-8 in weights of about 1e-2
    torch.testing.assert_close(weights(accumulated.model), weights(large.model), atol=1e-7, rtol=0)
    assert rows[0]["tokens"] == rows[1]["tokens"] == count_tokens(concatenate(batches)["labels"])
    assert rows[0]["train_loss"] == pytest.approx(rows[1]["train_loss"], rel=1e-6)
    assert rows[0]["grad_norm"] == pytest.approx(rows[1]["grad_norm"], rel=1e-5)


def test_last_partial_window_of_every_epoch_is_an_update_of_its_own(make_trainer):
    batches = make_batches(*[2] * 10)
    accumulated = make_trainer(batches, grad_accum_steps=4, max_epochs=2, lr=0.5)
    large = make_trainer([concatenate(batches[i : i + 4]) for i in (0, 4, 8)], max_epochs=2, lr=0.5)
    accumulated.train()
    large.train()
    assert accumulated.global_step == large.global_step == 6
    # as above, over six updates
    torch.testing.assert_close(weights(accumulated.model), weights(large.model), atol=1e-6, rtol=0)


def test_windows_yields_what_is_left():
    assert list(windows(range(10), 4)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert list(windows([], 4)) == []


def test_gradient_is_clipped_once_an_update_to_the_global_norm(make_trainer):
    batches = make_batches(4, 4)
    plain = make_trainer(batches, grad_accum_steps=2, lr=1.0)
    start = weights(plain.model)
    plain.train()
    step = weights(plain.model) - start
    norm = step.norm().item()  # lr = 1: the step is the gradient
    clipped = make_trainer(batches, grad_accum_steps=2, lr=1.0, max_grad_norm=norm / 4)
    clipped.train()
    # float32 weights of about 0.02, read back as a difference
    torch.testing.assert_close(weights(clipped.model) - start, step / 4, atol=1e-7, rtol=1e-3)
    assert (
        clipped.history[0]["grad_norm"] == plain.history[0]["grad_norm"] == pytest.approx(norm, rel=1e-4)
    ), "the row has the norm before clipping"
    above = make_trainer(batches, grad_accum_steps=2, lr=1.0, max_grad_norm=norm * 4)
    above.train()
    assert torch.equal(weights(above.model), weights(plain.model)), "a smaller gradient is left as it is"


def test_gradient_that_is_not_finite_changes_nothing_and_is_counted(make_trainer):
    batches = make_batches(4, 4, 4)
    trainer = make_trainer(batches, momentum=0.9, scheduler="cosine", max_grad_norm=1.0, log_interval=1)
    assert trainer.train_step([batches[0]])
    before = weights(trainer.model)
    buffers = [state["momentum_buffer"].clone() for state in trainer.optimizer.state.values()]
    rate = trainer.optimizer.param_groups[0]["lr"]
    hook = trainer.model.lm_head.register_forward_hook(lambda module, args, output: output * math.inf)
    assert not trainer.train_step([batches[1]])
    hook.remove()
    assert torch.equal(weights(trainer.model), before)
    after = [state["momentum_buffer"] for state in trainer.optimizer.state.values()]
    assert all(torch.equal(a, b) for a, b in zip(buffers, after, strict=True))
    assert trainer.optimizer.param_groups[0]["lr"] == rate, "the scheduler waits"
    assert (trainer.global_step, trainer.progress.skipped_steps) == (1, 1)
    assert math.isnan(trainer.history[-1]["train_loss"]), "a NaN is logged as a NaN"
    assert all(param.grad is None for param in trainer.model.parameters())
    assert trainer.train_step([batches[2]]), "the next one trains"
    assert weights(trainer.model).isfinite().all()


def test_gradient_that_is_never_finite_ends_the_run(make_trainer):
    trainer = make_trainer(make_batches(1, 1), max_epochs=1000, max_skips=3)
    trainer.model.embedding.weight.data.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="inf or NaN in 3 updates in a row, after update 0"):
        trainer.train()
    assert [row["skipped_steps"] for row in trainer.history] == [1, 2, 3]


def test_skips_with_updates_between_them_do_not_end_the_run(make_trainer):
    trainer = make_trainer(make_batches(1, 2, 1, 2), max_epochs=2, max_skips=2)
    trainer.model.lm_head.register_forward_hook(
        lambda module, args, output: output * math.nan if len(output) == 2 else None
    )
    trainer.train()
    assert (trainer.global_step, trainer.progress.skipped_steps) == (4, 4)


def test_window_without_a_target_changes_nothing(make_trainer):
    batches = make_batches(2, 2, 2, ignored=(0, 8, 0))
    trainer = make_trainer(batches, momentum=0.9, log_interval=1, scheduler="cosine")
    without = make_trainer([batches[0], batches[2]], momentum=0.9, log_interval=1, scheduler="cosine")
    trainer.train()
    without.train()
    assert torch.equal(weights(trainer.model), weights(without.model))
    assert trainer.global_step == 2
    assert all(math.isfinite(row["train_loss"]) for row in trainer.history)


def test_gradient_from_before_the_run_is_not_used(make_trainer):
    batches = make_batches(4)
    clean, dirty = make_trainer(batches), make_trainer(batches)
    for param in dirty.model.parameters():
        param.grad = torch.ones_like(param)
    clean.train()
    dirty.train()
    assert torch.equal(weights(clean.model), weights(dirty.model))


# ---- the schedule and the log


def test_scheduler_moves_once_an_update_after_the_optimizer(make_trainer):
    trainer = make_trainer(
        make_batches(*[1] * 12), grad_accum_steps=3, lr=1.0, scheduler="cosine", log_interval=1
    )
    used = []
    trainer.optimizer.register_step_pre_hook(
        lambda optimizer, *_: used.append(optimizer.param_groups[0]["lr"])
    )
    rows = trainer.train()
    half_cosine = [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * p / 8)) for p in (0, 1)]
    assert used == pytest.approx([0.5, 1.0, *half_cosine])  # warmup over 2 of 10 updates
    assert [row["lr"] for row in rows] == used, "the row has the rate that was used"


@pytest.mark.parametrize("grad_accum_steps", [1, 3])
def test_logged_loss_is_the_mean_over_the_tokens_since_the_last_row(make_trainer, grad_accum_steps):
    batches = make_batches(2, 5, 1, 3, 2, 4, ignored=(0, 6, 1, 2, 7, 3))
    trainer = make_trainer(batches, lr=0.0, grad_accum_steps=grad_accum_steps, log_interval=4)
    rows = trainer.train()
    per_row = 4 * grad_accum_steps
    for row, start in zip(rows, range(0, 6, per_row), strict=True):
        part = concatenate(batches[start : start + per_row])
        with torch.no_grad():
            loss = token_loss(trainer.model(part["input_ids"]), part["labels"]).item()
        assert row["tokens"] == count_tokens(part["labels"])
        assert row["train_loss"] == pytest.approx(loss / row["tokens"], rel=1e-6)
    assert trainer.progress.total_tokens == sum(row["tokens"] for row in rows)


def test_rows_are_plain_numbers_and_reach_the_callback_as_they_come(make_trainer):
    seen = []
    trainer = make_trainer(
        make_batches(2, 2, 2), make_batches(2), log_interval=2, eval_interval=2, on_log=seen.append
    )
    rows = trainer.train()
    assert seen == rows
    assert json.loads(json.dumps(rows)) == rows
    assert [(row["global_step"], "val_loss" in row) for row in rows] == [
        (2, False),
        (2, True),
        (3, False),
        (3, True),
    ]
    assert all(row["tokens_per_second"] > 0 for row in rows if "train_loss" in row)


# ---- the run


def test_longer_run_in_two_calls_equals_one(make_trainer):
    batches = make_batches(2, 2, 2)
    options = {"momentum": 0.9, "scheduler": "cosine", "dropout": 0.2, "log_interval": 1}
    one = make_trainer(batches, max_epochs=3, **options)
    one.train()
    two = make_trainer(batches, max_epochs=1, **options)
    two.train()
    assert (two.epoch, two.global_step) == (1, 3)
    two.train()
    assert two.global_step == 3, "nothing is left to do"
    two.max_epochs = 3
    two.train()
    assert torch.equal(weights(one.model), weights(two.model))
    assert (two.epoch, two.global_step) == (3, 9)
    assert [row["train_loss"] for row in two.history] == [row["train_loss"] for row in one.history]


@pytest.mark.parametrize(("max_steps", "epoch"), [(2, 0), (3, 1), (4, 1)])
def test_max_steps_ends_the_run_and_a_finished_epoch_is_counted(make_trainer, max_steps, epoch):
    trainer = make_trainer(make_batches(1, 1, 1), make_batches(1), max_epochs=9, max_steps=max_steps)
    rows = trainer.train()
    assert (trainer.global_step, trainer.epoch) == (max_steps, epoch)
    assert rows[-1]["global_step"] == max_steps
    assert "val_loss" in rows[-1], "a run ends with a validation"
    steps = [row["global_step"] for row in rows if "val_loss" in row]
    assert steps == sorted(set(steps)), "and no update is validated twice"


def test_run_stops_after_so_many_validations_without_a_better_one(make_trainer):
    losses = iter([3.0, 2.0, math.nan, 2.0, 2.5, 1.0])
    trainer = make_trainer(make_batches(1, 1), make_batches(1), max_epochs=100, eval_interval=1, patience=3)
    trainer.validate = lambda: {"loss": next(losses), "perplexity": 1.0}
    trainer.train()
    assert (trainer.global_step, trainer.epoch) == (5, 2)
    assert trainer.progress.best_metric == 2.0
    trainer.train()
    assert trainer.global_step == 5, "it is over"


def test_second_call_goes_on_inside_an_epoch(make_trainer):
    batches = make_batches(*range(1, 7))
    one = make_trainer(batches, max_steps=6, log_interval=1)
    two = make_trainer(batches, max_steps=4, log_interval=1)
    one.train()
    two.train()
    two.max_steps = 6
    two.train()
    assert [row["tokens"] for row in two.history] == [row["tokens"] for row in one.history]
    assert torch.equal(weights(one.model), weights(two.model))


def test_mean_gradient_is_over_all_elements_with_their_signs(make_trainer):
    trainer = make_trainer(make_batches(2, 2, 2), lr=1.0, log_interval=2)
    steps = []
    trainer.optimizer.register_step_post_hook(lambda *_: steps.append(weights(trainer.model)))
    rows = trainer.train()
    gradient = steps[0] - steps[1]  # lr = 1, no momentum; before clipping
    assert rows[0]["grad_mean"] == pytest.approx(gradient.mean().item(), rel=1e-2)
    assert "grad_mean" not in rows[1], "the epoch's last row has no update of its own to look at"


def test_training_learns_a_text_by_heart(tiny_gpt):
    torch.manual_seed(0)
    tokens = torch.arange(200) % 5
    loader = make_loader(TokenDataset(tokens, 16), batch_size=4, shuffle=True)
    model = tiny_gpt()
    trainer = Trainer(model, torch.optim.AdamW(model.parameters(), lr=1e-2), loader, loader, max_epochs=15)
    assert trainer.train()[-1]["val_loss"] < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_epochs": 0}, "max_epochs must be > 0, got 0"),
        ({"grad_accum_steps": 0}, "grad_accum_steps must be > 0, got 0"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be > 0, got 0.0"),
        ({"max_grad_norm": math.nan}, "max_grad_norm must be > 0, got nan"),
        ({"log_interval": -1}, "log_interval must be > 0, got -1"),
        ({"eval_interval": 0}, "eval_interval must be > 0, got 0"),
        ({"max_steps": 0}, "max_steps must be > 0, got 0"),
        ({"save_interval": 0}, "save_interval must be > 0, got 0"),
        ({"patience": 0}, "patience must be > 0, got 0"),
        ({"max_skips": 0}, "max_skips must be > 0, got 0"),
        ({"use_amp": True, "amp_dtype": "fp8"}, "amp_dtype must be one of fp16, bf16, got 'fp8'"),
        ({"val_loader": []}, "val_loader is empty: it has no batch"),
    ],
)
def test_bad_argument_is_refused_with_its_value(make_trainer, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(make_batches(1), **options)


@pytest.mark.parametrize(
    "loader", [[], iter(()), make_batches(1, ignored=(8,))], ids=["empty", "no length", "masked"]
)
def test_loader_that_gives_nothing_to_learn_is_refused_in_a_sentence(make_trainer, loader):
    with pytest.raises(ValueError, match=r"train_loader (is empty|has no target)"):
        make_trainer(loader, max_epochs=1000).train()


def test_optimizer_of_replaced_parameters_is_refused(tiny_gpt):
    model = tiny_gpt()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.blocks[0].up_proj.weight = nn.Parameter(model.blocks[0].up_proj.weight.detach().clone())
    with pytest.raises(ValueError, match="the optimizer holds 1 tensors that are no parameters of the model"):
        Trainer(model, optimizer, make_batches(1))


def test_loss_of_the_trainer_is_the_cross_entropy_of_shifted_labels(make_trainer):
    batch = make_batches(3)[0]
    trainer = make_trainer([batch], lr=0.0)
    logits = trainer.model(batch["input_ids"]).flatten(0, 1)
    want = F.cross_entropy(logits, batch["labels"].flatten()).item()
    assert trainer.train()[0]["train_loss"] == pytest.approx(want, rel=1e-6)
