"""See five schedules, the rates that the first and last updates use, and what a falling rate is good for.

Run: python -m solutions.stage01_optimizers.lesson04_lr_schedules.run   (or tutorial.… for your own code)
"""

import random

from .scheduler import CosineWarmRestarts, OneCycle, ReduceOnPlateau, StepDecay, WarmupCosine
from .updates import total_updates

UPDATES = 60
BARS = "▁▂▃▄▅▆▇█"


class NoisyBowl:
    """SGD on the loss θ²/2, whose gradient θ is seen through noise of standard deviation 1, from θ = 10."""

    def __init__(self, lr: float, seed: int) -> None:
        self.param_groups = [{"params": [], "lr": lr}]
        self.noise = random.Random(seed)
        self.theta = 10.0

    def step(self) -> None:
        grad = self.theta + self.noise.gauss(0, 1)
        self.theta -= self.param_groups[0]["lr"] * grad


def rates_used(scheduler_of, lr: float = 1.0) -> list[float]:
    """The rate of each update. A plateau schedule sees a loss that falls and then stands still."""
    optimizer = NoisyBowl(lr, seed=0)
    scheduler = scheduler_of(optimizer)
    rates = []
    for update in range(UPDATES):
        rates += scheduler.get_last_lr()
        optimizer.step()
        metric = [max(1.0, 3 * 0.95**update)] if isinstance(scheduler, ReduceOnPlateau) else []
        scheduler.step(*metric)
    return rates


def mean_loss(lr: float, scheduler_of=None, runs: int = 500) -> float:
    """Mean of θ²/2 after 60 updates, over many runs with different noise."""
    losses = []
    for seed in range(runs):
        optimizer = NoisyBowl(lr, seed)
        scheduler = scheduler_of(optimizer) if scheduler_of else None
        for _ in range(UPDATES):
            optimizer.step()
            if scheduler:
                scheduler.step()
        losses.append(optimizer.theta**2 / 2)
    return sum(losses) / runs


def main() -> None:
    schedules = {
        "StepDecay": lambda opt: StepDecay(opt, step_size=15, gamma=0.5),
        "WarmupCosine": lambda opt: WarmupCosine(opt, warmup_steps=10, total_steps=UPDATES, min_ratio=0.1),
        "OneCycle": lambda opt: OneCycle(opt, total_steps=UPDATES),
        "CosineWarmRestarts": lambda opt: CosineWarmRestarts(opt, T_0=9, T_mult=2),
        "ReduceOnPlateau": lambda opt: ReduceOnPlateau(opt, factor=0.5, patience=9),
    }
    print(f"The factor of {UPDATES} updates, from 0 to 1")
    for name, scheduler_of in schedules.items():
        print(f"  {name:18}  " + "".join(BARS[int(7.99 * rate)] for rate in rates_used(scheduler_of)))

    planned = total_updates(num_batches=118, accumulation_steps=4, epochs=2)
    print(f"\n2 epochs of 118 micro-batches, 4 to an update: {planned} updates, not {2 * 118}")

    shown = [0, 1, 9, 10, 35, 58, 59]
    rates = rates_used(schedules["WarmupCosine"], lr=3e-4)
    print("\nWarmupCosine(warmup_steps=10, total_steps=60, min_ratio=0.1), lr = 3e-4")
    print("  update  " + "".join(f"{t:>10}" for t in shown))
    print("  lr used " + "".join(f"{rates[t]:>10.2e}" for t in shown))

    print("\nNoisy gradients, 60 updates from loss 50 (mean of 500 runs)")
    print(f"  constant 0.5             loss {mean_loss(0.5):.3f}   fast, then the noise keeps it up")
    print(f"  constant 0.05            loss {mean_loss(0.05):.3f}   quiet, but not there yet")
    cosine = mean_loss(0.5, lambda opt: WarmupCosine(opt, warmup_steps=5, total_steps=UPDATES))
    print(f"  WarmupCosine from 0.5    loss {cosine:.3f}   fast first, quiet at the end")


if __name__ == "__main__":
    try:
        main()
    except NotImplementedError as todo:
        raise SystemExit(f"Not written yet: {todo}") from None
