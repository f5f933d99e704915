"""Basic tests of lesson 10: the trainer system. Run: pytest testcases/basic_test.py"""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

V = 4
BIT = math.log(2)
EOS = 9
FLOAT32 = "float32 rounding of a few additions"
NO = -100


def row(input_ids, labels):
    return {"input_ids": torch.tensor(input_ids), "labels": torch.tensor(labels)}


def bits_table():
    """logits = table[input_ids]: the token r is followed by 0 with probability 1/2, 1/4, 1/8, 1/16.

    So the label 0 after the input r costs r + 1 bits, and a bit is ln 2 nats.
    """
    first = 2.0 ** -torch.arange(1, V + 1)
    return torch.stack([first] + [(1 - first) / (V - 1)] * (V - 1), dim=1).log()


def bits_model():
    return nn.Embedding.from_pretrained(bits_table(), freeze=False)


def cost(*rows):
    """A batch whose tokens cost so many bits each; 0 is a masked token."""
    return row(
        [[max(b - 1, 0) for b in bits] for bits in rows], [[0 if b else NO for b in bits] for bits in rows]
    )


def zero_table():
    return nn.Embedding.from_pretrained(torch.zeros(V, V), freeze=False)


class TinyLM(nn.Module):
    """Embedding → dropout (as a module, then as a function) → linear, with weights from the test's generator."""

    def __init__(self, rng, vocab=7, width=6, dropout=0.5):
        super().__init__()
        self.embedding = nn.Embedding(vocab, width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, vocab)
        with torch.no_grad():
            for param in self.parameters():
                param.copy_(torch.randn(param.shape, generator=rng))

    def forward(self, input_ids):
        x = self.dropout(self.embedding(input_ids))
        return self.head(F.dropout(x, self.dropout.p, self.training))


def random_rows(rng, rows=3, length=4, vocab=7):
    ids = torch.randint(vocab, (rows, length + 1), generator=rng)
    return {"input_ids": ids[:, :-1], "labels": ids[:, 1:].clone()}


def random_pairs(rng, rows=3):
    return {"chosen": random_rows(rng, rows), "rejected": random_rows(rng, rows)}


def sgd(model, lr):
    return torch.optim.SGD(model.parameters(), lr=lr)


# ------------------------------------------------------------------------------------------------ 10.1 an example


@pytest.mark.task("10.1")
@pytest.mark.parametrize(
    ("prompt", "answer", "input_ids", "labels"),
    [
        ([5, 6, 7], [1, 2], [5, 6, 7, 1, 2], [NO, NO, 1, 2, EOS]),
        ([5], [1, 2, 3], [5, 1, 2, 3], [1, 2, 3, EOS]),
        ([5, 6], [], [5, 6], [NO, EOS]),
        ([5, EOS, 6], [1], [5, EOS, 6, 1], [NO, NO, 1, EOS]),
    ],
)
def test_example_reads_the_prompt_and_learns_the_answer(lesson, expect, prompt, answer, input_ids, labels):
    """Prompts of 1 to 3 tokens (one holds an EOS), answers of 0 to 3 tokens, EOS = 9, max_length = 16."""
    got = lesson.losses.build_sft_example(prompt, answer, EOS, 16)
    expect.equal("input_ids", got["input_ids"], torch.tensor(input_ids), source="prompt + answer")
    source = "the token after input_ids[t], if it belongs to the answer or ends it; else −100"
    expect.equal("labels", got["labels"], torch.tensor(labels), source=source)


@pytest.mark.task("10.1")
@pytest.mark.parametrize("max_length", [6, 5, 4, 3, 2, 1])
def test_example_that_is_too_long_loses_its_end(lesson, expect, max_length):
    """Prompt 5 6 7, answer 1 2 3, EOS = 9: six positions; cut to 6, 5, … 1 of them."""
    got = lesson.losses.build_sft_example([5, 6, 7], [1, 2, 3], EOS, max_length)
    want = [5, 6, 7, 1, 2, 3][:max_length]
    expect.equal("input_ids", got["input_ids"], torch.tensor(want), source=f"the first {max_length}")
    want = [NO, NO, 1, 2, 3, EOS][:max_length]
    source = f"the first {max_length}: an answer that was cut has no EOS"
    expect.equal("labels", got["labels"], torch.tensor(want), source=source)


# ------------------------------------------------------------------------------------------------- 10.2 a batch


@pytest.mark.task("10.2")
@pytest.mark.parametrize("pad_id", [0, EOS])
def test_collate_fills_up_on_the_right_and_keeps_the_eos(lesson, expect, pad_id):
    """Rows of 3, 1 and 2 tokens, each label at the end an EOS = 9; filled up with 0, or with the EOS."""
    rows = [row([5, 6, EOS], [NO, 1, EOS]), row([5], [EOS]), row([5, 6], [6, EOS])]
    got = lesson.losses.collate(rows, pad_id)
    want = torch.tensor([[5, 6, EOS], [5, pad_id, pad_id], [5, 6, pad_id]])
    expect.equal("input_ids", got["input_ids"], want, source="each row, then pad_id")
    want = torch.tensor([[NO, 1, EOS], [EOS, NO, NO], [6, EOS, NO]])
    source = "each row's labels, then −100: the EOS stays a target, whatever pad_id is"
    expect.equal("labels", got["labels"], want, source=source)
    expect.equal("labels of the first example", rows[0]["labels"].tolist(), [NO, 1, EOS], source="unchanged")


# ------------------------------------------------------------------------------------------ 10.3 the log-probability


@pytest.mark.task("10.3")
def test_sequence_logprobs_are_one_sum_for_each_row(lesson, expect):
    """Tokens of 1 2 3 | 4 | (none) bits; the other positions are masked."""
    batch = cost([1, 2, 3], [0, 4, 0], [0, 0, 0])
    got = lesson.losses.sequence_logprobs(bits_table()[batch["input_ids"]], batch["labels"])
    want = torch.tensor([-6.0, -4.0, 0.0]) * BIT
    source = "minus the sum of the bits of each row: log of a product of probabilities"
    expect.close("log π", got, want, source=source, atol=1e-5, because=FLOAT32)


@pytest.mark.task("10.3")
def test_sequence_logprobs_ignore_prompt_and_filling(lesson, expect):
    """An answer of 2 3 bits: alone, behind a prompt, before filling; the masked positions have other logits."""
    alone, behind, before = cost([2, 3]), cost([0, 0, 2, 3]), cost([2, 3, 0])
    for step, batch in enumerate((alone, behind, before), 1):
        logits = bits_table()[batch["input_ids"]]
        logits[batch["labels"] == NO] = torch.tensor([3.0, -1.0, 0.0, 2.0])
        got = lesson.losses.sequence_logprobs(logits, batch["labels"])
        source = "−5 bits: prompt and filling are no part of the answer"
        want = torch.tensor([-5 * BIT])
        expect.close("log π", got, want, source=source, atol=1e-5, because=FLOAT32, step=step)


# ------------------------------------------------------------------------------------------------------- 10.4 dpo


@pytest.mark.task("10.4")
def test_dpo_loss_follows_its_formula(lesson, expect):
    """β = 0.5; log π and log π_ref of three pairs: no margin, a margin of +1, a margin of −2."""
    policy_chosen, policy_rejected = torch.tensor([-3.0, -1.0, -6.0]), torch.tensor([-5.0, -9.0, -4.0])
    ref_chosen, ref_rejected = torch.tensor([-3.0, -2.0, -4.0]), torch.tensor([-5.0, -8.0, -6.0])
    got = lesson.losses.dpo_loss(policy_chosen, policy_rejected, ref_chosen, ref_rejected, 0.5)
    close = {"atol": 1e-6, "because": FLOAT32}
    source = "β · (log π(y_w) − log π_ref(y_w))"
    expect.close("chosen_rewards", got[1], torch.tensor([0.0, 0.5, -1.0]), source=source, **close)
    source = "β · (log π(y_l) − log π_ref(y_l))"
    expect.close("rejected_rewards", got[2], torch.tensor([0.0, -0.5, 1.0]), source=source, **close)
    want = torch.tensor([BIT, math.log(1 + math.exp(-1)), math.log(1 + math.exp(2))])
    expect.close("losses", got[0], want, source="ln(1 + exp(−margin)), one a pair", **close)


# ---------------------------------------------------------------------------------------------- 10.5 a window


@pytest.mark.task("10.5")
def test_update_of_a_window_is_that_of_one_large_batch(lesson, expect, device):
    """Table of 0, SGD with lr = 1; a window of 3 targets after token 0, and of 1 target after token 1."""
    model = zero_table().to(device)
    trainer = lesson.trainer.PretrainTrainer(model, sgd(model, 1.0), max_grad_norm=None)
    for step, batch in enumerate((row([[0, 0, 0]], [[1, 1, 1]]), row([[1, 2]], [[2, NO]])), 1):
        metrics = trainer.training_step(batch)
        source = "ln 4, the mean of this micro-batch"
        expect.close("loss", metrics["loss"], 2 * BIT, source=source, atol=1e-6, because=FLOAT32, step=step)
        expect.equal("count", metrics["count"], [3, 1][step - 1], source="its targets", step=step)
        expect.equal(
            "largest weight", float(model.weight.detach().abs().max()), 0.0, source="not yet updated"
        )
    trainer.update()
    want = torch.zeros(V, V)
    want[0] = 3 / 4 * torch.tensor([-0.25, 0.75, -0.25, -0.25])
    want[1] = 1 / 4 * torch.tensor([-0.25, -0.25, 0.75, -0.25])
    source = "−lr · Σ (softmax − one_hot) / N, with N = 3 + 1"
    expect.close("table", model.weight.detach().cpu(), want, source=source, atol=1e-6, because=FLOAT32)
    expect.equal("global_step", trainer.global_step, 1, source="one update")


@pytest.mark.task("10.5")
def test_second_update_uses_its_own_window(lesson, expect):
    """Table of 0, SGD with lr = 1; each update has a window of one target, after token 0, 1, 2."""
    model = zero_table()
    trainer = lesson.trainer.SFTTrainer(model, sgd(model, 1.0), max_grad_norm=None)
    want = torch.zeros(V, V)
    for step in (1, 2, 3):
        trainer.training_step(row([[step - 1]], [[0]]))
        trainer.update()
        want[step - 1] = torch.tensor([0.75, -0.25, -0.25, -0.25])
        source = "one row of the table an update: nothing is left of the window before"
        table = model.weight.detach()
        expect.close("table", table, want, source=source, atol=1e-6, because=FLOAT32, step=step)
        count = trainer.history[-1]["count"]
        expect.equal("count of the row", count, 1, source="targets of this window", step=step)


@pytest.mark.task("10.5")
@pytest.mark.parametrize("max_grad_norm", [0.05, 10.0, None])
def test_gradient_of_the_window_is_clipped_once(lesson, expect, max_grad_norm):
    """Table of 0; three micro-batches of one target after token 0; lr = 1, max_grad_norm 0.05, 10 or None."""
    model = zero_table()
    trainer = lesson.trainer.PretrainTrainer(model, sgd(model, 1.0), max_grad_norm=max_grad_norm)
    for _ in range(3):
        trainer.training_step(row([[0]], [[1]]))
    trainer.update()
    norm = math.sqrt(0.75**2 + 3 * 0.25**2)
    close = {"atol": 1e-5, "because": "torch divides by the norm + 1e-6"}
    source = "‖softmax − one_hot‖, of the mean over the window, before clipping"
    expect.close("grad_norm", trainer.history[-1]["grad_norm"], norm, source=source, **close)
    want = norm if max_grad_norm is None else min(norm, max_grad_norm)
    moved = float(model.weight.detach().norm())
    expect.close("‖Δθ‖ / lr", moved, want, source="the norm, at most max_grad_norm", **close)


@pytest.mark.task("10.5")
def test_scheduler_moves_once_per_update_and_after_it(lesson, expect):
    """lr = 1, then ×0.1 an update; three windows of two micro-batches; another row of a table of 0 each time."""
    model = zero_table()
    optimizer = sgd(model, 1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 0.1**update)
    trainer = lesson.trainer.PretrainTrainer(model, optimizer, scheduler, None, 2)
    for step, lr in enumerate([1.0, 0.1, 0.01], 1):
        for _ in range(2):
            trainer.training_step(row([[step]], [[0]]))
        trainer.update()
        moved = model.weight.detach()[step, 0]
        source = f"lr · ¾, with lr = {lr} at update {step - 1}"
        close = {"atol": 1e-6, "because": FLOAT32, "step": step}
        expect.close("step of the table", moved, torch.tensor(0.75 * lr), source=source, **close)
        source = "the lr that the update used"
        expect.close("lr of the row", trainer.history[-1]["lr"], lr, source=source, **close)


# ------------------------------------------------------------------------------------------------- 10.6 the loop


@pytest.mark.task("10.6", "10.5")
def test_train_updates_after_each_window_and_for_the_rest(lesson, expect):
    """lr = 0, K = 2, five micro-batches of 3 | 1 1 1 | 2 | 4 4 | 1 bits, two epochs."""
    model = bits_model()
    trainer = lesson.trainer.PretrainTrainer(model, sgd(model, 0.0), gradient_accumulation_steps=2)
    loader = [cost([3]), cost([1, 1, 1]), cost([2]), cost([4, 4]), cost([1])]
    history = trainer.train(loader, num_epochs=2)
    want = [4, 3, 1] * 2
    source = "micro-batches 1+2, 3+4, and 5 alone: the rest of the epoch is a window"
    expect.equal("count of the rows", [r["count"] for r in history], want, source=source)
    expect.equal("epoch of the rows", [r["epoch"] for r in history], [1, 1, 1, 2, 2, 2], source="from 1")
    expect.equal("global_step", trainer.global_step, 6, source="3 updates an epoch")
    expect.equal("trainer.epoch", trainer.epoch, 2, source="epochs finished")
    for step, (got, bits) in enumerate(zip(history, [6 / 4, 10 / 3, 1] * 2, strict=True), 1):
        source = "Σ bits / N of the window"
        close = {"atol": 1e-5, "because": FLOAT32, "step": step}
        expect.close("loss of the row", got["loss"], bits * BIT, source=source, **close)
    plain = json.loads(json.dumps(history))
    expect.equal("rows as JSON", plain, history, source="plain numbers")


@pytest.mark.task("10.6", "10.5")
def test_evaluate_averages_over_targets_without_dropout(lesson, expect, rng):
    """Dropout 0.5, gradients waiting in .grad; two batches of 12 and of 1 targets, evaluated twice."""
    model = TinyLM(rng)
    data = random_rows(rng)
    single = {key: value[:1, :1] for key, value in data.items()}
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    trainer = lesson.trainer.PretrainTrainer(model, sgd(model, 0.1))
    ids = torch.cat([data["input_ids"].flatten(), single["input_ids"].flatten()])
    labels = torch.cat([data["labels"].flatten(), single["labels"].flatten()])
    logits = F.linear(model.embedding.weight[ids], model.head.weight, model.head.bias).detach()
    want = {"loss": float(F.cross_entropy(logits, labels))}
    want["accuracy"] = float((logits.argmax(-1) == labels).float().mean())
    for step in (1, 2):
        got = trainer.evaluate([data, single])
        expect.equal("count", got["count"], 13, source="12 + 1 targets", step=step)
        for name, value in want.items():
            source = "the mean over 13 targets, without dropout"
            expect.close(name, got[name], value, source=source, atol=1e-5, because=FLOAT32, step=step)
        modes = {name: module.training for name, module in model.named_modules()}
        expect.equal("training, afterwards", modes, dict.fromkeys(modes, True), source="as it was", step=step)
        same = all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())
        expect.true("gradients", same, expected="as they were", got="other gradients", step=step)


# ---------------------------------------------------------------------------------------------- 10.7 preferences


@pytest.mark.task("10.7")
@pytest.mark.parametrize("given", [False, True])
def test_reference_is_frozen_and_apart_from_the_policy(lesson, expect, rng, given):
    """Dropout 0.5; the reference is made by the trainer, or given: another model with other weights."""
    model, other = TinyLM(rng), TinyLM(rng)
    before = {name: p.detach().clone() for name, p in (other if given else model).named_parameters()}
    trainer = lesson.trainer.DPOTrainer(model, sgd(model, 0.1), ref_model=other if given else None)
    ref = trainer.ref_model
    values = {name: param.detach() for name, param in ref.named_parameters()}
    expect.equal("weights of ref_model", values, before, source="the model given" if given else "a copy")
    asks = [param.requires_grad for param in ref.parameters()]
    expect.equal("requires_grad of ref_model", asks, [False] * 3, source="it is frozen")
    asks = [param.requires_grad for param in model.parameters()]
    expect.equal("requires_grad of the policy", asks, [True] * 3, source="it is trained")
    shared = {p.data_ptr() for p in ref.parameters()} & {p.data_ptr() for p in model.parameters()}
    expect.equal("parameters with shared storage", len(shared), 0, source="an update must not move it")
    expect.equal("ref_model.training", ref.training, False, source="no dropout in the reference")


@pytest.mark.task("10.7", "10.3", "10.4", "10.5")
def test_dpo_starts_at_ln_2_also_with_dropout(lesson, expect, rng):
    """Model with dropout 0.5, as a module and as a function; the first micro-batch, of three pairs, β = 0.3."""
    model = TinyLM(rng)
    trainer = lesson.trainer.DPOTrainer(model, sgd(model, 0.0), beta=0.3)
    metrics = trainer.training_step(random_pairs(rng))
    source = "policy = reference: every margin is 0, and −log σ(0) = ln 2"
    expect.close("loss", metrics["loss"], BIT, source=source, atol=1e-6, because=FLOAT32)
    expect.close("margin", metrics["margin"], 0.0, source=source, atol=1e-6, because=FLOAT32)
    expect.equal("count", metrics["count"], 3, source="pairs")


@pytest.mark.task("10.7", "10.3", "10.4", "10.5", "10.6")
def test_dpo_moves_the_policy_towards_the_chosen_answers(lesson, expect):
    """Table of 0; chosen 0 → 1, rejected 0 → 2; SGD with lr = 1, β = 0.5, one update of 2 micro-batches."""
    model = zero_table()
    trainer = lesson.trainer.DPOTrainer(model, sgd(model, 1.0), None, None, 2, beta=0.5)
    pair = {"chosen": row([[0]], [[1]]), "rejected": row([[0]], [[2]])}
    history = trainer.train([pair, pair], num_epochs=1)
    expect.close("loss", history[0]["loss"], BIT, source="ln 2", atol=1e-6, because=FLOAT32)
    want = torch.zeros(V, V)
    want[0, 1], want[0, 2] = 0.25, -0.25
    source = "lr · β · σ(0) · (one_hot(chosen) − one_hot(rejected)), the mean over the pairs"
    expect.close("table", model.weight.detach(), want, source=source, atol=1e-6, because=FLOAT32)
    table = trainer.ref_model.weight
    expect.equal("table of the reference", table.detach(), torch.zeros(V, V), source="it does not move")
    got = trainer.evaluate([pair])
    close = {"atol": 1e-6, "because": FLOAT32}
    expect.close("margin", got["margin"], 0.25, source="β · (0.25 − (−0.25))", **close)
    expect.equal("accuracy", got["accuracy"], 1.0, source="the margin is above 0")
