"""Interrupt a training, leave one thing out of its checkpoint at a time, and see where the losses part.

Run it:  python -m solutions.stage02_pretrain.lesson09_exact_resume.run     (or tutorial.…, with your code)

The training: 3 epochs of 6 micro-batches, an update every 4 of them and at the end of an epoch; dropout, shuffling, a
loss scale that overflows at first. Interrupted after micro-step 2, 3, …, 11, saved to a file, built anew, resumed.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from .checkpoint import capture, load, restore, save
from .sampler import ResumableSampler, make_loader, sample_generator

SAMPLES, BATCH_SIZE, WINDOW, EPOCHS, SEED = 17, 3, 4, 3, 1
STOPS = range(2, 12)


class NoisyRows(Dataset):
    """Fixed rows, and noise that is drawn when a row is fetched."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(SEED)
        self.x = torch.randn(SAMPLES, 6, generator=generator)
        self.y = torch.randint(3, (SAMPLES,), generator=generator)
        self.epoch = 0

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple:
        noise = torch.randn(6, generator=sample_generator(SEED, self.epoch, index))
        return self.x[index] + noise, self.y[index]


class Training:
    """Builds everything from the same seed each time, as a program does that is started again."""

    def __init__(self) -> None:
        torch.manual_seed(SEED)
        self.model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.05)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda update: 0.7**update)
        self.scaler = torch.amp.GradScaler("cpu", 2.0**22, backoff_factor=2.0**-6, growth_interval=2)
        self.sampler = ResumableSampler(SAMPLES, seed=SEED)
        self.rows = NoisyRows()
        self.loader: DataLoader = make_loader(self.rows, BATCH_SIZE, self.sampler)
        self.epoch = self.global_step = self.micro_step = 0
        self.losses: list[float] = []

    @property
    def parts(self) -> tuple:
        return self.model, self.optimizer, self.scheduler, self.scaler, self.sampler

    def train(self, stop_after: int | None = None) -> "Training":
        for epoch in range(self.epoch, EPOCHS):
            self.epoch = self.rows.epoch = epoch
            self.sampler.set_epoch(epoch)
            for x, y in self.loader:
                with torch.autocast("cpu", torch.float16):
                    logits = self.model(x)  # (B, 3)
                loss = F.cross_entropy(logits.float(), y)
                self.scaler.scale(loss / WINDOW).backward()
                self.losses.append(float(loss.detach()))
                self.sampler.advance(len(y))
                self.micro_step += 1
                if self.micro_step == WINDOW or self.sampler.position == SAMPLES:
                    self.update()
                if len(self.losses) == stop_after:
                    return self
        return self

    def update(self) -> None:
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.get_scale() >= scale:  # a skipped update does not move the schedule
            self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.global_step, self.micro_step = self.global_step + 1, 0

    def capture(self) -> dict:
        names = ("epoch", "global_step", "micro_step", "losses")
        return capture(*self.parts, **{name: getattr(self, name) for name in names})

    def restore(self, state: dict) -> "Training":
        vars(self).update(restore(state, *self.parts))
        return self


def leave_out(*keys: str) -> Callable[[dict, dict], None]:
    """As if `keys` were not in the checkpoint: they are as in a program that has just been started."""

    def edit(state: dict, fresh: dict) -> None:
        state.update({key: fresh[key] for key in keys})

    return edit


def leave_out_moments(state: dict, fresh: dict) -> None:
    state["optimizer_state_dict"] = {**state["optimizer_state_dict"], "state": {}}


def leave_out_position(state: dict, fresh: dict) -> None:
    state["sampler_state_dict"] = {**state["sampler_state_dict"], "position": 0}


CASES: dict[str, Callable[[dict, dict], None]] = {
    "nothing": leave_out(),
    "the state of the generators": leave_out("rng_state"),
    "the position in the data": leave_out_position,
    "the gradients that wait": leave_out("gradients"),
    "the optimizer's moments": leave_out_moments,
    "the loss scaler": leave_out("scaler_state_dict"),
    "the scheduler": leave_out("scheduler_state_dict"),
    "all but the weights": leave_out(
        *("optimizer_state_dict", "scheduler_state_dict", "scaler_state_dict"),
        *("sampler_state_dict", "gradients", "rng_state"),
    ),
}


def mark(state: dict, reference: Training, path: Path) -> str:
    """Save, load, resume; "=" where all losses and weights are those of the uninterrupted run, else "~"."""
    save(state, path)
    resumed = Training().restore(load(path)).train()
    pairs = zip(resumed.model.parameters(), reference.model.parameters(), strict=True)
    same = resumed.losses == reference.losses and all(torch.equal(a, b) for a, b in pairs)
    return "=" if same else "~"


def main() -> None:
    torch.set_num_threads(1)
    reference, fresh = Training().train(), Training().capture()
    states = {stop: Training().train(stop).capture() for stop in STOPS}
    print("= every loss and weight is that of the uninterrupted run, bit for bit   ~ not\n")
    print(f"{'interrupted after micro-step':30}" + "".join(f"{stop:3d}" for stop in STOPS))
    updates = "".join(f"{'u' if stop in (4, 6, 10) else '':>3}" for stop in STOPS)
    print(f"{'u: an update was just made':30}{updates}".rstrip())
    with tempfile.TemporaryDirectory() as folder:
        for name, edit in CASES.items():
            row = ""
            for state in states.values():
                edited = dict(state)
                edit(edited, fresh)
                row += f"{mark(edited, reference, Path(folder, 'run.pt')):>3}"
            print(f"{name:30}{row}")
    print(
        f"\n{len(reference.losses)} micro-steps, {reference.global_step} updates; a row is what was left out"
    )


if __name__ == "__main__":
    try:
        main()
    except NotImplementedError as todo:
        raise SystemExit(f"Not written yet: {todo}") from None
