"""Advanced tests of lesson 05: the training loop. Run: pytest testcases/advanced_test.py"""

import copy
import json
import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

V = 7
FLOAT32 = "float32 rounding of a few additions"


@pytest.fixture(autouse=True)
def _gradients_are_recorded_again():
    """A context manager that forgets to put things back must not make the next test fail, too."""
    yield
    torch.set_grad_enabled(True)


class TinyLM(nn.Module):
    """Embedding → batch norm (if asked for) → dropout → linear, with weights from the test's generator."""

    def __init__(self, rng, dropout=0.0, norm=False, width=6):
        super().__init__()
        self.embedding = nn.Embedding(V, width)
        self.norm = nn.BatchNorm1d(width) if norm else None
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, V)
        with torch.no_grad():
            for param in self.parameters():
                param.copy_(torch.randn(param.shape, generator=rng))

    def forward(self, input_ids):
        x = self.embedding(input_ids)  # (B, T, width)
        if self.norm is not None:
            x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        return self.head(self.dropout(x))


def random_batches(rng, count, rows=2, length=4, masked=0.3):
    """Batches in which every label but the first is −100 with probability `masked`."""
    batches = []
    for _ in range(count):
        ids = torch.randint(V, (rows, length + 1), generator=rng)
        hidden = torch.rand(rows, length, generator=rng) < masked
        hidden[0, 0] = False
        batches.append({"input_ids": ids[:, :-1], "labels": ids[:, 1:].masked_fill(hidden, -100)})
    return batches


def all_masked(data):
    return {"input_ids": data["input_ids"], "labels": torch.full_like(data["labels"], -100)}


def weights(model):
    return {name: param.detach().clone() for name, param in model.named_parameters()}


def make_trainer(lesson, model, train=(), lr=0.1, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    return lesson.trainer.TrainerFromScratch(model, optimizer, train, **options)


# ------------------------------------------------------------------------------------------------- 5.1 the loss


@pytest.mark.task("5.1")
@pytest.mark.parametrize("case", ["large logits", "bf16 logits", "−inf where the label is −100"])
def test_token_loss_is_as_exact_as_float32_at_its_limits(lesson, expect, rng, case):
    """Logits (8, 64, 7): of ±1000; in bfloat16, where a sum has 8 bits; and −inf at a masked position."""
    logits = torch.randn(8, 64, V, generator=rng)
    labels = torch.randint(V, (8, 64), generator=rng)
    labels[:, ::5] = -100
    if case == "large logits":
        logits = 1000 * logits.sign()
    elif case == "bf16 logits":
        logits = logits.bfloat16()
    else:
        logits[:, 0, 0] = -math.inf
    got = lesson.losses.token_loss(logits, labels)
    want = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
    source = "F.cross_entropy(logits.float(), reduction='sum')"
    because = "float32 sum over 408 tokens, in any order"
    expect.close("loss_sum", got, want, source=source, atol=1e-5, rtol=1e-5, because=because)


@pytest.mark.task("5.1")
def test_gradient_of_token_loss_is_softmax_minus_one_hot(lesson, expect, rng):
    """Random logits (2, 5, 7), three labels of −100."""
    logits = torch.randn(2, 5, V, generator=rng).requires_grad_()
    labels = torch.randint(V, (2, 5), generator=rng)
    labels[0, 3] = labels[1, 0] = labels[1, 4] = -100
    lesson.losses.token_loss(logits, labels).backward()
    want = torch.softmax(logits.detach(), dim=-1) - F.one_hot(labels.clamp(min=0), V)
    want[labels == -100] = 0.0
    source = "softmax(z) − one_hot(y), and 0 where y = −100"
    expect.close("gradient", logits.grad, want, source=source, atol=1e-6, because=FLOAT32)


# ------------------------------------------------------------------------------------------------- 5.3 the update


@pytest.mark.task("5.3", "5.4")
def test_training_follows_a_hand_written_loop(lesson, expect, rng, device):
    """Dropout 0.2, SGD with momentum, a schedule per update, 2 epochs of 6 batches with unequal token counts."""
    model = TinyLM(rng, dropout=0.2).to(device)
    reference = copy.deepcopy(model)
    batches = random_batches(rng, 6)

    def build(module):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.2, momentum=0.9)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 0.9**update)

    optimizer, scheduler = build(reference)
    torch.manual_seed(0)
    want = []
    for data in batches * 2:
        labels = data["labels"].to(device)
        logits = reference(data["input_ids"].to(device))
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        want.append((float(loss.detach()), optimizer.param_groups[0]["lr"], weights(reference)))
        scheduler.step()

    optimizer, scheduler = build(model)
    seen = []
    trainer = lesson.trainer.TrainerFromScratch(
        model,
        optimizer,
        batches,
        device=device,
        scheduler=scheduler,
        log_interval=1,
        on_log=lambda row: seen.append((row["train_loss"], row["lr"], weights(model))),
    )
    torch.manual_seed(0)
    trainer.train_epoch()
    trainer.train_epoch()
    expect.equal("rows", len(seen), 12, source="12 updates, log_interval = 1")
    for step, (got, wanted) in enumerate(zip(seen, want, strict=True), 1):
        close = {"atol": 1e-4, "because": "12 updates in float32, any order of additions", "step": step}
        expect.close("train_loss", got[0], wanted[0], source="a loop written out with torch", **close)
        expect.close("lr", got[1], wanted[1], source="0.2 · 0.9^(step − 1)", **close)
        expect.close("weights", got[2], wanted[2], source="a loop written out with torch", **close)


@pytest.mark.task("5.3")
def test_parameter_that_a_batch_does_not_use_stays_put(lesson, expect, rng):
    """Two heads, of which each batch uses one; AdamW with weight decay 0.5; and a frozen embedding."""

    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(V, 4)
            self.heads = nn.ModuleList([nn.Linear(4, V), nn.Linear(4, V)])

        def forward(self, input_ids):
            return self.heads[int(input_ids[0, 0]) % 2](self.embedding(input_ids))

    model = TwoHeads()
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(torch.randn(param.shape, generator=rng))
    # an optimizer may hold a part of the model
    optimizer = torch.optim.AdamW(model.heads.parameters(), lr=0.1, weight_decay=0.5)
    trainer = lesson.trainer.TrainerFromScratch(model, optimizer, [])
    for step in range(1, 5):
        data = random_batches(rng, 1)[0]
        data["input_ids"][0, 0] = step % 2
        before = weights(model)
        trainer.train_step(data)
        after = weights(model)
        for name in before:
            used = name.startswith(f"heads.{step % 2}")
            same = torch.equal(after[name], before[name])
            expected = "moves" if used else "stays: its gradient is None, so not even weight decay acts"
            expect.true(
                name, same is not used, expected=expected, got="stays" if same else "moves", step=step
            )


@pytest.mark.task("5.3")
@pytest.mark.parametrize(
    "how", ["copied model", "layer replaced", "weights tied", "moved to another kind of device"]
)
def test_optimizer_of_other_tensors_is_refused(lesson, expect, observe, rng, how):
    """The optimizer is built first; then the model is copied, changed, or moved so that its parameters are new."""
    model = TinyLM(rng)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    device = "cpu"
    if how == "copied model":
        model = copy.deepcopy(model)
    elif how == "layer replaced":
        model.head = nn.Linear(6, V)
    elif how == "weights tied":
        model.head.weight = model.embedding.weight
    else:
        device = "meta"  # Module.to makes new parameters here, as it does for some accelerators
    source = "the optimizer would go on moving tensors that the model no longer uses"
    try:
        with expect.raises(ValueError, match="optimizer", source=source):
            lesson.trainer.TrainerFromScratch(model, optimizer, [], device=device)
    finally:
        observe("device of the model afterwards", next(model.parameters()).device.type)


@pytest.mark.task("5.3", "5.6")
@pytest.mark.parametrize("what", ["train_step", "validate"])
def test_batch_goes_to_the_device_of_the_model(lesson, expect, rng, what):
    """Model on torch's "meta" device (tensors without values), batch on the CPU."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Embedding(V, 4), nn.Linear(4, V))
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0].device.type))
    data = random_batches(rng, 1)[0]
    trainer = make_trainer(lesson, model, val_loader=[data], device="meta")
    try:
        trainer.train_step(data) if what == "train_step" else trainer.validate()
    except RuntimeError as error:  # what comes after the model may need values, and a meta tensor has none
        if str(error).startswith("task "):
            raise
    expect.equal("device of input_ids in the model", seen, ["meta"], source="device='meta'")


# -------------------------------------------------------------------------------------------------- 5.4 the epoch


@pytest.mark.task("5.4", "5.3", "5.2")
def test_losses_are_read_for_a_row_and_not_for_a_step(lesson, expect, observe, rng):
    """20 batches, log_interval = 10; counts how often a floating-point value is read from a tensor."""

    class CountReads(TorchDispatchMode):
        reads = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._local_scalar_dense.default and args[0].is_floating_point():
                self.reads += 1
            return func(*args, **(kwargs or {}))

    trainer = make_trainer(lesson, TinyLM(rng), random_batches(rng, 20), log_interval=10)
    with CountReads() as counter:
        trainer.train_epoch()
    observe("reads", counter.reads)
    # two rows and the mean of the epoch need three; twice that leaves room for other ways to write it
    expected = "at most 6: each read waits until the device has done all its work"
    expect.true(
        "reads of a loss in 20 updates", counter.reads <= 6, expected=expected, got=f"{counter.reads}"
    )


@pytest.mark.task("5.4", "5.2")
def test_nan_is_logged_as_nan(lesson, expect, rng):
    """logits = table[input]; the row of token 6 is NaN, and only the second of three batches has that token."""
    table = torch.randn(V, V, generator=rng)
    table[6] = math.nan
    model = nn.Embedding.from_pretrained(table, freeze=False)
    batches = random_batches(rng, 3, masked=0.0)
    for data in batches:
        data["input_ids"].clamp_(max=5)
    batches[1]["input_ids"][0, 1] = 6
    trainer = make_trainer(lesson, model, batches, lr=0.0, log_interval=1)
    result = trainer.train_epoch()
    losses = [row["train_loss"] for row in trainer.history]
    is_nan = [math.isnan(loss) for loss in losses]
    expect.equal(
        "rows whose train_loss is NaN", is_nan, [False, True, False], source="only batch 2 has a NaN"
    )
    expect.equal("loss of the epoch", result["loss"], math.nan, source="a sum with a NaN in it is NaN")


@pytest.mark.task("5.4")
def test_batches_without_targets_write_no_row(lesson, expect, rng):
    """log_interval = 2; ten batches, of which the 3rd, 4th, 5th and the last have only −100."""
    batches = random_batches(rng, 10)
    for i in (2, 3, 4, 9):
        batches[i] = all_masked(batches[i])
    trainer = make_trainer(lesson, TinyLM(rng), batches, log_interval=2)
    result = trainer.train_epoch()
    steps = [row["global_step"] for row in trainer.history]
    expect.equal("global_step of the rows", steps, [2, 4, 6], source="6 updates, a row every 2")
    count = sum(int((data["labels"] != -100).sum()) for data in batches)
    expect.equal("tokens of the epoch", result["tokens"], count, source="labels that are not −100")
    expect.equal(
        "tokens of the rows", sum(r["tokens"] for r in trainer.history), count, source="each token once"
    )


@pytest.mark.task("5.4", "5.6")
@pytest.mark.parametrize("which", ["train_loader", "val_loader"])
@pytest.mark.parametrize("how", ["empty", "every label −100", "used up"])
def test_loader_without_a_token_is_refused(lesson, expect, rng, which, how):
    """A loader that is empty, has only labels of −100, or is an iterator that was used up by the first pass."""
    data = random_batches(rng, 1)[0]
    loader = {"empty": [], "every label −100": [all_masked(data)], "used up": iter([data])}[how]
    if which == "train_loader":
        trainer = make_trainer(lesson, TinyLM(rng), loader)
        run = trainer.train_epoch
    else:
        trainer = make_trainer(lesson, TinyLM(rng), [data], val_loader=loader)
        run = trainer.validate
    if how == "used up":
        run()
    with expect.raises(ValueError, source="a mean over no token is no number, and 0 would be a lie"):
        run()


@pytest.mark.task("5.4")
@pytest.mark.parametrize("mode", ["eval", "train, norm frozen"])
def test_train_epoch_wakes_the_model_but_not_a_frozen_submodule(lesson, expect, rng, mode):
    """Batch norm and dropout: the model comes in eval mode; or in train mode, with the batch norm in eval mode."""
    model = TinyLM(rng, dropout=0.5, norm=True)
    model.eval() if mode == "eval" else model.norm.eval()
    frozen = mode != "eval"
    seen = []
    model.head.register_forward_pre_hook(
        lambda module, args: seen.append({"dropout": model.dropout.training, "norm": model.norm.training})
    )
    before = model.norm.running_mean.clone()
    data = random_batches(rng, 2)
    trainer = make_trainer(lesson, model, data, val_loader=data)
    for epoch in (1, 2):
        seen.clear()
        trainer.train_epoch()
        want = [{"dropout": True, "norm": not frozen}] * 2
        source = "a frozen submodule stays frozen" if frozen else "training is in train mode"
        expect.equal("training, at the two steps", seen, want, source=source, step=epoch)
        trainer.validate()
    moved = not torch.equal(model.norm.running_mean, before)
    expected = "the same as before" if frozen else "moved"
    expect.true(
        "running mean of the batch norm",
        moved is not frozen,
        expected=expected,
        got="moved" if moved else "the same",
    )


# -------------------------------------------------------------------------------------------- 5.5, 5.6 evaluation


class Noisy(torch.utils.data.Dataset):
    """Examples whose first label is hidden or not by a draw from each of the three global generators."""

    def __init__(self, rng):
        self.examples = random_batches(rng, 4, rows=1)

    def __len__(self):
        return 4

    def __getitem__(self, index):
        data = {key: value[0].clone() for key, value in self.examples[index].items()}
        data["labels"][1] = data["input_ids"][2] if random.random() < 0.5 else -100
        data["labels"][2] = data["input_ids"][3] if np.random.rand() < 0.5 else -100
        data["labels"][3] = int(torch.randint(V, ()))
        return data


@pytest.mark.task("5.5", "5.6", "5.7")
def test_training_does_not_depend_on_how_often_it_is_validated(lesson, expect, rng, device):
    """3 epochs with dropout, shuffling and noisy data: never validated, after each epoch, and 3 times after each."""
    start = TinyLM(rng, dropout=0.5)
    train_data, val_data = Noisy(rng), Noisy(rng)

    def run(times):
        torch.manual_seed(1), np.random.seed(2), random.seed(3)
        model = copy.deepcopy(start).to(device)
        loader = torch.utils.data.DataLoader(train_data, batch_size=2, shuffle=True)
        val_loader = torch.utils.data.DataLoader(val_data, batch_size=2) if times else None
        options = {"device": device, "max_epochs": 3, "log_interval": 1}
        trainer = make_trainer(lesson, model, loader, val_loader=val_loader, **options)

        def validate_again(row):
            if "epoch_loss" in row:
                for _ in range(times - 1):
                    trainer.validate()

        trainer.on_log = validate_again
        rows = [row for row in trainer.train() if "train_loss" in row]
        return rows, {name: value.cpu() for name, value in weights(model).items()}

    want_rows, want_weights = run(0)
    for times in (1, 3):
        rows, got = run(times)
        source = "the same run, never validated"
        for row, want in zip(rows, want_rows, strict=True):
            expect.equal(f"row, validated {times} ×", row, want, source=source, step=want["global_step"])
        expect.equal(f"weights, validated {times} ×", got, want_weights, source=source)


@pytest.mark.task("5.5", "5.6")
def test_validation_that_fails_puts_everything_back(lesson, expect, rng):
    """The validation loader draws from torch, gives a batch, and then raises; the dropout is frozen."""
    model = TinyLM(rng, dropout=0.5)
    model.dropout.eval()
    data = random_batches(rng, 1)[0]

    class Broken:
        def __iter__(self):
            torch.rand(3), np.random.rand(3), random.random()
            yield data
            raise OSError("the disk is gone")

    trainer = make_trainer(lesson, model, val_loader=Broken())
    modes = {name: module.training for name, module in model.named_modules()}
    state = torch.get_rng_state()
    python_state, numpy_state = random.getstate(), np.random.get_state()[1].tolist()
    with expect.raises(OSError, match="the disk is gone", source="the loader's own error, not hidden"):
        trainer.validate()
    source = "before validate()"
    after = {name: module.training for name, module in model.named_modules()}
    expect.equal("training", after, modes, source=source)
    expect.equal("gradients recorded", torch.is_grad_enabled(), True, source=source)
    expect.equal("torch's RNG state", torch.get_rng_state(), state, source=source)
    expect.true("Python's RNG state", random.getstate() == python_state, expected=source, got="another one")
    expect.equal("numpy's RNG state", np.random.get_state()[1].tolist(), numpy_state, source=source)


@pytest.mark.task("5.6")
@pytest.mark.parametrize(
    ("loss", "want"),
    [(3.0, math.exp(3.0)), (700.0, math.exp(700.0)), (1000.0, math.inf), (math.nan, math.nan)],
)
def test_perplexity_of_extreme_losses(lesson, expect, loss, want):
    """V = 2; the label is 1 everywhere and costs so many nats; two batches of unequal size."""
    gap = loss if loss > 30 else math.log(math.expm1(loss)) if not math.isnan(loss) else math.nan
    model = nn.Embedding.from_pretrained(torch.tensor([[gap, 0.0]]), freeze=False)
    batches = [
        {"input_ids": torch.zeros(1, n, dtype=torch.int64), "labels": torch.ones(1, n, dtype=torch.int64)}
        for n in (1, 4)
    ]
    result = make_trainer(lesson, model, val_loader=batches).validate()
    because = "float32 rounding of the loss, magnified by exp"
    expect.close(
        "loss", result["loss"], loss, source="ln(1 + exp(gap))", atol=1e-6, rtol=1e-6, because=because
    )
    source = "exp(loss); beyond float64 it is inf"
    expect.close(
        "perplexity", result["perplexity"], want, source=source, atol=1e-4, rtol=1e-3, because=because
    )


# -------------------------------------------------------------------------------------------------- 5.7 the run


@pytest.mark.task("5.7", "5.4")
def test_two_calls_of_train_equal_one_longer_call(lesson, expect, rng):
    """AdamW, dropout, a schedule, log_interval = 4 over 3 batches an epoch: 5 epochs, in one call and as 2 + 3."""
    start = TinyLM(rng, dropout=0.3)
    batches = random_batches(rng, 3)

    def run(calls):
        torch.manual_seed(5)
        model = copy.deepcopy(start)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 1 / (1 + update))
        rows = []
        trainer = lesson.trainer.TrainerFromScratch(
            model, optimizer, batches, batches, scheduler=scheduler, log_interval=4, on_log=rows.append
        )
        for max_epochs in calls:
            trainer.max_epochs = max_epochs
            history = trainer.train()
        return history, rows, weights(model)

    history, rows, end = run([2, 5])
    want, _, want_end = run([5])
    expect.equal("rows of history", len(history), len(want), source="one call of 5 epochs")
    for row, wanted in zip(history, want, strict=True):
        expect.equal("row", row, wanted, source="one call of 5 epochs", step=wanted["global_step"])
    expect.equal("weights", end, want_end, source="one call of 5 epochs")
    steps = [row["global_step"] for row in history if "train_loss" in row]
    source = "multiples of log_interval, and each end of an epoch"
    expect.equal("global_step of the rows", steps, [3, 4, 6, 8, 9, 12, 15], source=source)
    expect.equal("rows given to on_log", rows, history, source="history")
    expect.true(
        "json", json.loads(json.dumps(history)) == history, expected="plain numbers", got="something else"
    )
