"""Basic tests of lesson 05: the training loop. Run: pytest testcases/basic_test.py"""

import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

V = 4
BIT = math.log(2)
FLOAT32 = "float32 rounding of a few additions"


def batch(input_ids, labels):
    return {"input_ids": torch.tensor(input_ids), "labels": torch.tensor(labels)}


def bits_model():
    """logits = table[input_ids]: the token r is followed by 0 with probability 1/2, 1/4, 1/8, 1/16.

    So the label 0 after the input r costs r + 1 bits, and a bit is ln 2 nats.
    """
    first = 2.0 ** -torch.arange(1, V + 1)
    probs = torch.stack([first] + [(1 - first) / (V - 1)] * (V - 1), dim=1)
    return nn.Embedding.from_pretrained(probs.log(), freeze=False)


def cost(bits):
    """A batch of one row whose tokens cost so many bits each."""
    return batch([[b - 1 for b in bits]], [[0] * len(bits)])


class TinyLM(nn.Module):
    """Embedding → dropout → linear, with weights from the test's generator."""

    def __init__(self, rng, vocab=7, width=6, dropout=0.5):
        super().__init__()
        self.embedding = nn.Embedding(vocab, width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, vocab)
        with torch.no_grad():
            for param in self.parameters():
                param.copy_(torch.randn(param.shape, generator=rng))

    def forward(self, input_ids):
        return self.head(self.dropout(self.embedding(input_ids)))


def random_batch(rng, rows=2, length=3, vocab=7):
    ids = torch.randint(vocab, (rows, length + 1), generator=rng)
    return {"input_ids": ids[:, :-1], "labels": ids[:, 1:].clone()}


def make_trainer(lesson, model, train=(), lr=0.0, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return lesson.trainer.TrainerFromScratch(model, optimizer, train, **options)


# ---------------------------------------------------------------------------------------- 5.1 the loss of a batch


@pytest.mark.task("5.1")
@pytest.mark.parametrize("labels", [[[0, 1, 2]], [[0, -100, 2]], [[-100, -100, 3]], [[-100, -100, -100]]])
def test_token_loss_is_the_sum_over_counted_tokens(lesson, expect, labels):
    """All logits are equal, V = 4: every token that counts costs ln 4."""
    labels = torch.tensor(labels)
    count = sum(label != -100 for label in labels.flatten().tolist())
    expect.equal("num_tokens", lesson.losses.count_tokens(labels), count, source="labels that are not −100")
    got = lesson.losses.token_loss(torch.zeros(1, 3, V), labels)
    want = torch.tensor(count * math.log(4))
    expect.close("loss_sum", got, want, source="N · ln 4", atol=1e-6, because=FLOAT32)


@pytest.mark.task("5.1")
def test_token_loss_takes_each_position_by_itself(lesson, expect, rng):
    """Random logits (2, 3, 5); first each position alone, the rest masked, then all together."""
    logits = torch.randn(2, 3, 5, generator=rng)
    labels = torch.tensor([[4, 0, 2], [1, -100, 3]])
    total = 0.0
    for b, t in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 2)]:
        z, y = logits[b, t].tolist(), int(labels[b, t])
        want = math.log(sum(math.exp(v) for v in z)) - z[y]
        total += want
        alone = torch.full_like(labels, -100)
        alone[b, t] = y
        got = lesson.losses.token_loss(logits, alone)
        source = f"ln Σ exp(z) − z[{y}] at position ({b}, {t})"
        expect.close("loss_sum", got, torch.tensor(want), source=source, atol=1e-5, because=FLOAT32)
    got = lesson.losses.token_loss(logits, labels)
    source = "the sum over the five positions"
    expect.close("loss_sum of all", got, torch.tensor(total), source=source, atol=1e-5, because=FLOAT32)


# ---------------------------------------------------------------------------------- 5.2 the average of many batches


@pytest.mark.task("5.2")
def test_average_weighs_tokens_not_batches(lesson, expect):
    """Nine tokens of loss 1, then one token of loss 10, then a batch of no token."""
    average = lesson.losses.TokenAverage()
    source = "Σ loss_sum / Σ num_tokens"
    for step, (loss_sum, num_tokens, want) in enumerate([(9.0, 9, 1.0), (10.0, 1, 1.9), (0.0, 0, 1.9)], 1):
        average.add(torch.tensor(loss_sum), num_tokens)
        got = average.mean()
        expect.close("mean", got, want, source=source, atol=1e-6, because=FLOAT32, step=step)
        expect.equal("num_tokens", average.num_tokens, [9, 10, 10][step - 1], source="9, 9 + 1", step=step)
    expect.equal("type of the mean", type(average.mean()).__name__, "float", source="mean() -> float")


# ------------------------------------------------------------------------------------------------- 5.3 one update


@pytest.mark.task("5.3")
def test_update_follows_the_gradient_of_the_token_mean(lesson, expect, observe, device):
    """logits = table[input], the table all 0; labels 1, 2, −100 after inputs 0, 1, 2; SGD with lr = 1."""
    model = nn.Embedding.from_pretrained(torch.zeros(V, V), freeze=False)
    trainer = make_trainer(lesson, model, lr=1.0, device=device)
    written: list[
        int
    ] = []  # tells a backward pass left out from gradients that are cleared before they are used
    model.weight.register_post_accumulate_grad_hook(lambda _: written.append(1))
    loss_sum, num_tokens = trainer.train_step(batch([[0, 1, 2]], [[1, 2, -100]]))
    observe("gradients written by backward", len(written))
    expect.equal("num_tokens", num_tokens, 2, source="labels that are not −100", step=1)
    want = torch.tensor(2 * math.log(4))
    expect.close("loss_sum", loss_sum.cpu(), want, source="2 · ln 4", atol=1e-6, because=FLOAT32, step=1)
    want = torch.zeros(V, V)
    want[:2] = -0.25 / 2
    want[0, 1] = want[1, 2] = 0.75 / 2
    source = "−lr · (softmax − one_hot) / N, with N = 2"
    table = model.weight.detach().cpu()
    expect.close("table", table, want, source=source, atol=1e-6, because=FLOAT32, step=1)
    expect.equal("global_step", trainer.global_step, 1, source="one update", step=1)


@pytest.mark.task("5.3")
def test_update_uses_the_gradient_of_its_own_batch(lesson, expect, rng):
    """Four updates by SGD with lr = 0.5 from four batches; each is followed by hand."""
    model = TinyLM(rng, dropout=0.0)
    trainer = make_trainer(lesson, model, lr=0.5)
    for step in range(1, 5):
        data = random_batch(rng)
        params = [p.detach().clone().requires_grad_() for p in model.parameters()]
        x = F.embedding(data["input_ids"], params[0])
        logits = F.linear(x, params[1], params[2])
        loss = F.cross_entropy(logits.flatten(0, 1), data["labels"].flatten())
        grads = torch.autograd.grad(loss, params)
        trainer.train_step(data)
        for name, param, old, grad in zip(
            dict(model.named_parameters()), model.parameters(), params, grads, strict=True
        ):
            want = old.detach() - 0.5 * grad
            source = "θ − lr · ∇(loss_sum / N) of this batch alone"
            expect.close(name, param.detach(), want, source=source, atol=1e-5, because=FLOAT32, step=step)


@pytest.mark.task("5.3")
def test_train_step_returns_the_sum_without_a_graph(lesson, expect):
    """One batch whose three tokens cost 1, 2 and 3 bits."""
    trainer = make_trainer(lesson, bits_model(), lr=0.1)
    loss_sum, num_tokens = trainer.train_step(cost([1, 2, 3]))
    expect.equal("num_tokens", num_tokens, 3, source="labels that are not −100")
    want = torch.tensor(6 * BIT)
    expect.close("loss_sum", loss_sum.detach(), want, source="(1 + 2 + 3) bits", atol=1e-5, because=FLOAT32)
    source = "a returned loss that holds its graph holds all activations of the step"
    expect.equal("loss_sum.requires_grad", loss_sum.requires_grad, False, source=source)


@pytest.mark.task("5.3")
def test_batch_without_targets_changes_nothing(lesson, expect, rng):
    """AdamW with weight decay and a schedule: one ordinary update, then a batch of −100, then another update."""
    model = TinyLM(rng, dropout=0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 0.5**update)
    trainer = lesson.trainer.TrainerFromScratch(model, optimizer, [], scheduler=scheduler)
    data = random_batch(rng)
    trainer.train_step(data)
    before = [p.detach().clone() for p in model.parameters()]
    masked = {"input_ids": data["input_ids"], "labels": torch.full_like(data["labels"], -100)}
    loss_sum, num_tokens = trainer.train_step(masked)
    expect.equal("num_tokens", num_tokens, 0, source="every label is −100", step=2)
    expect.equal("loss_sum", float(loss_sum), 0.0, source="a sum over no token", step=2)
    for name, param, old in zip(dict(model.named_parameters()), model.parameters(), before, strict=True):
        expect.equal(name, param.detach(), old, source="N = 0: no update", step=2)
    expect.equal("global_step", trainer.global_step, 1, source="N = 0: no update", step=2)
    trainer.train_step(data)
    expect.equal("global_step", trainer.global_step, 2, source="two updates so far", step=3)
    expect.equal("lr", trainer.lr, 0.05, source="0.1 · ½: the schedule stood still at N = 0", step=3)


@pytest.mark.task("5.3")
def test_scheduler_moves_once_per_update_and_after_it(lesson, expect):
    """SGD with lr = 1, and a schedule of ×1, ×0.1, ×0.01; another row of a table of 0 each time."""
    model = nn.Embedding.from_pretrained(torch.zeros(V, V), freeze=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 0.1**update)
    trainer = lesson.trainer.TrainerFromScratch(model, optimizer, [], scheduler=scheduler)
    for step, lr in enumerate([1.0, 0.1, 0.01], 1):
        trainer.train_step(batch([[step]], [[0]]))
        moved = model.weight.detach()[step, 0]
        want = torch.tensor(lr * 0.75)
        source = f"lr · (1 − softmax) = lr · ¾, with lr = {lr} at update {step - 1}"
        expect.close("step of the table", moved, want, source=source, atol=1e-6, because=FLOAT32, step=step)
        source = "the lr that the update used"
        expect.close("trainer.lr", trainer.lr, lr, source=source, atol=1e-12, because="0.1**k", step=step)


# -------------------------------------------------------------------------------------------------- 5.4 one epoch


@pytest.mark.task("5.4")
def test_epoch_loss_is_a_mean_over_tokens(lesson, expect):
    """lr = 0; one batch of one token of 3 bits, one of three tokens of 1 bit, one short last one."""
    trainer = make_trainer(lesson, bits_model(), [cost([3]), cost([1, 1, 1]), cost([2, 2])])
    result = trainer.train_epoch()
    expect.close(
        "loss", result["loss"], 10 / 6 * BIT, source="10 bits / 6 tokens", atol=1e-6, because=FLOAT32
    )
    expect.equal("tokens", result["tokens"], 6, source="1 + 3 + 2")
    expect.equal("global_step", trainer.global_step, 3, source="three batches, three updates")


@pytest.mark.task("5.4")
def test_rows_average_what_came_since_the_last_row(lesson, expect):
    """lr = 0, log_interval = 2, five batches of 3 | 1 1 1 | 2 2 | 1 | 3 3 bits."""
    batches = [cost([3]), cost([1, 1, 1]), cost([2, 2]), cost([1]), cost([3, 3])]
    trainer = make_trainer(lesson, bits_model(), batches, log_interval=2)
    trainer.train_epoch()
    steps = [row["global_step"] for row in trainer.history]
    expect.equal(
        "global_step of the rows", steps, [2, 4, 5], source="every 2 updates, and the end of the epoch"
    )
    for row, want in zip(trainer.history, [6 / 4, 5 / 3, 6 / 2], strict=True):
        source, step = "Σ loss / Σ tokens since the last row", row["global_step"]
        close = {"atol": 1e-6, "because": FLOAT32, "step": step}
        expect.close("train_loss", row["train_loss"], want * BIT, source=source, **close)
        expect.equal("epoch", row["epoch"], 1, source="epochs are numbered from 1", step=step)
    tokens = [row["tokens"] for row in trainer.history]
    expect.equal("tokens of the rows", tokens, [4, 3, 2], source="1 + 3, 2 + 1, 2")


# ------------------------------------------------------------------------------------- 5.5 evaluate without a trace


@pytest.mark.task("5.5")
@pytest.mark.parametrize("mode", ["train", "eval", "train, dropout frozen"])
def test_evaluation_mode_restores_every_module(lesson, expect, rng, mode):
    """Embedding → dropout → linear in train mode, in eval mode, and in train mode with the dropout in eval mode."""
    model = TinyLM(rng).train(mode != "eval")
    if mode == "train, dropout frozen":
        model.dropout.eval()
    before = {name: module.training for name, module in model.named_modules()}
    with lesson.evaluation.evaluation_mode(model):
        inside = {name: module.training for name, module in model.named_modules()}
        grad_enabled = torch.is_grad_enabled()
    after = {name: module.training for name, module in model.named_modules()}
    expect.equal("training inside", inside, dict.fromkeys(before, False), source="eval mode, every submodule")
    expect.equal("gradients recorded inside", grad_enabled, False, source="an evaluation needs no graph")
    expect.equal("training afterwards", after, before, source="each submodule as it was")
    expect.equal("gradients recorded afterwards", torch.is_grad_enabled(), True, source="as it was")


@pytest.mark.task("5.5")
def test_preserve_rng_leaves_every_generator_as_it_was(lesson, expect):
    """Three draws each from random, numpy and torch; between them, a block that draws from all three."""

    def draw():
        return {"random": random.random(), "numpy": float(np.random.rand()), "torch": float(torch.rand(()))}

    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    want = [draw() for _ in range(3)]
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    for step in range(3):
        expect.equal("draw", draw(), want[step], source="the same draws without the block", step=step + 1)
        with lesson.evaluation.preserve_rng("cpu"):
            draw(), draw()


# --------------------------------------------------------------------------------------------------- 5.6 validation


@pytest.mark.task("5.6")
def test_validate_averages_over_tokens(lesson, expect):
    """Validation batches of one token of 3 bits, of three tokens of 1 bit, and of −100 only."""
    masked = batch([[2, 2]], [[-100, -100]])
    trainer = make_trainer(lesson, bits_model(), val_loader=[cost([3]), cost([1, 1, 1]), masked])
    result = trainer.validate()
    expect.close("loss", result["loss"], 1.5 * BIT, source="6 bits / 4 tokens", atol=1e-6, because=FLOAT32)
    want = 2**1.5
    expect.close(
        "perplexity", result["perplexity"], want, source="exp(loss) = 2^1.5", atol=1e-5, because=FLOAT32
    )


@pytest.mark.task("5.6", "5.5")
def test_validate_uses_no_dropout_and_leaves_the_training_alone(lesson, expect, rng):
    """Dropout 0.5, gradients waiting in .grad, and a DataLoader that does not shuffle; validated twice."""
    model = TinyLM(rng)
    data = random_batch(rng, rows=4)
    examples = [{key: value[i] for key, value in data.items()} for i in range(4)]
    loader = torch.utils.data.DataLoader(examples, batch_size=2)
    trainer = make_trainer(lesson, model, lr=0.1, val_loader=loader)
    for param in model.parameters():
        param.grad = torch.randn(param.shape, generator=rng)
    before = {name: (p.detach().clone(), p.grad.clone()) for name, p in model.named_parameters()}
    rng_before = torch.get_rng_state()
    logits = F.linear(model.embedding.weight[data["input_ids"]], model.head.weight, model.head.bias).detach()
    want = float(F.cross_entropy(logits.flatten(0, 1), data["labels"].flatten()))
    for step in (1, 2):
        got = trainer.validate()["loss"]
        source = "F.cross_entropy of the model without dropout"
        expect.close("loss", got, want, source=source, atol=1e-5, because=FLOAT32, step=step)
        expect.equal(
            "torch's RNG state", torch.get_rng_state(), rng_before, source="before validate()", step=step
        )
        expect.equal("model.training", model.training, True, source="before validate()", step=step)
        for name, param in model.named_parameters():
            now = (param.detach(), param.grad)
            expect.equal(f"{name} and its gradient", now, before[name], source="before validate()", step=step)


# --------------------------------------------------------------------------------------------------- 5.7 the whole run


@pytest.mark.task("5.7")
def test_train_writes_a_row_per_epoch_and_goes_on_when_called_again(lesson, expect):
    """lr = 0, two batches an epoch: train() to epoch 1, again, to epoch 3; with validation."""
    trainer = make_trainer(lesson, bits_model(), [cost([3]), cost([1, 1, 1])], val_loader=[cost([2, 2])])
    for call, (max_epochs, epochs) in enumerate([(1, [1]), (1, [1]), (3, [1, 2, 3])], 1):
        trainer.max_epochs = max_epochs
        history = trainer.train()
        val_metrics = trainer.validate()
        rows = [row for row in history if "epoch_loss" in row]
        steps = [2 * epoch for epoch in epochs]
        expect.equal("trainer.epoch", trainer.epoch, max_epochs, source="epochs finished", step=call)
        expect.equal(
            "epoch of the rows", [r["epoch"] for r in rows], epochs, source="numbered from 1", step=call
        )
        expect.equal(
            "global_step of the rows", [r["global_step"] for r in rows], steps, source="2 an epoch", step=call
        )
        for row in rows:
            close = {"atol": 1e-5, "because": FLOAT32, "step": call}
            expect.close("epoch_loss", row["epoch_loss"], 1.5 * BIT, source="6 bits / 4 tokens", **close)
            source = "trainer.validate(), after every epoch"
            expect.equal("val_loss", row.get("val_loss"), val_metrics["loss"], source=source, step=call)
            got, want = row.get("val_perplexity"), val_metrics["perplexity"]
            expect.equal("val_perplexity", got, want, source=source, step=call)
