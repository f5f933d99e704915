"""Advanced tests of lesson 09: exact resume. Run: pytest testcases/advanced_test.py"""

import builtins
import copy
import errno
import functools
import hashlib
import io
import itertools
import os
import pickle
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset
from training.evaluation import eval_mode, preserved_rng

SAMPLES, BATCH_SIZE, WINDOW, EPOCHS = 17, 3, 4, 2  # 6 micro-batches an epoch: a window of 4, a window of 2
MICRO_STEPS = 12


class NoisyDataset(Dataset):
    """Fixed rows, and noise that is drawn when a row is fetched."""

    def __init__(self, sample_generator):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(SAMPLES, 6, generator=generator)
        self.y = torch.randint(3, (SAMPLES,), generator=generator)
        self.sample_generator = sample_generator
        self.epoch = 0

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        noise = torch.randn(6, generator=self.sample_generator(7, self.epoch, index))
        return {"index": index, "x": self.x[index] + noise, "y": self.y[index]}


class Training:
    """A training with everything on that may leak: dropout, shuffling, random samples, global draws of all three
    libraries, fp16 with a scale that overflows, accumulation with a partial window, evaluation in between."""

    def __init__(self, lesson, device="cpu", num_workers=0):
        self.lesson, self.device = lesson, torch.device(device)
        random.seed(3), np.random.seed(3), torch.manual_seed(3)
        layers = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3)
        self.model = nn.Sequential(*layers).to(self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.05, weight_decay=0.1)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda update: 0.8**update)
        self.scaler = torch.amp.GradScaler(self.device.type, init_scale=2.0**18, growth_interval=1)
        self.sampler = lesson.sampler.ResumableSampler(SAMPLES, seed=7)
        self.data = NoisyDataset(lesson.sampler.sample_generator)
        self.loader = lesson.sampler.make_loader(self.data, BATCH_SIZE, self.sampler, num_workers)
        self.val_loader = DataLoader(
            list(zip(self.data.x, self.data.y, strict=True)), batch_size=4, shuffle=True
        )
        self.epoch = self.global_step = self.micro_step = 0
        self.ids, self.losses, self.val_losses, self.scales = [], [], [], []

    def train(self, stop_after=None):
        """Until micro-step `stop_after` of the whole run, or to the end."""
        for epoch in range(self.epoch, EPOCHS):
            self.epoch = self.data.epoch = epoch
            self.sampler.set_epoch(epoch)
            self.model.train()
            for batch in self.loader:
                self.micro_batch(batch)
                if len(self.ids) == stop_after:
                    return self
        return self

    def micro_batch(self, batch):
        x, y = batch["x"].to(self.device), batch["y"].to(self.device)
        x = x * (1 + 0.1 * random.gauss(0, 1) + 0.1 * float(np.random.randn()))
        with torch.autocast(self.device.type, torch.float16):
            logits = self.model(x)
        loss = F.cross_entropy(logits.float(), y)
        self.scaler.scale(loss / WINDOW).backward()
        self.ids.append(batch["index"].tolist())
        self.losses.append(float(loss.detach()))
        self.sampler.advance(len(y))
        self.micro_step += 1
        if self.micro_step == WINDOW or self.sampler.position == SAMPLES:
            self.update()

    def update(self):
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.get_scale() >= scale:  # not skipped
            self.scheduler.step()
        self.scales.append(self.scaler.get_scale())
        self.optimizer.zero_grad(set_to_none=True)
        self.global_step, self.micro_step = self.global_step + 1, 0
        with torch.no_grad(), eval_mode(self.model), preserved_rng(self.device):
            losses = [F.cross_entropy(self.model(x.to(self.device)).cpu(), y) for x, y in self.val_loader]
        self.val_losses.append(float(sum(losses)))

    def parts(self):
        return self.model, self.optimizer, self.scheduler, self.scaler, self.sampler

    def capture(self):
        counters = {key: getattr(self, key) for key in ("epoch", "global_step", "micro_step")}
        history = {key: getattr(self, key) for key in ("ids", "losses", "val_losses", "scales")}
        return self.lesson.checkpoint.capture(*self.parts(), **counters, **history)

    def restore(self, state):
        vars(self).update(self.lesson.checkpoint.restore(state, *self.parts()))
        return self

    def everything(self):
        """All that two equal runs have in common, in the order in which a difference should be reported."""
        state = {param: dict(values) for param, values in self.optimizer.state.items()}
        names = dict(self.model.named_parameters())
        result = {
            "sample ids": self.ids,
            "losses": self.losses,
            "validation losses": self.val_losses,
            "scales": self.scales,
            "weights and buffers": dict(self.model.state_dict()),
            "gradients": {name: param.grad for name, param in names.items()},
            "moments": {name: state.get(param) for name, param in names.items()},
            "lr": self.optimizer.param_groups[0]["lr"],
            "scheduler": {"last_epoch": self.scheduler.last_epoch, "_last_lr": self.scheduler.get_last_lr()},
            "scaler": self.scaler.state_dict(),
            "counters": (self.epoch, self.global_step, self.micro_step),
            "next global draws": (random.gauss(0, 1), float(np.random.randn()), float(torch.randn(()))),
        }
        if self.device.type == "cuda":
            result["next draw of the device"] = float(torch.rand((), device=self.device))
        return copy.deepcopy(result)


def compare(expect, got, want, step):
    source = "the run that was never interrupted, bit for bit"
    for name in want:
        expect.equal(name, got[name], want[name], source=source, step=step)


def resume_in_a_fresh_process(lesson, folder):
    """What the subprocess of `test_resume_in_a_fresh_process_is_bit_identical` runs."""
    training = Training(lesson).restore(lesson.checkpoint.load(Path(folder, "run.pt"))).train()
    torch.save(training.everything(), Path(folder, "result.pt"))


# ------------------------------------------------------------------------------------ 9.1, 9.2 the devices


@pytest.mark.task("9.1", "9.2")
def test_rng_state_covers_every_device(lesson, expect, monkeypatch):
    """Two CUDA devices (pretended: two CPU generators in their place), each at another point; then one, then none."""
    devices = tuple(torch.Generator().manual_seed(seed) for seed in (10, 20))
    monkeypatch.setattr(torch.cuda, "default_generators", devices)
    for module in (torch.cuda, torch.cuda.random):
        monkeypatch.setattr(module, "device_count", lambda: 2)
        monkeypatch.setattr(module, "current_device", lambda: 0)
        monkeypatch.setattr(module, "is_initialized", lambda: True)
        monkeypatch.setattr(module, "_lazy_init", lambda: None)
        monkeypatch.setattr(module, "_lazy_call", lambda callback, **_: callback())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    state = lesson.rng.get_rng_state()
    expect.equal("states of devices", len(state["cuda"]), 2, source="torch.cuda.device_count()")
    want = [torch.rand(3, generator=generator) for generator in devices]
    lesson.rng.set_rng_state(state)
    for index, generator in enumerate(devices):
        got = torch.rand(3, generator=generator)
        expect.equal(f"draws of cuda:{index}", got, want[index], source="the draws after get_rng_state")
    for module in (torch.cuda, torch.cuda.random):
        monkeypatch.setattr(module, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "default_generators", devices[:1])
    lesson.rng.set_rng_state(state)  # on a machine with one of the two: the other is left out
    expect.equal("draws of the only device", torch.rand(3, generator=devices[0]), want[0], source="as above")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    lesson.rng.set_rng_state(state)  # on a machine without CUDA: left out
    expect.equal("states of devices", lesson.rng.get_rng_state()["cuda"], [], source="no CUDA, no entry")


@pytest.mark.task("9.1", "9.2")
def test_rng_state_repeats_the_dropout_masks(lesson, expect, device):
    """Dropout on 1000 ones: mask, get, two masks; another seed; set, two masks."""

    def mask():
        return F.dropout(torch.ones(1000, device=device), 0.5)

    mask()
    state = lesson.rng.get_rng_state()
    want = [mask(), mask()]
    torch.manual_seed(5)
    lesson.rng.set_rng_state(state)
    for step in range(2):
        expect.equal("mask", mask(), want[step], source="the masks after get_rng_state", step=step)


# ------------------------------------------------------------------------------------- 9.3, 9.4 the data


@pytest.mark.task("9.3", "9.4")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_prefetched_samples_are_not_lost(lesson, expect, num_workers):
    """A loader is stopped after 2 of 6 batches, its sampler saved; a new one finishes epoch 0, then does epoch 1."""

    def epoch_ids(sampler, epoch, stop=None):
        data.epoch = epoch
        sampler.set_epoch(epoch)
        first, ids = sampler.position, []
        for number, batch in enumerate(lesson.sampler.make_loader(data, BATCH_SIZE, sampler, num_workers), 1):
            ids += batch["index"].tolist()
            name, source = f"position at batch {number}", "what was consumed; the loader may be far ahead"
            expect.equal(
                name, sampler.position, first + len(ids) - len(batch["index"]), source=source, step=epoch
            )
            sampler.advance(len(batch["index"]))
            if number == stop:
                break
        return ids

    data = NoisyDataset(lesson.sampler.sample_generator)
    sampler = lesson.sampler.ResumableSampler(SAMPLES, seed=1)
    ids = epoch_ids(sampler, 0, stop=2)
    resumed = lesson.sampler.ResumableSampler(SAMPLES, seed=1)
    resumed.load_state_dict(sampler.state_dict())
    ids += epoch_ids(resumed, 0)
    expect.equal(
        "samples of epoch 0", sorted(ids), list(range(SAMPLES)), source="each once, in two parts", step=0
    )
    source = "the order of the epoch, as if it had not been interrupted"
    sampler = lesson.sampler.ResumableSampler(SAMPLES, seed=1)
    expect.equal("order of epoch 0", ids, list(sampler), source=source, step=0)
    ids = epoch_ids(resumed, 1)
    expect.equal("samples of epoch 1", sorted(ids), list(range(SAMPLES)), source="each once", step=1)


@pytest.mark.task("9.3", "9.4")
def test_random_sample_does_not_depend_on_who_fetches_it(lesson, expect):
    """Noise in __getitem__: fetched by nobody but us, by 0 and by 2 workers, and from the 4th sample on."""
    data = NoisyDataset(lesson.sampler.sample_generator)
    data.epoch = 3
    want = {index: data[index]["x"] for index in range(SAMPLES)}
    for num_workers, skip in [(0, 0), (2, 0), (2, 4)]:
        sampler = lesson.sampler.ResumableSampler(SAMPLES, seed=1)
        sampler.set_epoch(3)
        sampler.advance(skip)
        rows = {}
        for batch in lesson.sampler.make_loader(data, BATCH_SIZE, sampler, num_workers):
            rows.update(zip(batch["index"].tolist(), batch["x"], strict=True))
        expect.equal("rows fetched", len(rows), SAMPLES - skip, source="n − p")
        for index, row in rows.items():
            name = f"sample {index}, {num_workers} workers, from position {skip}"
            expect.equal(name, row, want[index], source="a function of (seed, epoch, index)")


# ---------------------------------------------------------------------------------- 9.5, 9.6 the whole training


@pytest.mark.task("9.1", "9.2", "9.3", "9.4", "9.5", "9.6")
def test_resume_after_every_micro_step_is_bit_identical(lesson, expect, device):
    """12 micro-steps with everything on that may leak; stopped after each, built anew, restored, finished."""
    reference = Training(lesson, device).train()
    scales = reference.scales
    falls = any(after < before for before, after in itertools.pairwise(scales))
    expect.true("the run overflows", falls, expected="a scale that falls in between", got=scales)
    want = reference.everything()
    for step in range(1, MICRO_STEPS + 1):
        state = Training(lesson, device).train(stop_after=step).capture()
        got = Training(lesson, device).restore(state).train().everything()
        compare(expect, got, want, step)


@pytest.mark.task("9.1", "9.2", "9.3", "9.4", "9.5", "9.6")
@pytest.mark.parametrize("stop", [1, 6])
def test_resume_with_prefetching_workers_is_bit_identical(lesson, expect, stop):
    """The same with 2 workers, stopped within an epoch and at its very end; the reference has no worker at all."""
    want = Training(lesson).train().everything()
    state = Training(lesson, num_workers=2).train(stop_after=stop).capture()
    got = Training(lesson, num_workers=2).restore(state).train().everything()
    compare(expect, got, want, stop)


@pytest.mark.limit(60)
@pytest.mark.task("9.1", "9.2", "9.3", "9.4", "9.5", "9.6", "9.7")
def test_resume_in_a_fresh_process_is_bit_identical(lesson, expect, tmp_path):
    """Stopped after micro-step 3 (in the window), saved to a file; a fresh Python goes on from there."""
    want = Training(lesson).train().everything()
    lesson.checkpoint.save(Training(lesson).train(stop_after=3).capture(), tmp_path / "run.pt")
    folder = Path(lesson.checkpoint.__file__).parent
    script = f"""
import importlib.util, sys, types
sys.path.insert(0, {str(Path(__file__).parents[4])!r})
import torch
from course import lazy_dynamo
lazy_dynamo.install()
torch.set_num_threads(1)
package = types.ModuleType("resumed")
package.__path__ = [{str(folder)!r}]
sys.modules["resumed"] = package
from resumed import checkpoint, sampler
spec = importlib.util.spec_from_file_location("tests", {__file__!r})
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)
tests.resume_in_a_fresh_process(package, {str(tmp_path)!r})
"""
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONHASHSEED="123")
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    end = done.stderr.strip().splitlines()[-1:] or ["no message"]
    expect.equal(
        "the resumed process", done.returncode or "ends well", "ends well", source=f"its end: {end[0]}"
    )
    compare(expect, torch.load(tmp_path / "result.pt", weights_only=True), want, step=3)


@pytest.mark.task("9.1", "9.2", "9.5", "9.6")
def test_generators_are_restored_last(lesson, expect):
    """A model, a scheduler and a sampler that draw from all global generators while they load."""

    def drawing(load):
        def load_and_draw(*args, **options):
            random.random(), np.random.rand(), torch.rand(())
            return load(*args, **options)

        return load_and_draw

    training = Training(lesson)
    state = training.capture()
    want = (random.random(), float(np.random.rand()), float(torch.rand(())))
    for part in (training.model, training.scheduler, training.sampler):
        part.load_state_dict = drawing(part.load_state_dict)
    training.restore(state)
    got = (random.random(), float(np.random.rand()), float(torch.rand(())))
    expect.equal(
        "next draws", got, want, source="the draws after capture, whatever the parts draw as they load"
    )


@pytest.mark.task("9.1", "9.2", "9.5", "9.6")
def test_one_state_restores_twice(lesson, expect):
    """Stopped after micro-step 5; restored and finished, then restored from the same dict once more."""
    state = Training(lesson).train(stop_after=5).capture()
    before = copy.deepcopy(state)
    want = Training(lesson).restore(state).train().everything()
    expect.equal("the state", state, before, source="before restore: training on does not change it")
    got = Training(lesson).restore(state).train().everything()
    compare(expect, got, want, step=2)


class Fp32Momentum(torch.optim.Optimizer):
    """SGD with momentum that keeps an fp32 moment for a parameter of any dtype, and counts in a plain int."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    def step(self):
        for group in self.param_groups:
            for param in group["params"]:
                exp_avg = self.state[param].setdefault("exp_avg", torch.zeros(param.shape))
                self.state[param]["updates"] = self.state[param].get("updates", 0) + 1
                exp_avg.lerp_(param.grad.float(), 0.1)
                param.data.add_(exp_avg.to(param.dtype), alpha=-group["lr"])


@pytest.mark.task("9.1", "9.2", "9.5", "9.6")
def test_moments_keep_their_dtype(lesson, expect, rng):
    """bf16 parameter, fp32 moment, a plain count; two steps, restored into a new optimizer, two more steps."""
    grads = torch.randn(4, 5, generator=rng)

    def steps(model, optimizer, rows):
        for row in rows:
            model.weight.grad = row[None].bfloat16()
            optimizer.step()

    def build():
        model = nn.Linear(5, 1, bias=False).bfloat16()
        return model, Fp32Momentum(model.parameters())

    model, optimizer = build()
    steps(model, optimizer, grads[:2])
    state = lesson.checkpoint.capture(model, optimizer)
    before = copy.deepcopy(state["optimizer_state_dict"]["state"])
    fresh = build()
    lesson.checkpoint.restore(state, *fresh)
    source = "the moment that was captured; torch's load_state_dict casts it to bf16"
    got, want = fresh[1].state[fresh[0].weight]["exp_avg"], optimizer.state[model.weight]["exp_avg"]
    expect.equal("exp_avg", got, want, source=source, step=2)
    steps(model, optimizer, grads[2:])
    steps(*fresh, grads[2:])
    got, want = fresh[1].state[fresh[0].weight]["exp_avg"], optimizer.state[model.weight]["exp_avg"]
    expect.equal("exp_avg", got, want, source="the optimizer that was not interrupted", step=4)
    expect.equal("updates", fresh[1].state[fresh[0].weight]["updates"], 4, source="2 + 2", step=4)
    after = state["optimizer_state_dict"]["state"]
    expect.equal("the state", after, before, source="before restore: training on does not change it", step=4)


@pytest.mark.task("9.1", "9.5", "9.6")
def test_optimizer_with_another_order_is_refused(lesson, expect):
    """Two parameters of the same shape, in the order (a, b) when captured and (b, a) when restored."""
    model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    a, b = model["a"].weight, model["b"].weight
    optimizer = torch.optim.SGD([a, b], lr=0.1, momentum=0.9)
    a.grad, b.grad = torch.ones(2, 2), torch.zeros(2, 2)
    optimizer.step()
    state = lesson.checkpoint.capture(model, optimizer)
    other = torch.optim.SGD([b, a], lr=0.1, momentum=0.9)
    with expect.raises(ValueError, match="optimizer", source="by position, the moments would be swapped"):
        lesson.checkpoint.restore(state, model, other)
    expect.equal("state of the optimizer", len(other.state), 0, source="nothing was touched")


# -------------------------------------------------------------------------------------------- 9.7 the file


class DyingFile:
    """A file whose write is an operation at which the process may be killed, with half of the data written."""

    def __init__(self, file, operation):
        self.file, self.operation = file, operation

    def write(self, data):
        def half():
            self.file.write(bytes(data)[: len(data) // 2])
            self.file.flush()

        self.operation(half)
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()


def save_and_die(save, state, path, point):
    """In a child process: save, but be killed at the operation number `point`. Returns whether it was killed."""
    child = os.fork()
    if child == 0:
        try:
            count = 0

            def operation(torn=lambda: None):
                nonlocal count
                count += 1
                if count == point:
                    torn()
                    os.kill(os.getpid(), signal.SIGKILL)

            def guarded(function):
                def call(*args, **options):
                    operation()
                    return function(*args, **options)

                return call

            def opening(function):
                def call(file, mode="r", *args, **options):
                    opened = function(file, mode, *args, **options)
                    return DyingFile(opened, operation) if set(mode) & set("wax+") else opened

                return call

            for name in ("fsync", "replace", "rename", "write", "unlink", "remove"):
                setattr(os, name, guarded(getattr(os, name)))
            builtins.open = io.open = opening(builtins.open)
            save(state, path)
            os._exit(0)
        finally:
            os._exit(70)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.task("9.7")
def test_kill_inside_the_save_leaves_a_checkpoint(lesson, expect, rng, tmp_path):
    """A save over an older checkpoint, killed at its 1st, 2nd, … write, fsync and rename; then load, and save again."""
    older, newer, newest = ({"x": torch.randn(100, generator=rng)} for _ in range(3))
    for point in range(1, 60):
        folder = tmp_path / str(point)
        folder.mkdir()
        path = folder / "run.pt"
        lesson.checkpoint.save(older, path)
        if not save_and_die(lesson.checkpoint.save, newer, path, point):
            expect.true(
                "operations in a save", point > 3, expected="a write, an fsync, a rename", got=point - 1
            )
            expect.equal("loaded", lesson.checkpoint.load(path), newer, source="a save that was not killed")
            break
        try:
            loaded = lesson.checkpoint.load(path)
        except Exception as error:
            loaded = f"{type(error).__name__}: {error}"
        whole = any(
            isinstance(loaded, dict) and torch.equal(loaded["x"], state["x"]) for state in (older, newer)
        )
        expected = f"killed at operation {point}, the older or the newer checkpoint loads"
        expect.true("after a kill", whole, expected=expected, got=loaded, step=point)
        lesson.checkpoint.save(newest, path)
        source = "the next save, over what the kill left"
        expect.equal("loaded", lesson.checkpoint.load(path), newest, source=source, step=point)


@pytest.mark.skipif(os.name == "nt", reason="a folder cannot be forced to the disk on Windows")
@pytest.mark.task("9.7")
def test_save_is_on_the_disk_before_it_gets_its_name(lesson, expect, rng, tmp_path, monkeypatch):
    """A save whose fsyncs and renames are watched: what a power cut would leave."""
    forced, renames = {}, []

    def watch_fsync(name):
        function = getattr(os, name)

        def call(descriptor):
            function(descriptor)
            info = os.fstat(descriptor)
            forced[info.st_ino] = info.st_size
            if os.path.samestat(info, tmp_path.stat()):
                renames.append(("folder", True, True))

        monkeypatch.setattr(os, name, call)

    def watch_rename(name):
        function = getattr(os, name)

        def call(source, target, **options):
            info = os.stat(source)
            neighbours = Path(source).resolve().parent == Path(target).resolve().parent
            renames.append((Path(target).name, forced.get(info.st_ino) == info.st_size, neighbours))
            function(source, target, **options)

        monkeypatch.setattr(os, name, call)

    for name in {"fsync", "fdatasync"} & set(dir(os)):
        watch_fsync(name)
    watch_rename("replace"), watch_rename("rename")
    lesson.checkpoint.save({"x": torch.randn(100, generator=rng)}, tmp_path / "run.pt")
    names = [name for name, _, _ in renames]
    expect.true("renames", "run.pt" in names, expected="a rename to run.pt", got=names)
    for step, (name, complete, neighbours) in enumerate(renames, 1):
        got = "not forced to the disk, or only a part of it"
        expect.true(name, complete, expected="forced to the disk before it is renamed", got=got, step=step)
        got = "a temporary file elsewhere: its rename may be a copy"
        expect.true(name, neighbours, expected="a neighbour before it is renamed", got=got, step=step)
    got, expected = f"the order {names}", "the folder is forced after the last rename"
    expect.true("names", names[-1] == "folder", expected=expected, got=got)


def is_write(args, options):
    """Whether a call of open or os.open may make a file."""
    how = args[1] if len(args) > 1 else options.get("flags", options.get("mode", "r"))
    return any(letter in how for letter in "wxa") if isinstance(how, str) else bool(how & os.O_CREAT)


@pytest.mark.task("9.7")
@pytest.mark.parametrize("failing", ["open", "fsync", "replace"])
def test_failed_save_leaves_the_older_checkpoint(lesson, expect, rng, tmp_path, monkeypatch, failing):
    """A full disk: the 1st, 2nd, 3rd time that a save makes a file, forces or renames it raises ENOSPC."""
    older, newer = ({"x": torch.randn(100, generator=rng)} for _ in range(2))
    path = tmp_path / "run.pt"
    modules = (builtins, io, os) if failing == "open" else (os,)
    for point in (1, 2, 3):
        lesson.checkpoint.save(older, path)
        calls = []

        def full(real, *args, calls=calls, point=point, **options):
            calls.extend([args] if failing != "open" or is_write(args, options) else [])
            if len(calls) == point:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*args, **options)

        with monkeypatch.context() as patch:
            for module in modules:
                patch.setattr(module, failing, functools.partial(full, getattr(module, failing)))
            source = f"the {failing} that failed: a save that did not happen must say so"
            with expect.raises(OSError, match="No space", source=source):
                lesson.checkpoint.save(newer, path)
        loaded = lesson.checkpoint.load(path)["x"]
        whole = torch.equal(loaded, older["x"]) or torch.equal(loaded, newer["x"])
        expected = "the older checkpoint, or the newer whole"
        expect.true("after a failed save", whole, expected=expected, got="other numbers", step=point)
        files = sorted(file.name for file in tmp_path.iterdir())
        expect.equal("files", files, ["run.pt", "run.pt.sha256"], source="no litter", step=point)


class Harmful:
    """An object whose unpickling calls a function of the attacker's choice."""

    def __reduce__(self):
        return os.putenv, ("LESSON09_HARM", "1")


@pytest.mark.task("9.7")
def test_load_runs_no_code_from_the_file(lesson, expect, tmp_path):
    """A pickle that calls a function, with a digest that is right: anybody can compute a digest."""
    path = tmp_path / "run.pt"
    torch.save({"x": Harmful()}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (tmp_path / "run.pt.sha256").write_text(f"{digest}  run.pt\n")
    with expect.raises(pickle.UnpicklingError, source="torch.load(weights_only=True)"):
        lesson.checkpoint.load(path)
