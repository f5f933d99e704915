"""Advanced tests of lesson 10: the trainer system. Run: pytest testcases/advanced_test.py"""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

V = 7
EOS = 6
NO = -100
FLOAT32 = "float32 rounding of a few additions"


class TinyLM(nn.Module):
    """Embedding → dropout → linear: a position sees itself alone. Weights from the test's generator."""

    def __init__(self, rng, dropout=0.0, width=6):
        super().__init__()
        self.embedding = nn.Embedding(V, width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, V)
        with torch.no_grad():
            for param in self.parameters():
                param.copy_(torch.randn(param.shape, generator=rng))

    def forward(self, input_ids):
        return self.head(self.dropout(self.embedding(input_ids)))


class Oracle(nn.Module):
    """Knows the text: gives the token that follows position t in `text` a probability of (almost) 1."""

    def __init__(self, text):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(60.0))
        self.text = text

    def forward(self, input_ids):
        following = torch.tensor(self.text[1 : input_ids.shape[1] + 1])
        return self.scale * F.one_hot(following, V).float().expand(len(input_ids), -1, -1)


def rows(rng, count=2, length=4, masked=0.4):
    """A batch in which every label but the first is −100 with probability `masked`."""
    ids = torch.randint(V, (count, length + 1), generator=rng)
    hidden = torch.rand(count, length, generator=rng) < masked
    hidden[0, 0] = False
    return {"input_ids": ids[:, :-1], "labels": ids[:, 1:].masked_fill(hidden, NO)}


def pairs(rng, count=2):
    return {"chosen": rows(rng, count), "rejected": rows(rng, count, length=3)}


def all_masked(data):
    return {"input_ids": data["input_ids"], "labels": torch.full_like(data["labels"], NO)}


def split(batch, sizes):
    """The rows of a batch as micro-batches of these sizes."""
    parts = {
        key: split(value, sizes) if isinstance(value, dict) else value.split(sizes)
        for key, value in batch.items()
    }
    return [{key: value[i] for key, value in parts.items()} for i in range(len(sizes))]


def weights(model):
    return {name: param.detach().cpu().clone() for name, param in model.named_parameters()}


def make(lesson, kind, model, lr=0.1, **options):
    """A trainer of this kind with SGD and momentum."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    return getattr(lesson.trainer, kind)(model, optimizer, **options)


# ---------------------------------------------------------------------------------------------- 10.1, 10.2 the data


@pytest.mark.task("10.1", "10.2", "10.3", "10.5", "10.6")
def test_oracle_of_the_next_token_has_no_loss_in_any_trainer(lesson, expect):
    """A model that knows the text 5 4 3 2 1 0 EOS; the prompt is 5 4 3. Example, batch, SFT loss and log π."""
    text = [5, 4, 3, 2, 1, 0, EOS]
    example = lesson.losses.build_sft_example(text[:3], text[3:-1], EOS, 16)
    batch = lesson.losses.collate([example, example], EOS)
    model = Oracle(text)
    got = make(lesson, "SFTTrainer", model).evaluate([batch])
    expect.equal("targets", got["count"], 8, source="2 rows of 3 answer tokens and the EOS")
    source = "logits[:, t] predict the token at t + 1: the labels are shifted once, not twice and not never"
    expect.close("loss", got["loss"], 0.0, source=source, atol=1e-6, because=FLOAT32)
    expect.equal("accuracy", got["accuracy"], 1.0, source=source)
    logprobs = lesson.losses.sequence_logprobs(model(batch["input_ids"]), batch["labels"])
    expect.close("log π", logprobs.detach(), torch.zeros(2), source=source, atol=1e-5, because=FLOAT32)


@pytest.mark.task("10.2", "10.3", "10.5", "10.6")
def test_losses_do_not_depend_on_the_filling(lesson, expect, rng):
    """Rows of 5, 2 and 3 tokens: one by one, together, and filled up with another token and much further."""
    model = TinyLM(rng)
    examples = []
    for length in (5, 2, 3):
        data = rows(rng, 1, length, masked=0.0)
        examples.append({key: value[0] for key, value in data.items()})
    longest = {"input_ids": torch.zeros(40, dtype=torch.int64), "labels": torch.full((40,), NO)}
    alone = [lesson.losses.collate([example], 0) for example in examples]
    together = lesson.losses.collate(examples, EOS), lesson.losses.collate([*examples, longest], 3)

    def logprobs(batch):
        return lesson.losses.sequence_logprobs(model(batch["input_ids"]), batch["labels"]).detach()[:3]

    want = torch.cat([logprobs(batch) for batch in alone])
    trainer = make(lesson, "SFTTrainer", model)
    want_loss = trainer.evaluate(alone)
    for step, batch in enumerate(together, 1):
        close = {"source": "the rows one by one", "atol": 1e-5, "because": FLOAT32, "step": step}
        expect.close("log π", logprobs(batch), want, **close)
        got = trainer.evaluate([batch])
        expect.equal("count", got["count"], 10, source="5 + 2 + 3 targets", step=step)
        expect.close("loss", got["loss"], want_loss["loss"], **close)
        expect.close("accuracy", got["accuracy"], want_loss["accuracy"], **close)


# --------------------------------------------------------------------------------------------- 10.3, 10.4 the losses


@pytest.mark.task("10.3")
@pytest.mark.parametrize("case", ["large logits", "bf16 logits", "−inf where the label is −100"])
def test_sequence_logprobs_are_as_exact_as_float32_at_their_limits(lesson, expect, rng, case):
    """Logits (4, 64, 7): of ±1000; in bfloat16, where a sum has 8 bits; and −inf at masked positions."""
    logits = torch.randn(4, 64, V, generator=rng)
    labels = torch.randint(V, (4, 64), generator=rng)
    labels[:, ::5] = NO
    if case == "large logits":
        logits = 1000 * logits.sign()
    elif case == "bf16 logits":
        logits = logits.bfloat16()
    else:
        logits[:, 0, 0] = -math.inf
    got = lesson.losses.sequence_logprobs(logits, labels)
    want = F.cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=NO, reduction="none")
    source = "−F.cross_entropy(logits.float(), reduction='none').sum(1)"
    because = "float32 sum over 51 tokens, in any order"
    expect.close("log π", got, -want.sum(1), source=source, atol=1e-5, rtol=1e-5, because=because)


@pytest.mark.task("10.4")
@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_dpo_gradient_without_a_margin_is_half_beta(lesson, expect, beta):
    """Two pairs, policy equal to reference; the gradient of the summed losses."""
    chosen, rejected = torch.tensor([-3.0, -1.0]), torch.tensor([-5.0, -0.5])
    policy = chosen.clone().requires_grad_(), rejected.clone().requires_grad_()
    losses, *rewards = lesson.losses.dpo_loss(*policy, chosen, rejected, beta)
    expect.close(
        "losses", losses.detach(), torch.full((2,), math.log(2)), source="ln 2", atol=1e-6, because=FLOAT32
    )
    losses.sum().backward()
    for name, tensor, sign in (("policy_chosen", policy[0], -1), ("policy_rejected", policy[1], 1)):
        want = torch.full((2,), sign * beta / 2)
        source = "−β·σ(−margin) for the chosen, +β·σ(−margin) for the rejected, with σ(0) = ½"
        expect.close(f"gradient of {name}", tensor.grad, want, source=source, atol=1e-7, because=FLOAT32)
    graph = [reward.requires_grad for reward in rewards]
    expect.equal("rewards with a graph", graph, [False, False], source="rewards are numbers to look at")


@pytest.mark.task("10.4")
@pytest.mark.parametrize("margin", [-10_000.0, -200.0, 0.0, 200.0, 10_000.0])
def test_dpo_loss_is_finite_and_has_a_gradient_at_any_margin(lesson, expect, margin):
    """One pair, β = 1, a margin of ±10 000, ±200 and 0."""
    chosen = torch.tensor([margin], requires_grad=True)
    zero = torch.zeros(1)
    losses, _, _ = lesson.losses.dpo_loss(chosen, zero, zero, zero, 1.0)
    losses.sum().backward()
    want = {-1e4: (1e4, -1.0), -200.0: (200.0, -1.0), 0.0: (math.log(2), -0.5)}.get(margin, (0.0, 0.0))
    close = {"atol": 1e-6, "because": FLOAT32}
    source = "ln(1 + exp(−margin))"
    expect.close("loss", losses.detach(), torch.tensor([want[0]]), source=source, **close)
    expect.close("gradient", chosen.grad, torch.tensor([want[1]]), source="−σ(−margin)", **close)


# --------------------------------------------------------------------------------------------- 10.5, 10.6 the loop


@pytest.mark.task("10.5", "10.6")
@pytest.mark.parametrize("kind", ["PretrainTrainer", "SFTTrainer"])
def test_training_follows_a_hand_written_loop(lesson, expect, rng, device, kind):
    """Dropout 0.2, momentum, a schedule, clipping at 0.5, K = 3, two epochs of 8 micro-batches, −100 in the labels."""
    model = TinyLM(rng, dropout=0.2).to(device)
    reference = copy.deepcopy(model)
    loader = [rows(rng) for _ in range(8)]

    def build(module):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.3, momentum=0.9)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 0.8**update)

    optimizer, scheduler = build(reference)
    torch.manual_seed(0)
    want = []
    for window in [loader[0:3], loader[3:6], loader[6:8]] * 2:
        count = sum(int((data["labels"] != NO).sum()) for data in window)
        loss_sum = 0.0
        for data in window:
            logits = reference(data["input_ids"].to(device)).flatten(0, 1)
            labels = data["labels"].to(device).flatten()
            loss = F.cross_entropy(logits, labels, ignore_index=NO, reduction="sum") / count
            loss.backward()
            loss_sum += float(loss.detach())
        grad_norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
        lr = optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        want.append({"lr": lr, "grad_norm": float(grad_norm), "count": count, "loss": loss_sum})

    optimizer, scheduler = build(model)
    trainer = getattr(lesson.trainer, kind)(model, optimizer, scheduler, 0.5, 3)
    torch.manual_seed(0)
    history = trainer.train(loader, 2)
    expect.equal("rows", len(history), 6, source="2 epochs of 3 + 3 + 2 micro-batches")
    for step, (got, wanted) in enumerate(zip(history, want, strict=True), 1):
        expect.equal("count", got["count"], wanted["count"], source="targets of the window", step=step)
        for name in ("lr", "grad_norm", "loss"):
            close = {"atol": 1e-4, "because": "6 updates in float32, any order of additions", "step": step}
            expect.close(name, got[name], wanted[name], source="a loop written out with torch", **close)
    close = {"atol": 1e-4, "because": "6 updates in float32, any order of additions"}
    expect.close(
        "weights", weights(model), weights(reference), source="a loop written out with torch", **close
    )


@pytest.mark.task("10.5", "10.6", "10.7")
@pytest.mark.parametrize("kind", ["SFTTrainer", "DPOTrainer"])
def test_result_does_not_depend_on_how_a_window_is_cut(lesson, expect, rng, kind):
    """Six rows with unequal numbers of targets: as one batch, as 4 + 2 rows with K = 2, as 1 + 2 + 3 with K = 3."""
    start = TinyLM(rng)
    batches = [pairs(rng, 6) if kind == "DPOTrainer" else rows(rng, 6) for _ in range(3)]
    results = []
    for sizes in ([6], [4, 2], [1, 2, 3]):
        model = copy.deepcopy(start)
        trainer = make(lesson, kind, model, lr=0.3, gradient_accumulation_steps=len(sizes))
        history = trainer.train([part for batch in batches for part in split(batch, sizes)], 1)
        results.append((history, weights(model)))
    for sizes, (history, got) in zip(("4 + 2", "1 + 2 + 3"), results[1:], strict=True):
        close = {"source": "the same rows as one batch, K = 1", "atol": 1e-5, "because": FLOAT32}
        for step, (row, want) in enumerate(zip(history, results[0][0], strict=True), 1):
            expect.equal(f"count, {sizes}", row["count"], want["count"], source=close["source"], step=step)
            expect.close(f"loss, {sizes}", row["loss"], want["loss"], step=step, **close)
            expect.close(f"grad_norm, {sizes}", row["grad_norm"], want["grad_norm"], step=step, **close)
        expect.close(f"weights, {sizes}", got, results[0][1], **close)


@pytest.mark.task("10.5", "10.6")
def test_window_without_targets_changes_nothing(lesson, expect, rng):
    """AdamW with decay, a schedule, K = 2; windows (good, good), (−100, −100), (−100, good), and (−100) at the end."""
    start = TinyLM(rng)
    good = [rows(rng) for _ in range(3)]
    empty = all_masked(good[0])

    def run(loader):
        model = copy.deepcopy(start)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 0.5**update)
        trainer = lesson.trainer.SFTTrainer(model, optimizer, scheduler, gradient_accumulation_steps=2)
        return trainer, trainer.train(loader, 1), weights(model)

    trainer, history, got = run([good[0], good[1], empty, empty, empty, good[2], empty])
    _, want_history, want = run(good)
    expect.equal("global_step", trainer.global_step, 2, source="two windows have targets")
    expect.equal("lr", [row["lr"] for row in history], [0.1, 0.05], source="an update each, of the schedule")
    source = "the same targets without the empty micro-batches"
    losses = [row["loss"] for row in history], [row["loss"] for row in want_history]
    expect.close("loss", *losses, source=source, atol=1e-6, because=FLOAT32)
    expect.close("weights", got, want, source=source, atol=1e-5, because=FLOAT32)
    metrics = trainer.training_step(empty)
    expect.equal("metrics of no target", metrics["loss"], math.nan, source="a mean over nothing")


@pytest.mark.task("10.6", "10.5")
def test_two_calls_of_train_equal_one_longer_call(lesson, expect, rng):
    """Dropout 0.3, K = 2, five micro-batches; 1 + 2 epochs against 3; each call finds a stray gradient and window."""
    start, loader = TinyLM(rng, dropout=0.3), [rows(rng) for _ in range(5)]

    def run(calls):
        torch.manual_seed(1)
        model = copy.deepcopy(start)
        trainer = make(lesson, "PretrainTrainer", model, gradient_accumulation_steps=2)
        for num_epochs in calls:
            model.head.bias.sum().backward()  # somebody else's gradient, and what it was the gradient of
            trainer.window.add({"loss": torch.tensor(1.0)}, 3)
            trainer.train(loader, num_epochs)
        return trainer, weights(model)

    (trainer, got), (want_trainer, want) = run([1, 2]), run([3])
    expect.equal("trainer.epoch", trainer.epoch, 3, source="1 + 2 epochs")
    for step, (row, wanted) in enumerate(zip(trainer.history, want_trainer.history, strict=True), 1):
        expect.equal("row", row, wanted, source="one call with 3 epochs", step=step)
    expect.equal("weights", got, want, source="one call with 3 epochs")
    model = copy.deepcopy(start)
    make(lesson, "PretrainTrainer", model, gradient_accumulation_steps=2).train(loader, 1)
    left = [name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())]
    expect.equal("gradients left over", left, [], source="no window reaches beyond its epoch")


@pytest.mark.task("10.6", "10.5", "10.7")
@pytest.mark.parametrize("kind", ["SFTTrainer", "DPOTrainer"])
def test_training_does_not_depend_on_how_often_it_is_evaluated(lesson, expect, rng, kind):
    """Dropout 0.3 and a shuffled DataLoader; 3 epochs, never evaluated, or before and after each."""
    start = TinyLM(rng, dropout=0.3)
    batch = pairs(rng, 4) if kind == "DPOTrainer" else rows(rng, 4)
    data = [
        {k: {n: t[0] for n, t in v.items()} if isinstance(v, dict) else v[0] for k, v in part.items()}
        for part in split(batch, [1] * 4)
    ]

    def run(evaluated):
        torch.manual_seed(1)
        model = copy.deepcopy(start)
        model.embedding.eval()  # frozen by somebody: it must not wake up
        trainer = make(lesson, kind, model)
        loader = torch.utils.data.DataLoader(data, batch_size=3, shuffle=True)
        for _ in range(3):
            if evaluated:
                trainer.evaluate(loader)
            trainer.train(loader, 1)
            if evaluated:
                modes = [module.training for module in model.modules()]
                trainer.evaluate(loader)
                source = "each submodule as it was before evaluate()"
                after = [module.training for module in model.modules()]
                expect.equal("modes", after, modes, source=source, step=trainer.epoch)
        return trainer.history, weights(model)

    (history, got), (want_history, want) = run(True), run(False)
    for step, (row, wanted) in enumerate(zip(history, want_history, strict=True), 1):
        expect.equal("row", row, wanted, source="the same run, never evaluated", step=step)
    expect.equal("weights", got, want, source="the same run, never evaluated")


@pytest.mark.task("10.6", "10.5")
@pytest.mark.parametrize("what", ["train", "evaluate"])
@pytest.mark.parametrize("how", ["empty", "every label −100"])
def test_loader_that_gives_nothing_is_refused(lesson, expect, rng, what, how):
    """A loader that is empty, or has only labels of −100."""
    trainer = make(lesson, "SFTTrainer", TinyLM(rng))
    loader = [] if how == "empty" else [all_masked(rows(rng))]
    with expect.raises(ValueError, match="dataloader", source="nothing to learn, nothing to average"):
        trainer.train(loader, 1) if what == "train" else trainer.evaluate(loader)


# --------------------------------------------------------------------------------------------------- 10.7 preferences


@pytest.mark.task("10.7", "10.3", "10.4", "10.5", "10.6")
def test_dpo_follows_a_hand_written_loop(lesson, expect, rng, device):
    """Answers of 4 and 3 tokens, β = 0.2, K = 2, AdamW with decay; 3 epochs of 3 micro-batches of 2 pairs."""
    model = TinyLM(rng, dropout=0.5).to(device)
    policy, ref = copy.deepcopy(model).eval(), copy.deepcopy(model).eval()
    loader = [pairs(rng) for _ in range(3)]

    def log_pi(module, data):
        labels = data["labels"].to(device)
        logits = module(data["input_ids"].to(device)).transpose(1, 2)
        return -F.cross_entropy(logits, labels, ignore_index=NO, reduction="none").sum(1)

    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.05, weight_decay=0.1)
    want = []
    for window in [loader[:2], loader[2:]] * 3:
        ratios = [
            (log_pi(policy, d["chosen"]) - log_pi(ref, d["chosen"]).detach())
            - (log_pi(policy, d["rejected"]) - log_pi(ref, d["rejected"]).detach())
            for d in window
        ]
        margins = 0.2 * torch.cat(ratios)
        loss = F.softplus(-margins).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        above = (margins > 0).float() + 0.5 * (margins == 0).float()
        want.append([loss.item(), margins.mean().item(), above.mean().item()])

    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    trainer = lesson.trainer.DPOTrainer(model, optimizer, None, None, 2, beta=0.2)
    before = weights(trainer.ref_model)
    history = trainer.train(loader, 3)
    close = {"atol": 1e-4, "because": "6 updates of AdamW in float32, any order of additions"}
    source = "a loop written out with torch"
    for step, (row, wanted) in enumerate(zip(history, want, strict=True), 1):
        for name, value in zip(("loss", "margin"), wanted, strict=False):
            expect.close(name, row[name], value, source=source, step=step, **close)
        if step > 1:  # at the first, rounding may decide on which side of 0 a margin is
            expect.close("accuracy", row["accuracy"], wanted[2], source=source, step=step, **close)
    expect.close("weights", weights(model), weights(policy), source=source, **close)
    expect.equal("weights of ref_model", weights(trainer.ref_model), before, source="it does not move")
    grads = [param.grad for param in trainer.ref_model.parameters()]
    expect.equal("gradients of ref_model", grads, [None] * 3, source="it records no graph")


@pytest.mark.task("10.7")
@pytest.mark.parametrize(
    "how", ["the policy itself", "another module around its parameters", "one tied layer"]
)
def test_reference_that_shares_parameters_is_refused(lesson, expect, rng, how):
    """ref_model is the policy, a Sequential around it, or another model with the same head."""
    model = TinyLM(rng)
    ref = {"the policy itself": model, "another module around its parameters": nn.Sequential(model)}.get(how)
    if ref is None:
        ref = TinyLM(rng)
        ref.head = model.head
    source = "an update of the policy would move it: every margin would be 0 for ever"
    with expect.raises(ValueError, match="ref_model", source=source):
        make(lesson, "DPOTrainer", model, ref_model=ref)
