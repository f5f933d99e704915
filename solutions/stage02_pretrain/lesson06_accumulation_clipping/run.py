"""Demonstration of lesson 06: windows, the weight of a token, and a bad window with and without clipping.

Run: ``python -m solutions.stage02_pretrain.lesson06_accumulation_clipping.run`` (``tutorial.…``: your code).

Paper: Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks", ICML 2013,
https://arxiv.org/abs/1211.5063.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .gradients import Batch, accumulate, windows
from .trainer import TrainerFromScratch

VOCAB, WIDTH, LENGTH = 16, 12, 8
UPDATES, BAD_UPDATE = 16, 8


class TinyLM(nn.Module):
    """Embedding → linear: each token predicts the next one from itself alone."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        self.head = nn.Linear(WIDTH, VOCAB)
        with torch.no_grad():
            for param in self.parameters():
                param.copy_(0.5 * torch.randn(param.shape, generator=rng))

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.embedding(input_ids))


def counting_batch(rng: torch.Generator, num_tokens: int = 4 * LENGTH) -> Batch:
    """Four rows that count upwards from somewhere; only the first `num_tokens` labels are targets."""
    start = torch.randint(VOCAB - 1, (4, 1), generator=rng)
    ids = (start + torch.arange(LENGTH + 1)) % (VOCAB - 1)  # the last token of the vocabulary stays unused
    labels = ids[:, 1:].flatten().clone()
    labels[num_tokens:] = -100
    return {"input_ids": ids[:, :-1], "labels": labels.view(4, LENGTH)}


def flat_gradient(model: nn.Module) -> Tensor:
    return torch.cat([param.grad.flatten() for param in model.parameters()])


def show_windows() -> None:
    print("1. Ten micro-batches, accumulation_steps = 4: which of them make an update together")
    mine = [
        [batch["number"] for batch in window] for window in windows([{"number": i} for i in range(10)], 4)
    ]
    by_rule = {"step % 4 == 0": lambda step: step % 4 == 0, "(step + 1) % 4 == 0": lambda step: step % 4 == 3}
    rows = {"windows()": (mine, [])}
    for rule, fires in by_rule.items():
        done, waiting = [], []
        for step in range(10):
            waiting.append(step)
            if fires(step):
                done.append(waiting)
                waiting = []
        rows[rule] = (done, waiting)
    for rule, (done, left) in rows.items():
        text = " ".join("[" + " ".join(map(str, window)) + "]" for window in done)
        print(f"   {rule:<20} {text}" + (f"   lost: {' '.join(map(str, left))}" if left else ""))


def show_weights() -> None:
    counts = [32, 2, 0, 10]
    print(
        f"\n2. A window of four micro-batches of {', '.join(map(str, counts))} targets, and one large batch"
    )
    rng = torch.Generator().manual_seed(1)
    micro_batches = [counting_batch(rng, count) for count in counts]
    model = TinyLM(0)

    def gradient_of(loss_sum_times_weight: list[tuple[Batch, float]]) -> Tensor:
        model.zero_grad()
        for batch, weight in loss_sum_times_weight:
            logits = model(batch["input_ids"]).flatten(0, 1)
            (F.cross_entropy(logits, batch["labels"].flatten(), reduction="sum") * weight).backward()
        return flat_gradient(model)

    large = {key: torch.cat([batch[key] for batch in micro_batches]) for key in ("input_ids", "labels")}
    want = gradient_of([(large, 1 / sum(counts))])
    model.zero_grad()
    accumulate(model, micro_batches)
    pairs = list(zip(micro_batches, counts, strict=True))
    rows = {
        "accumulate()": flat_gradient(model),
        "mean of the means": gradient_of([(batch, 1 / max(n, 1) / 4) for batch, n in pairs]),
        "sum of the means": gradient_of([(batch, 1 / max(n, 1)) for batch, n in pairs]),
    }
    print("                        length of the gradient    angle to the right one")
    for name, got in {"one large batch": want, **rows}.items():
        cosine = float(F.cosine_similarity(got.double(), want.double(), dim=0).clamp(max=1.0))
        angle = torch.rad2deg(torch.acos(torch.tensor(cosine if cosine < 1 - 1e-9 else 1.0)))
        print(f"   {name:<20} {float(got.norm() / want.norm()):>14.2f} {float(angle):>24.1f}°")


def show_clipping() -> None:
    print(
        f"\n3. {UPDATES} updates; in window {BAD_UPDATE} a token comes whose embedding is 200 times too large"
    )
    rng = torch.Generator().manual_seed(2)
    loader = [counting_batch(rng) for _ in range(2 * UPDATES)]
    loader[2 * BAD_UPDATE - 1]["input_ids"][0] = VOCAB - 1
    start = TinyLM(0)
    with torch.no_grad():
        start.embedding.weight[VOCAB - 1] *= 200
    runs = []
    for max_grad_norm in (None, 1.0):
        model = copy.deepcopy(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.4, momentum=0.9)
        trainer = TrainerFromScratch(
            model, optimizer, loader, log_interval=1, accumulation_steps=2, max_grad_norm=max_grad_norm
        )
        trainer.train()
        runs.append([row for row in trainer.history if "train_loss" in row])
    print("   window   grad_norm   loss, not clipped               loss, max_grad_norm = 1")
    for plain, clipped in zip(*runs, strict=True):
        step = plain["global_step"]
        if step in (1, 4, 7, 8, 9, 10, 11, 12, 14, 16):
            bars = [
                f"{row['train_loss']:5.1f}  {'█' * min(20, round(2 * row['train_loss'])):<20}"
                for row in (plain, clipped)
            ]
            print(f"   {step:>4} {clipped['grad_norm']:>12.1f}   {bars[0]}     {bars[1]}".rstrip())


def main() -> None:
    show_windows()
    show_weights()
    show_clipping()


if __name__ == "__main__":
    try:
        main()
    except NotImplementedError as todo:
        raise SystemExit(f"Not written yet: {todo}") from None
