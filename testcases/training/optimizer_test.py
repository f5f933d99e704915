"""Tests of training/optimizer.py."""

import pytest
import torch
from torch import nn

from training.model import RMSNorm
from training.optimizer import configure_optimizer, create_optimizer


class Mixed(nn.Module):
    """Every kind of parameter: norm gains of three kinds, biases, a scalar, a convolution, tied and frozen ones."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.conv = nn.Conv1d(4, 4, 3)
        self.layer_norm = nn.LayerNorm(4)
        self.rms_norm = RMSNorm(4)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.register_buffer("buffer", torch.ones(4, 4))
        self.head = nn.Linear(4, 5)
        self.head.weight = self.embedding.weight


DECAY = ["embedding.weight", "conv.weight"]
NO_DECAY = ["conv.bias", "layer_norm.weight", "layer_norm.bias", "rms_norm.weight", "scale", "head.bias"]


def test_matrices_decay_and_everything_of_one_dimension_does_not():
    model = Mixed()
    optimizer = configure_optimizer(model, weight_decay=0.3)
    names = {group["weight_decay"]: sorted(group["param_names"]) for group in optimizer.param_groups}
    assert names == {0.3: sorted(DECAY), 0.0: sorted(NO_DECAY)}, "tied once, frozen and buffers not at all"
    params = dict(model.named_parameters())
    for group in optimizer.param_groups:
        assert [id(p) for p in group["params"]] == [id(params[name]) for name in group["param_names"]]


def test_decay_moves_matrices_by_lr_times_decay_and_nothing_else():
    model = Mixed()
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    optimizer = configure_optimizer(model, lr=0.5, weight_decay=0.1)
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    optimizer.step()
    for name, param in model.named_parameters():
        want = before[name] * (1 - 0.5 * 0.1) if name in DECAY else before[name]
        # the fused kernel may multiply in another order
        torch.testing.assert_close(
            param.detach(), want, atol=1e-7, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("model", [nn.Linear(3, 3, bias=False), RMSNorm(3)])
def test_group_without_parameters_is_left_out(model):
    assert [len(group["params"]) for group in configure_optimizer(model).param_groups] == [1]


def test_groups_and_order_are_those_of_the_model_so_that_a_state_can_be_loaded():
    def names() -> list[list[str]]:
        return [group["param_names"] for group in configure_optimizer(Mixed()).param_groups]

    order = [name for name, _ in Mixed().named_parameters()]
    assert names() == names()
    assert all(group == sorted(group, key=order.index) for group in names())


def test_model_without_trainable_parameters_is_refused():
    with pytest.raises(ValueError, match="Linear has no trainable parameter"):
        configure_optimizer(nn.Linear(2, 2).requires_grad_(False))


@pytest.mark.parametrize(
    ("name", "optimizer_class"),
    [
        ("adamw", torch.optim.AdamW),
        ("AdamW", torch.optim.AdamW),
        ("adam", torch.optim.Adam),
        ("SGD", torch.optim.SGD),
    ],
)
def test_name_stands_for_torch_optimizer_and_settings_reach_it(name, optimizer_class):
    optimizer = create_optimizer(name, [nn.Parameter(torch.ones(2))], lr=0.25, weight_decay=0.5)
    assert type(optimizer) is optimizer_class
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert optimizer.param_groups[0]["weight_decay"] == 0.5


def test_options_reach_the_optimizer_and_a_group_keeps_its_own():
    params = [{"params": nn.Parameter(torch.ones(2)), "lr": 0.1}, {"params": [nn.Parameter(torch.ones(2))]}]
    optimizer = create_optimizer("adamw", params, lr=0.2, betas=(0.8, 0.9), eps=1e-6)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2]
    assert {group["betas"] for group in optimizer.param_groups} == {(0.8, 0.9)}
    assert {group["eps"] for group in optimizer.param_groups} == {1e-6}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adanw", {}, "unknown optimizer 'adanw': did you mean 'adamw'?"),
        ("sdg", {}, "unknown optimizer 'sdg': did you mean 'sgd'?"),
        ("lion", {}, "unknown optimizer 'lion': known are ['adam', 'adamw', 'sgd']"),
        ("adamw", {"beta": (0.9, 0.99)}, "unknown option of adamw 'beta': did you mean 'betas'?"),
        ("sgd", {"betas": (0.9, 0.99)}, "unknown option of sgd 'betas': known are"),
        ("sgd", {"lr": -1.0}, "lr must be finite and >= 0, got -1.0"),
        ("adamw", {"lr": float("inf")}, "lr must be finite and >= 0, got inf"),
        ("adamw", {"lr": float("nan")}, "lr must be finite and >= 0, got nan"),
        ("adamw", {"weight_decay": -0.1}, "weight_decay must be finite and >= 0, got -0.1"),
    ],
)
def test_unknown_name_or_number_out_of_range_is_refused_with_the_nearest(name, options, message):
    with pytest.raises(ValueError) as caught:
        create_optimizer(name, [nn.Parameter(torch.ones(2))], **{"lr": 0.1, **options})
    assert str(caught.value).startswith(message)


def test_adamw_is_fused_where_the_device_has_it_unless_told():
    def fused(device: str, **options) -> bool | None:
        param = nn.Parameter(torch.ones(2, device=device))
        return create_optimizer("adamw", [("name", param)], lr=0.1, **options).param_groups[0]["fused"]

    assert fused("cpu") is True
    assert not fused("meta")
    assert not fused("cpu", foreach=True)
    assert fused("cpu", fused=False) is False


def test_generator_of_parameters_is_used_once():
    model = nn.Linear(2, 2)
    assert len(create_optimizer("adamw", model.parameters(), lr=0.1).param_groups[0]["params"]) == 2
