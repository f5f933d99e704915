"""Four pictures of half precision: what vanishes, what is swallowed, how the scale settles, what it weighs.

Run it:  python -m solutions.stage02_pretrain.lesson07_mixed_precision.run     (or tutorial.…, with your code)
"""

import torch
from torch import nn

from training.losses import token_loss
from training.model import GPT, GPTConfig

from .loss_scaler import LossScaler
from .precision import DTYPES, MasterWeights, measure_bytes
from .trainer import TrainerFromScratch

CONFIG = GPTConfig(block_size=32, n_layer=2, n_head=2, n_embd=64)
TEXT = " ".join(f"{a} times {b} is {a * b}." for a in range(2, 30) for b in range(2, 30))
MIB = 2**20


def make_batches(count: int, rows: int = 8) -> list[dict[str, torch.Tensor]]:
    """Rows of the multiplication table, as bytes."""
    text = torch.tensor(list(TEXT.encode()))
    starts = torch.randint(
        len(text) - CONFIG.block_size, (count, rows), generator=torch.Generator().manual_seed(1)
    )
    chunks = text[starts.unsqueeze(-1) + torch.arange(CONFIG.block_size + 1)]
    return [{"input_ids": chunk[:, :-1], "labels": chunk[:, 1:]} for chunk in chunks]


def make_model() -> GPT:
    torch.manual_seed(0)
    return GPT(CONFIG)


def gradient(precision: str, scale: float, window_tokens: int) -> torch.Tensor:
    """All gradients of one batch's share in a window of so many tokens, divided by the scale, as a vector."""
    model = make_model()
    if precision != "fp32":
        MasterWeights(model, DTYPES[precision])
    batch = make_batches(1)[0]
    loss = token_loss(model(batch["input_ids"]), batch["labels"]) / window_tokens
    LossScaler(init_scale=scale).scale(loss).backward()
    return torch.cat([param.grad.double().flatten() for param in model.parameters()]) / scale


def show_underflow() -> None:
    print("1. Gradients in float16: how many are 0, and the norm that is left")
    print(f"   {'tokens in the window':<22}{'s = 1':>16}{'s = 65536':>20}")
    for power in (10, 20, 24):
        true = gradient("fp32", 1.0, 2**power)
        cells = []
        for scale in (1.0, 65536.0):
            got = gradient("fp16", scale, 2**power)
            zeros = ((got == 0) & (true != 0)).double().mean()
            cells.append(f"{zeros:>6.0%}  norm {got.norm() / true.norm():.2f}")
        print(f"   {2**power:<22,}{cells[0]:>16}{cells[1]:>20}")


def show_swallowed_updates() -> None:
    print("\n2. A weight of 1, and 1000 updates of −0.0001: where does it end?")
    for label, precision, with_masters in (
        ("float32", "fp32", False),
        ("float16 alone", "fp16", False),
        ("float16 + master", "fp16", True),
        ("bfloat16 alone", "bf16", False),
        ("bfloat16 + master", "bf16", True),
    ):
        layer = nn.Linear(1, 1, bias=False)
        nn.init.ones_(layer.weight)
        optimizer = torch.optim.SGD(layer.parameters(), lr=1e-4)
        masters = MasterWeights(layer, DTYPES[precision]) if with_masters else None
        if masters is None:
            layer.to(DTYPES[precision])
        else:
            masters.attach(optimizer)
        for _ in range(1000):
            layer.weight.grad = torch.ones_like(layer.weight)
            if masters is not None:
                masters.copy_grads_to_masters()
            optimizer.step()
            optimizer.zero_grad()
            if masters is not None:
                masters.copy_masters_to_model()
        print(f"   {label:<22}{layer.weight.item():.4f}")


def show_scale() -> None:
    print(
        "\n3. The scale over 48 updates, from 2^26, growing every 12 (each mark is a window; × is left out)"
    )
    losses = {}
    for precision in ("fp32", "bf16", "fp16"):
        model = make_model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        scaler = LossScaler(init_scale=2.0**26, growth_interval=12, enabled=precision == "fp16")
        trainer = TrainerFromScratch(
            model, optimizer, [], max_grad_norm=1.0, precision=precision, scaler=scaler
        )
        path = []
        for batch in make_batches(48):
            scale, before = scaler.get_scale(), trainer.global_step
            loss_sum, num_tokens = trainer.train_step([batch])
            path.append((scale, trainer.global_step > before))
        losses[precision] = f"{precision} {loss_sum / num_tokens:.1f}"
    for scale in sorted({scale for scale, _ in path}, reverse=True):
        marks = ("·" if s != scale else "o" if updated else "×" for s, updated in path)
        print(f"   2^{int(torch.tensor(scale).log2()):<3} {''.join(marks)}")
    print(f"   loss at the end: {', '.join(losses.values())}; left out in fp16: {trainer.skipped_steps}")


def show_memory() -> None:
    print("\n4. Memory in MiB, measured: AdamW, a batch of 16 rows, gradients waiting for the step")
    names = ("weights", "masters", "gradients", "moments", "activations")
    print("   " + " " * 6 + "".join(f"{name:>13}" for name in names))
    batch = make_batches(1, rows=16)[0]
    for precision in ("fp32", "fp16", "bf16"):
        model = make_model()
        optimizer = torch.optim.AdamW(model.parameters())
        trainer = TrainerFromScratch(model, optimizer, [], precision=precision, scaler=LossScaler(1024.0))
        trainer.train_step([batch])
        token_loss(model(batch["input_ids"]), batch["labels"]).backward()
        if trainer.masters is not None:
            trainer.masters.copy_grads_to_masters()
        counted = measure_bytes(
            model, optimizer, lambda m=model: token_loss(m(batch["input_ids"]), batch["labels"])
        )
        print(f"   {precision:<6}" + "".join(f"{counted[name] / MIB:>13.2f}" for name in names))


def main() -> None:
    torch.set_num_threads(1)
    show_underflow()
    show_swallowed_updates()
    show_scale()
    show_memory()


if __name__ == "__main__":
    try:
        main()
    except NotImplementedError as todo:
        raise SystemExit(f"Not written yet: {todo}") from None
