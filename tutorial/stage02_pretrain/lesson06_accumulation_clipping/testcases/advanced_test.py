"""Advanced tests of lesson 06: gradient accumulation and clipping. Run: pytest testcases/advanced_test.py"""

import copy
import itertools
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

V = 7
FLOAT32 = "float32 rounding of a few additions"
FLOAT64 = "float64 rounding, sums in any order"


class TinyLM(nn.Module):
    """Embedding → linear, with weights from the test's generator."""

    def __init__(self, rng, width=6):
        super().__init__()
        self.embedding = nn.Embedding(V, width)
        self.head = nn.Linear(width, V)
        with torch.no_grad():
            for param in self.parameters():
                param.copy_(torch.randn(param.shape, generator=rng))

    def forward(self, input_ids):
        return self.head(self.embedding(input_ids))


def micro_batch(rng, targets, rows=2, length=4):
    """A random micro-batch in which only the first `targets` labels are targets."""
    ids = torch.randint(V, (rows, length + 1), generator=rng)
    labels = ids[:, 1:].flatten().clone()
    labels[targets:] = -100
    return {"input_ids": ids[:, :-1], "labels": labels.view(rows, length)}


def weights(model):
    return {name: param.detach().clone() for name, param in model.named_parameters()}


def random_params(rng, dtype=torch.float64, scale=1.0):
    """Parameters of several shapes with random gradients, and one without."""
    params = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in [(3, 5), (7,), (), (2, 2, 2), (4,)]]
    for param in params[:-1]:
        param.grad = (scale * torch.randn(param.shape, generator=rng, dtype=torch.float64)).to(dtype)
    return params


def grads_of(params):
    return [None if param.grad is None else param.grad.clone() for param in params]


class CountReads(TorchDispatchMode):
    """Counts how often a number is read from a tensor."""

    def __init__(self):
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.reads += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


# ------------------------------------------------------------------------------------------------ 6.1, 6.2 the norm


@pytest.mark.task("6.2", "6.1")
@pytest.mark.parametrize("norm_type", [1, 2, 3.0, math.inf])
@pytest.mark.parametrize("max_norm", [0.1, 3.0, 1000.0])
def test_clip_equals_torch_step_after_step(lesson, expect, rng, norm_type, max_norm):
    """Ten steps; gradients of five shapes in float64 grow from 1e-7 to 100, one is missing."""
    for step in range(1, 11):
        params = random_params(rng, scale=10.0 ** (step - 8))
        reference = copy.deepcopy(params)
        for mine, other in zip(params, reference, strict=True):
            other.grad = None if mine.grad is None else mine.grad.clone()
        norm = lesson.gradients.clip_grad_norm_(params, max_norm, norm_type)
        want = torch.nn.utils.clip_grad_norm_(reference, max_norm, norm_type)
        close = {"source": "torch.nn.utils.clip_grad_norm_", "atol": 0.0, "rtol": 1e-12, "because": FLOAT64}
        expect.close("norm", norm, want, step=step, **close)
        for got, wanted in zip(grads_of(params), grads_of(reference), strict=True):
            if wanted is None:
                expect.equal("missing gradient", got, None, source="it stays missing", step=step)
            else:
                expect.close("gradient", got, wanted, step=step, **close)


@pytest.mark.task("6.2")
@pytest.mark.parametrize("scale", [0.0, 1e-9, 1e-6, 1e-3])
def test_clip_of_tiny_gradients_equals_torch(lesson, expect, rng, scale):
    """Gradients of size 0, 1e-9, 1e-6 and 1e-3 in float64; max_norm is a tenth of that, and 1e-6 decides."""
    params = random_params(rng, scale=scale)
    reference = copy.deepcopy(params)
    for mine, other in zip(params, reference, strict=True):
        other.grad = None if mine.grad is None else mine.grad.clone()
    max_norm = max(scale / 10, 1e-12)
    lesson.gradients.clip_grad_norm_(params, max_norm)
    torch.nn.utils.clip_grad_norm_(reference, max_norm)
    source = "torch.nn.utils.clip_grad_norm_: the divisor is norm + 1e-6"
    for got, want in zip(grads_of(params[:-1]), grads_of(reference[:-1]), strict=True):
        expect.close("gradient", got, want, source=source, atol=0.0, rtol=1e-12, because=FLOAT64)


@pytest.mark.task("6.2", "6.1")
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("norm_type", [2.0, math.inf])
def test_clip_of_a_gradient_that_is_not_finite_equals_torch(lesson, expect, rng, bad, norm_type):
    """One element is NaN, inf or −inf; first with error_if_nonfinite, then without."""
    params = random_params(rng)
    params[1].grad[3] = bad
    reference = copy.deepcopy(params)
    for mine, other in zip(params, reference, strict=True):
        other.grad = None if mine.grad is None else mine.grad.clone()
    before = grads_of(params)
    with expect.raises(RuntimeError, match="not finite", source="error_if_nonfinite=True"):
        lesson.gradients.clip_grad_norm_(params, 1.0, norm_type, error_if_nonfinite=True)
    expect.equal("gradients after the error", grads_of(params), before, source="refused: as they were")
    norm = lesson.gradients.clip_grad_norm_(params, 1.0, norm_type)
    want = torch.nn.utils.clip_grad_norm_(reference, 1.0, norm_type)
    source = "torch.nn.utils.clip_grad_norm_(error_if_nonfinite=False)"
    expect.equal("norm", norm, want, source=source)
    for got, wanted in zip(grads_of(params), grads_of(reference), strict=True):
        expect.equal("gradient", got, wanted, source=source)


@pytest.mark.task("6.2", "6.1")
def test_clip_works_in_place_and_reads_nothing_back(lesson, expect, rng):
    """Gradients above and below max_norm, held by somebody else too; and a single tensor instead of a list."""
    params = random_params(rng)
    held = [param.grad for param in params[:-1]]
    before = grads_of(params[:-1])
    with CountReads() as counter:
        norm = lesson.gradients.clip_grad_norm_(params, 0.5)
        lesson.gradients.clip_grad_norm_(params, 100.0)
    expected = "none: each read waits until the device has done all its work"
    expect.true("numbers read from tensors", counter.reads == 0, expected=expected, got=f"{counter.reads}")
    for got, old in zip(held, before, strict=True):
        want, source = old * 0.5 / (norm.detach() + 1e-6), "g · max_norm / norm, in the very tensor"
        expect.close("the tensor that was .grad", got, want, source=source, atol=1e-12, because=FLOAT64)
    lesson.gradients.clip_grad_norm_(params[0], 0.1)
    want = torch.tensor(0.1, dtype=torch.float64)
    because = "1e-6 in the divisor"
    source = "a tensor alone is clipped, too"
    expect.close("norm of the first", params[0].grad.norm(), want, source=source, atol=1e-6, because=because)


# ------------------------------------------------------------------------------------------- 6.3 clip by the value


@pytest.mark.task("6.3")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_clip_value_equals_torch(lesson, expect, rng, dtype):
    """Random gradients of five shapes, one missing, one with NaN, inf and −inf; and a single tensor."""
    params = random_params(rng, dtype)
    params[1].grad[:3] = torch.tensor([math.nan, math.inf, -math.inf])
    for clip_value in (0.7, 0.2):
        held = [param.grad for param in params[:-1]]
        reference = copy.deepcopy(params)
        for mine, other in zip(params, reference, strict=True):
            other.grad = None if mine.grad is None else mine.grad.clone()
        lesson.gradients.clip_grad_value_(params, clip_value)
        torch.nn.utils.clip_grad_value_(reference, clip_value)
        source = "torch.nn.utils.clip_grad_value_"
        for got, want in zip(grads_of(params), grads_of(reference), strict=True):
            expect.equal("gradient", got, want, source=source)
        for got, want in zip(held, reference, strict=False):
            expect.equal("the tensor that was .grad", got, want.grad, source="clipped in place")
    lesson.gradients.clip_grad_value_(params[0], 0.1)
    largest = params[0].grad.abs().max()
    want = torch.tensor(0.1, dtype=dtype)
    expect.equal("largest |element| of the first", largest, want, source="a tensor alone is clipped, too")


# --------------------------------------------------------------------------------------------------- 6.4 the windows


@pytest.mark.task("6.4")
def test_windows_read_no_further_than_they_must(lesson, expect):
    """An endless loader and K = 3: after each of four windows, how many micro-batches have been read?"""
    read = []

    def endless():
        for i in itertools.count():
            read.append(i)
            yield i

    stream = lesson.gradients.windows(endless(), 3)
    for step in range(1, 5):
        window = next(stream)
        want = list(range(3 * step - 3, 3 * step))
        expect.equal("window", list(window), want, source="three in turn", step=step)
        source = "a window is read when it is asked for: a resumed run must find the loader where it stood"
        expect.equal("micro-batches read", len(read), 3 * step, source=source, step=step)


@pytest.mark.task("6.4")
@pytest.mark.parametrize("accumulation_steps", [1, 4])
def test_windows_of_an_empty_loader(lesson, expect, accumulation_steps):
    """A loader without a micro-batch, and after it one of four."""
    got = list(lesson.gradients.windows([], accumulation_steps))
    expect.equal("windows of nothing", got, [], source="no window is empty")
    got = [len(w) for w in lesson.gradients.windows(iter(range(4)), accumulation_steps)]
    want = [4] if accumulation_steps == 4 else [1, 1, 1, 1]
    expect.equal("sizes for four micro-batches", got, want, source="no empty window at the end")


# ------------------------------------------------------------------------------------------------ 6.5 the accumulation


@pytest.mark.task("6.5")
def test_accumulate_holds_one_graph_at_a_time(lesson, expect, rng):
    """Four micro-batches of equal size; records each forward (F) and each arrival of a gradient (B)."""
    model = TinyLM(rng)
    events = []
    model.register_forward_pre_hook(lambda module, args: events.append("F"))
    model.head.weight.register_hook(lambda grad: events.append("B"))
    lesson.gradients.accumulate(model, [micro_batch(rng, 8) for _ in range(4)])
    expected = "FBFBFBFB: the graph of a micro-batch is gone before the next forward"
    expect.true("order of work", events == list("FBFBFBFB"), expected=expected, got="".join(events))


@pytest.mark.task("6.5")
def test_accumulate_takes_micro_batches_of_any_shape(lesson, expect, rng):
    """Micro-batches of 2 × 4, 1 × 9 and 3 × 1 positions; half of the model is frozen, and one layer unused."""
    model = TinyLM(rng)
    model.unused = nn.Linear(2, 2)
    model.embedding.weight.requires_grad_(False)
    window = [
        micro_batch(rng, 5),
        micro_batch(rng, 9, rows=1, length=9),
        micro_batch(rng, 2, rows=3, length=1),
    ]
    logits = torch.cat([model(data["input_ids"]).flatten(0, 1) for data in window])
    labels = torch.cat([data["labels"].flatten() for data in window])
    loss = F.cross_entropy(logits, labels, ignore_index=-100)
    want = torch.autograd.grad(loss, list(model.head.parameters()))
    loss_sum, num_tokens = lesson.gradients.accumulate(model, window)
    expect.equal("num_tokens", num_tokens, 16, source="5 + 9 + 2")
    got = loss_sum / num_tokens
    source = "F.cross_entropy over all positions together"
    expect.close("loss_sum / num_tokens", got, loss.detach(), source=source, atol=1e-5, because=FLOAT32)
    for param, grad in zip(model.head.parameters(), want, strict=True):
        expect.close("gradient", param.grad, grad, source=source, atol=1e-5, because=FLOAT32)
    missing = [model.embedding.weight.grad, model.unused.weight.grad]
    expect.equal("gradients of what is frozen or unused", missing, [None, None], source="not 0: it has none")


# --------------------------------------------------------------------------------------------------- 6.6 the updates


@pytest.mark.task("6.6", "6.4", "6.5", "6.7")
@pytest.mark.parametrize("accumulation_steps", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("max_grad_norm", [None, 0.3])
def test_training_equals_a_loop_over_large_batches(
    lesson, expect, rng, device, accumulation_steps, max_grad_norm
):
    """SGD with momentum, a schedule, 2 epochs of 7 micro-batches with unequal targets; K = 1 … 5; clipped or not."""
    model = TinyLM(rng).to(device)
    reference = copy.deepcopy(model)
    loader = [micro_batch(rng, targets) for targets in (8, 1, 6, 0, 3, 8, 2)]

    def build(module):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.2, momentum=0.9)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 0.9**update)

    optimizer, scheduler = build(reference)
    want = []
    for _ in range(2):
        for start in range(0, 7, accumulation_steps):
            part = loader[start : start + accumulation_steps]
            input_ids = torch.cat([data["input_ids"] for data in part]).to(device)
            labels = torch.cat([data["labels"] for data in part]).flatten().to(device)
            if bool((labels == -100).all()):  # K = 1: nothing to learn
                continue
            optimizer.zero_grad()
            loss = F.cross_entropy(reference(input_ids).flatten(0, 1), labels, ignore_index=-100)
            loss.backward()
            limit = math.inf if max_grad_norm is None else max_grad_norm
            norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), limit)
            optimizer.step()
            row = {"train_loss": float(loss.detach()), "grad_norm": float(norm)}
            want.append((row | {"lr": optimizer.param_groups[0]["lr"]}, weights(reference)))
            scheduler.step()

    optimizer, scheduler = build(model)
    seen = []
    trainer = lesson.trainer.TrainerFromScratch(
        model,
        optimizer,
        loader,
        device=device,
        max_epochs=2,
        scheduler=scheduler,
        log_interval=1,
        on_log=lambda row: seen.append((row, weights(model))) if "train_loss" in row else None,
        accumulation_steps=accumulation_steps,
        max_grad_norm=max_grad_norm,
    )
    trainer.train()
    expect.equal("updates", len(seen), len(want), source="windows with a target in two epochs")
    for step, ((row, got), (want_row, wanted)) in enumerate(zip(seen, want, strict=True), 1):
        close = {"atol": 1e-4, "because": "14 updates in float32, sums in any order", "step": step}
        source = "a loop over the concatenated batches, with torch"
        for name in ("train_loss", "grad_norm", "lr"):
            expect.close(name, row[name], want_row[name], source=source, **close)
        expect.close("weights", got, wanted, source=source, **close)


@pytest.mark.task("6.6")
def test_norm_is_that_of_what_the_optimizer_moves(lesson, expect, rng):
    """Two groups with learning rates 1 and 0.1 over head.weight and head.bias; the embedding is in none; 3 windows."""
    model = TinyLM(rng)
    groups = [{"params": [model.head.weight]}, {"params": [model.head.bias], "lr": 0.1}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    trainer = lesson.trainer.TrainerFromScratch(model, optimizer, [], max_grad_norm=0.05)
    for step in range(1, 4):
        data = micro_batch(rng, 8)
        before = weights(model)
        loss = F.cross_entropy(model(data["input_ids"]).flatten(0, 1), data["labels"].flatten())
        grads = torch.autograd.grad(loss, [model.head.weight, model.head.bias])
        norm = float(torch.cat([grad.flatten() for grad in grads]).norm())
        trainer.train_step([data])
        close = {"atol": 1e-5, "because": FLOAT32, "step": step}
        source = "the norm over all groups, and over nothing else"
        expect.close("grad_norm", trainer.grad_norm, norm, source=source, **close)
        after = weights(model)
        for name, grad, lr in zip(["head.weight", "head.bias"], grads, [1.0, 0.1], strict=True):
            want = before[name] - lr * grad * (0.05 / norm)
            expect.close(name, after[name], want, source="θ − lr · g · max_grad_norm / norm", **close)
        expect.equal(
            "embedding", after["embedding.weight"], before["embedding.weight"], source="not held", step=step
        )


@pytest.mark.task("6.6", "6.5")
def test_window_without_targets_changes_nothing(lesson, expect, rng):
    """AdamW with weight decay and a schedule: an update, a window of −100 only, an update."""
    model = TinyLM(rng)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 0.5**update)
    trainer = lesson.trainer.TrainerFromScratch(
        model, optimizer, [], scheduler=scheduler, accumulation_steps=2, max_grad_norm=1.0
    )
    trainer.train_step([micro_batch(rng, 8), micro_batch(rng, 1)])
    before, norm = weights(model), trainer.grad_norm
    loss_sum, num_tokens = trainer.train_step([micro_batch(rng, 0), micro_batch(rng, 0)])
    expect.equal("num_tokens", num_tokens, 0, source="every label is −100", step=2)
    expect.equal("loss_sum", float(loss_sum), 0.0, source="a sum over no token", step=2)
    expect.equal("weights", weights(model), before, source="no target: no update", step=2)
    touched = [name for name, param in model.named_parameters() if param.grad is not None]
    source = "none: a gradient of 0 would let weight decay move what the next window does not use"
    expect.equal("parameters with a gradient", touched, [], source=source, step=2)
    got = {
        "skipped_steps": trainer.skipped_steps,
        "global_step": trainer.global_step,
        "grad_norm": trainer.grad_norm,
    }
    want = {"skipped_steps": 0, "global_step": 1, "grad_norm": norm}
    expect.equal("attributes", got, want, source="no target: nothing at all changes", step=2)
    trainer.train_step([micro_batch(rng, 8)])
    expect.equal("lr", trainer.lr, 0.05, source="0.1 · ½: the schedule stood still", step=3)


# --------------------------------------------------------------------------------------------------- 6.7 the epochs


@pytest.mark.task("6.7", "6.6")
def test_rows_hold_each_token_once_when_windows_are_skipped(lesson, expect, rng):
    """K = 2, log_interval = 2, eleven micro-batches: window 3 has no target, the logits of windows 4 and 6 are NaN."""
    counts = [8, 3, 5, 1, 0, 0, 2, 2, 7, 6, 4]
    loader = [micro_batch(rng, targets) for targets in counts]
    for data in loader:
        data["input_ids"].clamp_(max=V - 2)
    for i in (6, 10):
        loader[i]["input_ids"][0, 0] = V - 1
    model = TinyLM(rng)
    with torch.no_grad():
        model.embedding.weight[V - 1] = math.nan
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = lesson.trainer.TrainerFromScratch(
        model, optimizer, loader, log_interval=2, accumulation_steps=2, max_grad_norm=1.0
    )
    result = trainer.train_epoch()
    rows = [
        {name: row[name] for name in ("global_step", "tokens", "skipped_steps")} for row in trainer.history
    ]
    want = [
        {"global_step": 2, "tokens": 17, "skipped_steps": 0},
        {"global_step": 3, "tokens": 21, "skipped_steps": 2},
    ]
    source = "updates by windows 1, 2 and 5; windows 4 and 6 are skipped, and their tokens are logged"
    expect.equal("rows", rows, want, source=source)
    is_nan = [math.isnan(row["train_loss"]) for row in trainer.history]
    expect.equal("rows whose train_loss is NaN", is_nan, [False, True], source="a NaN is logged as NaN")
    expect.equal("tokens of the epoch", result["tokens"], 38, source="labels that are not −100")
    types = [
        type(value).__name__ for row in json.loads(json.dumps(trainer.history)) for value in row.values()
    ]
    expect.equal("kinds of values in the rows", sorted(set(types)), ["float", "int"], source="plain numbers")


@pytest.mark.task("6.7")
@pytest.mark.parametrize("log_interval", [1, 2, 3])
def test_windows_that_make_no_update_write_no_row(lesson, expect, rng, log_interval):
    """K = 1; after the 2nd update come two skipped windows and two without targets, then three good ones."""
    good = [micro_batch(rng, 8) for _ in range(5)]
    for data in good:
        data["input_ids"].clamp_(max=V - 2)
    bad = {"input_ids": torch.full((1, 3), V - 1), "labels": torch.zeros(1, 3, dtype=torch.int64)}
    loader = [*good[:2], bad, micro_batch(rng, 0), bad, micro_batch(rng, 0), *good[2:]]
    model = TinyLM(rng)
    with torch.no_grad():
        model.embedding.weight[V - 1] = math.inf
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = lesson.trainer.TrainerFromScratch(model, optimizer, loader, log_interval=log_interval)
    trainer.train_epoch()
    got = [(row["global_step"], row["tokens"]) for row in trainer.history]
    want = {
        1: [(1, 8), (2, 8), (3, 14), (4, 8), (5, 8)],
        2: [(2, 16), (4, 22), (5, 8)],
        3: [(3, 30), (5, 16)],
    }[log_interval]
    source = "a row when an update brings global_step to a multiple, and one at the end"
    expect.equal("(global_step, tokens) of the rows", got, want, source=source)


@pytest.mark.task("6.7", "6.4")
def test_epoch_end_closes_the_window(lesson, expect, rng):
    """K = 4, a loader that is iterated anew each epoch; six micro-batches; 3 epochs in calls of train() to 1 and 3."""
    loader = torch.utils.data.DataLoader([micro_batch(rng, 8, rows=1) for _ in range(6)], batch_size=None)
    trainer_options = {"accumulation_steps": 4, "log_interval": 100, "val_loader": loader}
    model = TinyLM(rng)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = lesson.trainer.TrainerFromScratch(model, optimizer, loader, **trainer_options)
    for call, max_epochs in enumerate([1, 3], 1):
        trainer.max_epochs = max_epochs
        trainer.train()
        expect.equal("global_step", trainer.global_step, 2 * max_epochs, source="4 + 2 an epoch", step=call)
    rows = [(row["global_step"], row["epoch"]) for row in trainer.history if "train_loss" in row]
    expect.equal("(global_step, epoch) of the rows", rows, [(2, 1), (4, 2), (6, 3)], source="one an epoch")
