"""The command line of the production package.

Run: ``python -m training pretrain`` trains a small GPT on the embedded corpus, on a CPU in under two minutes.

Exit codes: 0 done; 1 the training broke down (inf or NaN); 2 a flag or the text is unusable (one sentence on
stderr, nothing written); 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """argparse, but an error is one sentence, without the usage above it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{message}; see {self.prog} --help\n")


def build_parser() -> Parser:
    parser = Parser(prog="python -m training", description="Train a small GPT.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    pretrain = commands.add_parser(
        "pretrain",
        help="train on plain text",
        description="Train a byte-level GPT on plain text. Writes metrics.jsonl and loss.png, in place of older ones.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add = pretrain.add_argument
    add("--data", help="a text file or a folder of them; left out: the documentation inside Python")
    add("--output_dir", default="runs/pretrain", help="where to write")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")
    add(
        "--threads",
        type=int,
        default=1,
        help="CPU threads; small models on a busy machine are fastest with 1",
    )
    add("--seed", type=int, default=0, help="of the init, the dropout and the shuffling")
    run = pretrain.add_argument_group("the run")
    run.add_argument("--max_steps", type=int, default=1000, help="updates")
    run.add_argument("--batch_size", type=int, default=16, help="windows in a micro-batch")
    run.add_argument("--grad_accum_steps", type=int, default=1, help="micro-batches in an update")
    run.add_argument("--log_interval", type=int, default=10, help="updates between two lines of metrics")
    run.add_argument("--eval_interval", type=int, default=250, help="updates between two validations")
    run.add_argument("--val_fraction", type=float, default=0.1, help="share of the text to validate on")
    optim = pretrain.add_argument_group("the optimizer")
    optim.add_argument("--optimizer", default="adamw", help="adamw, adam or sgd")
    optim.add_argument("--lr", type=float, default=5e-3, help="the peak learning rate")
    optim.add_argument("--weight_decay", type=float, default=0.1, help="of matrices")
    optim.add_argument("--max_grad_norm", type=float, default=1.0, help="clip the global norm to this")
    optim.add_argument("--scheduler", default="cosine", help="constant, linear, cosine or onecycle")
    optim.add_argument("--warmup_steps", type=int, default=50, help="updates, at most max_steps")
    optim.add_argument("--min_lr_ratio", type=float, default=0.1, help="the last rate as a share of the peak")
    shape = pretrain.add_argument_group("the model")
    shape.add_argument("--block_size", type=int, default=64, help="longest sequence in bytes")
    shape.add_argument("--n_layer", type=int, default=3, help="blocks")
    shape.add_argument("--n_head", type=int, default=4, help="attention heads")
    shape.add_argument("--n_embd", type=int, default=96, help="width")
    shape.add_argument("--dropout", type=float, default=0.0, help="probability")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        from training.pretrain import execute, prepare  # after the parsing: --help does not wait for torch

        try:
            run = prepare(args)
        except ValueError as error:
            print(error, file=sys.stderr)
            return 2
        return execute(run)
    except KeyboardInterrupt:
        print("Stopped by Ctrl-C.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
