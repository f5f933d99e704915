"""Advanced tests of lesson 03: parameter groups. Run: pytest testcases/advanced_test.py"""

import copy

import pytest
import torch
from torch import nn


class Mlp(nn.Module):
    """Twelve layers, each a matrix with a bias, and a norm before it."""

    def __init__(self, layers=12, dim=3):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict({"norm": nn.LayerNorm(dim), "linear": nn.Linear(dim, dim)}) for _ in range(layers)
        )

    def forward(self, x):
        for layer in self.layers:
            x = x + layer["linear"](layer["norm"](x))
        return x


class SharedTwice(nn.Module):
    """One module under two names, and a parameter under a third."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(3, 3)
        self.decoder = self.encoder
        self.bias_of_encoder = self.encoder.bias
        self.gain = nn.Parameter(torch.ones(1, 1, 3))  # a gain, stored with three dimensions


def conv_net():
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2, bias=False))


def parameter_list():
    shapes = [(), (1,), (5,), (2, 3), (2, 1, 3)]
    return nn.ModuleDict({"inner": nn.ParameterList(nn.Parameter(torch.ones(s)) for s in shapes)})


def partly_frozen():
    model = Mlp(layers=3)
    model.layers[1].requires_grad_(False)
    return model


MODELS = {
    "batch norm": conv_net,
    "parameter list": parameter_list,
    "module shared twice": SharedTwice,
    "frozen block": partly_frozen,
    "biases only": lambda: nn.ParameterDict({"bias": nn.Parameter(torch.ones(2))}),
}


def named_groups(optimizer):
    """Name → its group, for an optimizer whose groups have param_names."""
    return {name: group for group in optimizer.param_groups for name in group["param_names"]}


def train_step(model, optimizer, batch):
    optimizer.zero_grad()
    model(batch).square().mean().backward()
    optimizer.step()


# ---------------------------------------------------------------------------------------- configure_optimizer


@pytest.mark.task("3.1", "3.2", "3.3", "3.4")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("adamw", {"betas": (0.8, 0.95)}),
        ("adam", {"eps": 1e-3}),
        ("sgd", {"momentum": 0.9, "nesterov": True}),
    ],
)
def test_twenty_steps_equal_torch_with_groups_made_by_hand(lesson, expect, rng, device, name, options):
    """Three layers with LayerNorm, 20 steps on random batches, lr = 0.05, weight_decay = 0.3."""
    model = Mlp(layers=3).to(device)
    twin = copy.deepcopy(model)
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}[name]
    matrices = [layer["linear"].weight for layer in twin.layers]
    others = [p for layer in twin.layers for p in (*layer["norm"].parameters(), layer["linear"].bias)]
    groups = [{"params": matrices, "weight_decay": 0.3}, {"params": others, "weight_decay": 0.0}]
    reference = kind(groups, lr=0.05, **options)
    optimizer = lesson.optimizer.configure_optimizer(model, name, lr=0.05, weight_decay=0.3, **options)
    for step in range(1, 21):
        batch = torch.randn(4, 3, generator=rng).to(device)
        train_step(model, optimizer, batch)
        train_step(twin, reference, batch)
        for key, want in twin.named_parameters():
            source = f"torch.optim.{kind.__name__} with two groups"
            expect.equal(key, model.get_parameter(key).detach(), want.detach(), source=source, step=step)


@pytest.mark.task("3.2", "3.3", "3.4")
@pytest.mark.parametrize("kind", list(MODELS))
def test_every_trainable_parameter_is_in_exactly_one_group(lesson, expect, kind):
    """An unusual model: the groups together are a partition of its trainable parameters."""
    model = MODELS[kind]()
    want = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = lesson.optimizer.configure_optimizer(model, "adamw", lr=0.5, weight_decay=0.1)
    names = [name for group in optimizer.param_groups for name in group["param_names"]]
    expect.equal("names in all groups", sorted(names), sorted(want), source="each trainable parameter once")
    tensors = sum(len(group["params"]) for group in optimizer.param_groups)
    expect.equal("tensors in all groups", tensors, len(want), source="as many tensors as names")
    empty = sum(not group["params"] for group in optimizer.param_groups)
    expect.equal("empty groups", empty, 0, source="a group without parameters serves nothing")
    for name, group in named_groups(optimizer).items():
        decay = 0.1 if want[name].ndim >= 2 else 0.0
        source = f"{name} has the shape {tuple(want[name].shape)}"
        expect.equal(f"weight_decay of {name}", group["weight_decay"], decay, source=source)


@pytest.mark.task("3.2", "3.4")
def test_tied_weight_is_updated_once_in_a_step(lesson, expect):
    """Embedding and head share one matrix of ones, gradient 1, SGD with lr = 0.1 and no decay."""
    model = nn.ModuleDict({"embedding": nn.Embedding(3, 2), "lm_head": nn.Linear(2, 3, bias=False)})
    model["lm_head"].weight = model["embedding"].weight
    weight = nn.init.ones_(model["embedding"].weight)
    pairs = lesson.optimizer.trainable_parameters(model)
    expect.equal("number of tensors", len(pairs), 1, source="one tensor under two names")
    optimizer = lesson.optimizer.configure_optimizer(model, "sgd", lr=0.1, weight_decay=0.0)
    for step in (1, 2, 3):
        weight.grad = torch.ones_like(weight)
        before = weight.detach().clone()
        optimizer.step()
        want = before - 0.1 * torch.ones(3, 2)
        expect.equal("tied weight", weight.detach(), want, source="θ ← θ − lr·g, once", step=step)


@pytest.mark.task("3.2", "3.4")
def test_frozen_parameter_stays_although_it_has_a_gradient(lesson, expect):
    """Two layers, the first frozen with a leftover gradient of zeros; AdamW, lr = 0.5, weight_decay = 0.1."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    model[0].requires_grad_(False)
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    optimizer = lesson.optimizer.configure_optimizer(model, "adamw", lr=0.5, weight_decay=0.1)
    optimizer.step()
    got = model[0].weight.detach()
    expect.equal("frozen weight", got, before["0.weight"], source="requires_grad=False: left out", step=1)
    got = model[1].weight.detach()
    expect.equal("trained weight", got, before["1.weight"] * 0.95, source="θ ← (1 − lr·λ)·θ", step=1)


@pytest.mark.task("3.2", "3.4")
def test_order_of_parameters_is_the_models_and_the_same_for_each_instance(lesson, expect):
    """Two separately built models with 48 parameters; names and shapes, group by group."""
    layouts = []
    for _ in range(2):
        model = Mlp()
        optimizer = lesson.optimizer.configure_optimizer(model, "adamw", lr=0.5, weight_decay=0.1)
        rank = {name: i for i, (name, _) in enumerate(model.named_parameters())}
        layouts.append([group["param_names"] for group in optimizer.param_groups])
        for names in layouts[-1]:
            in_order = names == sorted(names, key=lambda name: rank[name])
            expect.true("order within a group", in_order, expected="the model's order", got=names)
        for name, group in named_groups(optimizer).items():
            found = group["params"][group["param_names"].index(name)] is model.get_parameter(name)
            expect.true(
                f"tensor named {name}", found, expected="the model's tensor of that name", got="another"
            )
    same = layouts[0] == layouts[1]
    expect.true("layout of two instances", same, expected=layouts[0], got=layouts[1])


@pytest.mark.task("3.1", "3.4")
def test_groups_can_be_used_for_a_second_optimizer(lesson, expect):
    """The same group dicts go to AdamW, then to SGD, whose options differ."""
    model = nn.Linear(2, 2)
    settings = {"weight": {"lr": 0.1, "weight_decay": 0.2}, "bias": {"lr": 0.1, "weight_decay": 0.0}}
    groups = lesson.optimizer.group_by_settings(model, settings)
    for name in ("adamw", "sgd"):
        optimizer = lesson.optimizer.create_optimizer(name, groups, lr=0.5, weight_decay=0.5)
        got = {key: group["weight_decay"] for key, group in named_groups(optimizer).items()}
        expect.equal(f"weight_decay in {name}", got, {"weight": 0.2, "bias": 0.0}, source="the groups")
        got = {key: group["lr"] for key, group in named_groups(optimizer).items()}
        expect.equal(f"lr in {name}", got, {"weight": 0.1, "bias": 0.1}, source="the groups")


# ------------------------------------------------------------------------------------------------- overrides


@pytest.mark.task("3.4", "3.5")
def test_layer_wise_lr_survives_a_schedule(lesson, expect):
    """Twelve layers, layer i with lr = 2^(i−11); a schedule halves every lr at each of three updates."""
    model = Mlp()
    overrides = {f"layers.{i}": {"lr": 2.0 ** (i - 11)} for i in range(12)}
    optimizer = lesson.optimizer.configure_optimizer(model, "sgd", 99.0, 0.1, overrides=overrides)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 0.5**update)
    for update in range(4):
        for i in (0, 1, 10, 11):
            group = named_groups(optimizer).get(f"layers.{i}.linear.weight", {})
            want = 2.0 ** (i - 11 - update)
            expect.equal(
                f"lr of layer {i}", group.get("lr"), want, source="2^(i − 11) · 0.5^update", step=update
            )
        optimizer.step()
        schedule.step()
    expect.equal("groups", len(optimizer.param_groups), 24, source="12 learning rates × decay or none")


@pytest.mark.task("3.4", "3.5")
def test_overrides_of_one_parameter_the_last_wins_and_any_option_goes(lesson, expect):
    """Three overrides for a layer with two names; a gain of shape (1, 1, 3) gets its own lr, betas, no decay."""
    model = SharedTwice()
    overrides = {
        "weight": {"lr": 0.4},
        "encoder": {"lr": 0.1},  # the weight again, and the bias
        "encoder.bias": {"lr": 0.2},
        "gain": {"weight_decay": 0.0, "betas": (0.5, 0.6), "lr": 0.3},
    }
    optimizer = lesson.optimizer.configure_optimizer(model, "adamw", 0.9, 0.7, overrides=overrides)
    groups = named_groups(optimizer)
    got = {name: [g["lr"], g["weight_decay"], g["betas"]] for name, g in groups.items()}
    want = {
        "encoder.weight": [0.1, 0.7, (0.9, 0.999)],
        "bias_of_encoder": [0.2, 0.0, (0.9, 0.999)],  # its first name
        "gain": [0.3, 0.0, (0.5, 0.6)],
    }
    expect.equal("lr, weight_decay, betas", got, want, source="overrides in the order written, the last wins")


@pytest.mark.task("3.5")
@pytest.mark.parametrize("alias", ["embedding", "lm_head", "lm_head.weight"])
def test_override_reaches_a_tied_weight_under_each_of_its_names(lesson, expect, alias):
    """An embedding tied to lm_head; the override uses one of the names."""
    model = nn.ModuleDict({"embedding": nn.Embedding(3, 2), "lm_head": nn.Linear(2, 3, bias=False)})
    model["lm_head"].weight = model["embedding"].weight
    settings = {"embedding.weight": {"lr": 0.5, "weight_decay": 0.1}}
    try:
        got = lesson.optimizer.apply_overrides(settings, model, {alias: {"lr": 0.25}})
    except ValueError as error:
        got = str(error)
    want = {"embedding.weight": {"lr": 0.25, "weight_decay": 0.1}}
    expect.equal("settings", got, want, source="a tensor answers to each of its names")
    source = "the argument is not changed"
    expect.equal("settings passed in", settings["embedding.weight"]["lr"], 0.5, source=source)


@pytest.mark.task("3.5")
@pytest.mark.parametrize("pattern", ["embeding", "layers.1.norm", "weigh", "layers.12"])
def test_override_that_matches_nothing_is_an_error(lesson, expect, pattern):
    """A misspelt pattern, a frozen layer, half a part of a name, a layer that does not exist."""
    model = Mlp()
    model.layers[1]["norm"].requires_grad_(False)
    settings = {n: {"lr": 0.5, "weight_decay": 0.1} for n, p in model.named_parameters() if p.requires_grad}
    with expect.raises(ValueError, match=pattern, source="an override is never ignored in silence"):
        lesson.optimizer.apply_overrides(settings, model, {"layers.0": {"lr": 0.1}, pattern: {"lr": 0.25}})


# ------------------------------------------------------------------------------------------------- ownership


@pytest.mark.task("3.6")
@pytest.mark.parametrize(
    "change", ["assign", "same storage", "new layer", "new head", "to float64", "frozen later"]
)
def test_ownership_report_after_the_model_was_changed(lesson, expect, change):
    """Two layers and an optimizer without names; then one change to the model."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    missing, stale = [], []
    if change == "assign":  # load_state_dict(assign=True) puts new objects in
        model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
        missing = ["0.bias", "0.weight", "1.bias", "1.weight"]
        stale = [f"group 0 tensor {i}" for i in range(4)]
    elif change == "same storage":  # the memory is the same, the gradient goes to the new object
        model[0].weight = nn.Parameter(model[0].weight.data)
        missing, stale = ["0.weight"], ["group 0 tensor 0"]
    elif change == "new layer":  # in place of the second one: same names and shapes, other values
        model[1] = nn.Linear(2, 2)
        missing, stale = ["1.bias", "1.weight"], ["group 0 tensor 2", "group 0 tensor 3"]
    elif change == "new head":
        model.append(nn.Linear(2, 1, bias=False))
        missing = ["2.weight"]
    elif change == "to float64":  # keeps the objects and changes what is in them
        model.to(torch.float64)
    else:
        model[0].requires_grad_(False)
    got_missing, got_stale = lesson.optimizer.ownership_report(optimizer, model)
    expect.equal("missing", sorted(got_missing), missing, source="trainable parameters that no group holds")
    expect.equal("stale", sorted(got_stale), stale, source="tensors in the groups that the model has lost")


@pytest.mark.task("3.4", "3.6")
def test_check_ownership_stops_a_run_whose_embedding_was_replaced(lesson, expect):
    """The embedding grows from 3 to 4 rows after the optimizer was built; then the optimizer is built anew."""
    model = nn.ModuleDict({"embedding": nn.Embedding(3, 2), "norm": nn.LayerNorm(2)})
    optimizer = lesson.optimizer.configure_optimizer(model, "adamw", 0.5, 0.1)
    model["embedding"] = nn.Embedding(4, 2)
    with expect.raises(ValueError, match="embedding.weight", source="step() would never move the new tensor"):
        lesson.optimizer.check_ownership(optimizer, model)
    optimizer = lesson.optimizer.configure_optimizer(model, "adamw", 0.5, 0.1)
    report = lesson.optimizer.ownership_report(optimizer, model)
    expect.equal("missing, stale", list(report), [[], []], source="a new optimizer holds the new tensors")


# ---------------------------------------------------------------------------------------------------- resume


@pytest.mark.task("3.2", "3.4")
def test_resume_with_the_same_groups_continues_bit_for_bit(lesson, expect, rng):
    """Twelve layers of one shape, 3 steps, state_dict into a new model and optimizer, 3 more; AdamW."""

    def make():
        model = Mlp()
        overrides = {"layers.10": {"lr": 0.01}}
        return model, lesson.optimizer.configure_optimizer(model, "adamw", 0.05, 0.1, overrides=overrides)

    batches = [torch.randn(4, 3, generator=rng) for _ in range(6)]
    model, optimizer = make()
    for batch in batches[:3]:
        train_step(model, optimizer, batch)
    resumed, resumed_optimizer = make()
    resumed.load_state_dict(model.state_dict())
    saved = copy.deepcopy(optimizer.state_dict())
    layout, new_layout = (
        [group["param_names"] for group in groups]
        for groups in (saved["param_groups"], resumed_optimizer.param_groups)
    )
    same = new_layout == layout
    expect.true("position of every parameter", same, expected=layout, got=new_layout)
    resumed_optimizer.load_state_dict(saved)
    for step, batch in enumerate(batches[3:], start=4):
        train_step(model, optimizer, batch)
        train_step(resumed, resumed_optimizer, batch)
        same = all(torch.equal(p, resumed.get_parameter(name)) for name, p in model.named_parameters())
        expect.true("every parameter", same, expected="as in the run without a break", got="other", step=step)


@pytest.mark.task("3.4", "3.5", "3.7")
def test_load_state_by_name_after_the_groups_were_changed(lesson, expect, rng):
    """Twelve layers of one shape, 3 AdamW steps, one layer never updated; then new groups for layers 0 and 7."""
    model = Mlp()
    model.layers[5]["linear"].bias.requires_grad_(False)
    old = lesson.optimizer.configure_optimizer(model, "adamw", 0.05, 0.1)
    model.layers[3]["linear"].bias.requires_grad_(False)  # stays in the optimizer, and never gets a gradient
    for _ in range(3):
        train_step(model, old, torch.randn(4, 3, generator=rng))
    model.layers[3]["linear"].bias.requires_grad_(True)
    overrides = {"layers.7": {"lr": 0.01}, "layers.0": {"weight_decay": 0.0}}
    new = lesson.optimizer.configure_optimizer(model, "adamw", 0.02, 0.1, overrides=overrides)
    saved = copy.deepcopy(old.state_dict())
    lesson.optimizer.load_state_by_name(new, saved)
    for name, param in model.named_parameters():
        got, want = dict(new.state.get(param, {})), dict(old.state.get(param, {}))
        source = "the state under the same name" if want else "no state was saved: none is loaded"
        expect.equal(f"state of {name}", got, want, source=source)
    lrs = {name: group["lr"] for name, group in named_groups(new).items()}
    want = {name: 0.01 if name.startswith("layers.7.") else 0.02 for name in lrs}
    expect.equal("lr", lrs, want, source="settings stay those of the new optimizer")
    train_step(model, new, torch.randn(4, 3, generator=rng))
    source = "loading shares no memory: a later step leaves the saved state alone"
    expect.equal("saved state", saved, old.state_dict(), source=source)


@pytest.mark.task("3.7")
@pytest.mark.parametrize("case", ["a name less", "a name more", "another shape", "no names"])
def test_load_state_by_name_refuses_what_does_not_fit_and_then_loads_what_does(lesson, expect, case):
    """One parameter too few, one too many, one resized, an optimizer without names; then the right state."""
    params = {name: nn.Parameter(torch.zeros(2)) for name in "ab"}
    right = torch.optim.Adam(list(params.items()), lr=0.1, betas=(0.5, 0.5))
    for param in params.values():
        param.grad = torch.full_like(param, 4.0)
    right.step()
    wrong = copy.deepcopy(right.state_dict())
    group = wrong["param_groups"][0]
    if case == "a name less":
        group["params"], group["param_names"] = [0], ["a"]
    elif case == "a name more":
        group["params"], group["param_names"] = [0, 1, 2], ["a", "b", "c"]
    elif case == "another shape":
        wrong["state"][1]["exp_avg"] = torch.zeros(3)
    else:
        del group["param_names"]
    optimizer = torch.optim.Adam([("b", params["b"]), ("a", params["a"])], lr=0.1)
    with expect.raises(ValueError, source="loaded as a whole or not at all"):
        lesson.optimizer.load_state_by_name(optimizer, wrong)
    expect.equal("parameters with state", len(optimizer.state), 0, source="an error changes nothing")
    lesson.optimizer.load_state_by_name(optimizer, right.state_dict())
    for name, param in params.items():
        got = optimizer.state.get(param, {}).get("exp_avg")
        source = "m = (1 − β1)·g with β1 = 0.5, g = 4"
        expect.equal(f"exp_avg of {name}", got, torch.full((2,), 2.0), source=source)
