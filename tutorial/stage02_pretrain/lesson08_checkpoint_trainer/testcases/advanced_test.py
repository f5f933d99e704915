"""Advanced tests of lesson 08: checkpoint, trainer, logger. Run: pytest testcases/advanced_test.py"""

import builtins
import copy
import errno
import hashlib
import importlib.util
import io
import json
import math
import os
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

ORDER = "float32 sums of some micro-batches, in any order"


class Net(nn.Module):
    """loss = model((x, y)): the mean squared error of a small network with batch norm."""

    def __init__(self, rng=None, running=True):
        super().__init__()
        norm = nn.BatchNorm1d(5, track_running_stats=running)
        self.net = nn.Sequential(nn.Linear(3, 5, bias=False), norm, nn.Tanh(), nn.Linear(5, 1))
        if rng is not None:
            with torch.no_grad():
                for param in self.parameters():
                    param.copy_(torch.randn(param.shape, generator=rng))

    def forward(self, batch):
        x, y = batch
        return nn.functional.mse_loss(self.net(x), y)


class Rows:
    """A logger that keeps what it is given."""

    def __init__(self):
        self.rows = []

    def log(self, metrics, step):
        self.rows.append({"step": step, **{name: float(value) for name, value in metrics.items()}})

    def resume(self, step):
        self.rows = [row for row in self.rows if row["step"] <= step]


def random_batches(rng, count, device="cpu"):
    parts = torch.randn(count, 4, 4, generator=rng).to(device)
    return [(part[:, :3], part[:, 3:]) for part in parts]


def make_trainer(lesson, tmp_path, model, optimizer="AdamW", scaler=None, logger=None, **config):
    options = {"momentum": 0.9} if optimizer == "SGD" else {}
    optimizer = getattr(torch.optim, optimizer)(model.parameters(), lr=0.05, **options)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 0.9**update)
    config = {"save_dir": str(tmp_path / "checkpoints"), "log_interval": 2, **config}
    return lesson.trainer.Trainer(model, optimizer, scheduler, config, scaler=scaler, logger=logger)


def everything(trainer):
    """All that may change, copied."""
    parts = trainer.model, trainer.optimizer, trainer.scheduler, trainer.scaler
    state = [copy.deepcopy(dict(part.state_dict())) for part in parts]
    names = "model", "optimizer", "scheduler", "scaler"
    return dict(zip(names, state, strict=True)) | {"counts": [trainer.epoch, trainer.global_step]}


def make_state(step, value, size=30):
    return {"epoch": 0, "step": step, "model_state_dict": {"w": torch.full((size,), float(value))}}


def step_in(lesson, path):
    """What a restart finds: the step, or the sentence of the refusal."""
    try:
        state = lesson.checkpoint.load_checkpoint(path)
    except ValueError as error:
        return str(error)
    whole = torch.equal(state["model_state_dict"]["w"], torch.full((30,), float(state["step"])))
    return state["step"] if whole else "a mixture"


# ----------------------------------------------------------------------- 8.2 something goes wrong, anywhere


class Operations:
    """Calls `at(n, half)` before the n-th open-to-write, write, fsync, rename. It may raise or exit."""

    def __init__(self, at):
        self.at, self.count = at, 0

    def before(self, half=lambda: None):
        self.count += 1
        self.at(self.count, half)

    @contextmanager
    def watched(self):
        true = {
            name: getattr(os, name)
            for name in ("fsync", "fdatasync", "replace", "rename")
            if hasattr(os, name)
        }
        true_opens = {module: module.open for module in (builtins, io)}
        true_save = torch.save

        def wrap(function):
            def run(*arguments, **options):
                self.before()
                return function(*arguments, **options)

            return run

        def opened(name, mode="r", *rest, **options):
            if mode[0] not in "wax" and "+" not in mode:
                return true_opens[builtins](name, mode, *rest, **options)
            self.before()
            return WatchedFile(true_opens[builtins](name, mode, *rest, **options), self)

        def save(state, target, *rest, **options):
            if not isinstance(target, str | os.PathLike):
                return true_save(state, target, *rest, **options)
            with opened(target, "wb") as file:  # torch would write with C++, where nothing can be watched
                return true_save(state, file, *rest, **options)

        try:
            for name, function in true.items():
                setattr(os, name, wrap(function))
            for module in true_opens:
                module.open = opened
            torch.save = save
            yield self
        finally:
            for name, function in true.items():
                setattr(os, name, function)
            for module, function in true_opens.items():
                module.open = function
            torch.save = true_save


class WatchedFile:
    """A file opened to write. `finish_half` writes half of what is due, and pushes it out."""

    def __init__(self, file, operations):
        self.file, self.operations = file, operations

    def write(self, data):
        def half():
            self.file.write(data[: len(data) // 2])
            self.file.flush()

        self.operations.before(half)
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()


def reset(folder, files):
    for entry in folder.iterdir():
        entry.unlink()
    for name, data in files.items():
        (folder / name).write_bytes(data)


DIED = 42


def die_in_a_child(save, at):
    """Fork; the child runs `save()` and dies without a farewell at the at-th operation."""

    def kill(count, half):
        if count == at:
            half()
            os._exit(DIED)

    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            with Operations(kill).watched():
                save()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.task("8.2", "8.3", "8.1")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork, which this system does not have")
def test_kill_at_every_operation_of_a_save_leaves_a_valid_checkpoint(lesson, expect, tmp_path):
    """Step 2 is saved over step 1 by a child that dies at its n-th open, write, fsync, rename; every n."""
    path = tmp_path / "model.pt"
    lesson.checkpoint.save_checkpoint(make_state(1, 1), path)
    old = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}
    for at in range(1, 400):
        reset(tmp_path, old)
        status = die_in_a_child(lambda: lesson.checkpoint.save_checkpoint(make_state(2, 2), path), at)
        expect.true("status of the child", status in (0, DIED), expected="0 or killed", got=status, step=at)
        found = step_in(lesson, path)
        want = "step 1 or step 2, whole" if status else "step 2, whole"
        right = found in ((1, 2) if status else (2,))
        expect.true("what loads after the kill", right, expected=want, got=found, step=at)
        # what the dead left behind must not be in the way of the next save
        lesson.checkpoint.save_checkpoint(make_state(3, 3), path)
        expect.equal("the next save", step_in(lesson, path), 3, source="the state that was saved", step=at)
        if status == 0:
            break
    expect.true("operations", at > 4, expected="a write, an fsync and a rename at least", got=at - 1)


@pytest.mark.task("8.2", "8.3", "8.1")
@pytest.mark.parametrize("before", ["an older file", "nothing"])
def test_error_at_every_operation_of_a_save_is_survived(lesson, expect, tmp_path, before):
    """The n-th open, write, fsync or rename of a save raises OSError, for every n."""
    path = tmp_path / "model.pt"
    lesson.checkpoint.save_checkpoint(make_state(1, 1), path)
    old = (
        {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} if before == "an older file" else {}
    )
    for at in range(1, 400):
        reset(tmp_path, old)

        def fail(count, half, at=at):
            if count == at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        raised = False
        with Operations(fail).watched() as operations:
            try:
                lesson.checkpoint.save_checkpoint(make_state(2, 2), path)
            except OSError:
                raised = True
        names = {entry.name for entry in tmp_path.iterdir()}
        litter = sorted(names - {"model.pt", "model.pt.sha256"})
        expect.equal("temporary files left", litter, [], source="none", step=at)
        if "model.pt" in names or old:
            found = step_in(lesson, path)
            right = found in ((1, 2) if raised else (2,))
            want = "step 1 or step 2, whole" if raised else "step 2, whole, or an OSError"
            expect.true("what loads after the error", right, expected=want, got=found, step=at)
        else:
            expect.equal("files", sorted(names), [], source="a digest of nothing is litter", step=at)
            expect.equal("an OSError came", raised, True, source="nothing was saved", step=at)
        if operations.count < at:
            break


@pytest.mark.task("8.2")
def test_save_brings_the_bytes_to_the_disk_before_the_name(lesson, expect, tmp_path, monkeypatch):
    """A save over an older file; every fsync and rename is noted."""
    path = tmp_path / "model.pt"
    lesson.checkpoint.save_checkpoint(make_state(1, 1), path)
    notes, synced = [], {}

    def note_sync(function):
        def run(descriptor):
            about = os.fstat(descriptor.fileno() if hasattr(descriptor, "fileno") else descriptor)
            synced[about.st_ino] = about.st_size
            if about.st_ino == tmp_path.stat().st_ino:
                notes.append("folder synced")
            return function(descriptor)

        return run

    def note_rename(function):
        def run(source, target, **options):
            about = os.stat(source)
            whole = synced.get(about.st_ino) == about.st_size > 0
            notes.append(f"{Path(target).name} renamed, {'all' if whole else 'NOT all'} bytes synced")
            return function(source, target, **options)

        return run

    for name in ("fsync", "fdatasync"):
        if hasattr(os, name):
            monkeypatch.setattr(os, name, note_sync(getattr(os, name)))
    for name in ("replace", "rename"):
        monkeypatch.setattr(os, name, note_rename(getattr(os, name)))
    lesson.checkpoint.save_checkpoint(make_state(2, 2), path)
    monkeypatch.undo()
    renames = [note for note in notes if "renamed" in note]
    want = [note.replace("NOT all", "all") for note in renames]
    source = "a name that points to bytes not yet on the disk is a torn file after a power cut"
    expect.equal("renames", renames, want, source=source)
    expect.true(
        "model.pt was renamed into place",
        "model.pt renamed, all bytes synced" in notes,
        expected="one rename over model.pt",
        got=notes,
    )
    if os.name != "nt":
        place = notes.index("model.pt renamed, all bytes synced")
        after = notes[place + 1] if place + 1 < len(notes) else "nothing"
        source = "only the folder's fsync makes a rename durable"
        expect.equal("after model.pt was renamed", after, "folder synced", source=source)
        expect.equal("the last thing done", notes[-1], "folder synced", source=source)


# -------------------------------------------------------------------------------------- 8.3 damage, devices


@pytest.mark.task("8.3", "8.2")
def test_every_flipped_bit_is_refused(lesson, expect, rng, tmp_path):
    """200 copies of a file with one flipped bit each, at random places."""
    path = tmp_path / "model.pt"
    lesson.checkpoint.save_checkpoint(make_state(1, 1, size=2000), path)
    whole = path.read_bytes()
    silent = 0
    for flip in range(200):
        place, bit = (int(torch.randint(n, (), generator=rng)) for n in (len(whole), 8))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << bit)]) + whole[place + 1 :])
        found = step_in(lesson, path) if flip % 20 == 0 else None
        try:
            lesson.checkpoint.verify_checkpoint(path)
            silent += 1
        except lesson.checkpoint.CheckpointError:
            pass
        if found is not None:
            refused = isinstance(found, str) and "model.pt" in found
            expect.true("load_checkpoint", refused, expected="a sentence with the name", got=found, step=flip)
    expect.equal("flipped bits that verify", silent, 0, source="SHA-256")


@pytest.mark.task("8.3")
def test_load_goes_where_it_is_told(lesson, expect, tmp_path, monkeypatch):
    """Tensors that say "cuda:0", as if saved on a GPU; loaded by default, and with map_location="meta"."""
    path = tmp_path / "model.pt"
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        torch.save(make_state(1, 1), path)
    line = f"{hashlib.sha256(path.read_bytes()).hexdigest()}  model.pt\n"
    (tmp_path / "model.pt.sha256").write_text(line)
    for options, want in (({}, "cpu"), ({"map_location": "meta"}, "meta")):
        try:
            state = lesson.checkpoint.load_checkpoint(path, **options)
            got = state["model_state_dict"]["w"].device.type
        except lesson.checkpoint.CheckpointError as error:
            got = str(error)
        source = f"map_location, given {options}; the default is 'cpu'"
        expect.equal("device of the loaded tensor", got, want, source=source)
    lesson.checkpoint.save_checkpoint(make_state(7, 7), path)
    about = lesson.checkpoint.describe_checkpoint(path)
    got = {key: about[key] for key in ("epoch", "step", "parameters", "best_metric")}
    want = {"epoch": 0, "step": 7, "parameters": 30, "best_metric": None}
    expect.equal("describe_checkpoint", got, want, source="the file, without a model")


# ------------------------------------------------------------------------------------------ 8.4 the manager


@pytest.mark.task("8.4", "8.3")
def test_manager_never_deletes_the_only_valid_one(lesson, expect, tmp_path):
    """keep_last = 2; step 1 is valid, 20 and 30 broke after they were saved; then 5 is saved."""
    manager = lesson.manager.CheckpointManager(tmp_path, keep_last=3)
    paths = {step: manager.save(make_state(step, step)) for step in (1, 20, 30)}
    for step in (20, 30):
        paths[step].write_bytes(paths[step].read_bytes()[:-1])
    (tmp_path / ".epoch_0_step_31.pt.tmp").write_bytes(b"half of a checkpoint, by a process that was killed")
    manager = lesson.manager.CheckpointManager(tmp_path, keep_last=2)
    manager.prune()
    source = "the newest two, and the newest valid one"
    names = [path.name for path in manager.checkpoints()]
    want = [f"epoch_0_step_{step}.pt" for step in (1, 20, 30)]
    expect.equal("checkpoints()", names, want, source=source, step=0)
    # a run that went back to step 1 saves step 5: smaller than 20 and 30, and yet it must stay
    paths[5] = manager.save(make_state(5, 5))
    names = [path.name for path in manager.checkpoints()]
    want = [f"epoch_0_step_{step}.pt" for step in (5, 20, 30)]
    expect.equal("checkpoints()", names, want, source="the newest two, and what was just saved", step=5)
    expect.equal("latest_valid()", manager.latest_valid(), paths[5], source="20 and 30 are broken", step=5)
    files = sorted(path.name for path in tmp_path.iterdir())
    want = sorted(want + [f"{name}.sha256" for name in want])
    expect.equal("files", files, want, source="no digest without a file, no temporary file", step=5)
    # the same with valid files of larger steps
    for step in (20, 30, 6):
        paths[step] = manager.save(make_state(step, step))
    names = [path.name for path in manager.checkpoints()]
    want = [f"epoch_0_step_{step}.pt" for step in (6, 20, 30)]
    expect.equal("checkpoints()", names, want, source="the newest two, and what was just saved", step=6)


@pytest.mark.task("8.4", "8.3")
def test_manager_knows_its_best_after_a_restart(lesson, expect, tmp_path, monkeypatch):
    """Metric 1.0; restart; 2.0; 0.5, but the disk is full; 0.7; best_model.pt broken, restart; 3.0."""

    def manager():
        return lesson.manager.CheckpointManager(tmp_path, keep_last=1)

    def best():
        return step_in(lesson, tmp_path / "best_model.pt")

    manager().save(make_state(1, 1), 1.0)
    second = manager()
    expect.equal("best_metric after the restart", second.best_metric, 1.0, source="best_model.pt")
    second.save(make_state(2, 2), torch.tensor(2.0))
    expect.equal("step in best_model.pt", best(), 1, source="2.0 is worse than 1.0", step=2)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with expect.raises(OSError, match="No space", source="the system's own error"):
            second.save(make_state(3, 3), 0.5)
    expect.equal("step in best_model.pt", best(), 1, source="the save of step 3 failed", step=3)
    second.save(make_state(4, 4), 0.7)
    source = "0.7 is the best of what was saved"
    expect.equal("step in best_model.pt", best(), 4, source=source, step=4)
    (tmp_path / "best_model.pt").write_bytes(b"")
    third = manager()
    expect.equal("best_metric", third.best_metric, math.inf, source="best_model.pt is broken", step=5)
    third.save(make_state(5, 5), 3.0)
    expect.equal("step in best_model.pt", best(), 5, source="the only one", step=5)


# ------------------------------------------------------------------------------------------- 8.5 the logger


@pytest.mark.task("8.5")
def test_logger_goes_on_after_a_kill(lesson, expect, tmp_path):
    """Steps 2, 4, 6 are logged, then the process dies within a line; a checkpoint of step 4 is resumed."""
    path = tmp_path / "metrics.jsonl"
    logger = lesson.logger.TrainerLogger(tmp_path)
    for step in (2, 4, 6):
        logger.log({"loss": 1 / step, "grad_norm": math.nan}, step)
    with open(path, "a") as file:
        file.write('{"step": 8, "lo')
    logger = lesson.logger.TrainerLogger(tmp_path)
    expect.equal("last_step", logger.last_step, 6, source="the last whole line")
    with expect.raises(ValueError, match="step", source="step 5 is behind 6, and nobody called resume"):
        logger.log({"loss": 0.0}, 5)
    logger.resume(4)
    with expect.raises(ValueError, match="step", source="step 3 is behind 4"):
        logger.log({"loss": 0.0}, 3)
    for step in (6, 8):
        logger.log({"loss": 1 / step}, step)
    logger.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    want = [
        {"step": 2, "loss": 1 / 2, "grad_norm": "nan"},
        {"step": 4, "loss": 1 / 4, "grad_norm": "nan"},
        {"step": 6, "loss": 1 / 6},
        {"step": 8, "loss": 1 / 8},
    ]
    expect.equal("rows", rows, want, source="as if the run had never been killed")


@pytest.mark.task("8.5")
@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_logger_writes_tensorboard_events(lesson, expect, tmp_path):
    """Three steps, one of them NaN, with use_tensorboard; read back with TensorBoard's own reader."""
    logger = lesson.logger.TrainerLogger(tmp_path, use_tensorboard=True)
    values = {0: 2.5, 10: math.nan, 20: 0.5}
    for step, loss in values.items():
        logger.log({"loss": torch.tensor(loss), "lr": 0.1}, step)
    logger.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path))
    events.Reload()
    for name, want in (("loss", values), ("lr", dict.fromkeys(values, 0.1))):
        for event, (step, value) in zip(events.Scalars(name), want.items(), strict=True):
            expect.equal("step", event.step, step, source="log(metrics, step)", step=step)
            because = "TensorBoard keeps float32"
            expect.close(name, event.value, value, source="log()", atol=1e-6, because=because, step=step)
    rows = lesson.logger.read_metrics(tmp_path / "metrics.jsonl")
    expect.equal("rows in metrics.jsonl", len(rows), 3, source="the JSON lines are always written")


@pytest.mark.task("8.5")
@pytest.mark.limit(90)
@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_logger_writes_an_offline_wandb_run(lesson, expect, tmp_path, monkeypatch):
    """Two steps with the real library, WANDB_MODE=offline; its file is searched for the names."""
    # before wandb starts: a task that is not written shows itself here, and quickly
    with lesson.logger.TrainerLogger(tmp_path / "plain") as logger:
        logger.log({"loss": 1.0}, 0)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for variable in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{variable}_DIR", str(tmp_path / "wandb_home"))
    import wandb

    try:
        with lesson.logger.TrainerLogger(tmp_path, use_wandb=True) as logger:
            logger.log({"my_train_loss": 1.5, "my_grad_norm": torch.tensor(math.nan)}, 0)
            logger.log({"my_train_loss": 0.5}, 10)
    finally:
        wandb.teardown()
    files = list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    expect.equal("offline runs", len(files), 1, source="wandb.init(mode='offline') below log_dir")
    data = files[0].read_bytes()
    found = [name for name in ("my_train_loss", "my_grad_norm") if name.encode() in data]
    expect.equal("names in the run's file", found, ["my_train_loss", "my_grad_norm"], source="log()")
    rows = lesson.logger.read_metrics(tmp_path / "metrics.jsonl")
    expect.equal("steps in metrics.jsonl", [row["step"] for row in rows], [0, 10], source="always written")


# ----------------------------------------------------------------------------------------- 8.6 the training


@pytest.mark.task("8.6", "8.5")
@pytest.mark.parametrize(("k", "scale"), [(1, None), (2, None), (3, None), (2, 1024.0)])
def test_training_follows_a_hand_written_loop(lesson, expect, rng, tmp_path, k, scale):
    """SGD with momentum, a schedule, clipping, windows of K over 7 micro-batches, 3 epochs."""
    model = Net(rng)
    reference = copy.deepcopy(model)
    batches = random_batches(rng, 7)
    rows = Rows()
    config = {"accumulation_steps": k, "max_grad_norm": 0.5}
    scaler = torch.amp.GradScaler("cpu", init_scale=scale) if scale else None  # without effect, if used right
    trainer = make_trainer(lesson, tmp_path, model, "SGD", scaler, rows, **config)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.05, momentum=0.9)
    updates, since, want = 0, [], []
    for _ in range(3):
        for i in range(0, 7, k):
            window = batches[i : i + k]
            optimizer.zero_grad()
            losses = [reference(batch) for batch in window]
            (sum(losses) / len(losses)).backward()
            flat = torch.cat([p.grad.flatten() for p in reference.parameters()])
            norm = nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
            lr = 0.05 * 0.9**updates
            optimizer.param_groups[0]["lr"] = lr
            optimizer.step()
            updates += 1
            since += [float(loss.detach()) for loss in losses]
            if updates % 2 == 0 or i + k >= 7:
                row = {"loss": sum(since) / len(since), "lr": lr, "grad_norm": float(norm)}
                want.append({"step": updates, **row, "grad_mean": float(flat.mean()), "skipped_steps": 0.0})
                since = []
        trainer.train_epoch(batches)
        for name, param in reference.state_dict().items():
            got = trainer.model.state_dict()[name]
            close = {"atol": 2e-4, "because": ORDER, "step": trainer.epoch}
            expect.close(name, got, param, source="a loop written out with torch", **close)
    # an update that ends an epoch and is a multiple of 2 has one row, not two
    steps = [row["step"] for row in rows.rows]
    expect.equal("steps of the rows", steps, [row["step"] for row in want], source="every 2, and each end")
    for got, row in zip(rows.rows, want, strict=True):
        got = {key: got.get(key) for key in row}
        close = {"atol": 2e-4, "because": ORDER, "step": row["step"]}
        expect.close("row", got, row, source="a loop written out with torch", **close)


@pytest.mark.task("8.6", "8.7")
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", [0, 1], ids=["first of the window", "second of the window"])
def test_bad_batch_is_left_out_and_seen(lesson, expect, rng, tmp_path, bad, where):
    """K = 2; four good micro-batches, then a window with one bad number in it, then two good windows."""
    rows = Rows()
    trainer = make_trainer(
        lesson,
        tmp_path,
        Net(rng, running=False),
        logger=rows,
        accumulation_steps=2,
        max_grad_norm=1.0,
        log_interval=1,
    )
    batches = random_batches(rng, 10)
    for batch in batches[:4]:
        trainer.train_step(batch)
    before = everything(trainer)
    batches[4 + where][1][0, 0] = bad
    for batch in batches[4:6]:
        trainer.train_step(batch)
    source = "as before the bad window: weights, moments, schedule, global_step"
    for name, want in before.items():
        expect.equal(name, everything(trainer)[name], want, source=source, step=3)
    expect.equal("skipped_steps", trainer.skipped_steps, 1, source="one window was left out", step=3)
    for batch in batches[6:]:
        trainer.train_step(batch)
    expect.equal("global_step", trainer.global_step, 4, source="2 good updates before, 2 after")
    finite = all(bool(param.isfinite().all()) for param in trainer.model.parameters())
    expect.true("weights", finite, expected="finite", got="NaN or inf")
    losses = [math.isfinite(row["loss"]) for row in rows.rows]
    source = "the row after the bad window averages its loss, and shows it"
    expect.equal("loss is finite, row by row", losses, [True, True, False, True], source=source)
    expect.equal(
        "skipped_steps in the last row", rows.rows[-1]["skipped_steps"], 1.0, source="the log says so"
    )


@pytest.mark.task("8.6")
def test_losses_are_read_for_a_row_and_not_for_a_step(lesson, expect, observe, rng, tmp_path):
    """40 micro-batches in windows of 4, log_interval = 5; counts how often a floating-point value is read."""

    class CountReads(TorchDispatchMode):
        reads = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._local_scalar_dense.default and args[0].is_floating_point():
                self.reads += 1
            return func(*args, **(kwargs or {}))

    model = Net(rng)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    config = {"accumulation_steps": 4, "log_interval": 5, "max_grad_norm": 1.0}
    config["save_dir"] = str(tmp_path)
    trainer = lesson.trainer.Trainer(model, optimizer, None, config, logger=Rows())
    batches = random_batches(rng, 40)
    with CountReads() as counter:
        trainer.train_epoch(batches)
    observe("reads", counter.reads)
    # two rows of three tensors, and the mean of the epoch: 7. One a update, for the decision, is allowed too
    expected = "at most 20: each read waits until the device has done all its work"
    expect.true("reads in 40 micro-batches", counter.reads <= 20, expected=expected, got=f"{counter.reads}")


# --------------------------------------------------------------------------------------- 8.7 save, put back


def spoil(state, how):
    weights, optimizer = state["model_state_dict"], state["optimizer_state_dict"]
    if how == "names begin with module.":
        state["model_state_dict"] = {f"module.{name}": value for name, value in weights.items()}
    elif how == "a tensor is missing":
        del weights["net.3.bias"]
    elif how == "a tensor too many":
        weights["net.9.bias"] = torch.zeros(1)
    elif how == "another shape":
        weights["net.3.bias"] = torch.zeros(2)
    elif how == "a shape that broadcasts":
        weights["net.1.weight"] = torch.zeros(1)
    elif how == "another dtype":
        weights["net.3.bias"] = weights["net.3.bias"].double()
    elif how == "a number instead of a tensor":
        weights["net.3.bias"] = 1.0
    elif how == "no model":
        del state["model_state_dict"]
    elif how == "no optimizer":
        del state["optimizer_state_dict"]
    elif how == "another number of parameters":
        optimizer["param_groups"][0]["params"].pop()
    elif how == "moments of another shape":
        optimizer["state"][0]["exp_avg"] = torch.zeros(7)
    elif how == "no scheduler":
        state["scheduler_state_dict"] = None
    elif how == "a scaler":
        state["scaler_state_dict"] = {"scale": 2.0}
    elif how == "no step":
        del state["step"]


REASONS = [
    "names begin with module.",
    "a tensor is missing",
    "a tensor too many",
    "another shape",
    "a shape that broadcasts",
    "another dtype",
    "a number instead of a tensor",
    "no model",
    "no optimizer",
    "another number of parameters",
    "moments of another shape",
    "no scheduler",
    "a scaler",
    "no step",
]


@pytest.mark.task("8.7", "8.6", "8.3")
@pytest.mark.parametrize("how", REASONS)
def test_file_that_does_not_fit_changes_nothing(lesson, expect, rng, tmp_path, how):
    """A valid file of another run, changed in one place; loaded by a trainer that has made 3 updates."""
    path = tmp_path / "model.pt"
    batches = random_batches(rng, 3)
    other = make_trainer(lesson, tmp_path, Net(rng))
    other.train_epoch(batches)
    state = lesson.checkpoint.snapshot(other.state())
    spoil(state, how)
    lesson.checkpoint.save_checkpoint(state, path)
    trainer = make_trainer(lesson, tmp_path, Net(rng))
    trainer.train_epoch(batches)
    before = everything(trainer)
    try:
        source = "a file that does not fit is refused as a whole"
        with expect.raises(lesson.checkpoint.CheckpointError, match="model.pt", source=source):
            trainer.load_checkpoint(path)
    finally:
        for name, want in before.items():
            got = everything(trainer)[name]
            expect.equal(f"{name} afterwards", got, want, source="nothing was applied")


@pytest.mark.task("8.7", "8.6", "8.4", "8.3")
@pytest.mark.parametrize("with_scaler", [False, True], ids=["no scaler", "scaler"])
def test_resume_after_an_epoch_is_bit_exact(lesson, expect, rng, tmp_path, device, with_scaler):
    """Windows of 2 over 5 micro-batches: 4 epochs; and 2, then new objects, the newest checkpoint, 2 more."""
    start = Net(rng).to(device)
    batches = random_batches(rng, 5, device)

    def run(name, model):
        rows = Rows()
        scaler = None
        if with_scaler:
            options = {"init_scale": 1024.0, "growth_interval": 4}
            scaler = torch.amp.GradScaler(device.type, **options)
        config = {"accumulation_steps": 2, "max_grad_norm": 1.0, "save_interval": 2, "log_interval": 1}
        trainer = make_trainer(lesson, tmp_path / name, model, scaler=scaler, logger=rows, **config)
        return trainer, rows

    whole, want_rows = run("whole", copy.deepcopy(start))
    for _ in range(4):
        whole.train_epoch(batches)
    first, _ = run("resumed", copy.deepcopy(start))
    for _ in range(2):
        first.train_epoch(batches)
    first.train_step(batches[0])  # lost with the process

    second, rows = run("resumed", Net().to(device))
    got = second.load_checkpoint(second.manager.latest_valid())
    expect.equal("load_checkpoint", got, (2, 6), source="2 epochs of 3 updates")
    for epoch in (3, 4):
        second.train_epoch(batches)
        expect.equal("epoch", second.epoch, epoch, source="epochs finished", step=epoch)
    for name, want in everything(whole).items():
        expect.equal(name, everything(second)[name], want, source="the run that was never killed")
    columns = ("step", "loss", "lr", "grad_norm")
    for got, want in zip(rows.rows, want_rows.rows[6:], strict=True):
        got, want = ({key: row[key] for key in columns} for row in (got, want))
        expect.equal("row", got, want, source="the run that was never killed", step=want["step"])
