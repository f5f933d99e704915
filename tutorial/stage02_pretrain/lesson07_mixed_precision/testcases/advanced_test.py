"""Advanced tests of lesson 07: mixed precision. Run: pytest testcases/advanced_test.py"""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

V = 7
INF, NAN = math.inf, math.nan
TORCH = 'torch.amp.GradScaler("cpu")'
LOW = [pytest.param(torch.float16, id="fp16"), pytest.param(torch.bfloat16, id="bf16")]
# of 35 updates: at the start, one growth interval of 3 apart, one less than that, many in a row, at the end
OVERFLOWS = {1, 2, 3, 7, 10, 13, 14, 20, 21, 22, 23, 24, 27, 29, 34, 35}


class RMSNorm(nn.Module):
    """A norm of one's own, which remembers what dtype it was given."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.seen = []

    def forward(self, x):
        self.seen.append(x.dtype)
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)


class TinyLM(nn.Module):
    """Embedding → norm → linear → gelu → linear, with weights from the test's generator."""

    def __init__(self, rng, width=8):
        super().__init__()
        self.embedding = nn.Embedding(V, width)
        self.norm = RMSNorm(width)
        self.hidden = nn.Linear(width, width)
        self.head = nn.Linear(width, V)
        with torch.no_grad():
            for param in self.parameters():
                param.copy_(0.5 * torch.randn(param.shape, generator=rng))

    def forward(self, input_ids):
        return self.head(F.gelu(self.hidden(self.norm(self.embedding(input_ids)))))


def random_batches(rng, count, rows=2, length=4):
    """Batches in which some labels are −100, so that token counts differ."""
    batches = []
    for _ in range(count):
        ids = torch.randint(V, (rows, length + 1), generator=rng)
        hidden = torch.rand(rows, length, generator=rng) < 0.3
        hidden[0, 0] = False
        batches.append({"input_ids": ids[:, :-1], "labels": ids[:, 1:].masked_fill(hidden, -100)})
    return batches


def weights(params):
    return [param.detach().clone() for param in params]


def make_optimizer(kind, params):
    if kind == "sgd":
        return torch.optim.SGD(params, lr=0.1, momentum=0.9)
    return torch.optim.AdamW(params, lr=0.01, weight_decay=0.1)


# ---------------------------------------------------------------------- 7.1 – 7.4 the scaler and torch's


@pytest.mark.task("7.1", "7.2", "7.3")
@pytest.mark.parametrize(
    ("kind", "clip"), [("sgd", False), ("adamw", True)], ids=["sgd-step", "adamw-unscale_ and clip"]
)
def test_scaler_follows_torch_over_35_updates(lesson, expect, rng, device, kind, clip):
    """Two parameters, growth_interval = 3, losses of random inputs; at 16 of 35 updates a gradient is inf or NaN."""
    start = [torch.randn(3, generator=rng).to(device), torch.randn(2, 2, generator=rng).to(device)]
    options = {"init_scale": 2.0**10, "growth_interval": 3}
    runs = []
    for scaler in (lesson.loss_scaler.LossScaler(**options), torch.amp.GradScaler(device.type, **options)):
        params = [nn.Parameter(tensor.clone()) for tensor in start]
        runs.append((scaler, params, make_optimizer(kind, params)))
    for step in range(1, 36):
        x = torch.randn(7, generator=rng).to(device)
        for scaler, params, optimizer in runs:
            loss = ((params[0] * x[:3]).sum() - x[3]).square() + (params[1] * x[3:].view(2, 2)).sum()
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            if step in OVERFLOWS:
                params[step % 2].grad.view(-1)[-1] = INF if step % 3 else NAN
            if clip:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(params, 0.5)
            updated = scaler.step(optimizer)
            scaler.update()
            if scaler is runs[0][0]:
                want = step not in OVERFLOWS
                expect.equal("step(…)", updated, want, source="False where an inf was injected", step=step)
        scale = runs[1][0].get_scale()
        expect.equal("scale", runs[0][0].get_scale(), scale, source=TORCH, step=step)
        expect.equal("weights", weights(runs[0][1]), weights(runs[1][1]), source=TORCH, step=step)
    state = [[dict(run[2].state[param]) for param in run[1]] for run in runs]
    expect.equal("state of the optimizer", state[0], state[1], source=TORCH, step=35)


@pytest.mark.task("7.1", "7.2", "7.3")
def test_two_optimizers_follow_torch(lesson, expect, rng):
    """One scaler, SGD at every update and AdamW at every second; each overflows at times of its own; 40 updates."""
    start = [torch.randn(3, generator=rng) for _ in range(2)]
    options = {"init_scale": 2.0**8, "growth_interval": 5}
    runs = []
    for scaler in (lesson.loss_scaler.LossScaler(**options), torch.amp.GradScaler("cpu", **options)):
        params = [nn.Parameter(tensor.clone()) for tensor in start]
        runs.append(
            (scaler, params, [make_optimizer("sgd", params[:1]), make_optimizer("adamw", params[1:])])
        )
    for step in range(1, 41):
        grads = torch.randn(2, 3, generator=rng)
        if step % 13 == 0:
            grads[0, 1] = INF
        if step % 8 == 0:
            grads[1, 2] = NAN
        used = [0, 1] if step % 2 == 0 else [0]
        for scaler, params, optimizers in runs:
            scaler.scale(torch.zeros(()))  # torch's needs to have seen a loss
            for i in used:
                params[i].grad = grads[i] * scaler.get_scale()
            for i in used:
                if i == 0:
                    scaler.unscale_(optimizers[i])
                scaler.step(optimizers[i])
            scaler.update()
        expect.equal("scale", runs[0][0].get_scale(), runs[1][0].get_scale(), source=TORCH, step=step)
        expect.equal("weights", weights(runs[0][1]), weights(runs[1][1]), source=TORCH, step=step)


def run_one(scaler, overflows):
    """The scale after each update of one parameter on the CPU."""
    param = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([param], lr=0.1)
    for overflow in overflows:
        scaler.scale(torch.zeros(()))
        param.grad = torch.full((2,), INF if overflow else 1.0)
        scaler.step(optimizer)
        scaler.update()
        yield scaler.get_scale()


@pytest.mark.task("7.4", "7.3")
@pytest.mark.parametrize("way", ["ours to torch", "torch to ours", "ours to ours"])
def test_state_of_the_scaler_travels_to_torch_and_back(lesson, expect, way):
    """growth_interval = 4, an overflow and two updates without; then ten more, by another scaler with other options."""
    ours, torchs = lesson.loss_scaler.LossScaler, lambda **options: torch.amp.GradScaler("cpu", **options)
    source, target = {
        "ours to torch": (ours, torchs),
        "torch to ours": (torchs, ours),
        "ours to ours": (ours, ours),
    }[way]
    options = {"init_scale": 2.0**20, "growth_factor": 4.0, "backoff_factor": 0.25, "growth_interval": 4}
    first = source(**options)
    list(run_one(first, [True, False, False]))
    second = target(init_scale=2.0)
    second.load_state_dict(first.state_dict())
    later = [False, False, False, False, False, True, True, False, False, False]
    reference = torch.amp.GradScaler("cpu", **options)
    want = list(run_one(reference, [True, False, False, *later]))[3:]
    for step, (got, scale) in enumerate(zip(run_one(second, later), want, strict=True), 4):
        expect.equal("scale", got, scale, source=f"{TORCH}, without a break", step=step)
    expect.equal("state_dict()", second.state_dict(), reference.state_dict(), source=TORCH, step=13)


@pytest.mark.task("7.3")
@pytest.mark.parametrize(
    ("options", "overflows"),
    [
        ({"init_scale": 2.0**126, "growth_interval": 1}, [False] * 4 + [True]),
        ({"init_scale": 3.0, "growth_factor": 1.7, "growth_interval": 1}, [False, True, False] * 10),
    ],
    ids=["up to the end of float32", "a factor of 1.7"],
)
def test_scale_is_a_float32_number_that_never_becomes_inf(lesson, expect, options, overflows):
    """Growth at 2^127, where the next power of two is inf; and growth by 1.7."""
    got = run_one(lesson.loss_scaler.LossScaler(**options), overflows)
    want = run_one(torch.amp.GradScaler("cpu", **options), overflows)
    for step, (scale, wanted) in enumerate(zip(got, want, strict=True), 1):
        because = "rounding of a factor that is no power of two"
        close = {"rtol": 1e-5, "atol": 0.0, "because": because, "step": step}
        expect.close("scale", scale, wanted, source=TORCH, **close)


@pytest.mark.task("7.3")
def test_scale_never_becomes_zero(lesson, expect):
    """12 overflows in a row from 2^-140; the smallest float32 is 2^-149."""
    scaler = lesson.loss_scaler.LossScaler(init_scale=2.0**-140)
    for step, scale in enumerate(run_one(scaler, [True] * 12), 1):
        want = 2.0 ** max(-140 - step, -149)
        source = "halved, but for 0 there is no 1 / s"
        expect.equal("scale", scale, want, source=source, step=step)


@pytest.mark.task("7.1", "7.2", "7.3")
@pytest.mark.parametrize("order", ["unscale_ unscale_", "step unscale_", "step step", "unscale_ step step"])
def test_calls_in_the_wrong_order_are_refused(lesson, expect, order):
    """θ = 1, g = 1, lr = 0.5, s = 8; the last call is one too many; then update(), and a window in the right order."""
    param = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([param], lr=0.5)
    scaler = lesson.loss_scaler.LossScaler(init_scale=8.0)
    calls = [getattr(scaler, name) for name in order.split()]
    param.grad = torch.full((1,), 8.0)
    for call in calls[:-1]:
        call(optimizer)
    with expect.raises(RuntimeError, source="once for each update()"):
        calls[-1](optimizer)
    stepped = "step" in order.split()[:-1]
    got, want = param.detach().clone(), torch.tensor([0.5 if stepped else 1.0])
    expect.equal("theta", got, want, source="the call too many did nothing", step=1)
    scaler.update()
    param.grad = torch.full((1,), 8.0)
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    expect.equal(
        "theta", param.detach(), got - 0.5, source="θ − lr · g: update() opens the next window", step=2
    )


@pytest.mark.task("7.1", "7.2")
@pytest.mark.parametrize("first", [True, False], ids=["inf on the device", "inf on the cpu"])
def test_inf_is_found_on_every_device(lesson, expect, device, first):
    """One optimizer with a parameter on the device and one on the CPU; one of the two has an inf."""
    params = [nn.Parameter(torch.ones(2, device=device)), nn.Parameter(torch.ones(2))]
    optimizer = torch.optim.SGD(params, lr=1.0)
    scaler = lesson.loss_scaler.LossScaler(init_scale=8.0)
    scaler.scale(torch.zeros((), device=device))
    for i, param in enumerate(params):
        param.grad = torch.full_like(param, INF if (i == 0) is first else 8.0)
    scaler.unscale_(optimizer)
    finite = params[1 if first else 0].grad
    expect.equal("the other gradient", finite, torch.ones(2), source="g · s / s")
    expect.equal("step(…)", scaler.step(optimizer), False, source="an inf anywhere leaves out the whole step")
    expect.equal("parameters", weights(params), [torch.ones(2)] * 2, source="left out")


@pytest.mark.task("7.1", "7.4")
def test_disabled_scaler_lets_everything_pass_and_float16_owners_are_refused(lesson, expect):
    """enabled=False: a loss, a step with an inf, a state. Enabled: an optimizer that owns float16 weights."""
    param = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([param], lr=1.0)
    off = lesson.loss_scaler.LossScaler(enabled=False)
    loss = param.sum()
    expect.equal("scale(loss) is loss", off.scale(loss) is loss, True, source="enabled=False")
    expect.equal("get_scale()", off.get_scale(), 1.0, source="enabled=False")
    param.grad = torch.tensor([INF, 1.0])
    off.unscale_(optimizer)
    expect.equal("step(…)", off.step(optimizer), True, source="enabled=False: the optimizer stepped")
    expect.equal("theta", param.detach(), torch.tensor([-INF, 0.0]), source="θ − lr · g, inf or not")
    off.update()
    expect.equal("state_dict()", off.state_dict(), {}, source="enabled=False: nothing to remember")
    on = lesson.loss_scaler.LossScaler()
    off.load_state_dict(on.state_dict())
    expect.equal("get_scale()", off.get_scale(), 1.0, source="enabled=False: loading does nothing")
    with expect.raises(RuntimeError, source="an empty state comes from a disabled scaler"):
        on.load_state_dict({})
    half = nn.Parameter(torch.ones(2, dtype=torch.float16))
    half.grad = torch.ones_like(half)
    with expect.raises(ValueError, match="float16", source="g / s would vanish again in float16"):
        on.unscale_(torch.optim.SGD([half], lr=1.0))


# -------------------------------------------------------------------------------------- 7.5, 7.6 masters


@pytest.mark.task("7.5")
@pytest.mark.parametrize("dtype", LOW)
def test_norms_compute_in_float32_and_the_rest_does_not(lesson, expect, rng, dtype):
    """A model with a norm of one's own and a buffer; inputs of the norm have a size of 300, whose square overflows."""
    model = TinyLM(rng)
    model.register_buffer("table", torch.ones(3))
    with torch.no_grad():
        model.embedding.weight.mul_(600)
    ids = torch.randint(V, (2, 4), generator=rng)
    true = model(ids).detach()
    model.norm.seen.clear()
    hidden = []
    model.hidden.register_forward_pre_hook(lambda module, args: hidden.append(args[0].dtype))
    lesson.precision.MasterWeights(model, dtype)
    logits = model(ids).detach()
    expect.equal("dtype into the norm", str(model.norm.seen[0]), "torch.float32", source="keep_fp32")
    expect.equal("dtype into the layer after it", str(hidden[0]), str(dtype), source="cast back")
    expect.equal("dtype of the logits", str(logits.dtype), str(dtype), source="the model is in low precision")
    expect.equal("dtype of the buffer", str(model.table.dtype), str(dtype), source="buffers are cast, too")
    because = "four layers in low precision: 11 bits for float16, 8 for bfloat16"
    atol = 0.02 if dtype == torch.float16 else 0.2
    expect.close("logits", logits.float(), true, source="the float32 model", atol=atol, because=because)


@pytest.mark.task("7.5", "7.6")
def test_optimizer_of_a_part_of_the_model_keeps_its_part(lesson, expect, rng):
    """Only the head is in the optimizer, the embedding is frozen; three updates in float16 with SGD."""
    model = TinyLM(rng)
    model.embedding.weight.requires_grad_(False)
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
    trainer = lesson.trainer.TrainerFromScratch(model, optimizer, [], precision="fp16")
    masters = trainer.masters.masters
    owned = [[n for n, m in masters.items() if m is p] for p in trainer.params]
    expect.equal("owned", owned, [["head.weight"], ["head.bias"]], source="the part that it was built on")
    for step, data in enumerate(random_batches(rng, 3), 1):
        trainer.train_step([data])
        for name, old in before.items():
            moved = not torch.equal(masters[name].detach(), old)
            want = name.startswith("head.")
            expect.equal(f"master of {name} moved", moved, want, source="only the head is trained", step=step)
            source = "round(W)"
            got = dict(model.named_parameters())[name].detach()
            expect.equal(name, got, masters[name].detach().to(got.dtype), source=source, step=step)
    expect.equal("gradient of the frozen weight", model.embedding.weight.grad, None, source="frozen")


@pytest.mark.task("7.5", "7.6", "7.7")
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_memory_that_is_measured(lesson, expect, rng, precision):
    """SGD with momentum after one update, gradients carried up: the bytes in float32, and in low precision."""
    counted = {}
    numbers = sum(param.numel() for param in TinyLM(rng).parameters())
    data = random_batches(rng, 1, rows=16)[0]
    for kind in ("fp32", precision):
        model = TinyLM(rng)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        trainer = lesson.trainer.TrainerFromScratch(model, optimizer, [], precision=kind)
        trainer.train_step([data])
        model(data["input_ids"]).float().sum().backward()
        if trainer.masters is not None:
            trainer.masters.copy_grads_to_masters()
        counted[kind] = lesson.precision.measure_bytes(
            model, optimizer, lambda m=model: m(data["input_ids"]).float().sum()
        )
    low = numbers - 8  # the norm's 8 weights stay in float32
    names = ("weights", "masters", "gradients", "moments")
    want = [4 * numbers, 0, 4 * numbers, 4 * numbers]
    expect.equal("bytes in fp32", [counted["fp32"][name] for name in names], want, source="4 a number")
    want = [2 * low + 4 * 8, 4 * low, 4 * numbers, 4 * numbers]
    source = (
        "weights 2 a number; masters, their gradients and their moments 4; the model's gradients are gone"
    )
    expect.equal(f"bytes in {precision}", [counted[precision][name] for name in names], want, source=source)
    smaller = counted[precision]["activations"] < counted["fp32"]["activations"]
    got = f"{counted[precision]['activations']} and {counted['fp32']['activations']}"
    expect.true("activations", smaller, expected="fewer bytes than in fp32", got=got)


# --------------------------------------------------------------------------------------- 7.7 the trainer


@pytest.mark.task("7.7")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_training_follows_a_hand_written_loop(lesson, expect, rng, device, precision):
    """Windows of up to 2 of 3 micro-batches, 2 epochs, clipping, a schedule, SGD with momentum, s = 2^9, interval 3."""
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    model = TinyLM(rng).to(device)
    names = [name for name, _ in model.named_parameters()]
    masters = {name: param.detach().clone().requires_grad_() for name, param in model.named_parameters()}
    batches = random_batches(rng, 3)

    def build(params):
        optimizer = torch.optim.SGD(params, lr=0.2, momentum=0.9)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 0.9**update)

    def forward(ids):
        w = {name: m if name == "norm.weight" else m.to(dtype) for name, m in masters.items()}
        x = F.embedding(ids, w["embedding.weight"]).float()
        x = (w["norm.weight"] * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)).to(dtype)
        x = F.gelu(F.linear(x, w["hidden.weight"], w["hidden.bias"]))
        return F.linear(x, w["head.weight"], w["head.bias"]).float()

    optimizer, scheduler = build(list(masters.values()))
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**9, growth_interval=3)
    want = []
    for window in [batches[0:2], batches[2:3]] * 2:
        count = sum(int((data["labels"] != -100).sum()) for data in window)
        total = 0.0
        for data in window:
            logits, labels = forward(data["input_ids"].to(device)), data["labels"].to(device)
            loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
            scaler.scale(loss / count).backward()
            total += float(loss.detach())
        scaler.unscale_(optimizer)
        norm = float(nn.utils.clip_grad_norm_(list(masters.values()), 0.3))
        scaler.step(optimizer)
        scaler.update()
        row = (total / count, optimizer.param_groups[0]["lr"], norm, scaler.get_scale())
        want.append((row, weights(masters.values())))
        scheduler.step()
        optimizer.zero_grad()

    optimizer, scheduler = build(model.parameters())
    seen = []
    trainer = lesson.trainer.TrainerFromScratch(
        model,
        optimizer,
        batches,
        device=device,
        max_epochs=2,
        scheduler=scheduler,
        log_interval=1,
        accumulation_steps=2,
        max_grad_norm=0.3,
        precision=precision,
        scaler=lesson.loss_scaler.LossScaler(init_scale=2.0**9, growth_interval=3),
        on_log=lambda row: seen.append((row, weights(trainer.params))),
    )
    trainer.train()
    got = [entry for entry in seen if "train_loss" in entry[0]]
    expect.equal("rows", len(got), 4, source="two windows an epoch, two epochs")
    because = "four updates in low precision, in any order of additions"
    close = {"atol": {"fp32": 1e-4, "fp16": 2e-3, "bf16": 2e-2}[precision], "because": because}
    source = "a loop written out with torch's scaler and casts of float32 weights"
    for step, ((row, params), (wanted, reference)) in enumerate(zip(got, want, strict=True), 1):
        for name, number in zip(("train_loss", "lr", "grad_norm"), wanted[:3], strict=True):
            expect.close(name, row[name], number, source=source, step=step, **close)
        expect.equal("scale", row["scale"], wanted[3], source=source, step=step)
        for name, param, other in zip(names, params, reference, strict=True):
            expect.close(f"master of {name}", param, other, source=source, step=step, **close)


@pytest.mark.task("7.7", "7.3")
def test_training_in_float16_finds_its_scale(lesson, expect, observe, rng):
    """s = 2^26, far too large; 22 windows of one micro-batch, AdamW with a schedule per update, growth every 1000."""
    model = TinyLM(rng)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 0.99**update)
    scaler = lesson.loss_scaler.LossScaler(init_scale=2.0**26, growth_interval=1000)
    trainer = lesson.trainer.TrainerFromScratch(
        model,
        optimizer,
        random_batches(rng, 11) * 2,
        scheduler=scheduler,
        log_interval=5,
        precision="fp16",
        scaler=scaler,
    )
    trainer.train()
    skipped, made = trainer.skipped_steps, trainer.global_step
    observe("skipped", skipped)
    expect.equal("windows", skipped + made, 22, source="each is made or left out")
    expect.true("skipped_steps", 5 <= skipped <= 15, expected="about ten, from 2^26 down", got=skipped)
    expect.equal("scale", scaler.get_scale(), 2.0 ** (26 - skipped), source="halved once per window left out")
    steps = [int(optimizer.state[param]["step"]) for param in trainer.params]
    expect.equal("AdamW's step counts", steps, [made] * len(steps), source="global_step")
    close = {"atol": 1e-9, "because": "0.99**k"}
    lr = optimizer.param_groups[0]["lr"]
    expect.close("next lr", lr, 0.02 * 0.99**made, source="one step of the schedule per update", **close)
    rows = [row for row in trainer.history if "train_loss" in row]
    steps = [row["global_step"] for row in rows]
    want = list(range(5, made + 1, 5)) + ([made] if made % 5 else [])
    expect.equal("global_step of the rows", steps, want, source="every 5 updates, and the end")
    fine = all(0 < row["train_loss"] < 10 for row in rows)
    losses = [round(row["train_loss"], 3) for row in rows]
    expect.true("train_loss", fine, expected="nats a token, without the scale: between 0 and 10", got=losses)
    expect.true("the last loss", losses[-1] < losses[0], expected=f"below {losses[0]}", got=losses[-1])


@pytest.mark.task("7.7")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_window_that_is_nan_is_left_out_without_a_scaler(lesson, expect, rng, precision):
    """The default scaler is disabled; max_grad_norm = 1; token 6 has a NaN embedding and is in the second window."""
    model = TinyLM(rng)
    with torch.no_grad():
        model.embedding.weight[6] = NAN
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    trainer = lesson.trainer.TrainerFromScratch(model, optimizer, [], max_grad_norm=1.0, precision=precision)
    windows = [random_batches(rng, 2) for _ in range(3)]
    for window in windows:
        for data in window:
            data["input_ids"].clamp_(max=5)
    windows[1][1]["input_ids"][0, 0] = 6
    for step, (window, made) in enumerate(zip(windows, [1, 1, 2], strict=True), 1):
        before = weights(trainer.params)
        trainer.train_step(window)
        expect.equal("global_step", trainer.global_step, made, source="window 2 is no update", step=step)
        if step == 2:
            expect.equal("masters", weights(trainer.params), before, source="left out", step=step)
        fine = all(bool(p.isfinite().all()) for p in trainer.params[1:])
        expect.equal("all other weights are finite", fine, True, source="one bad window passes", step=step)


@pytest.mark.task("7.7", "7.6", "7.4")
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_training_resumes_bit_for_bit_from_its_states(lesson, expect, rng, precision):
    """Five updates; after two, masters, optimizer, schedule and scaler are saved, and loaded into another model."""
    windows = [random_batches(rng, 1) for _ in range(5)]

    def build(model, scale):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 0.9**update)
        scaler = lesson.loss_scaler.LossScaler(init_scale=scale, growth_interval=3)
        return lesson.trainer.TrainerFromScratch(
            model, optimizer, [], scheduler=scheduler, precision=precision, scaler=scaler, max_grad_norm=0.5
        )

    def parts(trainer):
        return trainer.masters, trainer.optimizer, trainer.scheduler, trainer.scaler

    first = build(TinyLM(rng), 2.0**9)
    for window in windows[:2]:
        first.train_step(window)
    saved = [part.state_dict() for part in parts(first)]
    second = build(TinyLM(rng), 2.0**16)
    for part, state in zip(parts(second), copy.deepcopy(saved), strict=True):
        part.load_state_dict(state)
    for step, window in enumerate(windows[2:], 3):
        want = float(first.train_step(window)[0])
        got = float(second.train_step(window)[0])
        source = "the run without a break"
        expect.equal("loss", got, want, source=source, step=step)
        expect.equal("scale", second.scaler.get_scale(), first.scaler.get_scale(), source=source, step=step)
        expect.equal("lr", second.lr, first.lr, source=source, step=step)
        got, want = second.masters.state_dict(), first.masters.state_dict()
        expect.equal("masters", got, want, source=source, step=step)
