"""Basic tests of lesson 06: gradient accumulation and clipping. Run: pytest testcases/basic_test.py"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

V = 4
BIT = math.log(2)
FLOAT32 = "float32 rounding of a few additions"


def batch(input_ids, labels):
    return {"input_ids": torch.tensor(input_ids), "labels": torch.tensor(labels)}


def zero_table(vocab=V):
    """logits = table[input_ids], the table all 0: every token of the vocabulary is equally likely."""
    return nn.Embedding.from_pretrained(torch.zeros(vocab, vocab), freeze=False)


def bits_model():
    """logits = table[input_ids]; the label 0 after the input r costs r + 1 bits, and a bit is ln 2 nats."""
    first = 2.0 ** -torch.arange(1, V + 1)
    probs = torch.stack([first] + [(1 - first) / (V - 1)] * (V - 1), dim=1)
    return nn.Embedding.from_pretrained(probs.log(), freeze=False)


def cost(bits):
    """A micro-batch of one row whose tokens cost so many bits each in `bits_model`."""
    return batch([[b - 1 for b in bits]], [[0] * len(bits)])


def masked():
    """A micro-batch without a target."""
    return batch([[0, 1, 2]], [[-100, -100, -100]])


class TinyLM(nn.Module):
    """Embedding → linear, with weights from the test's generator."""

    def __init__(self, rng, vocab=7, width=6):
        super().__init__()
        self.embedding = nn.Embedding(vocab, width)
        self.head = nn.Linear(width, vocab)
        with torch.no_grad():
            for param in self.parameters():
                param.copy_(torch.randn(param.shape, generator=rng))

    def forward(self, input_ids):
        return self.head(self.embedding(input_ids))


def micro_batch(rng, targets, rows=2, length=4, vocab=7):
    """A random micro-batch in which only the first `targets` labels are targets."""
    ids = torch.randint(vocab, (rows, length + 1), generator=rng)
    labels = ids[:, 1:].flatten().clone()
    labels[targets:] = -100
    return {"input_ids": ids[:, :-1], "labels": labels.view(rows, length)}


def concatenated(micro_batches):
    return {key: torch.cat([data[key] for data in micro_batches]) for key in ("input_ids", "labels")}


def token_mean(model, data):
    """The mean loss of one batch, by torch."""
    logits = model(data["input_ids"]).flatten(0, 1)
    return F.cross_entropy(logits, data["labels"].flatten(), ignore_index=-100)


def grads_of(model):
    return {
        name: None if param.grad is None else param.grad.clone() for name, param in model.named_parameters()
    }


def weights(model):
    return {name: param.detach().clone() for name, param in model.named_parameters()}


def with_grads(*grads):
    """Parameters whose `.grad` are these (None stays None)."""
    params = []
    for grad in grads:
        param = nn.Parameter(torch.zeros(1 if grad is None else torch.tensor(grad).shape))
        param.grad = None if grad is None else torch.tensor(grad)
        params.append(param)
    return params


def make_trainer(lesson, model, train=(), lr=1.0, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return lesson.trainer.TrainerFromScratch(model, optimizer, train, **options)


# ---------------------------------------------------------------------------------------------- 6.1 the total norm


@pytest.mark.task("6.1")
@pytest.mark.parametrize(("norm_type", "want"), [(2.0, 13.0), (1.0, 19.0), (math.inf, 12.0)])
def test_total_norm_is_that_of_one_long_vector(lesson, expect, norm_type, want):
    """A matrix [[3, 0], [0, −4]] and a vector (−12); norm_type 2, 1 and inf."""
    tensors = [torch.tensor([[3.0, 0.0], [0.0, -4.0]]), torch.tensor([-12.0])]
    got = lesson.gradients.total_norm(tensors, norm_type)
    source = {2.0: "√(3² + 4² + 12²)", 1.0: "3 + 4 + 12", math.inf: "the largest |element|"}[norm_type]
    expect.close("total norm", got, torch.tensor(want), source=source, atol=1e-5, because=FLOAT32)


# -------------------------------------------------------------------------------------------- 6.2 clip by the norm


@pytest.mark.task("6.2")
def test_clip_scales_all_gradients_by_one_factor(lesson, expect):
    """Gradients (3, −4) and (12), so their norm is 13; max_norm = 1.3; then once more, with norm_type = inf."""
    params = with_grads([3.0, -4.0], [12.0])
    norm = lesson.gradients.clip_grad_norm_(params, 1.3)
    expect.close("returned norm", norm, 13.0, source="√(3² + 4² + 12²)", atol=1e-5, because=FLOAT32, step=1)
    source = "g · max_norm / norm, one factor of 0.1 for both"
    for param, want in zip(params, [[0.3, -0.4], [1.2]], strict=True):
        expect.close(
            "gradient", param.grad, torch.tensor(want), source=source, atol=1e-6, because=FLOAT32, step=1
        )
    norm = lesson.gradients.clip_grad_norm_(params, 0.6, norm_type=math.inf)
    expect.close(
        "returned norm", norm, 1.2, source="the largest |element|", atol=1e-6, because=FLOAT32, step=2
    )
    source = "a factor of 0.6 / 1.2"
    for param, want in zip(params, [[0.15, -0.2], [0.6]], strict=True):
        expect.close(
            "gradient", param.grad, torch.tensor(want), source=source, atol=1e-6, because=FLOAT32, step=2
        )


@pytest.mark.task("6.2")
@pytest.mark.parametrize("max_norm", [14.0, 1e6, math.inf])
def test_clip_leaves_a_small_gradient_alone(lesson, expect, max_norm):
    """Gradients (3, −4), (12) and a zero, norm 13, below max_norm."""
    params = with_grads([3.0, -4.0], [12.0], [0.0])
    norm = lesson.gradients.clip_grad_norm_(params, max_norm)
    expect.close("returned norm", norm, 13.0, source="√(3² + 4² + 12²)", atol=1e-5, because=FLOAT32)
    for param, want in zip(params, [[3.0, -4.0], [12.0], [0.0]], strict=True):
        source = "norm < max_norm: not a bit changes"
        expect.equal("gradient", param.grad, torch.tensor(want), source=source)


@pytest.mark.task("6.2")
def test_clip_takes_a_generator_and_passes_over_missing_gradients(lesson, expect):
    """A generator of three parameters with gradients 3, None, 4; max_norm = 1. Then only parameters without one."""
    params = with_grads([3.0], None, [4.0])
    norm = lesson.gradients.clip_grad_norm_((param for param in params), 1.0)
    expect.close("returned norm", norm, 5.0, source="√(3² + 4²)", atol=1e-5, because=FLOAT32)
    got = [None if param.grad is None else param.grad.item() for param in params]
    expect.close("gradients", got[::2], [0.6, 0.8], source="g / 5", atol=1e-6, because=FLOAT32)
    expect.equal("gradient of the second", got[1], None, source="a missing gradient stays missing")
    norm = lesson.gradients.clip_grad_norm_(with_grads(None, None), 1.0)
    expect.equal("norm of no gradient", norm, torch.tensor(0.0), source="a norm over nothing is 0")


# ------------------------------------------------------------------------------------------- 6.3 clip by the value


@pytest.mark.task("6.3")
def test_clip_value_cuts_each_element_by_itself(lesson, expect):
    """Gradients (3, 0.1, −5), None and (−inf, inf, −0.5); clip_value = 1."""
    params = with_grads([3.0, 0.1, -5.0], None, [-math.inf, math.inf, -0.5])
    lesson.gradients.clip_grad_value_((param for param in params), 1.0)
    source = "min(max(g, −1), 1) for each element"
    expect.equal("first gradient", params[0].grad, torch.tensor([1.0, 0.1, -1.0]), source=source)
    expect.equal("gradient of the second", params[1].grad, None, source="a missing gradient stays missing")
    expect.equal("third gradient", params[2].grad, torch.tensor([-1.0, 1.0, -0.5]), source=source)


# --------------------------------------------------------------------------------------------------- 6.4 the windows


@pytest.mark.task("6.4")
@pytest.mark.parametrize("accumulation_steps", [1, 2, 3, 4, 5, 12])
def test_windows_hold_every_micro_batch_once(lesson, expect, accumulation_steps):
    """Ten micro-batches, numbered from 0, from an iterable without a length."""
    loader = ({"number": torch.tensor(i)} for i in range(10))
    got = [
        [int(data["number"]) for data in w]
        for w in list(lesson.gradients.windows(loader, accumulation_steps))
    ]
    k = accumulation_steps
    want = [list(range(i, min(i + k, 10))) for i in range(0, 10, k)]
    expect.equal("windows", got, want, source=f"{k} in turn; the last window holds what is left")


# ------------------------------------------------------------------------------------------------ 6.5 the accumulation


@pytest.mark.task("6.5")
def test_accumulate_lets_every_token_weigh_the_same(lesson, expect, device):
    """logits all 0, V = 4; three tokens after the input 0, one after the input 1, none after the input 2."""
    window = [batch([[0, 0, 0]], [[1, 1, 1]]), batch([[1, 1]], [[1, -100]]), batch([[2, 2]], [[-100, -100]])]
    model = zero_table().to(device)
    loss_sum, num_tokens = lesson.gradients.accumulate(model, window, device)
    expect.equal("num_tokens", num_tokens, 4, source="3 + 1 + 0")
    want = torch.zeros(V, V)
    for row, count in [(0, 3), (1, 1)]:
        want[row] = count / 4 * (torch.full((V,), 0.25) - F.one_hot(torch.tensor(1), V))
    source = "Σ (softmax − one_hot) / 4: row 0 has 3 of the 4 tokens"
    expect.close("gradient", model.weight.grad.cpu(), want, source=source, atol=1e-6, because=FLOAT32)
    want = torch.tensor(4 * math.log(4))
    expect.close("loss_sum", loss_sum.detach().cpu(), want, source="4 · ln 4", atol=1e-5, because=FLOAT32)
    source = "a returned loss that holds its graph holds all activations of the window"
    expect.equal("loss_sum.requires_grad", loss_sum.requires_grad, False, source=source)


@pytest.mark.task("6.5")
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_accumulated_gradient_is_that_of_the_concatenated_batch(lesson, expect, rng, count):
    """A window of 1 to 5 micro-batches with 8, 1, 0, 5 and 3 targets, against one batch of them all."""
    model = TinyLM(rng)
    window = [micro_batch(rng, targets) for targets in (8, 1, 0, 5, 3)[:count]]
    loss = token_mean(model, concatenated(window))
    loss.backward()
    want = grads_of(model)
    model.zero_grad(set_to_none=True)
    loss_sum, num_tokens = lesson.gradients.accumulate(model, window)
    for name, grad in grads_of(model).items():
        source = "F.cross_entropy of the concatenated batch"
        expect.close(f"gradient of {name}", grad, want[name], source=source, atol=1e-5, because=FLOAT32)
    got, source = loss_sum / num_tokens, "F.cross_entropy of the concatenated batch"
    expect.close("loss_sum / num_tokens", got, loss.detach(), source=source, atol=1e-5, because=FLOAT32)


# --------------------------------------------------------------------------------------------------- 6.6 one update


@pytest.mark.task("6.6", "6.5")
def test_updates_are_those_of_the_concatenated_batches(lesson, expect, rng):
    """SGD, lr = 0.5; windows of 3, 3, 2, 1 micro-batches with unequal target counts, one after the other."""
    model = TinyLM(rng)
    trainer = make_trainer(lesson, model, lr=0.5, accumulation_steps=3)
    for step, counts in enumerate([(8, 1, 4), (2, 0, 7), (3, 8), (5,)], 1):
        window = [micro_batch(rng, targets) for targets in counts]
        before = weights(model)
        loss = token_mean(model, concatenated(window))
        grads = torch.autograd.grad(loss, list(model.parameters()))
        trainer.train_step(window)
        for (name, got), grad in zip(weights(model).items(), grads, strict=True):
            want, source = (
                before[name] - 0.5 * grad,
                "θ − lr · ∇ of the concatenated batch, of this window alone",
            )
            expect.close(name, got, want, source=source, atol=1e-5, because=FLOAT32, step=step)
        want = torch.stack([grad.norm() for grad in grads]).norm()
        source = "the norm of all gradients, also where max_grad_norm is None"
        expect.close(
            "trainer.grad_norm",
            trainer.grad_norm,
            float(want),
            source=source,
            atol=1e-5,
            because=FLOAT32,
            step=step,
        )
        expect.equal("global_step", trainer.global_step, step, source="one update a window", step=step)


@pytest.mark.task("6.6", "6.2")
@pytest.mark.parametrize(("max_grad_norm", "moved"), [(0.2, 0.1), (0.05, 0.05 / math.sqrt(2))])
def test_update_is_clipped_once_for_the_whole_window(lesson, expect, max_grad_norm, moved):
    """Logits all 0, V = 2, SGD with lr = 1: three tokens pull up by 0.3, then two pull down by 0.2."""
    model = zero_table(2)
    trainer = make_trainer(lesson, model, accumulation_steps=2, max_grad_norm=max_grad_norm)
    trainer.train_step([batch([[0, 0, 0]], [[0, 0, 0]]), batch([[0, 0]], [[1, 1]])])
    source = "‖(−0.3 + 0.2, 0.3 − 0.2)‖ = 0.1 · √2, before clipping"
    close = {"atol": 1e-5, "because": FLOAT32 + ", and 1e-6 in the divisor"}
    expect.close("trainer.grad_norm", trainer.grad_norm, 0.1 * math.sqrt(2), source=source, **close)
    want = torch.tensor([moved, -moved])
    source = f"−lr · gradient of the window, clipped to {max_grad_norm}"
    expect.close("row 0 of the table", model.weight.detach()[0], want, source=source, **close)


@pytest.mark.task("6.6")
def test_scheduler_moves_once_per_update(lesson, expect):
    """SGD with lr = 1, schedule ×1, ×0.1, ×0.01; three windows of four micro-batches on another row each."""
    model = zero_table()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 0.1**update)
    trainer = lesson.trainer.TrainerFromScratch(
        model, optimizer, [], scheduler=scheduler, accumulation_steps=4
    )
    for step, lr in enumerate([1.0, 0.1, 0.01], 1):
        trainer.train_step([batch([[step]], [[0]])] * 4)
        close = {"atol": 1e-6, "because": FLOAT32, "step": step}
        source = f"lr · (1 − softmax) = lr · ¾, with lr = {lr} at update {step - 1}"
        expect.close(
            "step of the table", float(model.weight.detach()[step, 0]), lr * 0.75, source=source, **close
        )
        expect.close("trainer.lr", trainer.lr, lr, source="the lr that the update used", **close)
        expect.equal("updates of the scheduler", scheduler.last_epoch, step, source="one a window", step=step)


@pytest.mark.task("6.6", "6.2")
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_update_with_a_gradient_that_is_not_finite_is_skipped(lesson, expect, rng, bad, max_grad_norm):
    """AdamW and a schedule; the middle one of three windows has an element of its gradient made NaN or inf."""
    model = TinyLM(rng)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 0.5**update)
    trainer = lesson.trainer.TrainerFromScratch(
        model, optimizer, [], scheduler=scheduler, accumulation_steps=2, max_grad_norm=max_grad_norm
    )
    window = [micro_batch(rng, 8), micro_batch(rng, 3)]
    trainer.train_step(window)
    before = weights(model)
    hook = model.head.bias.register_hook(lambda grad: grad.clone().index_fill_(0, torch.tensor([2]), bad))
    _, num_tokens = trainer.train_step(window)
    hook.remove()
    expect.equal("num_tokens", num_tokens, 11, source="8 + 3", step=2)
    for name, got in weights(model).items():
        expect.equal(name, got, before[name], source="a gradient that is not finite: no update", step=2)
    expect.equal("grad_norm", trainer.grad_norm, bad, source=f"a norm over a {bad} is {bad}", step=2)
    counts = {"skipped_steps": 1, "global_step": 1, "updates of AdamW": 1, "updates of the scheduler": 1}
    got = {
        "skipped_steps": trainer.skipped_steps,
        "global_step": trainer.global_step,
        "updates of AdamW": int(optimizer.state[model.head.bias]["step"]),
        "updates of the scheduler": scheduler.last_epoch,
    }
    expect.equal("counters", got, counts, source="one update, one skipped", step=2)
    trainer.train_step(window)
    finite = all(bool(value.isfinite().all()) for value in weights(model).values())
    expected = "finite: the gradients of the skipped update are dropped"
    expect.true("weights after a good window", finite, expected=expected, got="NaN or inf", step=3)
    expect.equal("global_step", trainer.global_step, 2, source="two updates so far", step=3)
    expect.equal("lr", trainer.lr, 0.05, source="0.1 · ½: the schedule stood still at the skip", step=3)


# --------------------------------------------------------------------------------------------------- 6.7 the epoch


@pytest.mark.task("6.7", "6.4", "6.6")
def test_epoch_trains_the_last_shorter_window_too(lesson, expect):
    """Logits all 0, V = 10, SGD with lr = 1; ten micro-batches of one token each on a row of its own; K = 4."""
    model = zero_table(10)
    loader = [batch([[i]], [[0]]) for i in range(10)]
    trainer = make_trainer(lesson, model, loader, accumulation_steps=4, log_interval=1)
    result = trainer.train_epoch()
    expect.equal("global_step", trainer.global_step, 3, source="windows of 4, 4 and 2")
    tokens = [row["tokens"] for row in trainer.history]
    expect.equal("tokens of the rows", tokens, [4, 4, 2], source="one token in each micro-batch")
    expect.equal("tokens of the epoch", result["tokens"], 10, source="each token once")
    want = torch.tensor([0.9 / 4] * 8 + [0.9 / 2] * 2)
    source = "(1 − softmax) / tokens of its window = 0.9/4, in the last window 0.9/2"
    got = model.weight.detach()[:, 0]
    expect.close("column 0 of the table", got, want, source=source, atol=1e-6, because=FLOAT32)


@pytest.mark.task("6.7", "6.6")
@pytest.mark.parametrize("accumulation_steps", [1, 2, 3, 5])
def test_logged_loss_is_the_token_mean_whatever_the_window(lesson, expect, accumulation_steps):
    """lr = 0; micro-batches of 3 | 1 1 1 | none | 2 2 | 4 bits; K = 1, 2, 3, 5; a row every 100 updates."""
    loader = [cost([3]), cost([1, 1, 1]), masked(), cost([2, 2]), cost([4])]
    trainer = make_trainer(
        lesson, bits_model(), loader, lr=0.0, accumulation_steps=accumulation_steps, log_interval=100
    )
    result = trainer.train_epoch()
    want, source = 14 / 7 * BIT, "14 bits / 7 tokens"
    expect.close("loss of the epoch", result["loss"], want, source=source, atol=1e-6, because=FLOAT32)
    expect.equal("rows", len(trainer.history), 1, source="one at the end of the epoch")
    row = trainer.history[-1]
    expect.close("train_loss", row["train_loss"], want, source=source, atol=1e-6, because=FLOAT32)
    expect.equal("tokens", row["tokens"], 7, source="labels that are not −100")
    updates = {1: 4, 2: 3, 3: 2, 5: 1}[accumulation_steps]
    expect.equal("global_step", row["global_step"], updates, source="windows that hold a target")
