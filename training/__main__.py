"""The command line of the production package.

Run: ``python -m training pretrain`` trains a small GPT on the embedded corpus, on a CPU in under two minutes;
``python -m training checkpoints list DIRECTORY`` looks after what it saved;
``torchrun --nproc_per_node=2 -m training pretrain`` shares the work out among two processes.

Exit codes: 0 done; 1 the training broke down (inf or NaN, another process lost), or its end could not be saved; 2 the
input is unusable (one sentence on stderr, nothing written); 130 Ctrl-C and 143 SIGTERM, after everything was saved.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from contextlib import redirect_stderr
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

from training.checkpoint_tools import add_checkpoints_parser, run_checkpoints

if TYPE_CHECKING:
    from training.schema import PretrainConfig

TRAINING = {
    "pretrain": "train on plain text",
    "sft": "fine-tune on prompts and answers",
    "dpo": "fine-tune on preferences",
}


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
    """Parse, meet the other processes, prepare, train. Returns the exit code."""
    config, problem = parse(command, argv)
    from training.distributed import PeerLost, Ranks  # after the parsing: --help does not wait for torch
    from training.execute import execute
    from training.meeting import Meeting, meet

    try:
        meeting = Meeting(Ranks())
        try:
            meeting = meet(config.trainer.timeout)
            if problem:
                raise ValueError(problem)
            run = import_module(f"training.{command}").prepare(config, meeting)
        except (ValueError, ImportError) as error:
            meeting.refuse(error)
            return 2
    except PeerLost as error:
        print(f"Stopped: {error}.", file=sys.stderr)
        return 1
    return execute(run)


def parse(command: str, argv: list[str]) -> tuple[PretrainConfig, str]:
    """The configuration, and what is wrong with it: of several processes rank 0 will say so, for all."""
    from training import config

    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return config.parse(command, argv), ""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return config.parse(command, argv), ""
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        return config.CONFIGS[command](), said.getvalue().strip() or str(stop.code)


if __name__ == "__main__":
    sys.exit(main())
