"""Advanced tests of lesson 01: SGD. Run: pytest testcases/advanced_test.py

Only `test_every_bit_equals_torch` asks for torch's rounding; the others leave room for another order of operations.
"""

import copy
import io

import pytest
import torch

ROUNDING = "another order of the same operations rounds differently"
KINDS = {
    "plain": {"weight_decay": 0.01},
    "momentum": {"momentum": 0.9},
    "dampened": {"momentum": 0.85, "dampening": 0.3, "weight_decay": 0.05},
    "nesterov": {"momentum": 0.9, "nesterov": True},
}


def make_params(rng, sizes, device="cpu"):
    return [torch.nn.Parameter(torch.randn(size, generator=rng).to(device)) for size in sizes]


def clone_params(params):
    return [torch.nn.Parameter(p.detach().clone(), requires_grad=p.requires_grad) for p in params]


def groups_of(params, **second):
    """The first half of the parameters, and the second half with hyperparameters of its own."""
    half = len(params) // 2
    return [{"params": params[:half]}, {"params": params[half:], **second}]


def give_gradients(rng, *copies, missing=()):
    """The same random gradients for every copy of the parameters, None for the indices in `missing`."""
    for index, twins in enumerate(zip(*copies, strict=True)):
        grad = torch.randn(twins[0].shape, generator=rng).to(twins[0])
        for param in twins:
            param.grad = None if index in missing else grad.clone()


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def buffers(optimizer, params):
    """Each parameter's momentum buffer, None where there is none."""
    return [optimizer.state.get(param, {}).get("momentum_buffer") for param in params]


@pytest.mark.task("1.1", "1.3", "1.5", "1.6")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("foreach", [False, True], ids=["for-loop", "foreach"])
def test_every_bit_equals_torch(lesson, expect, rng, device, kind, foreach):
    """200 steps, two groups, a new lr at each step; parameters: usual, frozen, late (20), never, every third step."""
    ours = make_params(rng, [7, 3, (4, 5), 6, (3, 11)], device)
    ours[1].requires_grad_(False)
    theirs, second = clone_params(ours), {"lr": 0.02, "momentum": 0.5, "weight_decay": 0.1}
    optimizer = lesson.optimizer.SGDFromScratch(groups_of(ours, **second), lr=0.1, **KINDS[kind])
    torchs = torch.optim.SGD(groups_of(theirs, **second), lr=0.1, **KINDS[kind], foreach=foreach)
    source = f"torch.optim.SGD(foreach={foreach})"
    for step in range(1, 201):
        missing = {1, 3} | ({2} if step < 20 else set()) | ({4} if step % 3 else set())
        give_gradients(rng, ours, theirs, missing=missing)
        for group, twin in zip(optimizer.param_groups, torchs.param_groups, strict=True):
            group["lr"] = twin["lr"] = group["lr"] * (1.01 if step % 50 < 20 else 0.98)
        optimizer.step()
        torchs.step()
        expect.equal("all parameters", flat(ours), flat(theirs), source=source, step=step)
    expect.equal("buffers", buffers(optimizer, ours), buffers(torchs, theirs), source=source, step=200)


@pytest.mark.task("1.2", "1.6")
def test_equal_parameters_keep_separate_buffers(lesson, expect):
    """Two parameters of equal shape and value in two groups, gradients 1 and −1, momentum 0.5: two steps."""
    a, b = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))
    optimizer = lesson.optimizer.SGDFromScratch([{"params": [a]}, {"params": [b]}], lr=1.0, momentum=0.5)
    a.grad, b.grad = torch.ones(2), -torch.ones(2)
    for step, want in enumerate([-1.0, -2.5], start=1):
        optimizer.step()
        got = [a.detach(), b.detach()]
        want_both = [torch.full((2,), want), torch.full((2,), -want)]
        expect.equal("the two parameters", got, want_both, source="b = ±1, ±1.5, one buffer each", step=step)


@pytest.mark.task("1.2")
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("lr", {"lr": -0.5}),
        ("momentum", {"momentum": -0.5}),
        ("weight_decay", {"weight_decay": float("nan")}),
        ("nesterov", {"nesterov": True}),
        ("nesterov", {"nesterov": True, "momentum": 0.5, "dampening": 0.5}),
    ],
)
def test_refused_group_leaves_the_optimizer_as_it_was(lesson, expect, name, values):
    """One good group, then add_param_group with a value out of range, then with a parameter that is here already."""
    param, other = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    optimizer = lesson.optimizer.SGDFromScratch([param], lr=0.5)
    with expect.raises(ValueError, match=name, source=f"{values} makes no sense"):
        optimizer.add_param_group({"params": [other], **values})
    with expect.raises(ValueError, source="the parameter is in the first group already"):
        optimizer.add_param_group({"params": [other, param]})
    expect.equal(
        "number of groups", len(optimizer.param_groups), 1, source="the refused groups were not added"
    )


@pytest.mark.task("1.3", "1.6")
def test_step_leaves_autograd_alone(lesson, expect, rng):
    """Gradients that carry a graph themselves (create_graph=True), momentum 0.9, Nesterov: two steps."""
    param = make_params(rng, [4])[0]
    options = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}
    optimizer = lesson.optimizer.SGDFromScratch([param], lr=0.1, **options)
    for step in (1, 2):
        param.grad = torch.autograd.grad(param.pow(3).sum(), param, create_graph=True)[0]
        optimizer.step()
        got = (param.is_leaf, param.requires_grad, buffers(optimizer, [param])[0].requires_grad)
        source = "is a leaf, requires grad; the buffer is outside of any graph"
        expect.equal("parameter and buffer", got, (True, True, False), source=source, step=step)
    expect.true("recording", torch.is_grad_enabled(), expected="as before step(): on", got="off")
    optimizer.zero_grad(set_to_none=False)
    got = (param.grad.requires_grad, float(param.grad.detach().abs().sum()))
    expect.equal("zeroed gradient", got, (False, 0.0), source="zeros, cut off from the graph")


@pytest.mark.task("1.5", "1.6")
@pytest.mark.parametrize("kind", KINDS)
def test_step_does_not_change_the_gradients(lesson, expect, rng, kind):
    """Three steps with the same gradient tensor, which is compared with a copy after each."""
    param = make_params(rng, [5])[0]
    param.grad = torch.randn(5, generator=rng)
    kept = param.grad.clone()
    optimizer = lesson.optimizer.SGDFromScratch([param], lr=0.1, **KINDS[kind])
    for step in (1, 2, 3):
        optimizer.step()
        expect.equal("param.grad", param.grad, kept, source="a copy made before the first step", step=step)


@pytest.mark.task("1.4", "1.6")
def test_zero_gradient_still_coasts_and_missing_gradient_stands_still(lesson, expect):
    """Momentum 0.5, lr 1, one step with gradient 1; then zero_grad, set to zeros or to None, and two more steps."""
    coasting, standing = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    wheels = [lesson.optimizer.SGDFromScratch([p], lr=1.0, momentum=0.5) for p in (coasting, standing)]
    coasting.grad, standing.grad = torch.ones(1), torch.ones(1)
    for step, want in enumerate([(-1.0, -1.0), (-1.5, -1.0), (-1.75, -1.0)], start=1):
        for optimizer in wheels:
            optimizer.step()
        got = (coasting.item(), standing.item())
        expect.equal(
            "zeros, None", got, want, source="b = 1, 0.5, 0.25 with zeros; no step with None", step=step
        )
        wheels[0].zero_grad(set_to_none=False)
        wheels[1].zero_grad(set_to_none=True)


@pytest.mark.task("1.5", "1.6")
def test_weight_decay_gathers_momentum(lesson, expect):
    """Gradient 0, θ = 1, lr = 0.5, weight_decay = 0.5, momentum = 0.5: three steps."""
    param = torch.nn.Parameter(torch.ones(1))
    param.grad = torch.zeros(1)
    optimizer = lesson.optimizer.SGDFromScratch([param], lr=0.5, weight_decay=0.5, momentum=0.5)
    for step, want in enumerate([0.75, 0.4375, 0.171875], start=1):
        optimizer.step()
        source = "d = λ·θ goes through the buffer: b = 0.5, 0.625, 0.53125"
        expect.equal("θ", param.item(), want, source=source, step=step)


@pytest.mark.task("1.6")
def test_buffer_holds_gradients_and_not_steps(lesson, expect):
    """Gradient 1 at every step, momentum 0.5, lr = 1, then 0.25, then 0: the new lr acts at once."""
    param = torch.nn.Parameter(torch.zeros(1))
    param.grad = torch.ones(1)
    optimizer = lesson.optimizer.SGDFromScratch([param], lr=1.0, momentum=0.5)
    for step, (lr, want) in enumerate([(1.0, -1.0), (0.25, -1.375), (0.0, -1.375)], start=1):
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        expect.equal("θ", param.item(), want, source="θ ← θ − lr·b, b = 1, 1.5, 1.75", step=step)


@pytest.mark.task("1.3", "1.6")
def test_grad_scaler_skips_an_overflow(lesson, expect, rng):
    """torch.amp.GradScaler('cpu') around ours and around torch's; the loss of step 3 of 6 is infinite."""
    ours = make_params(rng, [(3, 4)])
    theirs, inputs = clone_params(ours), torch.randn(8, 4, generator=rng)
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
    pairs = [
        (ours, lesson.optimizer.SGDFromScratch(ours, **options)),
        (theirs, torch.optim.SGD(theirs, **options)),
    ]
    scalers = [torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2) for _ in pairs]
    for step in range(1, 7):
        before = ours[0].detach().clone()
        for (params, optimizer), scaler in zip(pairs, scalers, strict=True):
            optimizer.zero_grad()
            loss = (inputs @ params[0].T).tanh().square().mean() * (float("inf") if step == 3 else 1.0)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        if step == 3:
            expect.equal("θ", ours[0].detach(), before, source="an infinite gradient: no step", step=step)
        want = theirs[0].detach()
        expect.close(
            "θ", ours[0].detach(), want, source="torch.optim.SGD", atol=1e-6, because=ROUNDING, step=step
        )


@pytest.mark.task("1.7")
@pytest.mark.parametrize("kind", KINDS)
def test_resumed_run_equals_the_uninterrupted_one(lesson, expect, rng, kind):
    """10 steps, saved to bytes, loaded with weights_only=True into a new optimizer, 10 steps; one gradient is late."""
    first = make_params(rng, [3, 5, 4, 2])
    make = lesson.optimizer.SGDFromScratch
    optimizer = make(groups_of(first, lr=0.02), lr=0.1, **KINDS[kind])
    for step in range(1, 11):
        give_gradients(rng, first, missing={0, 2} if step < 5 else {2})
        optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.07
    optimizer.param_groups[1]["initial_lr"] = 0.02  # schedules leave entries of their own
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    second = clone_params(first)
    restored = make(groups_of(second), lr=9.0, momentum=0.1)
    restored.load_state_dict(torch.load(file, weights_only=True))
    options = [
        [{k: v for k, v in g.items() if k != "params"} for g in o.param_groups] for o in (restored, optimizer)
    ]
    expect.equal("hyperparameters", options[0], options[1], source="the optimizer that was saved")
    for step in range(11, 21):
        give_gradients(rng, first, second, missing={1} if step < 15 else set())
        optimizer.step()
        restored.step()
        expect.equal("all parameters", flat(second), flat(first), source="the run without a stop", step=step)


@pytest.mark.task("1.7")
@pytest.mark.parametrize("direction", ["from torch", "to torch"])
def test_snapshot_travels_between_torch_and_ours(lesson, expect, rng, direction):
    """Five steps with one optimizer, its state_dict loaded into the other, five steps with both."""
    first = make_params(rng, [3, 4, 2, 5])
    second, options = (
        clone_params(first),
        {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True},
    )
    makers = [torch.optim.SGD, lesson.optimizer.SGDFromScratch]
    make_source, make_target = makers if direction == "from torch" else reversed(makers)
    source, target = make_source(groups_of(first, lr=0.02), **options), make_target(groups_of(second), lr=5.0)
    for step in range(1, 11):
        give_gradients(rng, first, second, missing={1})
        source.step()
        if step < 5:
            continue
        if step == 5:
            snapshot = source.state_dict()
            ids = [group["params"] for group in snapshot["param_groups"]]
            expect.equal("params of the groups", ids, [[0, 1], [2, 3]], source="numbers through all groups")
            expect.equal(
                "keys of state", sorted(snapshot["state"]), [0, 2, 3], source="1 never had a gradient"
            )
            target.load_state_dict(copy.deepcopy(snapshot))
            for param, twin in zip(second, first, strict=True):
                param.data.copy_(twin.data)
            continue
        target.step()
        want = flat(first)
        expect.close(
            "all parameters", flat(second), want, source="the first", atol=1e-6, because=ROUNDING, step=step
        )


@pytest.mark.task("1.7")
def test_snapshot_shares_nothing_with_the_optimizers(lesson, expect, rng):
    """One snapshot, loaded into two optimizers; then the first optimizer and one of the two take three steps."""
    params = make_params(rng, [3, 4])
    copies = [clone_params(params) for _ in range(2)]
    make = lesson.optimizer.SGDFromScratch
    optimizer = make(params, lr=0.1, momentum=0.9)
    give_gradients(rng, params, *copies)
    optimizer.step()
    snapshot = optimizer.state_dict()
    kept = copy.deepcopy(snapshot)
    moving, resting = (make(twins, lr=0.5) for twins in copies)
    moving.load_state_dict(snapshot)
    resting.load_state_dict(snapshot)
    for _ in range(3):
        for busy in (optimizer, moving):
            busy.param_groups[0]["lr"] *= 0.5
            busy.step()
    expect.equal("snapshot", snapshot, kept, source="a deep copy made before the steps")
    want = [kept["state"][index]["momentum_buffer"] for index in (0, 1)]
    expect.equal("buffers of the resting one", buffers(resting, copies[1]), want, source="the snapshot")
    expect.equal("lr of the resting one", resting.param_groups[0]["lr"], 0.1, source="the snapshot")


@pytest.mark.task("1.7")
def test_state_follows_the_numbers_of_the_groups(lesson, expect):
    """Four parameters of equal shape; one has no state; the numbers in the snapshot are in an unusual order."""
    params = [torch.nn.Parameter(torch.zeros(1)) for _ in range(4)]
    optimizer = lesson.optimizer.SGDFromScratch(groups_of(params), lr=1.0, momentum=0.5)
    for value, param in enumerate(params):
        param.grad = torch.tensor([float(value)])
    optimizer.step()
    stale = torch.tensor([8.0])
    snapshot = optimizer.state_dict()
    groups = [
        {**group, "params": ids}
        for group, ids in zip(snapshot["param_groups"], [[3, 7], [5, 1]], strict=True)
    ]
    state = {number: {"momentum_buffer": torch.tensor([number * 10.0])} for number in (1, 3, 5)}
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    want = [torch.tensor([30.0]), None, torch.tensor([50.0]), torch.tensor([10.0])]
    source = "numbers [3, 7] and [5, 1]; 7 has no state in the snapshot"
    expect.equal("momentum buffers", buffers(optimizer, params), want, source=source)
    params[1].grad = stale
    optimizer.step()
    expect.equal(
        "second parameter", params[1].item(), -9.0, source="−1 before, then a first step with b ← g = 8"
    )


@pytest.mark.task("1.7")
@pytest.mark.parametrize(
    ("dtype", "buffer_dtype"),
    [(torch.bfloat16,) * 2, (torch.float64,) * 2, (torch.bfloat16, torch.float32)],
    ids=["bf16", "float64", "float32 buffer of a bf16 parameter"],
)
def test_snapshot_keeps_dtype_and_bits(lesson, expect, rng, dtype, buffer_dtype):
    """A parameter of another dtype, one step with momentum; saved, loaded, saved again."""
    param = torch.nn.Parameter(torch.randn(6, generator=rng).to(dtype))
    param.grad = torch.randn(6, generator=rng, dtype=torch.float64).to(dtype)
    optimizer = lesson.optimizer.SGDFromScratch([param], lr=0.1, momentum=0.9)
    optimizer.step()
    snapshot = optimizer.state_dict()
    buffer = snapshot["state"][0]["momentum_buffer"]
    expect.equal("buffer that was saved", buffer, param.grad, source="b ← g at the first step")
    if buffer_dtype != dtype:
        buffer = snapshot["state"][0]["momentum_buffer"] = torch.randn(6, generator=rng)
    optimizer.load_state_dict(snapshot)
    again = optimizer.state_dict()["state"][0]["momentum_buffer"]
    expect.equal("buffer that was loaded", again, buffer, source="the snapshot, dtype and all")


def _other_sizes(snapshot):
    snapshot["param_groups"][1]["params"] = [2]


def _fewer_groups(snapshot):
    del snapshot["param_groups"][1]


def _no_momentum(snapshot):
    del snapshot["param_groups"][1]["momentum"]


def _other_shape(snapshot):
    snapshot["state"][3]["momentum_buffer"] = torch.zeros(9)


def _unknown_number(snapshot):
    snapshot["state"][4] = snapshot["state"][0]


@pytest.mark.task("1.7")
@pytest.mark.parametrize("spoil", [_other_sizes, _fewer_groups, _no_momentum, _other_shape, _unknown_number])
def test_refused_snapshot_changes_nothing(lesson, expect, rng, spoil):
    """A snapshot with other hyperparameters, spoilt near its end, is loaded into an optimizer that has state."""
    params = make_params(rng, [3, 4, 2, 5])
    optimizer = lesson.optimizer.SGDFromScratch(groups_of(params), lr=0.1, momentum=0.9)
    give_gradients(rng, params)
    optimizer.step()
    kept = copy.deepcopy(optimizer.state_dict())
    snapshot = copy.deepcopy(kept)
    snapshot["param_groups"][0]["lr"] = 77.0
    snapshot["state"][0]["momentum_buffer"].zero_()
    spoil(snapshot)
    with expect.raises(ValueError, source="it does not fit this optimizer"):
        optimizer.load_state_dict(snapshot)
    expect.equal("state_dict", optimizer.state_dict(), kept, source="the one before the refused snapshot")
