"""Basic tests of lesson 07: mixed precision. Run: pytest testcases/basic_test.py"""

import math

import pytest
import torch
from torch import nn

V = 4
INF, NAN = math.inf, math.nan
FLOAT32 = "float32 rounding of a few operations"
LOW = [pytest.param(torch.float16, id="fp16"), pytest.param(torch.bfloat16, id="bf16")]


def parameter(*values):
    return nn.Parameter(torch.tensor(values))


def set_grads(scaler, params, grads):
    """What backward would leave: each gradient times the scale."""
    for param, grad in zip(params, grads, strict=True):
        param.grad = None if grad is None else torch.tensor(grad) * scaler.get_scale()


def run_updates(lesson, scaler, overflows):
    """The scale after each update of one parameter, whose gradient is inf where `overflows` says so."""
    param = parameter(1.0)
    optimizer = torch.optim.SGD([param], lr=0.1)
    for overflow in overflows:
        set_grads(scaler, [param], [[INF if overflow else 1.0]])
        scaler.step(optimizer)
        scaler.update()
        yield scaler.get_scale()


def batch(input_ids, labels):
    return {"input_ids": torch.tensor([input_ids]), "labels": torch.tensor([labels])}


class TinyLM(nn.Module):
    """Embedding → norm → linear head, which may share the embedding's weight."""

    def __init__(self, rng, tied=False, width=6, vocab=7):
        super().__init__()
        self.embedding = nn.Embedding(vocab, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab, bias=not tied)
        if tied:
            self.head.weight = self.embedding.weight
        with torch.no_grad():
            for param in self.parameters():
                param.copy_(torch.randn(param.shape, generator=rng))

    def forward(self, input_ids):
        return self.head(self.norm(self.embedding(input_ids)))


# -------------------------------------------------------------------------- 7.1 scale the loss, and back


@pytest.mark.task("7.1")
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"]
)
def test_scale_multiplies_the_loss_in_float32(lesson, expect, dtype):
    """A loss of 3 in the dtype, s = 65536, which is inf in float16; and its gradient, from a float32 leaf."""
    leaf = parameter(3.0)
    loss = leaf.sum().to(dtype)
    scaled = lesson.loss_scaler.LossScaler().scale(loss)
    expect.equal("scaled loss", scaled.detach(), torch.tensor(196608.0), source="3 · 65536, in float32")
    expect.equal(
        "loss", loss.detach(), torch.tensor(3.0, dtype=dtype), source="the loss itself stays as it was"
    )
    if dtype == torch.float32:
        scaled.backward()
        expect.equal("gradient", leaf.grad, torch.tensor([65536.0]), source="d (s · loss) / d loss = s")


@pytest.mark.task("7.1")
def test_unscale_divides_every_gradient_once(lesson, expect):
    """Two groups, three parameters of which one has no gradient, s = 1024; then unscale_ a second time."""
    params = [parameter(1.0, 2.0), parameter(3.0), parameter(4.0)]
    optimizer = torch.optim.SGD([{"params": params[:2]}, {"params": params[2:], "lr": 1.0}], lr=0.1)
    scaler = lesson.loss_scaler.LossScaler(init_scale=1024.0)
    set_grads(scaler, params, [[0.5, -3.0], None, [7.0]])
    want = [torch.tensor([0.5, -3.0]), None, torch.tensor([7.0])]
    scaler.unscale_(optimizer)
    expect.equal("gradients", [p.grad for p in params], want, source="g · s / s", step=1)
    with expect.raises(RuntimeError, source="a second division by s would make the gradients too small"):
        scaler.unscale_(optimizer)
    expect.equal("gradients", [p.grad for p in params], want, source="refused, so unchanged", step=2)
    expect.equal("scale", scaler.get_scale(), 1024.0, source="only update() moves it")


@pytest.mark.task("7.1", "7.6")
@pytest.mark.parametrize("scale", [None, 65536.0], ids=["s = 1", "s = 65536"])
def test_small_gradients_survive_in_float16_with_the_scale(lesson, expect, scale):
    """A float16 layer; gradients of 2^-10, 2^-24, 2^-26, 2^-30. Half of float16's smallest number rounds to 0."""
    true = torch.tensor([2.0**-10, 2.0**-24, 2.0**-26, 2.0**-30])
    layer = nn.Linear(4, 1, bias=False)
    masters = lesson.precision.MasterWeights(layer, torch.float16)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    masters.attach(optimizer)
    scaler = lesson.loss_scaler.LossScaler(init_scale=scale or 1.0)
    scaler.scale((layer.weight.float() * true).sum()).backward()
    masters.copy_grads_to_masters()
    scaler.unscale_(optimizer)
    want = true if scale else torch.tensor([2.0**-10, 2.0**-24, 0.0, 0.0])
    source = (
        "s · g is above 2^-24, so nothing is lost" if scale else "float16 has nothing between 0 and 2^-24"
    )
    got = optimizer.param_groups[0]["params"][0].grad[0]
    expect.equal("gradient of the master", got, want, source=source)


# ------------------------------------------------------------------------------------------ 7.2 the step


@pytest.mark.task("7.2")
@pytest.mark.parametrize("how", ["step alone", "unscale_ first", "unscale_ and clip"])
def test_step_uses_gradients_of_their_true_size(lesson, expect, how):
    """θ = (1, 2), g = (3, 4), lr = 0.5, s = 65536; with clipping, to a norm of 1."""
    param = parameter(1.0, 2.0)
    optimizer = torch.optim.SGD([param], lr=0.5)
    scaler = lesson.loss_scaler.LossScaler()
    set_grads(scaler, [param], [[3.0, 4.0]])
    if how != "step alone":
        scaler.unscale_(optimizer)
    if how == "unscale_ and clip":
        nn.utils.clip_grad_norm_([param], 1.0)
    updated = scaler.step(optimizer)
    expect.equal("step(…)", updated, True, source="the weights were updated")
    want = torch.tensor([0.7, 1.6]) if how == "unscale_ and clip" else torch.tensor([-0.5, 0.0])
    source = "θ − lr · g / ‖g‖, ‖g‖ = 5" if how == "unscale_ and clip" else "θ − lr · g"
    because = "torch's clipping adds 1e-6 to the norm"
    expect.close("theta", param.detach(), want, source=source, atol=1e-6, because=because)


@pytest.mark.task("7.2")
@pytest.mark.parametrize("value", [INF, -INF, NAN], ids=["inf", "-inf", "nan"])
@pytest.mark.parametrize("where", [0, 1, 2], ids=["first", "middle", "last"])
def test_step_is_left_out_where_one_gradient_is_not_finite(lesson, expect, value, where):
    """Three parameters in two groups, AdamW. An ordinary update; then one element of one gradient is inf or NaN."""
    params = [parameter(1.0, 2.0), parameter(3.0, 4.0), parameter(5.0, 6.0)]
    optimizer = torch.optim.AdamW([{"params": params[:1]}, {"params": params[1:]}], lr=0.1)
    scaler = lesson.loss_scaler.LossScaler(init_scale=8.0)

    def everything():
        return [(p.detach().clone(), {k: t.clone() for k, t in optimizer.state[p].items()}) for p in params]

    set_grads(scaler, params, [[1.0, 1.0]] * 3)
    expect.equal("step(…)", scaler.step(optimizer), True, source="all gradients are finite", step=1)
    scaler.update()
    before = everything()
    grads = [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]
    grads[where][1] = value
    set_grads(scaler, params, grads)
    expect.equal("step(…)", scaler.step(optimizer), False, source="the step is left out", step=2)
    source = "weights, moments and step counts are those of update 1"
    expect.equal("parameters and state", everything(), before, source=source, step=2)


# ----------------------------------------------------------------------------------- 7.3 the scale moves


@pytest.mark.task("7.3", "7.2")
@pytest.mark.parametrize(
    ("interval", "pattern", "want"),
    [
        (2, "ooxoo", [8, 16, 8, 8, 16]),
        (2, "oxoo", [8, 4, 4, 8]),
        (3, "oooooo", [8, 8, 16, 16, 16, 32]),
        (1, "oxo", [16, 8, 16]),
        (2, "xxx", [4, 2, 1]),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_update_grows_and_backs_off(lesson, expect, interval, pattern, want):
    """s = 8, factors 2 and 1/2; o is an update with finite gradients, x one with an inf."""
    scaler = lesson.loss_scaler.LossScaler(init_scale=8.0, growth_interval=interval)
    overflows = [mark == "x" for mark in pattern]
    for step, scale in enumerate(run_updates(lesson, scaler, overflows), 1):
        source = f"{pattern[:step]}: · 2 after {interval} o in a row, · 1/2 at each x"
        expect.equal("scale", scale, float(want[step - 1]), source=source, step=step)


@pytest.mark.task("7.3", "7.2")
def test_two_optimizers_share_one_scale_but_skip_each_for_itself(lesson, expect):
    """s = 8; three updates of two optimizers. In the second, one of them has an inf; then both of them."""
    params = [parameter(1.0), parameter(1.0)]
    optimizers = [torch.optim.SGD([param], lr=0.5) for param in params]
    scaler = lesson.loss_scaler.LossScaler(init_scale=8.0)
    theta = [1.0, 1.0]
    for step, (grads, scale) in enumerate([((1.0, 1.0), 8.0), ((INF, 1.0), 4.0), ((INF, INF), 2.0)], 1):
        set_grads(scaler, params, [[grad] for grad in grads])
        for i in range(2):
            fine = grads[i] == 1.0
            updated = scaler.step(optimizers[i])
            theta[i] -= 0.5 if fine else 0.0
            expect.equal(f"step(optimizer {i})", updated, fine, source="its own gradients decide", step=step)
            got, source = params[i].detach(), "θ − lr · g, or left out"
            expect.equal(f"theta {i}", got, torch.tensor([theta[i]]), source=source, step=step)
        scaler.update()
        source = "one update(), one factor, however many overflowed"
        expect.equal("scale", scaler.get_scale(), scale, source=source, step=step)


# ------------------------------------------------------------------------------------- 7.4 save and load


@pytest.mark.task("7.4")
def test_scaler_goes_on_from_its_state(lesson, expect):
    """growth_interval = 3, two updates without overflow after one with: saved, loaded, and one update more."""
    scaler = lesson.loss_scaler.LossScaler(init_scale=64.0, growth_factor=4.0, growth_interval=3)
    list(run_updates(lesson, scaler, [True, False, False]))
    state = scaler.state_dict()
    want = {
        "scale": 32.0,
        "growth_factor": 4.0,
        "backoff_factor": 0.5,
        "growth_interval": 3,
        "_growth_tracker": 2,
    }
    expect.equal("state_dict()", state, want, source="64 · ½, then two of three updates", step=3)
    fresh = lesson.loss_scaler.LossScaler()
    fresh.load_state_dict(state)
    expect.equal("scale", fresh.get_scale(), 32.0, source="the scale that was saved", step=3)
    got = list(run_updates(lesson, fresh, [False]))
    expect.equal("scale", got, [128.0], source="the third update in a row: 32 · 4", step=4)


# --------------------------------------------------------------------------------------- 7.5 the masters


@pytest.mark.task("7.5")
@pytest.mark.parametrize("dtype", LOW)
def test_masters_keep_the_digits_that_the_model_loses(lesson, expect, rng, dtype):
    """Embedding → LayerNorm → linear with random float32 weights, of which one is frozen."""
    model = TinyLM(rng)
    model.head.bias.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)  # a gradient of the old dtype
    params = dict(model.named_parameters())
    true = {name: param.detach().clone() for name, param in params.items()}
    masters = lesson.precision.MasterWeights(model, dtype).masters
    expect.equal("names", list(masters), list(true), source="model.named_parameters()")
    for name, param in model.named_parameters():
        norm = name.startswith("norm.")
        expect.equal(f"master of {name}", masters[name].detach(), true[name], source="the float32 weights")
        want = true[name] if norm else true[name].to(dtype)
        source = "a norm stays in float32" if norm else f"the float32 weights, rounded to {dtype}"
        expect.equal(f"{name} of the model", param.detach(), want, source=source)
        expect.equal(f"{name} is its own master", masters[name] is param, norm, source="only in the norm")
        expect.equal(f"{name} is the same object", param is params[name], True, source="ties and hooks hold")
        expect.equal(f"{name}.grad", param.grad, None, source="no gradient of another dtype is left")
        got = (masters[name].is_leaf, masters[name].requires_grad)
        source = "a leaf; requires a gradient where the parameter does"
        expect.equal(
            f"master of {name} is_leaf, requires_grad", got, (True, name != "head.bias"), source=source
        )


@pytest.mark.task("7.5", "7.6")
@pytest.mark.parametrize("dtype", LOW)
def test_tied_weights_have_one_master_and_stay_tied(lesson, expect, rng, dtype):
    """The head's weight is the embedding's; an optimizer step on the masters, by SGD with gradients of 1, lr 1."""
    model = TinyLM(rng, tied=True)
    true = model.embedding.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    masters = lesson.precision.MasterWeights(model, dtype)
    masters.attach(optimizer)
    expect.equal("masters", len(masters.masters), 3, source="the shared weight once, and two of the norm")
    owned = optimizer.param_groups[0]["params"]
    same = [owned[i] is master for i, master in enumerate(masters.masters.values())]
    expect.equal("the optimizer owns the masters", same, [True] * 3, source="attach()")
    model.embedding.weight.grad = torch.ones(7, 6, dtype=dtype)
    masters.copy_grads_to_masters()
    optimizer.step()
    masters.copy_masters_to_model()
    tied = model.head.weight is model.embedding.weight
    expect.equal("head.weight is embedding.weight", tied, True, source="tied before, tied after")
    source = "round(W − lr · g)"
    expect.equal("head.weight", model.head.weight.detach(), (true - 1.0).to(dtype), source=source)


@pytest.mark.task("7.5")
@pytest.mark.parametrize("dtype", LOW)
def test_attached_optimizer_keeps_groups_state_and_float32_moments(lesson, expect, rng, dtype):
    """AdamW with two groups and one float32 update behind it; attached twice; its state_dict loaded again."""
    model = TinyLM(rng)
    names = [name for name, _ in model.named_parameters()]
    params = list(model.parameters())
    groups = [{"params": params[::2], "weight_decay": 0.5}, {"params": params[1::2], "lr": 0.25}]
    optimizer = torch.optim.AdamW(groups, lr=0.125)
    for param in params:
        param.grad = torch.randn(param.shape, generator=rng)
    optimizer.step()
    moments = [optimizer.state[param]["exp_avg"].clone() for param in params]
    masters = lesson.precision.MasterWeights(model, dtype)
    for call in (1, 2):
        masters.attach(optimizer)
        for g, want in enumerate([names[::2], names[1::2]]):
            owned = [
                [n for n, m in masters.masters.items() if m is p] for p in optimizer.param_groups[g]["params"]
            ]
            expect.equal(
                f"group {g} owns", owned, [[n] for n in want], source="the masters, in order", step=call
            )
        options = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
        expect.equal("lr, weight_decay", options, [(0.125, 0.5), (0.25, 0.01)], source="as before", step=call)
    source = "the state moves along, and stays float32: its owner is"
    for step in (3, 4):
        for name, want in zip(names, moments, strict=True):
            got = optimizer.state[masters.masters[name]].get("exp_avg")
            expect.equal(f"exp_avg of {name}", got, want, source=source, step=step)
        optimizer.load_state_dict(optimizer.state_dict())


# --------------------------------------------------------------------------------------- 7.6 up and down


@pytest.mark.task("7.6")
def test_gradients_add_up_in_float32(lesson, expect, device):
    """A float16 layer, gradients 2048, 1, none, 1: in float16, 2048 + 1 is 2048."""
    layer = nn.Linear(2, 1, bias=False).to(device)
    masters = lesson.precision.MasterWeights(layer, torch.float16)
    master = masters.masters["weight"]
    for step, (grad, want) in enumerate([(2048.0, 2048.0), (1.0, 2049.0), (None, 2049.0), (1.0, 2050.0)], 1):
        if grad is not None:
            layer.weight.grad = torch.full((1, 2), grad, dtype=torch.float16, device=device)
        masters.copy_grads_to_masters()
        source = "G + float32(g)"
        expect.equal(
            "gradient of the master", master.grad, torch.full((1, 2), want), source=source, step=step
        )
        source = "moved, not copied: the next backward adds to what is there"
        expect.equal("gradient of the model", layer.weight.grad, None, source=source, step=step)


@pytest.mark.task("7.6", "7.5")
@pytest.mark.parametrize("dtype", LOW)
def test_small_updates_reach_the_model(lesson, expect, dtype):
    """A weight of 1, and 16 updates of −2^-12 each, too small for a weight in low precision; then load 3.14159."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.ones_(layer.weight)
    optimizer = torch.optim.SGD(layer.parameters(), lr=2.0**-12)
    masters = lesson.precision.MasterWeights(layer, dtype)
    masters.attach(optimizer)
    weight = layer.weight
    for step in range(1, 17):
        layer.weight.grad = torch.ones(1, 1, dtype=dtype)
        masters.copy_grads_to_masters()
        optimizer.step()
        optimizer.zero_grad()
        masters.copy_masters_to_model()
        want = torch.tensor([[1 - step * 2.0**-12]])
        got = masters.state_dict()["weight"]
        expect.equal("master", got, want, source=f"1 − {step} · 2^-12, exact in float32", step=step)
        expect.equal("weight", layer.weight.detach(), want.to(dtype), source="round(W)", step=step)
    masters.load_state_dict({"weight": torch.tensor([[3.14159]])})
    want = torch.tensor([[3.14159]])
    expect.equal("master", masters.state_dict()["weight"], want, source="what was loaded", step=17)
    expect.equal(
        "weight", layer.weight.detach(), want.to(dtype), source="round(W), also after loading", step=17
    )
    expect.equal("the same object", layer.weight is weight, True, source="copied in place")


# --------------------------------------------------------------------------------------- 7.7 the trainer


@pytest.mark.task("7.7")
@pytest.mark.parametrize("max_grad_norm", [None, 0.125], ids=["no clipping", "clipped"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_training_clips_gradients_of_their_true_size(lesson, expect, precision, max_grad_norm):
    """logits = table[input], a table of 0; two micro-batches of one token each make one update by SGD, lr = 1."""
    model = nn.Embedding.from_pretrained(torch.zeros(V, V), freeze=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scaler = lesson.loss_scaler.LossScaler(init_scale=1024.0)
    trainer = lesson.trainer.TrainerFromScratch(
        model, optimizer, [], precision=precision, scaler=scaler, max_grad_norm=max_grad_norm
    )
    loss_sum, num_tokens = trainer.train_step([batch([0], [1]), batch([1], [2])])
    expect.equal("num_tokens", num_tokens, 2, source="two labels")
    close = {"atol": 1e-3, "because": "the model is in low precision"}
    want = torch.tensor(2 * math.log(V))
    expect.close("loss_sum", loss_sum, want, source="2 · ln 4, without the scale", **close)
    grad = torch.zeros(V, V)
    grad[:2] = 0.125
    grad[0, 1] = grad[1, 2] = -0.375
    norm = float(grad.norm())
    source = "‖(softmax − one_hot) / 2‖ over both micro-batches, without the scale"
    expect.close("grad_norm", trainer.grad_norm, norm, source=source, **close)
    factor = 1.0 if max_grad_norm is None else max_grad_norm / norm
    source = "−lr · g, and with clipping −lr · g · max_grad_norm / ‖g‖"
    table = model.weight.detach().float()
    expect.close("table", table, -factor * grad, source=source, **close)
    expect.equal(
        "gradients left", [p.grad for p in trainer.params], [None], source="cleared for the next window"
    )
    expect.equal("global_step", trainer.global_step, 1, source="one update")


@pytest.mark.task("7.7")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_update_left_out_moves_nothing_but_the_scale(lesson, expect, rng, precision):
    """AdamW, a schedule, s = 1024; token 6 has an infinite embedding, and is in the second of three windows."""
    model = TinyLM(rng)
    with torch.no_grad():
        model.embedding.weight[6] = INF
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 0.5**update)
    scaler = lesson.loss_scaler.LossScaler(init_scale=1024.0)
    trainer = lesson.trainer.TrainerFromScratch(
        model, optimizer, [], scheduler=scheduler, precision=precision, scaler=scaler
    )
    window = [batch([0, 1, 2], [1, 2, 3]), batch([3, 4], [4, 5])]
    trainer.train_step(window)
    before = [param.detach().clone() for param in (*model.parameters(), *trainer.params)]
    moments = [optimizer.state[param]["exp_avg"].clone() for param in trainer.params]
    trainer.train_step([window[0], batch([3, 6], [4, 5])])
    after = [param.detach() for param in (*model.parameters(), *trainer.params)]
    expect.equal("weights and masters", after, before, source="left out", step=2)
    got = [optimizer.state[param]["exp_avg"] for param in trainer.params]
    expect.equal("exp_avg", got, moments, source="left out", step=2)
    counts = (trainer.global_step, trainer.skipped_steps)
    expect.equal("global_step, skipped_steps", counts, (1, 1), source="one made, one left out", step=2)
    rates = (trainer.lr, optimizer.param_groups[0]["lr"])
    expect.equal("lr used, lr next", rates, (0.1, 0.05), source="the schedule stood still", step=2)
    expect.equal("scale", scaler.get_scale(), 512.0, source="1024 · ½, once for the window", step=2)
    left = [p.grad for p in (*model.parameters(), *trainer.params)]
    expect.equal("gradients left", left, [None] * len(left), source="dropped", step=2)
    trainer.train_step(window)
    counts = (trainer.global_step, trainer.skipped_steps)
    expect.equal("global_step, skipped_steps", counts, (2, 1), source="two made, one left out", step=3)
    expect.equal("lr used", trainer.lr, 0.05, source="0.1 · ½ at the second update", step=3)
    finite = all(
        bool(p.isfinite().all()) for name, p in model.named_parameters() if name != "embedding.weight"
    )
    expect.equal("the other weights are finite", finite, True, source="nothing of window 2 is left", step=3)
