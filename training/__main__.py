"""The command line of the production package.

Run: ``python -m training pretrain`` trains a small GPT on the embedded corpus, on a CPU in under two minutes;
``python -m training checkpoints list DIRECTORY`` looks after what it saved.

Exit codes: 0 done; 1 the training broke down (inf or NaN); 2 the input is unusable (one sentence on stderr,
nothing written); 130 Ctrl-C and 143 SIGTERM, after everything was saved.
"""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

from training.checkpoint_tools import add_checkpoints_parser, run_checkpoints

TRAINING = {"pretrain": "train on plain text"}


class Parser(argparse.ArgumentParser):
    """argparse, but an error is one sentence, without the usage above it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{message}; see {self.prog} --help\n")


def build_parser() -> Parser:
    """The commands; those that train read their own flags, see config.py."""
    parser = Parser(prog="python -m training", description="Train a small GPT.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for name, text in TRAINING.items():
        commands.add_parser(name, help=text, add_help=False)
    add_checkpoints_parser(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv[:1] and argv[0] in TRAINING:
            return run_training(argv[0], argv[1:])
        return run_checkpoints(build_parser().parse_args(argv))
    except KeyboardInterrupt:  # before the training began, or after its end
        print("Stopped by Ctrl-C.", file=sys.stderr)
        return 130


def run_training(command: str, argv: list[str]) -> int:
    """Parse, prepare, train. Returns the exit code."""
    from training.config import parse

    config = parse(command, argv)
    from training.pretrain import execute, prepare  # after the parsing: --help does not wait for torch

    try:
        run = prepare(config)
    except (ValueError, ImportError) as error:
        print(error, file=sys.stderr)
        return 2
    return execute(run)


if __name__ == "__main__":
    sys.exit(main())
