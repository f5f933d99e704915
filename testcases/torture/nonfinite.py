"""NaN, inf and spikes in loss, gradient, weights, moments, loss scale and validation: skipped or stopped, as declared.

Run: ``python -m testcases.torture --only nonfinite``.

Declared is: an update whose gradient norm is not finite is left out, and nothing moves but the loss scale; so many in a
row end the run; and what holds a NaN is never the best, nor takes the place of the only good checkpoint. Each case
trains in a process of its own.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import shutil
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from testcases.torture import matrix
from testcases.torture.matrix import Budget
from testcases.torture.poisons import Poison, build, fill, in_gradient, in_loss, one_element, scale_of
from testcases.torture.power import quiet
from testcases.torture.resume import difference
from testcases.training.work import TINY, make_batches
from training.__main__ import main as command
from training.checkpoint import BEST, CheckpointManager, load_checkpoint, snapshot
from training.run_log import Row
from training.state import capture
from training.trainer import Trainer

BAR = 16
Case = Callable[[Path], Iterator[str]]


def held(trainer: Trainer) -> dict:
    """What an update that is left out must not move."""
    state = capture(trainer)
    names = ("model_state_dict", "optimizer_state_dict", "scheduler_state_dict", "global_step")
    return snapshot({name: state[name] for name in names})


# ---- left out: the run is afterwards what it was before


def is_left_out(poison: Poison, **options: Any) -> Case:
    def case(folder: Path) -> Iterator[str]:
        good, bad = make_batches(2, 2, 2), make_batches(2, 2)
        trainer, untouched = build(**options), build(**options)
        for each in (trainer, untouched):
            assert each.train_step(good[:2])
        before = held(trainer)
        scale = trainer.scaler.get_scale()
        poison(trainer)
        if trainer.train_step(bad):
            yield "the update was made"
        if moved := difference(held(trainer), before):
            yield f"it moved: {moved}"
        if any(param.grad is not None for param in trainer.params):
            yield "its gradient is still there"
        if (trainer.progress.skipped_steps, trainer.progress.skips_in_a_row) != (1, 1):
            yield "it was not counted"
        if trainer.scaler.is_enabled() and trainer.scaler.get_scale() != scale / 2:
            yield f"the loss scale went from {scale} to {trainer.scaler.get_scale()}"
        for each in (trainer, untouched):
            each.scaler = build(**options).scaler
            if not each.train_step(good[1:]):
                yield "the next good update was left out"
        if moved := difference(held(trainer), held(untouched)):
            yield f"the next update differs from that of a run without the bad one: {moved}"

    return case


def scale_that_overflows_is_halved_until_it_fits(folder: Path) -> Iterator[str]:
    trainer = build(use_amp=True, amp_dtype="fp16")
    scale_of(2.0**40)(trainer)
    before, batches, updates = held(trainer), make_batches(2, 2), 0
    while not (updated := trainer.train_step(batches)) and updates < 60:
        updates += 1
        if moved := difference(held(trainer), before):
            yield f"skip {updates} moved {moved}"
        if trainer.scaler.get_scale() != 2.0 ** (40 - updates):
            yield f"after {updates} skips the scale is {trainer.scaler.get_scale()}"
            return
        trainer.milestones.max_skips = 100
    if not updated or not 5 < updates < 40:
        yield f"{updates} updates were left out"


# ---- goes on: a spike is clipped


def finite_spike_is_clipped(folder: Path) -> Iterator[str]:
    trainer, norms = build(), list[float]()
    trainer.optimizer.register_step_pre_hook(
        lambda *_: norms.append(
            float(torch.nn.utils.get_total_norm([p.grad for p in trainer.params if p.grad is not None]))
        )
    )
    in_gradient(lambda gradient: gradient * 1e9)(trainer)
    if not trainer.train_step(make_batches(2, 2)):
        yield "the update was left out"
    if not float(trainer.run_log.grad_norm) > 1e3:
        yield f"the norm before clipping is {float(trainer.run_log.grad_norm)}"
    if norms and not norms[0] <= 0.5001:
        yield f"the optimizer saw a norm of {norms[0]}"
    if not all(param.isfinite().all() for param in trainer.params):
        yield "weights are not finite"


# ---- stops: and what was good stays


def ends_the_run(poison: Poison, at: int = 3, **options: Any) -> Case:
    """Poisoned after update `at`: the run ends with an error, and its newest good checkpoint is of before that."""

    def case(folder: Path) -> Iterator[str]:
        trainer = build(folder, **options)
        after_validation(trainer, at, poison)
        try:
            trainer.train()
            yield "the run went on to its end"
        except FloatingPointError as error:
            if "3 updates in a row" not in str(error):
                yield f"it said {error}"
        yield from _good_one_is_left(folder, at, options)

    return case


def counts_for_nothing(poison: Poison) -> Case:
    """Poisoned after update 3, and nothing notices, since g / √inf is 0: but no checkpoint of that counts."""

    def case(folder: Path) -> Iterator[str]:
        trainer = build(folder)
        after_validation(trainer, 3, poison)
        trainer.train()
        yield from _good_one_is_left(folder, 2, {})

    return case


def after_validation(trainer: Trainer, step: int, poison: Poison) -> None:
    """Poison the trainer between the validation after this update and the save that follows."""

    def on_log(row: Row) -> None:
        if "val_loss" in row and row["global_step"] == step:
            poison(trainer)

    trainer.run_log.on_log = on_log


def _good_one_is_left(folder: Path, newest: int, options: dict) -> Iterator[str]:
    found = CheckpointManager(folder).latest_valid().path
    if found is None:
        yield "no good checkpoint is left"
        return
    if not 1 <= (step := load_checkpoint(found)["global_step"]) <= newest:
        yield f"step {step} counts as good"
    best = load_checkpoint(folder / BEST)
    tensors = [*best["model_state_dict"].values()]
    tensors += [t for moments in best["optimizer_state_dict"]["state"].values() for t in moments.values()]
    if not all(bool(tensor.isfinite().all()) for tensor in tensors) or not math.isfinite(best["val_loss"]):
        yield f"{BEST} is not finite"
    again = build(folder, **options)
    again.load_checkpoint(found)
    again.train()
    if again.epoch != 2 or not all(param.isfinite().all() for param in again.params):
        yield f"a run that goes on from {found.name} does not end well"


# ---- the best


def is_never_the_best(*losses: float) -> Case:
    """Validations that end with 2.0 after these, and then 3.0: the best is the smallest finite one."""

    def case(folder: Path) -> Iterator[str]:
        trainer = build(folder, keep_last=2)
        coming = iter([4.0, *losses, *[2.0] * (6 - len(losses)), 3.0, 3.0])
        trainer.validate = lambda: {"loss": next(coming), "perplexity": 1.0}  # type: ignore[method-assign]
        trainer.train()
        best = load_checkpoint(folder / BEST)
        want = 2 + len(losses)
        if (best["global_step"], best["val_loss"]) != (want, 2.0):
            yield f"the best is {best['val_loss']} of step {best['global_step']}, and not 2.0 of step {want}"
        if trainer.progress.best_metric != 2.0:
            yield f"the run takes {trainer.progress.best_metric} for its best"

    return case


def weights_with_nan_and_a_good_loss_are_not_the_best(folder: Path) -> Iterator[str]:
    """The NaN of step 3 is in a buffer that the forward does not use: every loss is finite, each the lowest."""
    trainer = build(folder)
    trainer.model.register_buffer("unused", torch.zeros(2))
    losses = iter([4.0 / n for n in range(1, 20)])
    trainer.validate = lambda: {"loss": next(losses), "perplexity": 1.0}  # type: ignore[method-assign]
    after_validation(trainer, 3, lambda trainer: cast(Tensor, trainer.model.unused).fill_(math.nan))
    trainer.train()
    best, found = load_checkpoint(folder / BEST), CheckpointManager(folder).latest_valid().path
    if best["global_step"] != 2:
        yield f"the best is of step {best['global_step']}, and step 3 brought the NaN"
    if found is None or load_checkpoint(found)["global_step"] != 2:
        yield f"{found} counts as good"


# ---- the command line


def command_ends_with_1_and_a_sentence(folder: Path) -> Iterator[str]:
    text = folder / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. 0123456789\n" * 60)
    options = ["--max_steps=30", "--lr=1e30", "--max_skips=4", "--save_interval=1", "--warmup_steps=0"]
    errors = io.StringIO()
    arguments = [*TINY, *options, "--data", str(text), "--output_dir", str(folder / "run"), "--threads=1"]
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        status = command(["pretrain", *arguments])
    sentence = errors.getvalue().strip().splitlines()[-1]
    if status != 1:
        yield f"the exit status is {status}: {sentence}"
    if not sentence.startswith("Stopped: the gradient was inf or NaN in 4 updates in a row"):
        yield f"it said {sentence!r}"


NAN, INF = math.nan, math.inf
FP16: dict[str, Any] = {"use_amp": True, "amp_dtype": "fp16"}
CASES: dict[str, Case] = {
    "NaN in the loss is left out": is_left_out(in_loss(NAN)),
    "inf in the loss is left out": is_left_out(in_loss(INF)),
    "NaN in one element of the gradient is left out": is_left_out(in_gradient(one_element(NAN))),
    "inf, without clipping, is left out": is_left_out(in_gradient(one_element(INF)), max_grad_norm=None),
    "-inf, in bf16, is left out": is_left_out(in_gradient(one_element(-INF)), use_amp=True, amp_dtype="bf16"),
    "finite, but with a norm that is not, is left out": is_left_out(in_gradient(lambda g: g * 0 + 1e30)),
    "NaN with a loss scale is left out": is_left_out(in_gradient(one_element(NAN)), **FP16),
    "a loss scale that overflows": scale_that_overflows_is_halved_until_it_fits,
    "a finite spike is clipped": finite_spike_is_clipped,
    "NaN in a weight ends the run": ends_the_run(fill("weight", NAN)),
    "inf in a weight ends the run": ends_the_run(fill("weight", INF)),
    "NaN in a first moment ends the run": ends_the_run(fill("exp_avg", NAN)),
    "a loss scale of inf ends the run": ends_the_run(scale_of(INF), **FP16),
    "a loss scale of NaN ends the run": ends_the_run(scale_of(NAN), **FP16),
    "inf in a second moment is not good": counts_for_nothing(fill("exp_avg_sq", INF)),
    "a validation loss of NaN is not the best": is_never_the_best(NAN, NAN),
    "a validation loss of -inf is not the best": is_never_the_best(-INF),
    "NaN in a weight that no loss sees": weights_with_nan_and_a_good_loss_are_not_the_best,
    "the command ends with 1 and a sentence": command_ends_with_1_and_a_sentence,
}


def rows(budget: Budget) -> Iterator[matrix.Row]:
    if not hasattr(os, "fork"):
        yield matrix.Row("NaN, inf and spikes", 0, BAR, [], 0.0, note="needs os.fork", skipped=True)
        return
    torch.set_num_threads(1)
    torch.optim.AdamW(torch.nn.Linear(1, 1).parameters())  # its slow imports, once for all children
    began, failures = time.perf_counter(), list[str]()
    for number, (name, case) in enumerate(CASES.items()):
        folder = budget.folder / f"nonfinite-{number}"
        folder.mkdir()
        failures += [f"{name}: {problem}" for problem in _in_child(case, folder)]
        shutil.rmtree(folder)
    yield matrix.Row("NaN, inf and spikes", len(CASES), BAR, failures, time.perf_counter() - began)


def _in_child(case: Case, folder: Path) -> list[str]:
    """What is wrong, from a process that ends with the case: it runs backward passes, and the parent forks."""
    result = folder / "result.txt"
    child = os.fork()
    if child == 0:
        try:
            with quiet():
                result.write_text("\n".join(case(folder)))
        except BaseException as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            result.write_text(f"{type(error).__name__} in {place.filename}:{place.lineno}: {error}")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    return result.read_text().splitlines() if result.exists() else ["the process died"]
