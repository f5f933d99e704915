"""`python -m training dpo`: preferences in; a model that gives the answers that people prefer out.

Run: ``python -m training dpo --init_from runs/sft/best_model.pt``; ``--data FILE`` takes a JSON-lines file of
{"prompt": …, "chosen": …, "rejected": …}. preference.py has the objective, run.py the rest.

The policy begins with the weights of --init_from, and these are also the reference, which stays as it is. A run keeps
its reference in reference.pt; every checkpoint says which one it was trained against.
"""

from __future__ import annotations

import copy
import hashlib
import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.amp import Precision
from training.answers import AnswerDataset, exact_match, make_datasets, read_examples
from training.checkpoint import CheckpointError, load_checkpoint
from training.logger import METRICS_FILE, read_metrics
from training.meeting import Meeting
from training.objective import Forward
from training.preference import Preference
from training.run import Beginning, Run, Stage, begin, build_model, load_weights, open_run, settings_of
from training.schema import DPOConfig
from training.sft import show_answers
from training.tasks import preference_examples

KEYS = ("prompt", "chosen", "rejected")
LN_2 = math.log(2)  # the loss of a policy that is its reference
REFERENCE = "reference.pt"
DIGEST = "reference_sha256"  # in the checkpoint's config


def prepare(config: DPOConfig, meeting: Meeting | None = None) -> Run:
    """Check the checkpoints and the data, build everything, and only then write to output_dir.

    Raises:
        ValueError, ImportError: something is unusable; nothing has been written.
    """
    beginning, path = begin(config, meeting), config.data.data
    examples = preference_examples() if path is None else read_examples(path, KEYS)
    train, val, summary = make_datasets(examples, config.data.val_fraction, config.model.block_size)
    model = build_model(config, beginning.device)
    source, state = find_reference(config.start.init_from, beginning)
    load_weights(model, state, source)
    batch_size = config.data.batch_size
    before = exact_match(model, val, batch_size)
    precision = Precision(beginning.device, config.trainer.use_amp, config.trainer.amp_dtype)
    own = beginning.output_dir / REFERENCE
    kept = {"epoch": 0, "global_step": 0, "model_state_dict": state["model_state_dict"]}
    stage = Stage(
        model=model,
        train_data=train,
        val_data=val,
        summary=[*summary, f"start   {source}: also the reference"],
        report=partial(report, val=val, before=before, batch_size=batch_size),
        baseline=(LN_2, "ln 2: the reference"),
        objective=Preference(frozen_copy(model, precision), config.preference.beta),
        facts={DIGEST: digest(state["model_state_dict"])},
        files={} if source == own else {REFERENCE: kept},
    )
    return open_run(config, beginning, stage)


def find_reference(init_from: str, beginning: Beginning) -> tuple[Path, dict[str, Any]]:
    """The file that holds the reference, and what is in it.

    A new run takes init_from. A resumed run takes the reference that it was trained against, from beside the
    checkpoint, from output_dir or from init_from, wherever the weights have the digest that the checkpoint names.

    Raises:
        ValueError: there is none.
    """
    start = beginning.start
    if start.path is None:
        if not Path(init_from).exists():
            raise ValueError(
                f"There is no {init_from} to start from: python -m training sft makes runs/sft/best_model.pt, "
                "and --init_from takes any checkpoint of a model."
            )
        return Path(init_from), load_checkpoint(init_from)
    wanted = settings_of(start.state).get(DIGEST)
    if wanted is None:
        raise ValueError(
            f"{start.path} is no checkpoint of dpo; to start from its weights, give it as --init_from"
        )
    places = [start.path.parent / REFERENCE, beginning.output_dir / REFERENCE, Path(init_from)]
    for path in dict.fromkeys(places):
        try:
            state = load_checkpoint(path)
        except CheckpointError:  # missing or damaged: another place may have it
            continue
        if digest(state.get("model_state_dict")) == wanted:
            return path, state
    searched = ", ".join(map(str, dict.fromkeys(places)))
    raise ValueError(f"The reference that {start.path} was trained against is in none of {searched}.")


def digest(weights: Any) -> str:
    """SHA-256 of names, dtypes, shapes and bytes of a state_dict: the same wherever the weights are the same."""
    sha256 = hashlib.sha256()
    named = weights if isinstance(weights, dict) else {}
    for name in sorted(named, key=str):
        if isinstance(tensor := named[name], Tensor):
            sha256.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            sha256.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return sha256.hexdigest()


def frozen_copy(model: nn.Module, precision: Precision) -> Forward:
    """The forward of a copy that nothing trains: no graph, no dropout, and no draw from a generator."""
    reference = copy.deepcopy(model).requires_grad_(False).eval()

    def forward(input_ids: Tensor) -> Tensor:
        with torch.no_grad(), precision.autocast:
            logits: Tensor = reference(input_ids)
            return logits

    return forward


def report(run: Run, val: AnswerDataset, before: float, batch_size: int) -> list[str]:
    """The last validation, and how many held-out prompts get the chosen answer."""
    progress, model = run.trainer.progress, run.stage.model
    lines = [
        f"result  {progress.val_loss:.3f} nats a pair: validation loss after {progress.validated_step} updates "
        f"({LN_2:.3f} before the first)"
    ]
    rows = [row for row in read_metrics(run.output_dir / METRICS_FILE) if "val_loss" in row]
    if rows:  # a resumed run in a folder of its own may have none yet
        lines.append(
            f"prefers {rows[-1]['val_accuracy']:.1%} of the held-out chosen answers over the rejected ones, more than "
            f"before; margin {rows[-1]['val_margin']:.2f}"
        )
    after = exact_match(model, val, batch_size)
    lines.append(
        f"exact   {before:.1%} → {after:.1%} of the held-out prompts answered with the chosen answer"
    )
    return lines + show_answers(model, val)
