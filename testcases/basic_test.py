"""The exam, basic part: the pieces that you wrote in lessons 01–09, put together. In seconds.

Run: pytest testcases/basic_test.py            (your code)
     pytest testcases/basic_test.py --impl solutions
"""

import pytest
import torch

from testcases.exam import (
    MICRO_STEPS,
    OVERFLOW_AT,
    Killed,
    Recipe,
    Run,
    die,
    make_batch,
    make_model,
)
from training.losses import token_loss

FLOAT32 = "the loss is summed in float32, in another order than in the large batch"


def large_batch(micro_batches):
    """All micro-batches in one."""
    return {key: torch.cat([batch[key] for batch in micro_batches]) for key in ("input_ids", "labels")}


def gradients(model):
    """name → gradient, on the CPU."""
    return {name: param.grad.detach().cpu() for name, param in model.named_parameters()}


def backward_of_large_batch(model, batch, device):
    """The gradient of the mean loss a token of one batch, by torch alone."""
    loss = token_loss(model(batch["input_ids"].to(device)), batch["labels"].to(device))
    (loss / (batch["labels"] != -100).sum()).backward()


@pytest.mark.task("exam.1")
@pytest.mark.parametrize("targets", [(9,), (3, 12), (1, 16, 5), (7, 0, 2, 11)], ids=lambda t: f"K={len(t)}")
def test_window_leaves_the_gradient_of_the_large_batch(stack, expect, rng, device, targets):
    """A GPT; micro-batches of two rows whose numbers of targets differ, one of them without any."""
    window = [make_batch(rng, 2, count) for count in targets]
    model, reference = (make_model(dropout=0.0).to(device) for _ in range(2))
    stack.lesson06.gradients.accumulate(model, window, device)
    backward_of_large_batch(reference, large_batch(window), device)
    expect.close(
        ".grad",
        gradients(model),
        gradients(reference),
        source="backward() of the mean loss over the concatenated batch",
        atol=2e-6,
        because=FLOAT32,
    )


@pytest.mark.task("exam.1")
def test_windows_lose_no_micro_batch(stack, expect):
    """Seven micro-batches, K = 3."""
    got = [list(window) for window in stack.lesson06.gradients.windows(range(7), 3)]
    expect.equal("windows", got, [[0, 1, 2], [3, 4, 5], [6]], source="two windows of 3 and what is left")


@pytest.mark.task("exam.1")
def test_sgd_on_windows_walks_as_on_large_batches(stack, expect, rng):
    """A GPT, SGD with momentum 0.9 and lr 0.1; five windows of up to 3 micro-batches; torch on large batches."""
    batches = [make_batch(rng, 2, 4 + 2 * i % 9) for i in range(14)]
    model, reference = (make_model(dropout=0.0) for _ in range(2))
    optimizer = stack.lesson01.optimizer.SGDFromScratch(model.parameters(), lr=0.1, momentum=0.9)
    torch_optimizer = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)
    for step, window in enumerate(stack.lesson06.gradients.windows(batches, 3)):
        stack.lesson06.gradients.accumulate(model, window, "cpu")
        optimizer.step()
        optimizer.zero_grad()
        backward_of_large_batch(reference, large_batch(batches[3 * step : 3 * step + 3]), "cpu")
        torch_optimizer.step()
        torch_optimizer.zero_grad()
        expect.close(
            "weights",
            dict(model.state_dict()),
            dict(reference.state_dict()),
            source="torch.optim.SGD on the concatenated batch",
            step=step,
            atol=1e-5,
            because=FLOAT32 + ", and the differences add up over the updates",
        )


@pytest.mark.task("exam.2")
@pytest.mark.parametrize("scale", [1.0, 65536.0])
def test_norm_after_unscale_is_in_true_units(stack, expect, rng, device, scale):
    """A GPT, its loss scaled by a power of two; unscale_, then clip at half of the true norm."""
    batch = make_batch(rng, 4, 20)
    model, reference = (make_model(dropout=0.0).to(device) for _ in range(2))
    optimizer = stack.lesson02.optimizer.AdamWFromScratch(model.parameters(), lr=0.01)
    scaler = stack.lesson07.loss_scaler.LossScaler(init_scale=scale)
    backward_of_large_batch(reference, batch, device)
    norm = torch.nn.utils.get_total_norm([p.grad for p in reference.parameters()])
    torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.5 * float(norm))
    loss = token_loss(model(batch["input_ids"].to(device)), batch["labels"].to(device)) / 20
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    got = stack.lesson06.gradients.clip_grad_norm_(model.parameters(), 0.5 * float(norm))
    reason = "a power of two scales without rounding; the norms sum in another order"
    source = "torch's clipping of the gradient that was never scaled"
    expect.close(
        "norm before clipping", float(got), float(norm), source=source, atol=0, rtol=1e-5, because=reason
    )
    expect.close(".grad", gradients(model), gradients(reference), source=source, atol=1e-7, because=reason)


@pytest.mark.task("exam.2")
def test_overflow_skips_the_update_and_the_schedule_and_halves_the_scale(stack, expect):
    """The whole run; one gradient becomes inf in its third and its sixth window; the scale grows every 2 updates."""
    run = Run(stack, torch.device("cpu"), Recipe(accumulation_steps=2))
    scale, growth, want_scales, want_updates = 1024.0, 0, [], 0
    for window in range(6):
        if window in OVERFLOW_AT:
            scale, growth = scale / 2, 0
        else:
            want_updates, growth = want_updates + 1, growth + 1
            if growth == 2:
                scale, growth = scale * 2, 0
        want_scales.append(scale)
    run.train()
    expect.equal(
        "loss scales", run.scales, want_scales, source="halve on overflow, double after 2 updates without"
    )
    expect.equal("updates", run.global_step, want_updates, source="6 windows less 2 overflows")
    expect.equal(
        "rate of the window after the overflow",
        run.lrs[3],
        run.lrs[2],
        source="a skipped update leaves the schedule where it is",
    )


@pytest.mark.task("exam.2")
def test_learning_rate_of_each_update_is_the_schedules(stack, expect):
    """The whole run with windows of 4: warmup over 2 updates, then a cosine over 4 to a tenth of 0.05."""
    run = Run(stack, torch.device("cpu"), Recipe())
    run.train()
    # Windows of 4 and 2 micro-batches in each of two epochs; the third window overflows, so its rate comes twice.
    want = [0.05 * 1 / 2, 0.05, 0.05, 0.05]
    expect.close(
        "rates used",
        run.lrs,
        want,
        source="0.05·(1/2), then 0.05 from the top of the warmup, again after the skipped update",
        atol=1e-12,
        because="double precision",
    )


@pytest.mark.task("exam.3")
@pytest.mark.parametrize("kill_after", [1, 4, 5, 6, 9])
def test_resumed_run_equals_the_uninterrupted_one(stack, expect, tmp_path, device, kill_after):
    """Two epochs of 6 micro-batches, K = 4; stopped once, everything built anew, resumed from the file."""
    reference = Run(stack, device, Recipe())
    reference.train()
    want = reference.result()
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(Killed):
        Run(stack, device, Recipe(), path).train(kill_after, kill=die)
    resumed = Run(stack, device, Recipe(), path)
    expect.equal("micro-steps done when resumed", len(resumed.ids), kill_after, source="the checkpoint")
    resumed.train()
    got = resumed.result()
    for name, value in want.items():
        expect.equal(name, got[name], value, source="the same run, never interrupted")


@pytest.mark.task("exam.3")
def test_checkpoint_is_read_by_plain_torch(stack, expect, tmp_path):
    """A checkpoint in the middle of a window, read by torch.load(weights_only=True)."""
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(Killed):
        Run(stack, torch.device("cpu"), Recipe(), path).train(3, kill=die)
    state = torch.load(path, weights_only=True)
    expect.equal("micro_step", state["micro_step"], 3, source="3 micro-batches of the first window")
    pending = {name: grad is not None for name, grad in state["gradients"].items()}
    want = {name: True for name, _ in make_model().named_parameters()}
    expect.equal(
        "gradients waiting", pending, want, source="every parameter has one after the first micro-batch"
    )


@pytest.mark.task("exam.3")
def test_every_sample_is_seen_once_an_epoch_across_a_kill(stack, expect, tmp_path):
    """Eleven samples, two epochs; stopped in the first and resumed."""
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(Killed):
        Run(stack, torch.device("cpu"), Recipe(), path).train(2, kill=die)
    run = Run(stack, torch.device("cpu"), Recipe(), path)
    run.train()
    half = MICRO_STEPS // 2
    for epoch, part in enumerate((run.ids[:half], run.ids[half:])):
        seen = sorted(index for ids in part for index in ids)
        expect.equal("sample ids", seen, list(range(11)), source="each once", step=epoch)
