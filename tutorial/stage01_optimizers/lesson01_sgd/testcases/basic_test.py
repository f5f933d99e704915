"""Basic tests of lesson 01: SGD. Run: pytest testcases/basic_test.py

All numbers are small fractions of powers of two, so every right formula gives them exactly.
"""

import copy

import pytest
import torch


def make_param(*values, grad=None):
    """A parameter with the given values, and a gradient if one is given."""
    param = torch.nn.Parameter(torch.tensor(values))
    if grad is not None:
        param.grad = torch.tensor(grad)
    return param


@pytest.mark.task("1.1")
def test_descend_goes_against_the_direction_in_place(lesson, expect):
    """θ = (1, 2, 3), d = (2, −4, 0), lr = 0.5: one step."""
    param, direction = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, -4.0, 0.0])
    lesson.optimizer.descend_(param, direction, 0.5)
    expect.equal("the tensor that was passed in", param, torch.tensor([0.0, 4.0, 3.0]), source="θ ← θ − lr·d")
    expect.equal("direction", direction, torch.tensor([2.0, -4.0, 0.0]), source="the direction is only read")


@pytest.mark.task("1.2")
def test_group_takes_the_defaults_that_it_does_not_set(lesson, expect):
    """Two groups, the second sets lr and momentum itself; the same list of dicts then serves a second optimizer."""
    a, b = make_param(1.0), make_param(2.0)
    asked = [{"params": [a]}, {"params": [b], "lr": 0.5, "momentum": 0.25}]
    before = copy.copy(asked[0]), copy.copy(asked[1])
    first = lesson.optimizer.SGDFromScratch(asked, lr=0.125, momentum=0.5, dampening=0.75, weight_decay=2.0)
    names = ("lr", "momentum", "dampening", "weight_decay", "nesterov")
    for index, want in enumerate([(0.125, 0.5, 0.75, 2.0, False), (0.5, 0.25, 0.75, 2.0, False)]):
        got = {name: first.param_groups[index].get(name) for name in names}
        source = "what the group sets itself, else the default"
        expect.equal(f"param_groups[{index}]", got, dict(zip(names, want, strict=True)), source=source)
    kept = all(g["params"][0] is p for g, p in zip(first.param_groups, (a, b), strict=True))
    expect.true("params of the groups", kept, expected="the very objects passed in", got="other tensors")
    keys = [sorted(group) for group in asked]
    expect.equal("keys of the caller's dicts", keys, [sorted(group) for group in before], source="left alone")
    second = lesson.optimizer.SGDFromScratch(asked, lr=8.0)
    lrs = [group["lr"] for group in second.param_groups]
    expect.equal("lr of the second optimizer's groups", lrs, [8.0, 0.5], source="its own default, 8")


@pytest.mark.task("1.2")
@pytest.mark.parametrize("where", ["in one group", "in two groups", "in a group added later"])
def test_parameter_that_appears_twice_is_refused(lesson, expect, where):
    """The same parameter object twice, beside another one."""
    param, other = make_param(1.0, 2.0), make_param(3.0)
    with expect.raises(ValueError, source="two entries would move one parameter twice a step"):
        if where == "in one group":
            lesson.optimizer.SGDFromScratch([param, other, param], lr=0.5)
        elif where == "in two groups":
            lesson.optimizer.SGDFromScratch([{"params": [param, other]}, {"params": [param]}], lr=0.5)
        else:
            optimizer = lesson.optimizer.SGDFromScratch([param], lr=0.5)
            optimizer.add_param_group({"params": [other, param]})


@pytest.mark.task("1.3")
def test_step_moves_every_group_with_its_own_lr(lesson, expect):
    """Two groups of one parameter, lr 0.5 and 0.25, gradients of 1: one step."""
    a, b = make_param(1.0, grad=[1.0]), make_param(1.0, grad=[1.0])
    groups = [{"params": [a]}, {"params": [b], "lr": 0.25}]
    lesson.optimizer.SGDFromScratch(groups, lr=0.5).step()
    moved = [a.item(), b.item()]
    expect.equal("one parameter of each group", moved, [0.5, 0.75], source="1 − lr·1, lr = 0.5 and 0.25")


@pytest.mark.task("1.3")
def test_step_uses_the_lr_of_this_moment(lesson, expect):
    """lr = 1, gradient 1, three steps; before each of them the lr in param_groups is halved."""
    param = make_param(1.0, grad=[1.0])
    optimizer = lesson.optimizer.SGDFromScratch([param], lr=1.0)
    for step, want in enumerate([0.5, 0.25, 0.125], start=1):
        optimizer.param_groups[0]["lr"] *= 0.5
        optimizer.step()
        expect.equal("θ", param.item(), want, source="lr = 0.5, 0.25, 0.125 from param_groups", step=step)


@pytest.mark.task("1.3")
def test_parameter_without_gradient_is_passed_over(lesson, expect):
    """Four parameters, all 1, in groups of 3 and 1: the first (frozen) and the third have no gradient; two steps."""
    params = [make_param(1.0, grad=None if i % 2 == 0 else [0.0]) for i in range(4)]
    params[0].requires_grad_(False)
    groups = [{"params": params[:3]}, {"params": params[3:]}]
    optimizer = lesson.optimizer.SGDFromScratch(groups, lr=0.5)
    for step in (1, 2):
        for param in params[1::2]:
            param.grad = torch.ones(1)
        optimizer.step()
        want = [1.0, 1 - 0.5 * step, 1.0, 1 - 0.5 * step]
        got = [param.item() for param in params]
        expect.equal("the four parameters", got, want, source="1 − lr·steps with a gradient", step=step)
    with_state = [i for i, param in enumerate(params) if optimizer.state.get(param)]
    expect.equal("parameters that have state", with_state, [], source="plain SGD keeps nothing")


@pytest.mark.task("1.3")
@pytest.mark.parametrize("recording", [True, False], ids=["recording", "under no_grad"])
def test_step_runs_the_closure_and_returns_its_loss(lesson, expect, recording):
    """θ = 2, loss θ²/2, lr = 0.5; the closure clears the gradient, calls backward and returns the loss."""
    param, calls = make_param(2.0), []
    optimizer = lesson.optimizer.SGDFromScratch([param], lr=0.5)

    def closure():
        calls.append(param.item())
        param.grad = None
        loss = (0.5 * param**2).sum()
        loss.backward()
        return loss

    for step, (before, after) in enumerate([(2.0, 1.0), (1.0, 0.5)], start=1):
        with torch.set_grad_enabled(recording):
            loss = optimizer.step(closure)
        shown = loss.item() if isinstance(loss, torch.Tensor) else loss
        expect.equal("what step() returned", shown, 0.5 * before**2, source="θ²/2 before the step", step=step)
        expect.equal("θ", param.item(), after, source="θ − lr·θ", step=step)
        expect.equal("calls of the closure", len(calls), step, source="once a step", step=step)
    expect.equal("what step() without a closure returned", optimizer.step(), None, source="there is no loss")


@pytest.mark.task("1.4")
@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_forgets_the_gradients_of_all_groups(lesson, expect, set_to_none):
    """Two groups of two; the first parameter of the second group never had a gradient."""
    params = [
        make_param(1.0, 2.0, grad=[3.0, 4.0]),
        make_param(1.0, grad=[6.0]),
        make_param(1.0),
        make_param(1.0, grad=[5.0]),
    ]
    optimizer = lesson.optimizer.SGDFromScratch([{"params": params[:2]}, {"params": params[2:]}], lr=0.5)
    optimizer.zero_grad(set_to_none=set_to_none)
    want = [None] * 4 if set_to_none else [torch.zeros(2), torch.zeros(1), None, torch.zeros(1)]
    expect.equal("grad of the four", [p.grad for p in params], want, source=f"set_to_none={set_to_none}")


@pytest.mark.task("1.4")
def test_zero_grad_sets_to_none_unless_told_otherwise(lesson, expect):
    """One parameter with a gradient, zero_grad() without arguments."""
    param = make_param(1.0, grad=[3.0])
    lesson.optimizer.SGDFromScratch([param], lr=0.5).zero_grad()
    expect.equal("grad", param.grad, None, source="the default is set_to_none=True")


@pytest.mark.task("1.5")
def test_weight_decay_pulls_towards_zero(lesson, expect):
    """θ = (4, −4), gradient 1, lr = 0.5, weight_decay = 0.5: three steps."""
    param = make_param(4.0, -4.0, grad=[1.0, 1.0])
    optimizer = lesson.optimizer.SGDFromScratch([param], lr=0.5, weight_decay=0.5)
    want = torch.tensor([4.0, -4.0])
    for step in (1, 2, 3):
        optimizer.step()
        want = want - 0.5 * (1.0 + 0.5 * want)
        expect.equal("θ", param.data, want, source="θ ← θ − lr·(g + λ·θ)", step=step)


@pytest.mark.task("1.6")
def test_momentum_sums_up_past_gradients(lesson, expect):
    """Gradient 1 at every step, lr = 1, momentum = 0.5: four steps."""
    param = make_param(0.0, grad=[1.0])
    optimizer = lesson.optimizer.SGDFromScratch([param], lr=1.0, momentum=0.5)
    want = 0.0
    for step, buffer in enumerate([1.0, 1.5, 1.75, 1.875], start=1):
        optimizer.step()
        want -= buffer
        expect.equal("θ", param.item(), want, source="b = 1, 1.5, 1.75, 1.875; θ ← θ − b", step=step)
        got = optimizer.state.get(param, {}).get("momentum_buffer")
        source = "b ← g, then b ← 0.5·b + g, in state[param]"
        expect.equal("momentum_buffer", got, torch.tensor([buffer]), source=source, step=step)


@pytest.mark.task("1.6")
def test_dampening_spares_the_first_step(lesson, expect):
    """Gradient 1 at every step, lr = 1, momentum = 0.5, dampening = 0.75: three steps."""
    param = make_param(0.0, grad=[1.0])
    optimizer = lesson.optimizer.SGDFromScratch([param], lr=1.0, momentum=0.5, dampening=0.75)
    want = 0.0
    for step, buffer in enumerate([1.0, 0.75, 0.625], start=1):
        optimizer.step()
        want -= buffer
        expect.equal("θ", param.item(), want, source="b = g first, then 0.5·b + (1 − 0.75)·g", step=step)


@pytest.mark.task("1.6")
def test_momentum_buffer_survives_an_emptied_gradient(lesson, expect):
    """One step with gradient 1, momentum = 0.5; then the gradient's tensor is zeroed in place; one more step."""
    param = make_param(0.0, grad=[1.0])
    optimizer = lesson.optimizer.SGDFromScratch([param], lr=1.0, momentum=0.5)
    for step, want in enumerate([-1.0, -1.5], start=1):
        optimizer.step()
        expect.equal("θ", param.item(), want, source="b = 1, then 0.5·1 + 0", step=step)
        param.grad.zero_()


@pytest.mark.task("1.6")
def test_nesterov_looks_ahead_along_the_new_buffer(lesson, expect):
    """Gradient 1 at every step, lr = 1, momentum = 0.5, nesterov: three steps."""
    param = make_param(0.0, grad=[1.0])
    optimizer = lesson.optimizer.SGDFromScratch([param], lr=1.0, momentum=0.5, nesterov=True)
    want = 0.0
    for step, buffer in enumerate([1.0, 1.5, 1.75], start=1):
        optimizer.step()
        want -= 1.0 + 0.5 * buffer
        expect.equal("θ", param.item(), want, source="d = g + 0.5·b with b = 1, 1.5, 1.75", step=step)


@pytest.mark.task("1.7")
def test_restored_optimizer_goes_on_where_the_first_one_stopped(lesson, expect):
    """Momentum 0.5, lr 0.25, gradient 1: two steps; snapshot; two more steps of the first, then two of a restored."""
    param = make_param(0.0, grad=[1.0])
    optimizer = lesson.optimizer.SGDFromScratch([param], lr=0.25, momentum=0.5)
    for _ in range(2):
        optimizer.step()
    snapshot, again = optimizer.state_dict(), make_param(param.item(), grad=[1.0])
    positions = []
    for _ in range(2):
        optimizer.step()
        positions.append(param.item())
    kept = snapshot["state"][0]["momentum_buffer"]
    source = "b after two steps: 1, then 0.5·1 + 1"
    expect.equal("momentum_buffer in the snapshot", kept, torch.tensor([1.5]), source=source)
    restored = lesson.optimizer.SGDFromScratch([again], lr=8.0)
    restored.load_state_dict(snapshot)
    for step, want in enumerate(positions, start=3):
        restored.step()
        expect.equal("θ", again.item(), want, source="the first optimizer, which went on", step=step)
