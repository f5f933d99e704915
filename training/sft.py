"""`python -m training sft`: prompts and answers in; a model that answers out.

Run: ``python -m training sft --init_from runs/pretrain/best_model.pt``; ``--data FILE`` takes a JSON-lines file of
{"prompt": …, "answer": …}. Without --init_from it begins with random weights. run.py has the rest.

The loss is that of pretraining; the data make the difference: only the answer and its EOS are learned.

Paper: Ouyang et al. 2022, "Training language models to follow instructions with human feedback",
https://arxiv.org/abs/2203.02155 (section 3.5, SFT).
"""

from __future__ import annotations

from functools import partial

from training.answers import AnswerDataset, answer, exact_match, make_datasets, read_examples
from training.checkpoint import load_checkpoint
from training.meeting import Meeting
from training.model import GPT
from training.run import Run, Stage, begin, build_model, load_weights, open_run, settings_of
from training.schema import SFTConfig
from training.tasks import answer_examples

KEYS = ("prompt", "answer")
BEFORE = "exact_match_before"  # of the weights that the run began with, in the checkpoint's config
SAMPLES = 3


def prepare(config: SFTConfig, meeting: Meeting | None = None) -> Run:
    """Check the checkpoints and the data, build everything, and only then write to output_dir.

    Raises:
        ValueError, ImportError: something is unusable; nothing has been written.
    """
    beginning, init_from = begin(config, meeting), config.start.init_from
    path, batch_size = config.data.data, config.data.batch_size
    examples = answer_examples() if path is None else read_examples(path, KEYS)
    train, val, summary = make_datasets(examples, config.data.val_fraction, config.model.block_size)
    model = build_model(config, beginning.device)
    if beginning.start.path is None:
        if init_from is not None:
            load_weights(model, load_checkpoint(init_from), init_from)
        summary.append(f"start   {init_from or 'random weights'}")
        before: float | None = exact_match(model, val, batch_size)
    else:  # the weights are in the checkpoint
        before = settings_of(beginning.start.state).get(BEFORE)
    stage = Stage(
        model=model,
        train_data=train,
        val_data=val,
        summary=summary,
        report=partial(report, val=val, before=before, batch_size=batch_size),
        facts={} if before is None else {BEFORE: before},
    )
    return open_run(config, beginning, stage)


def report(run: Run, val: AnswerDataset, before: float | None, batch_size: int) -> list[str]:
    """The validation loss, how many held-out prompts are answered exactly, and some answers."""
    progress, model = run.trainer.progress, run.stage.model
    after = exact_match(model, val, batch_size)
    change = f"{after:.1%}" if before is None else f"{before:.1%} → {after:.1%}"
    lines = [
        f"result  {progress.val_loss:.3f} nats a byte: validation loss after {progress.validated_step} updates",
        f"exact   {change} of the held-out prompts answered exactly",
    ]
    return lines + show_answers(model, val)


def show_answers(model: GPT, val: AnswerDataset) -> list[str]:
    """What the model answers to some of the held-out prompts."""
    first = {example.prompt: max(map(len, example.answers)) for example in val.examples[: 2 * SAMPLES]}
    texts = [
        f"{prompt.decode()!r} → {answer(model, prompt, longest)!r}"
        for prompt, longest in list(first.items())[:SAMPLES]
    ]
    return [f"{'sample' if number == 0 else '':8}{text}" for number, text in enumerate(texts)]
