"""Bad inputs, third part: checkpoints that are whole and safe, and mean nothing here. Used by bad_inputs.py.

All of them have a right digest: only what they say is wrong.
"""

# ruff: noqa: E501 (one input a line)
from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import torch

from testcases.torture.bad_checkpoints import ALLOCATES, CODE, laughs
from testcases.torture.bad_files import Case, Place, archive, pickled
from training.checkpoint_file import save_checkpoint

State = dict[str, Any]
Edit = Callable[[State], object]


def weights(change: Callable[[str, torch.Tensor], tuple[str, Any]]) -> Edit:
    """Every weight under another name, or another one."""
    return lambda state: state.update(
        model_state_dict=dict(change(name, value) for name, value in state["model_state_dict"].items())
    )


def first_weight(value: Any) -> Edit:
    return lambda state: state["model_state_dict"].update({next(iter(state["model_state_dict"])): value})


def moments(**changes: Any) -> Edit:
    return lambda state: state["optimizer_state_dict"]["state"][0].update(changes)


def group(**changes: Any) -> Edit:
    return lambda state: state["optimizer_state_dict"]["param_groups"][0].update(changes)


def part(name: str, **changes: Any) -> Edit:
    """Other values in one of the dicts of the state."""
    return lambda state: state[name].update(changes)


def top(**changes: Any) -> Edit:
    return lambda state: state.update(changes)


def of_sgd(state: State) -> None:
    state["optimizer_state_dict"]["state"] = {}
    for each in state["optimizer_state_dict"]["param_groups"]:
        del each["betas"], each["eps"]
        each.update(momentum=0.9, dampening=0, nesterov=False)


def wrong_window(state: State) -> None:
    state["progress"]["micro_step"] = 1
    state["window"] = [{"input_ids": torch.full((4, 16), 999), "labels": torch.full((4, 16), 999)}]


def metadata(value: Any) -> Edit:
    """What load_state_dict asks how it should load."""
    return lambda state: setattr(state["model_state_dict"], "_metadata", value)


def sampler(**changes: Any) -> Edit:
    return lambda state: state["data_state_dict"]["sampler"].update(changes)


def rng(**changes: Any) -> Edit:
    return part("rng_state", **changes)


NAN = first_weight(torch.full((256, 16), math.nan))
STATES: list[tuple[str, Edit, str]] = [
    ("no weights", lambda state: state.pop("model_state_dict"), "model_state_dict"),
    ("weights that are a list", top(model_state_dict=[1]), "model_state_dict"),
    ("a number where a tensor belongs", first_weight(3), "no tensor"),
    ("weights of another dtype", weights(lambda name, value: (name, value.double())), "float64"),
    ("weights of another shape", weights(lambda name, value: (name, value[:1])), "in the model"),
    ("a weight that is missing", lambda state: state["model_state_dict"].popitem(), "is missing"),
    ("a weight too many", part("model_state_dict", extra=torch.ones(1)), "not in the model"),
    ("a weight with a screenful of a name", part("model_state_dict", **{"\x1b[2J" + "x\n" * 5000: 1}), "not in the model"),
    ("names with module.", weights(lambda name, value: (f"module.{name}", value)), "'module.'"),
    ("NaN weights", NAN, "inf or NaN"),
    ("float8 weights", weights(lambda name, value: (name, value.to(torch.float8_e4m3fn))), "float8"),
    ("weights that would replace the parameters", metadata({"": {"assign_to_params_buffers": True}}), "_metadata"),
    ("weights with metadata that is a number", metadata({"": 3}), "_metadata"),
    ("an epoch before the first", top(epoch=-1), "epoch"),
    ("a step before the first", top(global_step=-5), "global_step"),
    ("a step that is text", top(global_step="7"), "global_step"),
    ("a step that is true", top(global_step=True), "global_step"),
    ("a step of 600 digits", top(global_step=2**1990), "global_step"),
    ("no optimizer", lambda state: state.pop("optimizer_state_dict"), "optimizer_state_dict"),
    ("an optimizer of other groups", lambda state: state["optimizer_state_dict"]["param_groups"].pop(), "groups"),
    ("the state of SGD", of_sgd, "another optimizer"),
    ("moments of another shape", moments(exp_avg=torch.ones(2)), "exp_avg"),
    ("moments that are missing", lambda state: state["optimizer_state_dict"]["state"][0].pop("exp_avg_sq"), "exp_avg_sq"),
    ("moments that are a number", moments(exp_avg=3.0), "exp_avg"),
    ("moments of integers", moments(exp_avg=torch.zeros(256, 16, dtype=torch.int64)), "exp_avg"),
    ("moments that are NaN", moments(exp_avg_sq=torch.full((256, 16), math.nan)), "inf or NaN"),
    ("a step count of three numbers", moments(step=torch.ones(3)), "step"),
    ("a learning rate that is text", group(lr="fast"), "lr"),
    ("a learning rate that is NaN", group(lr=math.nan), "lr"),
    ("betas of one number", group(betas=(0.9,)), "betas"),
    ("a schedule of another kind", top(scheduler_state_dict={"gamma": 0.1, "last_epoch": 1}), "scheduler_state_dict"),
    ("a schedule whose step is text", part("scheduler_state_dict", last_epoch="x"), "last_epoch"),
    ("a schedule with one rate for two groups", part("scheduler_state_dict", base_lrs=[0.1]), "base_lrs"),
    ("a configuration that is a list", top(config=[1, 2]), "config"),
    ("a configuration with tensors", part("config", lr=torch.ones(2)), "config"),
    ("counters that are a list", top(progress=[1]), "progress"),
    ("counters that are text", part("progress", micro_step="a"), "micro_step"),
    ("counters of another step", part("progress", global_step=777), "global_step"),
    ("counters below zero", part("progress", total_tokens=-1), "total_tokens"),
    ("a window that is a number", top(window=7), "window"),
    ("a window of tokens that do not exist", wrong_window, "window"),
    ("gradients in a list", top(gradients=[1]), "gradients"),
    ("a gradient that is a number", top(gradients={"norm.weight": 1.0}), "norm.weight"),
    ("a loss sum that is text", top(interval={"loss_sum": "a", "grad_norm": "b"}), "loss_sum"),
    ("a position behind the end of the data", sampler(position=10**9), "position"),
    ("a position that is text", sampler(position="x"), "position"),
    ("data of another seed", sampler(seed=4), "seed"),
    ("a place in the data that is a list", top(data_state_dict=[0]), "data_state_dict"),
    ("random numbers that are short", rng(torch=torch.zeros(5, dtype=torch.uint8)), "rng_state"),
    ("random numbers of floats", rng(numpy=("MT19937", torch.ones(624), 1, 0, 0.0)), "rng_state"),
    ("random numbers of no known kind", rng(numpy=3), "rng_state"),
    ("random numbers with a place behind their end", rng(numpy=("MT19937", torch.ones(624, dtype=torch.int64), 9999, 0, 0.0)), "rng_state"),
    ("processes that are no list", top(ranks=3), "ranks"),
    ("a process without random numbers", top(ranks=[{"loss_sum": torch.zeros(())}]), "ranks"),
    ("random numbers of Python that are text", rng(python="abc"), "rng_state"),
]  # fmt: skip


def state_cases() -> list[Case]:
    def resume(edit: Edit) -> Callable[[Place], list[str]]:
        def prepared(place: Place) -> list[str]:
            state = place.state()
            edit(state)
            path = place.folder / place.good().name
            save_checkpoint(state, path)
            return place.pretrain("--resume", str(path))

        return prepared

    cases = [Case("checkpoint state", name, resume(edit), says) for name, edit, says in STATES]
    picked = ("NaN weights", "names with module.")
    return cases + [
        Case("checkpoint state", f"{case.name} (fresh)", case.make, case.says, fresh=True)
        for case in cases
        if case.name in picked
    ]


# ---- python -m training checkpoints


def tool(
    *words: str, prepare: Callable[[Place], object] = lambda place: None
) -> Callable[[Place], list[str]]:
    """`checkpoints WORDS`; {run}, {good} and {here} stand for paths."""

    def prepared(place: Place) -> list[str]:
        prepare(place)
        names = {"run": place.run, "good": place.good(), "here": place.folder}
        return ["checkpoints", *(word.format(**names) for word in words)]

    return prepared


def bomb(name: str) -> Callable[[Place], object]:
    return lambda place: archive(place.folder / name, ALLOCATES)


def laughing_weights(place: Place) -> None:
    """Weights that are lists 2^40 times: whoever copies them never ends."""
    archive(place.folder / "x.pt", pickled({"model_state_dict": {"w": laughs(40)}}))


def damaged(place: Place) -> None:
    path = place.folder / "epoch_9_step_9.pt"
    save_checkpoint({"epoch": 9}, path)
    os.truncate(path, 99)


def nan_run(place: Place) -> None:
    state = place.state()
    NAN(state)
    save_checkpoint(state, place.folder / place.good().name)


TOOLS: list[tuple[str, Callable[[Place], list[str]], str, int]] = [
    ("list, of a folder that is not there", tool("list", "no/such"), "no/such is not a folder", 2),
    ("list, of a file", tool("list", "{good}"), "is not a folder", 2),
    ("verify, of what is not there", tool("verify", "{here}/x.pt"), "x.pt does not exist", 2),
    ("verify, of an empty folder", tool("verify", "{here}"), "There is no checkpoint", 2),
    ("verify, of a FIFO", tool("verify", "{here}/x.pt", prepare=lambda place: os.mkfifo(place.folder / "x.pt")), "x.pt cannot be read: Not a regular file", 1),
    ("verify, of a bytearray of 2 GiB", tool("verify", "{here}/x.pt", prepare=bomb("x.pt")), "x.pt", 1),
    ("verify, of NaN weights", tool("verify", "{here}", prepare=nan_run), "inf or NaN", 1),
    ("prune, to keep none", tool("prune", "{run}", "--keep_last", "0"), "keep_last", 2),
    ("prune, to keep some", tool("prune", "{run}", "--keep_last", "some"), "keep_last", 2),
    ("prune, of what is not there", tool("prune", "{here}/gone"), "is not a folder", 2),
    ("extract, over a file", tool("extract", "{good}", "{good}"), "exists already", 2),
    ("extract, out of code", tool("extract", "{here}/x.pt", "{here}/out.pt", prepare=lambda place: archive(place.folder / "x.pt", pickled(CODE))), "posix.system", 2),
    ("extract, out of 2^40 lists", tool("extract", "{here}/x.pt", "{here}/out.pt", prepare=laughing_weights), "refer to", 2),
    ("extract, into a file as a folder", tool("extract", "{good}", "{good}/out.pt"), "", 2),
    ("compare, with text", tool("compare", "{good}", "{here}/x.pt", prepare=lambda place: (place.folder / "x.pt").write_text("hello")), "no archive", 2),
    ("compare, of nothing", tool("compare"), "PATH", 2),
    ("backup, into a file", tool("backup", "{good}", "{good}"), "is not a folder", 2),
    ("backup, of a damaged one", tool("backup", "{here}/epoch_9_step_9.pt", "{here}/b", prepare=damaged), "is damaged", 2),
    ("backup, of a folder", tool("backup", "{run}", "{here}/b"), "cannot be read: Is a directory", 2),
    ("a subcommand that does not exist", tool("lsit"), "lsit", 2),
    ("a path of two lines", tool("list", "two\nlines"), "two lines is not a folder", 2),
]  # fmt: skip


def tool_cases() -> list[Case]:
    return [Case("checkpoint tools", name, make, says, status) for name, make, says, status in TOOLS]


def cases() -> list[Case]:
    return [*state_cases(), *tool_cases()]
