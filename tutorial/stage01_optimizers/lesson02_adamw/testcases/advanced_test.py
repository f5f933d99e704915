"""Advanced tests of lesson 02: AdamW. Run: pytest testcases/advanced_test.py

Step by step and bit by bit against torch.optim.AdamW, and the corners where optimizers of real projects broke.
"""

import math
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

# The loop is complete with task 2.5, its foreach twin with task 2.6.
both_paths = pytest.mark.parametrize(
    "foreach",
    [pytest.param(False, marks=pytest.mark.task("2.5"), id="loop"), pytest.param(True, id="foreach")],
)


def oracle(foreach=False):
    """What to call the reference in a message."""
    return f"torch.optim.AdamW(foreach={foreach})"


def torch_adamw(params, foreach=False, **hyperparameters):
    return torch.optim.AdamW(params, foreach=foreach, **hyperparameters)


def two_groups(params):
    """Two groups with unlike, non-default hyperparameters."""
    middle = len(params) // 2
    return [
        {"params": params[:middle], "lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.2},
        {"params": params[middle:], "lr": 0.005, "betas": (0.9, 0.99), "eps": 1e-4, "weight_decay": 0.0},
    ]


def parameters_like(shapes, rng, device="cpu"):
    """Two equal lists of random parameters: one for the student's optimizer, one for torch's."""
    values = [torch.randn(shape, generator=rng).to(device) for shape in shapes]
    return [Parameter(value.clone()) for value in values], [Parameter(value.clone()) for value in values]


def set_gradients(mine, theirs, rng, missing=()):
    """The same random gradients for both lists; the parameters at the `missing` indices get none."""
    for index, (param, other) in enumerate(zip(mine, theirs, strict=True)):
        grad = torch.randn(param.shape, generator=rng).to(param.device, param.dtype)
        param.grad, other.grad = (None, None) if index in missing else (grad.clone(), grad.clone())


def states_of(optimizer, params):
    """The states in the order of the parameters; an empty dict where there is none."""
    return [dict(optimizer.state.get(param, {})) for param in params]


def compare_steps(expect, adamw, reference, mine, theirs, rng, steps, source, missing=lambda step: ()):
    """Step both with the same gradients; compare states and parameters after every step."""
    for step in steps:
        set_gradients(mine, theirs, rng, missing(step))
        adamw.step()
        reference.step()
        expect.equal("states", states_of(adamw, mine), states_of(reference, theirs), source=source, step=step)
        expect.equal("parameters", mine, theirs, source=source, step=step)


class ModelWithOddParameters(nn.Module):
    """A small MLP; its head joins late, one bias is frozen, one parameter is never used."""

    def __init__(self, rng):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.late = nn.Linear(4, 4)
        self.head = nn.Linear(4, 1)
        self.unused = Parameter(torch.ones(2))
        self.head.bias.requires_grad_(False)
        with torch.no_grad():
            for param in self.parameters():
                param.normal_(generator=rng)

    def loss(self, inputs, step):
        hidden = self.first(inputs).tanh()  # (B, 4)
        if step > 20:
            hidden = self.late(hidden).tanh()
        return self.head(hidden).square().mean()


@pytest.mark.task("2.6")
@both_paths
def test_training_equals_torch_bitwise_for_100_steps(lesson, expect, rng, foreach):
    """A small model, two groups, lr changed before every step; one layer joins late, one bias is frozen, one unused."""
    mine = ModelWithOddParameters(rng)
    theirs = deepcopy(mine)
    optimizer = lesson.optimizer.AdamWFromScratch(two_groups(list(mine.parameters())), foreach=foreach)
    reference = torch_adamw(two_groups(list(theirs.parameters())), foreach=foreach)
    names = [name for name, _ in mine.named_parameters()]
    inputs = torch.randn(100, 5, 3, generator=rng)
    for step in range(1, 101):
        for model, adamw in ((mine, optimizer), (theirs, reference)):
            for group, base in zip(adamw.param_groups, (0.02, 0.005), strict=True):
                group["lr"] = base * (1 + math.cos(math.pi * step / 100)) / 2
            adamw.zero_grad()
            model.loss(inputs[step - 1], step).backward()
            adamw.step()
        got = dict(zip(names, mine.parameters(), strict=True))
        want = dict(zip(names, theirs.parameters(), strict=True))
        expect.equal("parameters", got, want, source=oracle(foreach), step=step)
    got, want = states_of(optimizer, mine.parameters()), states_of(reference, theirs.parameters())
    expect.equal("states", got, want, source=oracle(foreach), step=100)


@pytest.mark.task("2.6")
@both_paths
def test_parameters_of_one_shape_keep_their_own_moments(lesson, expect, rng, foreach):
    """Three parameters of one shape; in every step another one gets no gradient."""
    mine, theirs = parameters_like([(3,)] * 3, rng)
    optimizer = lesson.optimizer.AdamWFromScratch(mine, lr=0.1, foreach=foreach)
    reference = torch_adamw(theirs, lr=0.1, foreach=foreach)
    source = oracle(foreach)
    compare_steps(
        expect,
        optimizer,
        reference,
        mine,
        theirs,
        rng,
        range(1, 13),
        source,
        missing=lambda step: (step % 3,),
    )


@pytest.mark.task("2.6")
@both_paths
def test_moments_advance_while_lr_is_zero(lesson, expect, foreach):
    """lr = 0, weight_decay = 0.5, gradients 1, 2, −1 and betas (0.5, 0.75): averages move, weights do not."""
    param = Parameter(torch.full((2,), 3.0))
    optimizer = lesson.optimizer.AdamWFromScratch(
        [param], lr=0.0, betas=(0.5, 0.75), weight_decay=0.5, foreach=foreach
    )
    wanted = [(1.0, 0.5, 0.25), (2.0, 1.25, 1.1875), (-1.0, 0.125, 1.140625)]
    for step, (grad, exp_avg, exp_avg_sq) in enumerate(wanted, start=1):
        param.grad = torch.full((2,), grad)
        optimizer.step()
        got = [optimizer.state[param][name].tolist() for name in ("exp_avg", "exp_avg_sq")]
        want = [[exp_avg] * 2, [exp_avg_sq] * 2]
        expect.equal("[exp_avg, exp_avg_sq]", got, want, source="the plain running averages", step=step)
        expect.equal("param", param, torch.full((2,), 3.0), source="lr = 0", step=step)


@pytest.mark.task("2.6")
@both_paths
def test_gradients_are_left_as_backward_wrote_them(lesson, expect, rng, foreach):
    """Two groups with decay, three steps; every p.grad is compared with its copy from before the step."""
    mine, theirs = parameters_like([(4,), (2, 3), (5,)], rng)
    optimizer = lesson.optimizer.AdamWFromScratch(mine, lr=0.1, weight_decay=0.5, foreach=foreach)
    for step in (1, 2, 3):
        set_gradients(mine, theirs, rng)
        optimizer.step()
        got, want = [param.grad for param in mine], [param.grad for param in theirs]
        expect.equal("gradients", got, want, source="a copy made before the step", step=step)


@pytest.mark.task("2.6")
@both_paths
def test_layout_size_and_device_of_a_parameter_do_not_matter(lesson, expect, rng, device, foreach):
    """A transposed, a channels-last, an empty, a scalar and five plain parameters on one device, 20 steps."""
    shapes = [(3, 4), (2, 3, 4, 4), (0, 2), (), (1,), (7,), (3, 5), (2, 3, 4), (65,)]
    mine, theirs = parameters_like(shapes, rng, device)
    for params in (mine, theirs):
        params[0] = Parameter(params[0].detach().t())
        params[1] = Parameter(params[1].detach().to(memory_format=torch.channels_last))
    optimizer = lesson.optimizer.AdamWFromScratch(mine, lr=0.1, foreach=foreach)
    reference = torch_adamw(theirs, lr=0.1, foreach=foreach)
    compare_steps(expect, optimizer, reference, mine, theirs, rng, range(1, 21), oracle(foreach))
    got = [state["exp_avg"].stride() for state in states_of(optimizer, mine)]
    want = [state["exp_avg"].stride() for state in states_of(reference, theirs)]
    expect.equal("strides of exp_avg", got, want, source="the parameter's memory layout, as in torch")


@pytest.mark.task("2.6")
@both_paths
def test_bf16_parameters_get_what_torch_gives_them(lesson, expect, rng, foreach):
    """Parameters in bfloat16, float32 and float64 in one group, 20 steps; values and dtypes of the states count."""
    kinds = [torch.bfloat16, torch.float32, torch.float64, torch.bfloat16]
    values = [torch.randn(4, generator=rng).to(kind) for kind in kinds]
    mine, theirs = ([Parameter(value.clone()) for value in values] for _ in range(2))
    optimizer = lesson.optimizer.AdamWFromScratch(mine, lr=0.05, foreach=foreach)
    reference = torch_adamw(theirs, lr=0.05, foreach=foreach)
    compare_steps(expect, optimizer, reference, mine, theirs, rng, range(1, 21), oracle(foreach))


@pytest.mark.task("2.5")
def test_step_of_a_bf16_parameter_counts_past_256(lesson, expect):
    """One bfloat16 weight, 260 updates."""
    param = Parameter(torch.ones(1, dtype=torch.bfloat16))
    optimizer = lesson.optimizer.AdamWFromScratch([param])
    for step in range(1, 261):
        param.grad = torch.ones_like(param)
        optimizer.step()
        if step % 52 == 0:
            got = float(optimizer.state[param]["step"])
            expect.equal("step", got, float(step), source="one update adds one", step=step)


@pytest.mark.task("2.5")
def test_grad_scaler_skips_the_overflowing_step(lesson, expect, rng):
    """Loss scale 1024 and an infinite gradient in steps 3 and 4; torch.amp.GradScaler("cpu") with each optimizer."""
    mine, theirs = parameters_like([(3,), (2, 2)], rng)
    optimizer = lesson.optimizer.AdamWFromScratch(mine, lr=0.1)
    runs = []
    for params, adamw in ((mine, optimizer), (theirs, torch_adamw(theirs, lr=0.1))):
        runs.append((params, adamw, torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)))
    for step in range(1, 9):
        set_gradients(mine, theirs, rng)
        for params, adamw, scaler in runs:
            for param in params:
                param.grad.mul_(scaler.scale(torch.ones(())))
            if step in (3, 4):
                params[0].grad[0] = math.inf
            scaler.step(adamw)
            scaler.update()
        expect.equal("parameters", mine, theirs, source=f"{oracle()} and GradScaler", step=step)
        got, want = (states_of(adamw, params) for params, adamw, _ in runs)
        expect.equal("states", got, want, source=f"{oracle()} and GradScaler", step=step)
        scales = [scaler.get_scale() for _, _, scaler in runs]
        expect.equal("scale", scales[0], scales[1], source=f"{oracle()} and GradScaler", step=step)
    expect.equal(
        "step", float(optimizer.state[mine[0]]["step"]), 6.0, source="eight steps, two of them skipped"
    )


class CountTensorCalls(TorchDispatchMode):
    """Counts the operations that touch at least one tensor with elements to compute, scalars aside."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        operands = [x for arg in args for x in (arg if isinstance(arg, list | tuple) else [arg])]
        self.calls += any(isinstance(x, torch.Tensor) and x.dim() > 0 for x in operands)
        return func(*args, **(kwargs or {}))


@pytest.mark.task("2.6")
def test_foreach_calls_do_not_grow_with_the_number_of_tensors(lesson, expect, rng):
    """The operations that reach torch in one multi_tensor_adamw over 3 and over 30 parameters."""
    group = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.5}
    counts = []
    for number in (3, 30):
        params, grads = ([torch.randn(2, generator=rng) for _ in range(number)] for _ in range(2))
        states = [
            {"step": torch.tensor(1.0), "exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)}
            for _ in range(number)
        ]
        with torch.no_grad(), CountTensorCalls() as counter:
            lesson.optimizer.multi_tensor_adamw(params, grads, states, group)
        counts.append(counter.calls)
    expect.equal("calls for 30 parameters", counts[1], counts[0], source="the calls for 3 parameters")


@pytest.mark.task("2.7")
@pytest.mark.parametrize("foreach", [False, True], ids=["loop", "foreach"])
def test_restored_optimizer_continues_bitwise(lesson, expect, rng, foreach):
    """10 steps with a late and an absent gradient, a snapshot into a fresh optimizer, 20 more steps of both."""
    mine, copies = parameters_like([(3,), (2, 2), (3,), (4,)], rng)
    optimizer = lesson.optimizer.AdamWFromScratch(two_groups(mine), foreach=foreach)
    for step in range(1, 11):
        set_gradients(mine, copies, rng, missing=(1, 3) if step < 6 else (3,))
        optimizer.step()
    with torch.no_grad():
        for param, copied in zip(mine, copies, strict=True):
            copied.copy_(param)
    resumed = lesson.optimizer.AdamWFromScratch(
        [{"params": copies[:2]}, {"params": copies[2:]}], lr=9.0, betas=(0.1, 0.1), foreach=foreach
    )
    resumed.load_state_dict(optimizer.state_dict())
    source = "the optimizer that was not interrupted"
    compare_steps(
        expect,
        resumed,
        optimizer,
        copies,
        mine,
        rng,
        range(11, 31),
        source,
        lambda step: () if step > 15 else (3,),
    )


@pytest.mark.task("2.7")
def test_loading_reads_ids_as_labels_not_as_positions(lesson, expect):
    """Three parameters of one shape in two groups; the saved groups list the ids [2, 0] and [1]."""
    params = [Parameter(torch.zeros(2)) for _ in range(3)]
    optimizer = lesson.optimizer.AdamWFromScratch([{"params": params[:2]}, {"params": params[2:]}])
    saved = optimizer.state_dict()
    saved["param_groups"][0]["params"], saved["param_groups"][1]["params"] = [2, 0], [1]
    saved["state"] = {
        index: {
            "step": torch.tensor(4.0),
            "exp_avg": torch.full((2,), value),
            "exp_avg_sq": torch.full((2,), value),
        }
        for index, value in ((0, 10.0), (1, 11.0), (2, 12.0))
    }
    optimizer.load_state_dict(saved)
    got = [optimizer.state[param]["exp_avg"][0].item() for param in params]
    expect.equal(
        "exp_avg", got, [12.0, 10.0, 11.0], source="the order of the ids in the saved groups: 2, 0, 1"
    )


@pytest.mark.task("2.7")
def test_loaded_state_is_a_copy_of_the_snapshot(lesson, expect, rng):
    """One snapshot, loaded into two optimizers; stepping one changes neither the snapshot nor the other."""
    mine, theirs = parameters_like([(3,)], rng)
    optimizers = [lesson.optimizer.AdamWFromScratch(params, lr=0.1) for params in (mine, theirs)]
    set_gradients(mine, theirs, rng)
    optimizers[0].step()
    snapshot = optimizers[0].state_dict()
    before = deepcopy(snapshot)
    for optimizer in optimizers:
        optimizer.load_state_dict(snapshot)
    optimizers[0].step()
    source = "a deep copy made before the step"
    expect.equal("snapshot", snapshot["state"], before["state"], source=source)
    expect.equal("other optimizer", states_of(optimizers[1], theirs)[0], before["state"][0], source=source)
    expect.equal("step", float(optimizers[0].state[mine[0]]["step"]), 2.0, source="it was stepped twice")


@pytest.mark.task("2.7")
@pytest.mark.parametrize("direction", ["from torch", "to torch"])
def test_snapshots_travel_between_torch_and_this_class(lesson, expect, rng, direction):
    """Five steps of one optimizer, its state_dict into the other one, five steps of both."""
    params, others = parameters_like([(3,), (2, 2)], rng)
    mine, theirs = (others, params) if direction == "from torch" else (params, others)
    optimizer = lesson.optimizer.AdamWFromScratch(two_groups(mine))
    reference = torch_adamw(two_groups(theirs))
    first, second = (reference, optimizer) if direction == "from torch" else (optimizer, reference)
    for _ in range(5):
        set_gradients(params, others, rng, missing=(1,))
        first.step()
    with torch.no_grad():
        others[0].copy_(params[0])
    second.load_state_dict(deepcopy(first.state_dict()))
    compare_steps(expect, optimizer, reference, mine, theirs, rng, range(6, 11), oracle())


@pytest.mark.task("2.7")
def test_float32_snapshot_loads_into_a_bf16_model_as_in_torch(lesson, expect, rng):
    """A snapshot after 257 float32 updates goes into bfloat16 parameters: moments are cast, the count is not."""
    source_param = Parameter(torch.randn(4, generator=rng))
    mine, theirs = ([Parameter(source_param.detach().bfloat16())] for _ in range(2))
    trained = torch_adamw([source_param], lr=0.01)
    source_param.grad = torch.randn(4, generator=rng)
    trained.step()
    snapshot = deepcopy(trained.state_dict())
    snapshot["state"][0]["step"].fill_(257.0)
    optimizer, reference = lesson.optimizer.AdamWFromScratch(mine), torch_adamw(theirs)
    optimizer.load_state_dict(snapshot)
    reference.load_state_dict(deepcopy(snapshot))
    compare_steps(expect, optimizer, reference, mine, theirs, rng, range(258, 262), oracle())
