"""Demonstration of lesson 03: what groups do to a norm, layer-wise lr, a lost embedding, and swapped moments.

Run: ``python -m solutions.stage01_optimizers.lesson03_param_groups.run`` (``tutorial.…`` runs your own code).

Source: the group rule of nanoGPT, https://github.com/karpathy/nanoGPT (configure_optimizers).
"""

import torch
from torch import nn

from .groups import describe_groups
from .optimizer import configure_optimizer, create_optimizer, load_state_by_name, ownership_report

LR, DECAY = 1e-3, 0.1


class RMSNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))


class TinyGPT(nn.Module):
    """The parameters of a GPT; it has no forward, since we only look at what the optimizer does to them."""

    def __init__(self, n_layer: int = 4, dim: int = 8, vocab_size: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, dim)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"norm": RMSNorm(dim), "mlp": nn.Linear(dim, dim)}) for _ in range(n_layer)
        )
        self.final_norm = RMSNorm(dim)
        self.lm_head = nn.Linear(dim, vocab_size, bias=False)
        self.lm_head.weight = self.embedding.weight


def gain_after(optimizer: torch.optim.Optimizer, model: TinyGPT, updates: int) -> float:
    """The final norm's gain, 1 at first, after updates with a gradient of zero: what decay alone does."""
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    for _ in range(updates):
        optimizer.step()
    return model.final_norm.weight[0].item()


def show_decay() -> None:
    print("1. One group for all, or groups: the gain of a norm after 1000 updates with zero gradient")
    model = TinyGPT()
    everything = create_optimizer("adamw", model.parameters(), LR, DECAY)
    print(f"   every parameter decayed   {gain_after(everything, model, 1000):.3f}")
    model = TinyGPT()
    grouped = configure_optimizer(model, "adamw", LR, DECAY)
    print(f"   configure_optimizer       {gain_after(grouped, model, 1000):.3f}")
    print("\n" + describe_groups(grouped))


def show_layer_wise_lr() -> None:
    print("\n2. Layer-wise lr: each block half of the one above, the embedding at a tenth")
    overrides = {f"blocks.{i}": {"lr": LR * 0.5 ** (3 - i)} for i in range(4)}
    overrides["embedding"] = {"lr": LR * 0.1}
    optimizer = configure_optimizer(TinyGPT(), "adamw", LR, DECAY, overrides=overrides)
    lr_of = {name: group["lr"] for group in optimizer.param_groups for name in group["param_names"]}
    for name in ("final_norm", *(f"blocks.{i}.mlp" for i in (3, 2, 1, 0)), "embedding"):
        lr = lr_of[f"{name}.weight"]
        print(f"   {name:<13} {lr:8.2e}  {'#' * round(40 * lr / LR)}")


def show_lost_embedding() -> None:
    print("\n3. The embedding is replaced after the optimizer was built")
    model = TinyGPT()
    optimizer = configure_optimizer(model, "adamw", LR, DECAY)
    model.embedding = nn.Embedding(40, 8)
    missing, stale = ownership_report(optimizer, model)
    print(f"   never updated: {missing}   held for nothing: {stale}")
    # The head still holds the old tensor: replacing one end also cut the tie.
    print(f"   still tied: {model.lm_head.weight is model.embedding.weight}")


def show_swapped_moments() -> None:
    print("\n4. exp_avg of two tensors of one shape, saved as (a, b), loaded into an optimizer with (b, a)")
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    saved = torch.optim.Adam([("a", a), ("b", b)], lr=LR)
    a.grad, b.grad = torch.tensor([1.0]), torch.tensor([-5.0])
    saved.step()
    for how in ("by position", "by name"):
        optimizer = torch.optim.Adam([("b", b), ("a", a)], lr=LR)
        if how == "by name":
            load_state_by_name(optimizer, saved.state_dict())
        else:
            optimizer.load_state_dict(saved.state_dict())
        values = [optimizer.state[param]["exp_avg"].item() for param in (a, b)]
        print(f"   {how:<12} a {values[0]:+.1f}   b {values[1]:+.1f}")


def main() -> None:
    torch.manual_seed(0)
    show_decay()
    show_layer_wise_lr()
    show_lost_embedding()
    show_swapped_moments()


if __name__ == "__main__":
    try:
        main()
    except NotImplementedError as todo:
        raise SystemExit(f"Not written yet: {todo}") from None
