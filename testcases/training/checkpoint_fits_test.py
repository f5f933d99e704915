"""Tests of check_fits (training/matching.py): what does not fit is named before anything is applied."""

import copy

import pytest
import torch
from torch import nn

from training.checkpoint import CheckpointError, check_fits, load_checkpoint, save_checkpoint
from training.optimizer import configure_optimizer
from training.scheduler import create_scheduler


def build(tiny_gpt, **shape):
    model = tiny_gpt(**shape)
    optimizer = configure_optimizer(model)
    scheduler = create_scheduler("cosine", optimizer, 2, 10)
    model(torch.zeros(1, 4, dtype=torch.int64)).sum().backward()
    optimizer.step()
    return model, optimizer, scheduler


def test_state_fits_its_own_objects_and_a_fresh_optimizer(tiny_gpt, tmp_path):
    model, optimizer, scheduler = build(tiny_gpt)
    parts = zip(("model", "optimizer", "scheduler"), (model, optimizer, scheduler), strict=True)
    save_checkpoint({f"{name}_state_dict": part.state_dict() for name, part in parts}, tmp_path / "x.pt")
    state = load_checkpoint(tmp_path / "x.pt")
    check_fits(state, model, optimizer, scheduler)
    fresh = configure_optimizer(model, lr=0.5, weight_decay=0.3)  # other values are meant
    check_fits(state, model, fresh)
    check_fits({"model_state_dict": state["model_state_dict"]}, model)


def drop_one(state: dict) -> None:
    state["model_state_dict"].pop("norm.weight", None) or state["model_state_dict"].popitem()


def each_weight(change):
    def edit(state: dict) -> None:
        state["model_state_dict"] = dict(change(*item) for item in state["model_state_dict"].items())

    return edit


def moments(state: dict) -> dict:
    return state["optimizer_state_dict"]["state"]


def edit_group(**changes):
    return lambda state: state["optimizer_state_dict"]["param_groups"][0].update(changes)


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda state: state.pop("model_state_dict"), "it has no model_state_dict"),
        (drop_one, "is missing"),
        (lambda state: state["model_state_dict"].update(extra=torch.ones(1)), "extra is not in the model"),
        (each_weight(lambda name, t: (f"module.{name}", t)), "begin with 'module.', which"),
        (each_weight(lambda name, t: (name, t.bfloat16())), "torch.bfloat16, and .* torch.float32 in the model"),
        (each_weight(lambda name, t: (name, t[:1])), r"; and \d+ more"),
        (each_weight(lambda name, t: (name, 3)), "is a int and no tensor"),
        (lambda state: state.pop("optimizer_state_dict"), "it has no optimizer_state_dict"),
        (lambda state: state["optimizer_state_dict"]["param_groups"].pop(), "has groups of"),
        (lambda state: state["optimizer_state_dict"]["param_groups"][0].pop("betas"), "has no 'betas': another"),
        (edit_group(param_names=["a"]), "in another order"),
        (edit_group(decoupled_weight_decay=False), "of Adam in one and of AdamW in the other"),
        (edit_group(params=3), "malformed"),
        (lambda state: moments(state)[0].update(exp_avg=torch.ones(2)), "exp_avg of parameter 0"),
        (lambda state: moments(state).update({0: 1}), "parameter 0 is a int"),
        (lambda state: state.pop("scheduler_state_dict"), "it has no scheduler_state_dict"),
        (lambda state: state["scheduler_state_dict"].pop("last_epoch"), "another kind of object"),
    ],
)  # fmt: skip
def test_difference_is_named_and_nothing_is_applied(tiny_gpt, edit, reason):
    model, optimizer, scheduler = build(tiny_gpt)
    parts = zip(("model", "optimizer", "scheduler"), (model, optimizer, scheduler), strict=True)
    state = copy.deepcopy({f"{name}_state_dict": part.state_dict() for name, part in parts})
    edit(state)
    before = copy.deepcopy([model.state_dict(), optimizer.state_dict()])
    with pytest.raises(CheckpointError, match=reason):
        check_fits(state, model, optimizer, scheduler)
    assert repr(before) == repr([model.state_dict(), optimizer.state_dict()])


def test_sgd_state_does_not_fit_adamw_nor_the_other_way():
    model = nn.Linear(2, 2)
    sgd, adamw = torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.AdamW(model.parameters())
    for mine, other in ((sgd, adamw), (adamw, sgd)):
        state = {"model_state_dict": model.state_dict(), "optimizer_state_dict": other.state_dict()}
        with pytest.raises(CheckpointError, match="another optimizer made it"):
            check_fits(state, model, mine)


def test_scaler_state_is_compared():
    model = nn.Linear(2, 2)
    state = {"model_state_dict": model.state_dict(), "scaler_state_dict": None}
    with pytest.raises(CheckpointError, match="it has no scaler_state_dict"):
        check_fits(state, model, scaler=torch.amp.GradScaler("cpu"))
    check_fits(state, model, scaler=torch.amp.GradScaler("cpu", enabled=False))
