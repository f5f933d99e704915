"""Basic tests of lesson 02: AdamW. Run: pytest testcases/basic_test.py

One behaviour each, with numbers that you can check by hand.
"""

import pytest
import torch
from torch.nn import Parameter

ROUNDED = {"atol": 1e-6, "because": "float32 keeps about seven digits"}


def group(lr=0.1, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
    """The hyperparameters of one param group."""
    return {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}


def state_at(step, exp_avg, exp_avg_sq):
    """A parameter's state as it is when an update begins: `step` already counts it."""
    return {
        "step": torch.tensor(float(step)),
        "exp_avg": torch.tensor(exp_avg),
        "exp_avg_sq": torch.tensor(exp_avg_sq),
    }


@pytest.mark.task("2.1")
def test_moments_average_the_gradient_and_its_square(lesson, expect):
    """Gradients 1, 2, −1 with betas (0.5, 0.75), both moments zero at the start."""
    exp_avg, exp_avg_sq = torch.zeros(1), torch.zeros(1)
    wanted = [(1.0, 0.5, 0.25), (2.0, 1.25, 1.1875), (-1.0, 0.125, 1.140625)]
    for step, (grad, want_avg, want_avg_sq) in enumerate(wanted, start=1):
        lesson.optimizer.update_moments(torch.tensor([grad]), exp_avg, exp_avg_sq, beta1=0.5, beta2=0.75)
        source = "m ← 0.5·m + 0.5·g"
        expect.close("exp_avg", exp_avg, torch.tensor([want_avg]), source=source, step=step, **ROUNDED)
        source = "v ← 0.75·v + 0.25·g²"
        expect.close(
            "exp_avg_sq", exp_avg_sq, torch.tensor([want_avg_sq]), source=source, step=step, **ROUNDED
        )


@pytest.mark.task("2.1")
def test_moments_are_updated_where_they_lie(lesson, expect):
    """The state keeps the same two tensors; the gradient belongs to somebody else."""
    grad, exp_avg, exp_avg_sq = torch.tensor([4.0]), torch.tensor([1.0]), torch.tensor([8.0])
    lesson.optimizer.update_moments(grad, exp_avg, exp_avg_sq, beta1=0.5, beta2=0.5)
    source = "the tensors passed in hold the new averages: 0.5·1 + 0.5·4 and 0.5·8 + 0.5·16"
    expect.equal("[exp_avg, exp_avg_sq]", [exp_avg.item(), exp_avg_sq.item()], [2.5, 12.0], source=source)
    expect.equal("grad", grad, torch.tensor([4.0]), source="the gradient is read, never changed")


@pytest.mark.task("2.2")
@pytest.mark.parametrize(
    ("step", "want"),
    [
        (1.0, (0.1, 0.001)),
        (2.0, (0.19, 0.001999)),
        (10.0, (0.6513215599, 0.00995511979025)),
        (1000.0, (1.0, 0.63230457522903)),
    ],
)
def test_bias_corrections_grow_from_one_minus_beta_to_one(lesson, expect, step, want):
    """betas (0.9, 0.999) at one step."""
    got = lesson.optimizer.bias_corrections(step, beta1=0.9, beta2=0.999)
    expect.close(
        "(c1, c2)",
        tuple(got),
        want,
        source=f"1 − β^t with t = {step:g}",
        atol=1e-12,
        because="64-bit floats keep about 16 digits",
        step=int(step),
    )


@pytest.mark.task("2.3")
def test_first_update_is_lr_whatever_the_size_of_the_gradient(lesson, expect):
    """Four gradients from 0.001 to −1000, their moments and corrections after one step; lr = 0.1."""
    grad = torch.tensor([0.001, 1.0, 1000.0, -1000.0])
    param = torch.zeros(4)
    exp_avg, exp_avg_sq = 0.1 * grad, 0.001 * grad**2
    lesson.optimizer.apply_update(param, exp_avg, exp_avg_sq, lr=0.1, eps=1e-8, corrections=(0.1, 0.001))
    expect.close(
        "param",
        param,
        torch.tensor([-0.1, -0.1, -0.1, 0.1]),
        source="θ ← 0 − lr·m̂/√v̂ = −lr·sign(g)",
        atol=1e-5,
        because="eps is 1e-5 of the smallest gradient",
    )


@pytest.mark.task("2.3")
def test_eps_is_added_outside_the_root_after_the_correction(lesson, expect):
    """A gradient as small as eps = 1e-8, after one step; lr = 1: the weight moves half of lr."""
    param = torch.zeros(1, dtype=torch.float64)
    exp_avg = torch.tensor([0.1 * 1e-8], dtype=torch.float64)
    exp_avg_sq = torch.tensor([0.001 * 1e-16], dtype=torch.float64)
    lesson.optimizer.apply_update(param, exp_avg, exp_avg_sq, lr=1.0, eps=1e-8, corrections=(0.1, 0.001))
    expect.close(
        "param",
        param,
        torch.tensor([-0.5], dtype=torch.float64),
        source="θ ← 0 − lr·m̂/(√v̂ + ε) = −1e-8/(1e-8 + 1e-8)",
        atol=1e-9,
        because="float64 rounding",
    )


@pytest.mark.task("2.3")
def test_update_leaves_the_moments_as_they_are(lesson, expect):
    """m = 0.2, v = 0.04, corrections (0.5, 0.25), eps = 0.1, lr = 0.1: only the weight moves, by 0.08."""
    param, exp_avg, exp_avg_sq = torch.tensor([1.0]), torch.tensor([0.2]), torch.tensor([0.04])
    lesson.optimizer.apply_update(param, exp_avg, exp_avg_sq, lr=0.1, eps=0.1, corrections=(0.5, 0.25))
    expect.equal("exp_avg", exp_avg, torch.tensor([0.2]), source="m̂ = m/c1 is not stored")
    expect.equal(
        "exp_avg_sq", exp_avg_sq, torch.tensor([0.04]), source="v̂ = v/c2 and its root are not stored"
    )
    expect.close("param", param, torch.tensor([0.92]), source="θ ← 1 − 0.1·0.4/(0.4 + 0.1)", **ROUNDED)


@pytest.mark.task("2.4")
@pytest.mark.parametrize("lr", [0.1, 0.05])
def test_weight_decay_shrinks_a_weight_by_lr_times_decay(lesson, expect, lr):
    """One weight of 2 with gradient zero, weight_decay = 0.1: halving lr halves the decay."""
    param = torch.tensor([2.0])
    state = state_at(1, [0.0], [0.0])
    lesson.optimizer.single_tensor_adamw([param], [torch.zeros(1)], [state], group(lr=lr, weight_decay=0.1))
    expect.close(
        "param",
        param,
        torch.tensor([2 - 2 * lr * 0.1]),
        source=f"θ ← 2·(1 − {lr}·0.1), and m = 0 moves nothing",
        **ROUNDED,
    )


@pytest.mark.task("2.4")
def test_weight_decay_leaves_the_moments_unchanged(lesson, expect):
    """Two weights with gradients 0 and 1, weight_decay = 0.5: the moments see the gradient alone."""
    param, grad, state = (
        torch.tensor([3.0, 3.0]),
        torch.tensor([0.0, 1.0]),
        state_at(1, [0.0, 0.0], [0.0, 0.0]),
    )
    hyperparameters = group(betas=(0.5, 0.75), weight_decay=0.5)
    lesson.optimizer.single_tensor_adamw([param], [grad], [state], hyperparameters)
    expect.equal("exp_avg", state["exp_avg"], torch.tensor([0.0, 0.5]), source="m ← 0.5·0 + 0.5·g", step=1)
    expect.equal(
        "exp_avg_sq", state["exp_avg_sq"], torch.tensor([0.0, 0.25]), source="v ← 0.75·0 + 0.25·g²", step=1
    )
    expect.equal("grad", grad, torch.tensor([0.0, 1.0]), source="the gradient is read, never changed", step=1)


@pytest.mark.task("2.4")
def test_decay_takes_its_share_of_the_weight_before_the_update(lesson, expect):
    """One weight of 1 with gradient 1, lr = weight_decay = 0.5: first times 0.75, then minus 0.5."""
    param, state = torch.tensor([1.0]), state_at(1, [0.0], [0.0])
    lesson.optimizer.single_tensor_adamw([param], [torch.ones(1)], [state], group(lr=0.5, weight_decay=0.5))
    expect.close("param", param, torch.tensor([0.25]), source="θ ← 1·(1 − 0.5·0.5) − 0.5·1", **ROUNDED)


@pytest.mark.task("2.5")
def test_parameter_without_gradient_is_left_alone(lesson, expect):
    """One trained parameter, one frozen, one that the loss never used; weight_decay = 0.5."""
    trained, unused = Parameter(torch.ones(2)), Parameter(torch.ones(2))
    frozen = Parameter(torch.ones(2), requires_grad=False)
    optimizer = lesson.optimizer.AdamWFromScratch([frozen, trained, unused], lr=0.5, weight_decay=0.5)
    for step in (1, 2):
        trained.grad = torch.ones(2)
        optimizer.step()
        for name, param in (("frozen", frozen), ("unused", unused)):
            expect.equal(name, param, torch.ones(2), source="no gradient: no update and no decay", step=step)
            has_state = len(optimizer.state.get(param, {})) > 0
            expect.true(f"state of {name}", not has_state, expected="no state", got="a state", step=step)
    expect.true("trained", trained.max() < 0.5, expected="below 0.5 after two steps", got=trained)


@pytest.mark.task("2.5")
def test_every_parameter_counts_its_own_updates(lesson, expect):
    """Two parameters; the second gets its first gradient in step 3. lr = 0.1, no decay."""
    early, late = Parameter(torch.zeros(1)), Parameter(torch.zeros(1))
    optimizer = lesson.optimizer.AdamWFromScratch([early, late], lr=0.1, weight_decay=0.0)
    for step in (1, 2, 3, 4):
        early.grad = torch.ones(1)
        late.grad = torch.ones(1) if step >= 3 else None
        optimizer.step()
        counts = {"early": step, "late": max(0, step - 2)}
        for name, param in (("early", early), ("late", late)):
            expect.close(
                f"{name} parameter",
                param,
                torch.tensor([-0.1 * counts[name]]),
                source="a constant gradient moves a weight by lr at each of its own updates",
                step=step,
                **ROUNDED,
            )
            got = float(optimizer.state[param]["step"]) if counts[name] else 0.0
            expect.equal(
                f"step of {name}", got, float(counts[name]), source="updates that it has had", step=step
            )


@pytest.mark.task("2.5")
def test_every_group_uses_its_own_hyperparameters_as_they_are_now(lesson, expect):
    """Two groups that differ in everything, gradient always 1; both lr are halved after the first step."""
    params = [Parameter(torch.ones(1)), Parameter(torch.ones(1))]
    groups = [
        {"params": [params[0]], "lr": 0.1, "betas": (0.5, 0.75), "eps": 1.0, "weight_decay": 0.0},
        {"params": [params[1]], "lr": 0.2, "betas": (0.75, 0.5), "eps": 0.0, "weight_decay": 0.5},
    ]
    optimizer = lesson.optimizer.AdamWFromScratch(groups, lr=9.0, betas=(0.1, 0.1), eps=9.0, weight_decay=9.0)
    wanted = {1: (0.95, 0.7), 2: (0.925, 0.565)}
    moments = {1: ((0.5, 0.25), (0.25, 0.5)), 2: ((0.75, 0.4375), (0.4375, 0.75))}
    for step in (1, 2):
        for param in params:
            param.grad = torch.ones(1)
        optimizer.step()
        sources = ("θ ← θ − lr·1/(1 + 1)", "θ ← θ·(1 − 0.5·lr) − lr·1/(1 + 0)")
        for index, param in enumerate(params):
            want = torch.tensor([wanted[step][index]])
            source = f"{sources[index]} with this step's lr"
            expect.close(f"weight of group {index}", param, want, source=source, step=step, **ROUNDED)
            state = optimizer.state[param]
            got = (state["exp_avg"].item(), state["exp_avg_sq"].item())
            source = "1 − β^t with the group's betas"
            expect.close(
                f"(m, v) of group {index}", got, moments[step][index], source=source, step=step, **ROUNDED
            )
        for entry in optimizer.param_groups:
            entry["lr"] /= 2


@pytest.mark.task("2.6")
def test_foreach_gives_every_tensor_its_own_step_count(lesson, expect):
    """Three weights of 1 with gradient 1, after 1, 2 and 10 updates with gradient 1; lr = 0.1, weight_decay = 0.5."""
    params, grads = [torch.ones(1) for _ in range(3)], [torch.ones(1) for _ in range(3)]
    betas, states = (0.5, 0.75), []
    for step in (1, 2, 10):  # the moments of the updates before, when every gradient was 1
        states.append(state_at(step, [1 - betas[0] ** (step - 1)], [1 - betas[1] ** (step - 1)]))
    lesson.optimizer.multi_tensor_adamw(params, grads, states, group(betas=betas, weight_decay=0.5))
    for param, state in zip(params, states, strict=True):
        step = int(state["step"])
        got, want = (state["exp_avg"].item(), state["exp_avg_sq"].item()), tuple(1 - b**step for b in betas)
        expect.close("(m, v)", got, want, source="1 − β^t with betas (0.5, 0.75)", step=step, **ROUNDED)
        source = "θ ← 1·(1 − 0.1·0.5) − 0.1·1, for every t"
        expect.close("param", param, torch.tensor([0.85]), source=source, step=step, **ROUNDED)


@pytest.mark.task("2.7")
def test_state_dict_is_a_snapshot_that_later_steps_leave_alone(lesson, expect):
    """One step with gradient 1 and lr = 0.1, a snapshot, then one more step with lr = 0.5."""
    param = Parameter(torch.zeros(2))
    optimizer = lesson.optimizer.AdamWFromScratch([param], lr=0.1, betas=(0.5, 0.75))
    param.grad = torch.ones(2)
    optimizer.step()
    snapshot = optimizer.state_dict()
    optimizer.param_groups[0]["lr"] = 0.5
    optimizer.step()
    want = {"step": 1.0, "exp_avg": torch.full((2,), 0.5), "exp_avg_sq": torch.full((2,), 0.25)}
    expect.equal("state", snapshot["state"], {0: want}, source="the state after step 1, under id 0", step=2)
    saved = {name: snapshot["param_groups"][0][name] for name in ("lr", "params")}
    expect.equal("param group", saved, {"lr": 0.1, "params": [0]}, source="the group after step 1", step=2)


@pytest.mark.task("2.7")
def test_load_state_dict_gives_back_what_state_dict_took(lesson, expect):
    """Two parameters, one of them never updated; the snapshot goes into a fresh optimizer."""
    params = [Parameter(torch.zeros(2)), Parameter(torch.zeros(3))]
    optimizer = lesson.optimizer.AdamWFromScratch(params, lr=0.1, betas=(0.5, 0.75))
    for _ in range(2):
        params[1].grad = torch.ones(3)
        optimizer.step()
    fresh_params = [Parameter(torch.zeros(2)), Parameter(torch.zeros(3))]
    fresh = lesson.optimizer.AdamWFromScratch(fresh_params, lr=9.0)
    fresh.load_state_dict(optimizer.state_dict())
    expect.equal(
        "step", float(fresh.state[fresh_params[1]]["step"]), 2.0, source="two updates before the snapshot"
    )
    want = {"exp_avg": torch.full((3,), 0.75), "exp_avg_sq": torch.full((3,), 0.4375)}
    got = {name: fresh.state[fresh_params[1]][name] for name in want}
    expect.equal("moments", got, want, source="1 − β^2 with betas (0.5, 0.75) and gradient 1")
    has_state = len(fresh.state.get(fresh_params[0], {})) > 0
    expect.true("state of the first parameter", not has_state, expected="no state", got="a state")
    loaded = {name: fresh.param_groups[0][name] for name in ("lr", "betas")}
    expect.equal("param group", loaded, {"lr": 0.1, "betas": (0.5, 0.75)}, source="the saved hyperparameters")
