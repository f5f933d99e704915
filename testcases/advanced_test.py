"""The exam, advanced part: kills, damaged files, low precision, and all of it together.

Run: pytest testcases/advanced_test.py            (your code)
     pytest testcases/advanced_test.py --impl solutions
"""

import os
import signal
import subprocess
import sys

import pytest
import torch

from course.registry import ROOT
from testcases.exam import MICRO_STEPS, Killed, Recipe, Run, die, make_batch, make_model
from training.losses import token_loss


def train_windows(stack, device, batches, accumulation_steps, scale):
    """Weights and norms of a GPT without dropout: accumulate, scale, clip and step with the student's pieces."""
    model = make_model(dropout=0.0).to(device)
    optimizer = stack.lesson01.optimizer.SGDFromScratch(model.parameters(), lr=0.5, momentum=0.9)
    scaler = stack.lesson07.loss_scaler.LossScaler(init_scale=scale, growth_interval=2)
    norms = []
    for window in stack.lesson06.gradients.windows(batches, accumulation_steps):
        targets = sum(int((batch["labels"] != -100).sum()) for batch in window)
        for batch in window:
            logits = model(batch["input_ids"].to(device))
            scaler.scale(token_loss(logits, batch["labels"].to(device)) / targets).backward()
        scaler.unscale_(optimizer)
        norms.append(float(stack.lesson06.gradients.clip_grad_norm_(model.parameters(), 0.7)))
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
    return {name: value.detach().cpu() for name, value in model.state_dict().items()}, norms


@pytest.mark.task("exam.1", "exam.2")
def test_accumulation_scaling_and_clipping_together_equal_one_large_batch(stack, expect, rng, device):
    """Four updates: 12 micro-batches in windows of 3 at scale 2¹⁶, against 4 large batches without scaling."""
    batches = [make_batch(rng, 2, 3 + 4 * i % 13) for i in range(12)]
    large = [
        {key: torch.cat([b[key] for b in batches[i : i + 3]]) for key in ("input_ids", "labels")}
        for i in range(0, 12, 3)
    ]
    weights, norms = train_windows(stack, device, batches, 3, 65536.0)
    want_weights, want_norms = train_windows(stack, device, large, 1, 1.0)
    reason = "sums in another order; the differences add up over four updates"
    source = "the same pieces on the concatenated batch, without scaling"
    expect.close("norms before clipping", norms, want_norms, source=source, atol=1e-4, because=reason)
    expect.close("weights", weights, want_weights, source=source, atol=1e-4, because=reason)
    expect.true("clipping was at work", max(norms) > 0.7, expected="a norm above 0.7", got=norms)


@pytest.mark.task("exam.1", "exam.3")
def test_adamw_on_accumulated_gradients_is_bitwise_torch(stack, expect, rng):
    """Ten windows of 3 micro-batches; your AdamW and torch's get the same accumulated gradients."""
    model, reference = (make_model(dropout=0.0) for _ in range(2))
    options = {"lr": 0.01, "weight_decay": 0.1}
    optimizer = stack.lesson02.optimizer.AdamWFromScratch(model.parameters(), **options)
    torch_optimizer = torch.optim.AdamW(reference.parameters(), **options, foreach=False)
    for step in range(10):
        window = [make_batch(rng, 2, 5 + k) for k in range(3)]
        stack.lesson06.gradients.accumulate(model, window, "cpu")
        for param, other in zip(model.parameters(), reference.parameters(), strict=True):
            other.grad = param.grad.clone()
        for one in (optimizer, torch_optimizer):
            one.step()
            one.zero_grad()
        expect.equal(
            "weights",
            dict(model.state_dict()),
            dict(reference.state_dict()),
            source="torch.optim.AdamW(foreach=False)",
            step=step,
        )


@pytest.mark.task("exam.2")
def test_master_weights_keep_what_bf16_would_lose(stack, expect, device):
    """A bf16 GPT with fp32 masters; 50 updates by 1e-4 of weights that are 1."""
    model = torch.nn.Linear(4, 1, bias=False).to(device)
    torch.nn.init.ones_(model.weight)
    masters = stack.lesson07.precision.MasterWeights(model, torch.bfloat16)
    (pair,) = masters.pairs()
    low, master = sorted(pair, key=lambda param: param.dtype == torch.float32)
    optimizer = stack.lesson01.optimizer.SGDFromScratch([master], lr=1e-4)
    for _ in range(50):
        low.grad = torch.ones_like(low)
        masters.copy_grads_to_masters()
        optimizer.step()
        optimizer.zero_grad()
        masters.copy_masters_to_model()
    expect.close(
        "master weight",
        master.detach().cpu(),
        torch.full((1, 4), 0.995),
        source="1 − 50·1e-4",
        atol=1e-5,
        because="50 roundings of float32",
    )
    want = torch.full((1, 4), 0.995).to(torch.bfloat16)
    expect.equal(
        "bf16 weight", low.detach().cpu(), want, source="the master, rounded to bf16 (1 − 1e-4 is 1 there)"
    )


@pytest.mark.task("exam.3")
@pytest.mark.limit(60)
@pytest.mark.parametrize(
    "recipe", [Recipe(), Recipe(accumulation_steps=1), Recipe(accumulation_steps=5, seed=3)]
)
def test_resume_is_exact_after_every_micro_step(stack, expect, tmp_path, device, recipe):
    """Two epochs of 6 micro-batches; stopped after each of them in turn, built anew and resumed."""
    reference = Run(stack, device, recipe)
    reference.train()
    want = reference.result()
    for kill_after in range(1, MICRO_STEPS + 1):
        path = tmp_path / f"{kill_after}.pt"
        with pytest.raises(Killed):
            Run(stack, device, recipe, path).train(kill_after, kill=die)
        resumed = Run(stack, device, recipe, path)
        resumed.train()
        got = resumed.result()
        for name, value in want.items():
            expect.equal(name, got[name], value, source="the run that was never interrupted", step=kill_after)


@pytest.mark.task("exam.3")
@pytest.mark.limit(120)
def test_two_real_kills_leave_no_trace(stack, expect, request, tmp_path, device):
    """A process killed by SIGKILL after 3 micro-steps, another after 8, a third that ends; against one run."""
    reference = Run(stack, device, Recipe())
    reference.train()
    want = reference.result()
    impl = str(request.config.getoption("--impl"))
    files = [str(tmp_path / "checkpoint.pt"), str(tmp_path / "result.pt")]
    statuses = []
    for kill_after in (["3"], ["8"], []):
        command = [sys.executable, "-m", "testcases.exam", impl, *files, device.type, *kill_after]
        statuses.append(subprocess.run(command, cwd=ROOT, check=False).returncode)
    expect.equal(
        "exit statuses", statuses, [-signal.SIGKILL, -signal.SIGKILL, 0], source="kill −9, kill −9, the end"
    )
    got = torch.load(files[1], weights_only=True)
    for name, value in want.items():
        expect.equal(name, got[name], value, source="the same run in one process")


@pytest.mark.task("exam.3")
@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize("lesson_name", ["lesson08", "lesson09"])
def test_failed_save_leaves_the_old_checkpoint(stack, expect, tmp_path, monkeypatch, lesson_name, failing):
    """A good checkpoint; a second save over it meets a full disk at fsync, or at the rename."""
    module = getattr(stack, lesson_name).checkpoint
    save = module.save_checkpoint if lesson_name == "lesson08" else module.save
    load = module.load_checkpoint if lesson_name == "lesson08" else module.load
    path = tmp_path / "checkpoint.pt"
    save({"step": 1, "weights": torch.ones(3)}, path)
    before = sorted(os.listdir(tmp_path))

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, failing, full)
        with expect.raises(OSError, match="No space", source="a save that failed says so"):
            save({"step": 2, "weights": torch.zeros(3)}, path)
    expect.equal("step in the file", load(path)["step"], 1, source="the checkpoint from before")
    expect.equal("files", sorted(os.listdir(tmp_path)), before, source="no litter of the failed save")


@pytest.mark.task("exam.3")
@pytest.mark.parametrize("lesson_name", ["lesson08", "lesson09"])
def test_one_flipped_bit_is_refused(stack, expect, rng, tmp_path, lesson_name):
    """A checkpoint of 1000 numbers; one bit of it flipped, at 20 random places in turn."""
    module = getattr(stack, lesson_name).checkpoint
    save = module.save_checkpoint if lesson_name == "lesson08" else module.save
    load = module.load_checkpoint if lesson_name == "lesson08" else module.load
    path = tmp_path / "checkpoint.pt"
    save({"step": 1, "weights": torch.randn(1000, generator=rng)}, path)
    good = path.read_bytes()
    for place in torch.randint(len(good), (20,), generator=rng).tolist():
        damaged = bytearray(good)
        damaged[place] ^= 1
        path.write_bytes(bytes(damaged))
        with expect.raises(ValueError, source=f"the digest: byte {place} is another"):
            load(path)
    path.write_bytes(good)
    expect.equal("step in the mended file", load(path)["step"], 1, source="what was saved")
