"""Basic tests of lesson 08: checkpoint, trainer, logger. Run: pytest testcases/basic_test.py"""

import builtins
import hashlib
import json
import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

FLOAT32 = "float32 rounding of a few additions"


class Pull(nn.Module):
    """loss = model(x) = −x · w, so the gradient of a micro-batch is exactly −x."""

    def __init__(self, size=2):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(size))

    def forward(self, x):
        return -(x * self.w).sum()


class Rows:
    """A logger that keeps what it is given."""

    def __init__(self):
        self.rows = []

    def log(self, metrics, step):
        self.rows.append({"step": step, **metrics})

    def resume(self, step):
        self.rows = [row for row in self.rows if row["step"] <= step]


def make_trainer(lesson, tmp_path, model=None, lr=1.0, momentum=0.0, gamma=1.0, logger=None, **config):
    model = Pull() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: gamma**update)
    config = {"save_dir": str(tmp_path / "checkpoints"), "max_grad_norm": None, **config}
    return lesson.trainer.Trainer(model, optimizer, scheduler, config, logger=logger)


def example(rng, step=1):
    return {"epoch": 0, "step": step, "model_state_dict": {"w": torch.randn(40, generator=rng)}}


# ----------------------------------------------------------------------------------------- 8.1 the snapshot


@pytest.mark.task("8.1")
def test_snapshot_does_not_move_with_the_live_state(lesson, expect, rng):
    """A linear layer and SGD with momentum; one update, a snapshot, then a second update."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def update():
        optimizer.zero_grad()
        model(torch.randn(4, 3, generator=rng)).square().sum().backward()
        optimizer.step()

    update()
    live = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "betas": (0.9, [1, None])}
    live["live"] = model.weight
    want_weight = model.weight.detach().clone()
    want_buffer = optimizer.state[model.weight]["momentum_buffer"].clone()
    taken = lesson.checkpoint.snapshot(live)
    source = "taking a snapshot changes nothing: this weight goes on learning"
    expect.equal("model.weight.requires_grad", model.weight.requires_grad, True, source=source, step=1)
    update()
    source = "the value when the snapshot was taken"
    expect.equal("model.weight", taken["model"]["weight"], want_weight, source=source, step=2)
    buffer = taken["optimizer"]["state"][0]["momentum_buffer"]
    expect.equal("momentum_buffer", buffer, want_buffer, source=source, step=2)
    groups = taken["optimizer"]["param_groups"]
    expect.equal(
        "param_groups", groups, optimizer.state_dict()["param_groups"], source="the optimizer's own numbers"
    )
    expect.equal("betas", taken["betas"], (0.9, [1, None]), source="lists stay lists, tuples tuples")
    kinds = [type(taken["betas"]).__name__, type(taken["betas"][1]).__name__]
    expect.equal("types", kinds, ["tuple", "list"], source="lists stay lists, tuples tuples")


@pytest.mark.task("8.1")
@pytest.mark.parametrize(
    "what", ["numpy float64", "numpy float32", "numpy array", "Path", "function", "numpy key", "in a list"]
)
def test_snapshot_refuses_what_safe_loading_refuses(lesson, expect, what):
    """{"config": {"lr": value}}, where the value is not plain; a plain one is taken first."""
    value = {
        "numpy float64": np.mean([0.1, 0.3]),  # a subclass of float, and refused by torch.load all the same
        "numpy float32": np.float32(0.1),
        "numpy array": np.zeros(2),
        "Path": Path("runs"),
        "function": len,
        "numpy key": {"plain": 1.0, np.int64(3): 1.0},
        "in a list": [0.1, np.float64(0.2)],
    }[what]
    plain = {"config": {"lr": 0.1, "name": "x", "on": True, "none": None, 3: 4}}
    expect.equal("a plain state", lesson.checkpoint.snapshot(plain), plain, source="it is copied as it is")
    source = "torch.load(weights_only=True) would refuse the file that holds it"
    with expect.raises(ValueError, match="config.lr", source=source):
        lesson.checkpoint.snapshot({"config": {"lr": value}})


# --------------------------------------------------------------------------------------------- 8.2 the save


@pytest.mark.task("8.1", "8.2")
def test_save_writes_a_torch_file_and_its_digest(lesson, expect, rng, tmp_path):
    """Saved under runs/a/model.pt, whose folders do not exist; then saved again, over it."""
    path = tmp_path / "runs" / "a" / "model.pt"
    for step in (1, 2):
        state = example(rng, step)
        lesson.checkpoint.save_checkpoint(state, path)
        found = torch.load(path, weights_only=True)
        expect.equal("what a plain torch.load reads", found, state, source="the saved state", step=step)
        digest = (path.parent / "model.pt.sha256").read_text()
        want = f"{hashlib.sha256(path.read_bytes()).hexdigest()}  model.pt\n"
        expect.equal("model.pt.sha256", digest, want, source="sha256sum model.pt", step=step)
        names = sorted(entry.name for entry in path.parent.iterdir())
        expect.equal(
            "files", names, ["model.pt", "model.pt.sha256"], source="the file and its digest", step=step
        )


@pytest.mark.task("8.2")
def test_save_keeps_the_old_file_until_the_new_one_is_complete(lesson, expect, rng, tmp_path, monkeypatch):
    """A save over an older file; looked at before every rename, and when a file is opened to write."""
    path = tmp_path / "model.pt"
    lesson.checkpoint.save_checkpoint(example(rng, 1), path)
    old = path.read_bytes()
    seen = []
    true_replace, true_open = os.replace, builtins.open

    def replace(source, target, **options):
        if Path(target) == path:
            whole = torch.load(source, weights_only=True)["step"]
            seen.append(
                {
                    "file": path.exists() and path.read_bytes() == old,
                    "step in the new": whole,
                    "folder": Path(source).parent,
                }
            )
        return true_replace(source, target, **options)

    def opened(name, mode="r", *rest, **options):
        if name in (path, str(path)) and mode[0] in "wax":
            seen.append({"opened": "in place"})
        return true_open(name, mode, *rest, **options)

    for module, name, function in (
        (os, "replace", replace),
        (os, "rename", replace),
        (builtins, "open", opened),
    ):
        monkeypatch.setattr(module, name, function)
    lesson.checkpoint.save_checkpoint(example(rng, 2), path)
    monkeypatch.undo()
    want = [{"file": True, "step in the new": 2, "folder": tmp_path}]
    source = "one rename, from a complete file in the same folder, over the untouched old one"
    expect.equal("renames over model.pt", seen, want, source=source)
    step = torch.load(path, weights_only=True)["step"]
    expect.equal("step in the file afterwards", step, 2, source="the new state")


# ----------------------------------------------------------------------------------------- 8.3 verify, load


@pytest.mark.task("8.3", "8.2")
@pytest.mark.parametrize(
    "damage",
    ["one bit flipped", "truncated", "appended", "empty", "missing", "no digest", "empty digest", "foreign"],
)
def test_verify_and_load_refuse_a_damaged_file(lesson, expect, rng, tmp_path, damage):
    """A saved file, which verifies and loads; then it is damaged."""
    path, digest = tmp_path / "model.pt", tmp_path / "model.pt.sha256"
    state = example(rng)
    lesson.checkpoint.save_checkpoint(state, path)
    data = path.read_bytes()
    lesson.checkpoint.verify_checkpoint(path)
    expect.equal("the whole file", lesson.checkpoint.load_checkpoint(path), state, source="what was saved")
    place = data.index(state["model_state_dict"]["w"].numpy().tobytes())
    new = {
        "one bit flipped": data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :],
        "truncated": data[:-1],
        "appended": data + b"\0",
        "empty": b"",
        "foreign": b"this is no checkpoint",
    }.get(damage, data)
    path.write_bytes(new)
    if damage == "missing":
        path.unlink()
    elif damage == "no digest":
        digest.unlink()
    elif damage == "empty digest":
        digest.write_text("")
    for call in (lesson.checkpoint.verify_checkpoint, lesson.checkpoint.load_checkpoint):
        with expect.raises(lesson.checkpoint.CheckpointError, source=f"{call.__name__}: {damage}"):
            call(path)


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.task("8.3")
@pytest.mark.parametrize("content", ["a pickle that runs code", "a pickle in a torch file", "a bare tensor"])
def test_load_refuses_foreign_files_with_a_true_digest(lesson, expect, tmp_path, content):
    """The digest is right, the content is not: code that makes a folder, or a tensor instead of a dict."""
    path, trap = tmp_path / "model.pt", tmp_path / "trap"
    if content == "a pickle that runs code":
        path.write_bytes(pickle.dumps(Trap(str(trap)), protocol=2))
    else:
        torch.save(Trap(str(trap)) if "torch file" in content else torch.zeros(3), path)
    line = f"{hashlib.sha256(path.read_bytes()).hexdigest()}  model.pt\n"
    (tmp_path / "model.pt.sha256").write_text(line)
    source = "only a dict of plain values is a checkpoint"
    try:
        with expect.raises(lesson.checkpoint.CheckpointError, match="model.pt", source=source):
            lesson.checkpoint.load_checkpoint(path)
    finally:
        ran = trap.exists()
        expect.equal("the code inside the file ran", ran, False, source="weights_only=True runs none")


# ------------------------------------------------------------------------------------------ 8.4 the manager


@pytest.mark.task("8.4")
def test_manager_keeps_the_last_n_by_step_number(lesson, expect, rng, tmp_path):
    """keep_last = 2; steps 900, 9900, 10000, 10100; the older a file, the later its time stamp."""
    manager = lesson.manager.CheckpointManager(tmp_path, keep_last=2)
    steps = [900, 9900, 10000, 10100]
    for i, step in enumerate(steps, 1):
        path = manager.save(example(rng, step))
        expect.equal(
            "name", path.name, f"epoch_0_step_{step}.pt", source="epoch_{epoch}_step_{step}.pt", step=step
        )
        os.utime(path, (2e9 - step, 2e9 - step))
        names = [p.name for p in manager.checkpoints()]
        want = [f"epoch_0_step_{s}.pt" for s in steps[:i][-2:]]
        expect.equal("checkpoints()", names, want, source="the two largest steps, ascending", step=step)
        on_disk = sorted(p.name for p in tmp_path.iterdir())
        files = sorted(want + [f"{name}.sha256" for name in want])
        expect.equal("files", on_disk, files, source="two checkpoints and their digests", step=step)
    expect.equal("latest_valid()", manager.latest_valid(), path, source="step 10100")


@pytest.mark.task("8.4", "8.3")
def test_manager_passes_over_broken_files(lesson, expect, rng, tmp_path):
    """Steps 5, 60, 700, of which 700 is cut short and 60 has lost its digest; and a file of another name."""
    manager = lesson.manager.CheckpointManager(tmp_path, keep_last=5)
    expect.equal("latest_valid() of an empty folder", manager.latest_valid(), None, source="there is none")
    paths = [manager.save(example(rng, step)) for step in (5, 60, 700)]
    (tmp_path / "epoch_9_step_9999.pt.bak").write_bytes(paths[0].read_bytes())
    (tmp_path / "epoch_final.pt").write_bytes(b"?")
    paths[2].write_bytes(paths[2].read_bytes()[:100])
    (tmp_path / f"{paths[1].name}.sha256").unlink()
    expect.equal("latest_valid()", manager.latest_valid(), paths[0], source="the newest that verifies")
    named = [
        paths[2].name in " ".join(manager.passed_over[:1]),
        paths[1].name in " ".join(manager.passed_over[1:]),
    ]
    expect.equal("passed_over names 700, then 60", named, [True, True], source="a sentence for each")
    paths[0].unlink()
    expect.equal("latest_valid() without a valid file", manager.latest_valid(), None, source="none verifies")


@pytest.mark.task("8.4")
def test_manager_keeps_the_best_apart(lesson, expect, rng, tmp_path):
    """keep_last = 1; metrics 3, 1, none, NaN, 2, 1.5 at steps 1 to 6."""
    manager = lesson.manager.CheckpointManager(tmp_path, keep_last=1)
    best_steps, best_metrics = [1, 2, 2, 2, 2, 2], [3.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    for step, metric in enumerate([3.0, 1.0, None, math.nan, 2.0, 1.5], 1):
        path = manager.save(example(rng, step), metric)
        best = lesson.checkpoint.load_checkpoint(tmp_path / "best_model.pt")
        source = "the state with the smallest metric so far"
        expect.equal("step in best_model.pt", best["step"], best_steps[step - 1], source=source, step=step)
        want = best_metrics[step - 1]
        expect.equal("best_metric in best_model.pt", best["best_metric"], want, source=source, step=step)
        expect.equal("manager.best_metric", manager.best_metric, want, source=source, step=step)
        newest = lesson.checkpoint.load_checkpoint(path)
        expect.equal("best_metric in the newest", newest["best_metric"], want, source=source, step=step)
        expect.equal("checkpoints()", manager.checkpoints(), [path], source="keep_last = 1", step=step)


# ------------------------------------------------------------------------------------------- 8.5 the logger


def strict(line):
    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    return json.loads(line, parse_constant=refuse)


@pytest.mark.task("8.5")
def test_logger_writes_one_json_line_a_call(lesson, expect, tmp_path):
    """Numbers of five kinds, NaN and infinity; each line is read before the file is closed."""
    logger = lesson.logger.TrainerLogger(tmp_path / "log")
    path = tmp_path / "log" / "metrics.jsonl"
    calls = [
        ({"loss": 2.5, "epoch": 1}, {"loss": 2.5, "epoch": 1}),
        ({"loss": torch.tensor(1.5), "n": torch.tensor([3])}, {"loss": 1.5, "n": 3}),
        ({"loss": np.float32(0.5), "n": np.int64(7)}, {"loss": 0.5, "n": 7}),
        (
            {"loss": math.nan, "grad_norm": math.inf, "x": -math.inf},
            {"loss": "nan", "grad_norm": "inf", "x": "-inf"},
        ),
    ]
    for step, (metrics, want) in enumerate(calls):
        logger.log(metrics, 10 * step)
        lines = path.read_text().splitlines()
        expect.equal("lines on the disk", len(lines), step + 1, source="one a call, at once", step=step)
        try:
            row = strict(lines[-1])
        except (ValueError, AssertionError) as error:
            row = f"{error}: {lines[-1]}"
        source = "a JSON object: the step, then the metrics"
        expect.equal("the line", row, {"step": 10 * step, **want}, source=source, step=step)
    rows = lesson.logger.read_metrics(path)
    want = {"step": 30, "loss": math.nan, "grad_norm": math.inf, "x": -math.inf}
    expect.equal("read_metrics, the last row", rows[-1], want, source="the texts as floats again")
    logger.close()


@pytest.mark.task("8.5")
@pytest.mark.parametrize(
    ("metrics", "step", "word"),
    [
        ({"loss": None}, 5, "loss"),
        ({"lr": 0.1, "loss": "1.5"}, 5, "loss"),
        ({"lr": 0.1, "loss": torch.zeros(2)}, 5, "loss"),
        ({"loss": [1.0]}, 5, "loss"),
        ({}, 5, "metric"),
        ({"step": 1.0}, 5, "step"),
        ({"loss": 1.0}, 4, "step"),
        ({"loss": 1.0}, 5.5, "step"),
    ],
    ids=["None", "text", "two numbers", "list", "no metric", "named step", "step goes back", "step 5.5"],
)
def test_logger_refuses_what_is_no_number(lesson, expect, tmp_path, metrics, step, word):
    """A line at step −1, refused; a line at step 5, then a call that makes no sense, then another line at step 5."""
    logger = lesson.logger.TrainerLogger(tmp_path)
    with expect.raises(ValueError, match="-1", source="a step is the number of updates made so far"):
        logger.log({"loss": 1.0}, -1)
    logger.log({"loss": 2.0}, 5)
    with expect.raises(ValueError, match=word, source="a sentence with the name"):
        logger.log(metrics, step)
    logger.log({"loss": 3.0}, 5)
    logger.close()
    got = lesson.logger.read_metrics(tmp_path / "metrics.jsonl")
    want = [{"step": 5, "loss": 2.0}, {"step": 5, "loss": 3.0}]
    expect.equal("rows", got, want, source="a refused call writes nothing")


# ----------------------------------------------------------------------------------------- 8.6 the training


@pytest.mark.task("8.6")
@pytest.mark.parametrize(("count", "k"), [(4, 1), (4, 2), (5, 2), (7, 4), (2, 3)])
def test_weights_follow_the_windows(lesson, expect, rng, tmp_path, count, k):
    """loss = −x · w; SGD with lr 1, 1/2, 1/4 …; so many micro-batches in windows of K; two epochs."""
    trainer = make_trainer(lesson, tmp_path, gamma=0.5, accumulation_steps=k)
    batches = [torch.randn(2, generator=rng) for _ in range(count)]
    windows = [batches[i : i + k] for i in range(0, count, k)]
    w, updates = torch.zeros(2), 0
    for epoch in (1, 2):
        loss = trainer.train_epoch(batches)
        losses = []
        for window in windows:
            losses += [float(-(x * w).sum()) for x in window]
            w = w + 0.5**updates * sum(window) / len(window)
            updates += 1
        close = {"atol": 1e-5, "because": FLOAT32, "step": epoch}
        source = "w + lr · mean of x over each window, the last short one included"
        expect.close("weights", trainer.model.w.detach(), w, source=source, **close)
        expect.equal("global_step", trainer.global_step, updates, source="one a window", step=epoch)
        last = trainer.scheduler.last_epoch
        expect.equal("scheduler.last_epoch", last, updates, source="one step a window", step=epoch)
        expect.equal("epoch", trainer.epoch, epoch, source="epochs finished", step=epoch)
        source = "mean of the losses, as the model gave them"
        expect.close("loss of the epoch", loss, sum(losses) / count, source=source, **close)


@pytest.mark.task("8.6", "8.5")
def test_clipping_acts_on_the_gradient_of_the_whole_window(lesson, expect, tmp_path):
    """K = 2, max_grad_norm = 1, SGD with lr 1: gradients (10, 0) and (−9, 0); then (6, 0) and (0, 8)."""
    rows = Rows()
    trainer = make_trainer(
        lesson, tmp_path, logger=rows, accumulation_steps=2, max_grad_norm=1.0, log_interval=1
    )
    w = torch.zeros(2)
    windows = [([10.0, 0.0], [-9.0, 0.0], [0.5, 0.0], 0.5), ([6.0, 0.0], [0.0, 8.0], [0.6, 0.8], 5.0)]
    for step, (first, second, move, norm) in enumerate(windows, 1):
        for x in (first, second):
            trainer.train_step(torch.tensor(x))
        w = w + torch.tensor(move)
        source = "the mean of the window, scaled to a norm of at most 1"
        close = {"atol": 1e-5, "because": "the 1e-6 in clip_grad_norm_'s divisor", "step": step}
        expect.close("weights", trainer.model.w.detach(), w, source=source, **close)
        row = {key: float(value) for key, value in rows.rows[-1].items()}
        expect.close("grad_norm", row["grad_norm"], norm, source="‖g‖ before clipping", **close)
        want = -(sum(first) + sum(second)) / 4
        expect.close("grad_mean", row["grad_mean"], want, source="Σ g / 2, before clipping", **close)


@pytest.mark.task("8.6", "8.7", "8.4")
def test_trainer_saves_at_intervals_and_after_each_epoch(lesson, expect, tmp_path):
    """K = 2, save_interval = 2, five micro-batches an epoch (3 updates), two epochs."""
    trainer = make_trainer(lesson, tmp_path, accumulation_steps=2, save_interval=2, keep_last=9)
    batches = [torch.ones(2)] * 5
    for want in (
        ["epoch_0_step_2.pt", "epoch_1_step_3.pt"],
        [
            "epoch_0_step_2.pt",
            "epoch_1_step_3.pt",
            "epoch_1_step_4.pt",
            "epoch_1_step_6.pt",
            "epoch_2_step_6.pt",
        ],
    ):
        trainer.train_epoch(batches)
        names = [path.name for path in trainer.manager.checkpoints()]
        source = "after updates 2, 4, 6; and after each epoch, when it is counted"
        expect.equal("checkpoints()", names, want, source=source, step=trainer.epoch)


# --------------------------------------------------------------------------------------- 8.7 save, put back


@pytest.mark.task("8.7", "8.6", "8.3")
def test_load_puts_everything_back(lesson, expect, rng, tmp_path):
    """SGD with momentum, a schedule, 5 micro-batches in windows of 2; saved, then loaded by new objects."""
    options = {"momentum": 0.9, "gamma": 0.5, "accumulation_steps": 2, "note": "first run"}
    trainer = make_trainer(lesson, tmp_path, **options)
    trainer.train_epoch([torch.randn(2, generator=rng) for _ in range(5)])
    path = tmp_path / "model.pt"
    trainer.save_checkpoint(path)
    found = torch.load(path, weights_only=True)
    keys = [
        "best_metric",
        "config",
        "epoch",
        "model_state_dict",
        "optimizer_state_dict",
        "scheduler_state_dict",
        "step",
    ]
    expect.equal("keys of the file", sorted(found), keys, source="the docstring of Trainer.state")
    expect.equal("config in the file", found["config"], trainer.config, source="the trainer's config")

    other = make_trainer(lesson, tmp_path, Pull(), **options)
    other.train_step(torch.ones(2))  # a window is open when the file is loaded
    got = other.load_checkpoint(path)
    expect.equal("returned", got, (1, 3), source="(epochs finished, updates made)")
    expect.equal("epoch and global_step", (other.epoch, other.global_step), (1, 3), source="the file")
    expect.equal("weights", other.model.w.detach(), trainer.model.w.detach(), source="the saved trainer")
    for name in ("optimizer", "scheduler"):
        live, want = getattr(other, name).state_dict(), getattr(trainer, name).state_dict()
        expect.equal(name, live, want, source="the saved trainer")
    other.train_step(torch.ones(2))
    expect.equal("global_step after one micro-batch", other.global_step, 3, source="a new window began")
