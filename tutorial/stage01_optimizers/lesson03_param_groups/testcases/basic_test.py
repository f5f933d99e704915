"""Basic tests of lesson 03: parameter groups. Run: pytest testcases/basic_test.py"""

import pytest
import torch
from torch import nn

DECAYED = [
    "embedding.weight",
    "blocks.0.attn.weight",
    "blocks.0.normal_proj.weight",
    "blocks.0.conv.weight",
    "blocks.1.attn.weight",
    "blocks.1.normal_proj.weight",
    "blocks.1.conv.weight",
]


class RMSNorm(nn.Module):
    """A norm that is neither nn.LayerNorm nor nn.RMSNorm, as in most public models."""

    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_1 = RMSNorm(4)
        self.attn = nn.Linear(4, 4, bias=False)
        self.normal_proj = nn.Linear(4, 4)  # "norm" is in its name, and it is a matrix
        self.conv = nn.Conv1d(4, 4, 3)  # a weight with three dimensions
        self.scale = nn.Parameter(torch.tensor(0.5))  # a number: no dimension at all


class TinyGPT(nn.Module):
    """17 parameters under 18 names: the head is tied to the embedding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.final_norm = nn.LayerNorm(4)
        self.lm_head = nn.Linear(4, 6, bias=False)
        self.lm_head.weight = self.embedding.weight
        self.register_buffer("table", torch.ones(3, 3))


def two_parameters():
    return [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))]


# ------------------------------------------------------------------------------------------- create_optimizer


@pytest.mark.task("3.1")
@pytest.mark.parametrize(
    ("name", "kind"),
    [("adamw", "AdamW"), ("adam", "Adam"), ("sgd", "SGD"), ("AdamW", "AdamW"), ("SGD", "SGD")],
)
def test_create_optimizer_finds_the_class_in_upper_and_lower_case(lesson, expect, name, kind):
    """Two parameters, lr = 0.1, the optimizer asked for by its name."""
    optimizer = lesson.optimizer.create_optimizer(name, two_parameters(), lr=0.1)
    expect.equal("class", type(optimizer).__name__, kind, source=f"{name!r} stands for torch.optim.{kind}")


@pytest.mark.task("3.1")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("adamw", {"lr": 0.3, "weight_decay": 0.2, "betas": (0.8, 0.95), "eps": 1e-6}),
        ("sgd", {"lr": 0.3, "weight_decay": 0.2, "momentum": 0.7, "nesterov": True}),
    ],
)
def test_create_optimizer_passes_every_argument_on(lesson, expect, name, options):
    """Two parameters, and no option at its default value."""
    optimizer = lesson.optimizer.create_optimizer(name, two_parameters(), **options)
    for option, value in options.items():
        got = optimizer.param_groups[0][option]
        expect.equal(option, got, value, source="the argument of create_optimizer")


@pytest.mark.task("3.1")
def test_create_optimizer_leaves_a_groups_own_values_alone(lesson, expect):
    """Two groups, the first with lr = 0.01 and weight_decay = 0; arguments lr = 0.1, weight_decay = 0.2."""
    first, second = two_parameters()
    groups = [{"params": [first], "lr": 0.01, "weight_decay": 0.0}, {"params": [second]}]
    optimizer = lesson.optimizer.create_optimizer("adamw", groups, lr=0.1, weight_decay=0.2)
    expect.equal("number of groups", len(optimizer.param_groups), 2, source="two groups went in")
    for key, own, default in (("lr", 0.01, 0.1), ("weight_decay", 0.0, 0.2)):
        got = optimizer.param_groups[0][key]
        expect.equal(f"{key} of the first group", got, own, source="the group's own value")
        got = optimizer.param_groups[1][key]
        expect.equal(f"{key} of the second group", got, default, source="the group has none: the argument")


@pytest.mark.task("3.1")
@pytest.mark.parametrize(("name", "nearest"), [("adanw", "adamw"), ("SDG", "sgd"), ("lion", "adam")])
def test_create_optimizer_unknown_name_is_an_error_that_names_known_ones(lesson, expect, name, nearest):
    """A misspelt optimizer."""
    with expect.raises(ValueError, match=nearest, source="the error names the nearest known optimizer"):
        lesson.optimizer.create_optimizer(name, two_parameters(), lr=0.1)


@pytest.mark.task("3.1")
@pytest.mark.parametrize(
    ("name", "option", "nearest"),
    [("adamw", "beta", "betas"), ("sgd", "momentun", "momentum"), ("sgd", "betas", "betas")],
)
def test_create_optimizer_unknown_option_is_an_error(lesson, expect, name, option, nearest):
    """After a known option one that is unknown, both as keywords, then in a group (torch would ignore it)."""
    create = lesson.optimizer.create_optimizer
    options = {"foreach": False, option: 0.5}
    with expect.raises(ValueError, match=nearest, source="no option is dropped in silence"):
        create(name, two_parameters(), lr=0.1, **options)
    with expect.raises(ValueError, match=nearest, source="no option of a group is ignored in silence"):
        create(name, [{"params": two_parameters(), **options}], lr=0.1)


# --------------------------------------------------------------------------------------- trainable_parameters


@pytest.mark.task("3.2")
def test_trainable_parameters_are_in_the_models_order_without_frozen_ones(lesson, expect):
    """A small GPT with a buffer; the matrix and the norm of its first block are frozen."""
    model = TinyGPT()
    model.blocks[0].attn.requires_grad_(False)
    model.blocks[0].ln_1.requires_grad_(False)
    frozen = {"blocks.0.attn.weight", "blocks.0.ln_1.weight"}
    want = [name for name, _ in model.named_parameters() if name not in frozen]
    pairs = lesson.optimizer.trainable_parameters(model)
    names = [name for name, _ in pairs]
    expect.equal("names", sorted(names), sorted(want), source="all parameters with requires_grad, no buffer")
    expect.true("order", names == want, expected=want, got=names)
    same = all(param is model.get_parameter(name) for name, param in pairs)
    expect.true("objects", same, expected="the model's own parameter objects", got="copies or other tensors")


@pytest.mark.task("3.2")
def test_trainable_parameters_list_tied_weights_once(lesson, expect):
    """A small GPT whose lm_head.weight is embedding.weight."""
    model = TinyGPT()
    names = [n for n, p in lesson.optimizer.trainable_parameters(model) if p is model.embedding.weight]
    expect.equal("names of the tied tensor", names, ["embedding.weight"], source="one tensor, its first name")


@pytest.mark.task("3.2")
def test_trainable_parameters_refuse_a_model_without_any(lesson, expect):
    """A frozen linear layer, then a module that has no parameter."""
    for model in (nn.Linear(2, 2).requires_grad_(False), nn.ReLU()):
        with expect.raises(ValueError, match="trainable", source="there is nothing to train"):
            lesson.optimizer.trainable_parameters(model)


# ----------------------------------------------------------------------------- default_settings, groups, configure


@pytest.mark.task("3.3")
def test_default_settings_decay_matrices_and_nothing_else(lesson, expect):
    """A small GPT with a custom RMSNorm, a layer called normal_proj, a convolution and a scalar; decay 0.1."""
    model = TinyGPT()
    settings = lesson.optimizer.default_settings(model, lr=0.5, weight_decay=0.1)
    for name, param in model.named_parameters():
        decay = 0.1 if name in DECAYED else 0.0
        source = f"{name} has {param.ndim} dimension(s): λ if ndim ≥ 2, else 0"
        expect.equal(
            f"settings of {name}", settings.get(name), {"lr": 0.5, "weight_decay": decay}, source=source
        )
    source = "one entry for each trainable parameter"
    expect.equal("number of entries", len(settings), len(list(model.parameters())), source=source)


@pytest.mark.task("3.4")
def test_group_by_settings_puts_equal_settings_together_and_no_others(lesson, expect):
    """Four tensors a, b, c, d: a and c have the same settings, b another decay, d another lr."""
    model = nn.ParameterDict({name: nn.Parameter(torch.ones(2)) for name in "abcd"})
    settings = {
        "a": {"lr": 0.1, "weight_decay": 0.2},
        "b": {"lr": 0.1, "weight_decay": 0.0},
        "c": {"lr": 0.1, "weight_decay": 0.2},
        "d": {"lr": 0.3, "weight_decay": 0.2},
    }
    groups = lesson.optimizer.group_by_settings(model, settings)
    expect.equal("type of the groups", type(groups).__name__, "list", source="the signature: a list of dicts")
    source = "a and c share a group; b and d each have their own"
    expect.equal(
        "param_names",
        sorted(sorted(g["param_names"]) for g in groups),
        [["a", "c"], ["b"], ["d"]],
        source=source,
    )
    for group in groups:
        for name, param in zip(group["param_names"], group["params"], strict=True):
            expect.true(
                f"tensor beside the name {name}",
                param is model[name],
                expected="params and param_names are parallel",
                got="the name stands beside another tensor",
            )
            got = {key: group.get(key) for key in ("lr", "weight_decay")}
            expect.equal(f"settings of {name}'s group", got, settings[name], source="the settings passed in")


@pytest.mark.task("3.4")
def test_configure_optimizer_with_zero_gradient_shrinks_matrices_only(lesson, expect):
    """A small GPT, one AdamW step with zero gradients, lr = 0.5, weight_decay = 0.1."""
    model = TinyGPT()
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    optimizer = lesson.optimizer.configure_optimizer(
        model, "adamw", lr=0.5, weight_decay=0.1, betas=(0.8, 0.9)
    )
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    optimizer.step()
    for name, param in model.named_parameters():
        factor = 1 - 0.5 * 0.1 if name in DECAYED else 1.0
        source = f"θ ← (1 − lr·λ)·θ with λ = {0.1 if name in DECAYED else 0}, gradient 0"
        expect.equal(name, param.detach(), before[name] * factor, source=source, step=1)
    betas = [group["betas"] for group in optimizer.param_groups]
    expect.equal("betas", betas, [(0.8, 0.9)] * len(betas), source="the argument, in every group")


# ------------------------------------------------------------------------------------------------ overrides


@pytest.mark.task("3.5")
@pytest.mark.parametrize(
    ("name", "pattern", "want"),
    [
        ("embedding.weight", "embedding", True),
        ("decoder.embedding.weight", "embedding", True),
        ("layers.1.mlp.weight", "layers.1", True),
        ("layers.1.mlp.bias", "bias", True),
        ("layers.1.mlp.bias", "layers.1.mlp.bias", True),
        ("layers.10.mlp.weight", "layers.1", False),
        ("sublayers.1.weight", "layers.1", False),
        ("normal_proj.weight", "norm", False),
        ("layers.1.mlp.weight", "layers.mlp", False),
    ],
)
def test_name_matches_whole_neighbouring_parts_of_the_name(lesson, expect, name, pattern, want):
    """One name and one pattern."""
    got = lesson.optimizer.name_matches(name, pattern)
    expect.equal(
        f"{pattern!r} matches {name!r}", bool(got), want, source="neighbouring whole parts, at any depth"
    )


@pytest.mark.task("3.5")
def test_apply_overrides_changes_what_is_named_and_leaves_the_rest(lesson, expect):
    """Two blocks with lr = 0.1; block 1 is to have lr = 0.01, its bias a decay of 0.3 and an eps as well."""
    model = nn.ModuleDict({"blocks": nn.ModuleList(nn.Linear(2, 2) for _ in range(2))})
    settings = {}
    for i in range(2):
        settings[f"blocks.{i}.weight"] = {"lr": 0.1, "weight_decay": 0.2}
        settings[f"blocks.{i}.bias"] = {"lr": 0.1, "weight_decay": 0.0}
    overrides = {"blocks.1": {"lr": 0.01}, "blocks.1.bias": {"weight_decay": 0.3, "eps": 1e-6}}
    got = lesson.optimizer.apply_overrides(settings, model, overrides)
    want = {
        "blocks.0.weight": {"lr": 0.1, "weight_decay": 0.2},
        "blocks.0.bias": {"lr": 0.1, "weight_decay": 0.0},
        "blocks.1.weight": {"lr": 0.01, "weight_decay": 0.2},
        "blocks.1.bias": {"lr": 0.01, "weight_decay": 0.3, "eps": 1e-6},
    }
    source = "each override puts in the values it names, and no others"
    expect.equal("names", sorted(got), sorted(want), source=source)
    for name, values in want.items():
        expect.equal(f"settings of {name}", got.get(name), values, source=source)


# ------------------------------------------------------------------------------------ ownership, loading by name


@pytest.mark.task("3.6")
def test_ownership_report_names_a_replaced_parameter(lesson, expect):
    """Two layers; after the optimizer is built the second gets a new weight with the same values."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    missing, stale = lesson.optimizer.ownership_report(optimizer, model)
    expect.equal("missing, untouched model", missing, [], source="nothing was replaced")
    expect.equal("stale, untouched model", stale, [], source="nothing was replaced")
    model[1].weight = nn.Parameter(model[1].weight.detach().clone())
    missing, stale = lesson.optimizer.ownership_report(optimizer, model)
    expect.equal("missing", missing, ["1.weight"], source="a new object that no group holds")
    expect.equal("stale", stale, ["1.weight"], source="the old object, which the model has lost")


@pytest.mark.task("3.7")
def test_load_state_by_name_gives_each_parameter_its_own_moments(lesson, expect):
    """Two parameters of one shape, gradients 1 and 2, one Adam step; the new optimizer has them in reverse order."""
    model = nn.ParameterDict({"a": nn.Parameter(torch.zeros(2)), "b": nn.Parameter(torch.zeros(2))})
    old = torch.optim.Adam([("a", model["a"]), ("b", model["b"])], lr=0.1, betas=(0.5, 0.5))
    model["a"].grad, model["b"].grad = torch.full((2,), 1.0), torch.full((2,), 2.0)
    old.step()
    new = torch.optim.Adam([("b", model["b"]), ("a", model["a"])], lr=0.7, betas=(0.5, 0.5))
    lesson.optimizer.load_state_by_name(new, old.state_dict())
    for name, grad in (("a", 1.0), ("b", 2.0)):
        state = new.state.get(model[name], {})
        source = f"m = (1 − β1)·g with β1 = 0.5, g = {grad:g}"
        expect.equal(f"exp_avg of {name}", state.get("exp_avg"), torch.full((2,), 0.5 * grad), source=source)
        source = f"v = (1 − β2)·g² with β2 = 0.5, g = {grad:g}"
        want = torch.full((2,), 0.5 * grad**2)
        expect.equal(f"exp_avg_sq of {name}", state.get("exp_avg_sq"), want, source=source)
    expect.equal("lr", new.param_groups[0]["lr"], 0.7, source="settings stay those of the new optimizer")
