"""The command `python -m training checkpoints`: look at, check, thin out and copy the checkpoints of a run.

Run: ``python -m training checkpoints list runs/demo``, likewise verify, prune, extract, compare, backup.

Exit codes: 0 done; 1 verify found a file that is not good; 2 the input is unusable (one sentence on stderr, nothing
touched).
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from training.checkpoint import Report

EXTRACTED = ("model_state_dict", "epoch", "val_loss")


def add_checkpoints_parser(commands: Any) -> None:
    """Add the command to what `ArgumentParser.add_subparsers` returned; `run_checkpoints` executes it."""
    parser = commands.add_parser(
        "checkpoints",
        help="list, verify, prune, extract, compare, back up",
        description=__doc__,
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=type(parser))

    def action(name: str, execute: Any, text: str) -> argparse.ArgumentParser:
        added = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(execute=execute)
        return added

    listing = action("list", list_checkpoints, "show the checkpoints of a folder, oldest first")
    listing.add_argument("directory", type=Path)
    verify = action("verify", verify_checkpoints, "check every bit; exit code 1 if a file is not good")
    verify.add_argument(
        "paths", type=Path, nargs="+", metavar="PATH", help="a checkpoint, or a folder of them"
    )
    prune = action("prune", prune_checkpoints, "delete all but the newest good ones and best_model.pt")
    prune.add_argument("directory", type=Path)
    prune.add_argument("--keep_last", type=int, default=3, metavar="N", help="good ones to keep (default: 3)")
    prune.add_argument("--dry_run", action="store_true", help="say what would go, and delete nothing")
    extract = action("extract", extract_weights, "write weights, epoch and val_loss alone, for inference")
    extract.add_argument("path", type=Path)
    extract.add_argument("out", type=Path, help="the file to write; it must not exist")
    compare = action("compare", compare_checkpoints, "show epoch, step and losses side by side")
    compare.add_argument("paths", type=Path, nargs="+", metavar="PATH")
    backup = action(
        "backup", back_up, "copy a checkpoint into a folder, with the date in its name, and verify it"
    )
    backup.add_argument("path", type=Path)
    backup.add_argument("dest", type=Path, help="the folder; it is made")


def run_checkpoints(args: argparse.Namespace) -> int:
    """Execute the parsed command; returns the exit code."""
    try:
        code: int = args.execute(args)
        return code
    except ValueError as error:  # CheckpointError, too
        complaint = str(error)
    except OSError as error:
        complaint = f"{error.filename or 'The system'}: {error.strerror or error}"
    # one line, whatever the names of files and weights have in them
    print("".join(letter if letter.isprintable() else " " for letter in complaint), file=sys.stderr)
    return 2


# ---- the actions


def list_checkpoints(args: argparse.Namespace) -> int:
    paths = _checkpoints_in(args.directory)
    if not paths:
        print(f"There is no checkpoint in {args.directory}.")
        return 0
    rows = [["file", "epoch", "step", "val_loss", "size", "valid"]]
    for report in _examine(paths):
        size = f"{report.path.stat().st_size / 2**20:.1f} MiB"
        facts = _facts(report, "epoch", "global_step", "val_loss")
        rows.append([report.path.name, *facts, size, _verdict(report)])
    _print_table(rows)
    return 0


def verify_checkpoints(args: argparse.Namespace) -> int:
    paths: list[Path] = []
    for path in args.paths:
        found = _checkpoints_in(path) if path.is_dir() else [path]
        if not found or not found[0].exists():
            raise ValueError(
                f"There is no checkpoint in {path}." if path.is_dir() else f"{path} does not exist."
            )
        paths += found
    bad = 0
    for report in _examine(paths):
        bad += report.problem is not None
        print(f"good  {report.path}" if report.problem is None else f"BAD   {report.problem}")
    return 1 if bad else 0


def prune_checkpoints(args: argparse.Namespace) -> int:
    from training.checkpoint import CheckpointManager

    if args.keep_last < 1:
        raise ValueError(f"--keep_last must be >= 1, got {args.keep_last}.")
    before = _checkpoints_in(args.directory)
    doomed = CheckpointManager(args.directory, args.keep_last).prune(dry_run=args.dry_run)
    for path in reversed(doomed):
        print(f"{'would delete' if args.dry_run else 'deleted'} {path}")
    print(f"{len(before) - len(doomed)} of {len(before)} {'would stay' if args.dry_run else 'stay'}.")
    return 0


def extract_weights(args: argparse.Namespace) -> int:
    from training.checkpoint import load_checkpoint, save_checkpoint

    _refuse_existing(args.out)
    state = load_checkpoint(args.path)
    if not isinstance(state.get("model_state_dict"), dict):
        raise ValueError(f"{args.path} has no model_state_dict.")
    save_checkpoint({key: state[key] for key in EXTRACTED if key in state}, args.out)
    print(f"wrote {args.out} ({args.out.stat().st_size / 2**20:.1f} MiB)")
    return 0


def compare_checkpoints(args: argparse.Namespace) -> int:
    names = ("epoch", "global_step", "train_loss", "val_loss")
    rows = [["file", "epoch", "step", "train_loss", "val_loss"]]
    for report in map(_require_loadable, args.paths):
        rows.append([str(report.path), *_facts(report, *names)])
    _print_table(rows)
    return 0


def back_up(args: argparse.Namespace) -> int:
    from training.checkpoint import delete_checkpoint, verify_checkpoint
    from training.checkpoint_file import opened
    from training.durable import make_folder, write_with_digest

    if args.dest.exists() and not args.dest.is_dir():
        raise ValueError(f"{args.dest} is not a folder.")
    _require_loadable(args.path)
    now = datetime.now()
    target = args.dest / f"{args.path.stem}_{now:%Y%m%d}{args.path.suffix}"
    if target.exists():  # the second one of the day
        target = args.dest / f"{args.path.stem}_{now:%Y%m%d_%H%M%S}{args.path.suffix}"
    _refuse_existing(target)
    make_folder(args.dest)
    with opened(args.path) as (file, digest):

        def fill(copy: BinaryIO) -> None:
            file.seek(0)  # fill is called again after a failed fsync
            shutil.copyfileobj(file, copy, 1 << 20)

        copied = write_with_digest(target, fill)
    if copied != (digest or copied):
        delete_checkpoint(target)
        raise ValueError(f"{args.path} changed while it was copied.")
    verify_checkpoint(target)  # read back, as it lies there
    print(f"wrote {target}")
    return 0


# ---- their parts


def _checkpoints_in(directory: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first, best_model.pt last."""
    from training.checkpoint import BEST, find_checkpoints

    if not directory.is_dir():
        raise ValueError(f"{directory} is not a folder.")
    best = directory / BEST
    return [*reversed(find_checkpoints(directory)), *([best] if best.exists() else [])]


def _examine(paths: list[Path]) -> Iterator[Report]:
    from training.checkpoint import examine

    return map(examine, paths)


def _require_loadable(path: Path) -> Report:
    """The report on a file that can be loaded; what else is wrong with it goes to stderr."""
    from training.checkpoint import CheckpointError, examine

    report = examine(path)
    if not report.loadable:
        raise CheckpointError(report.problem)
    if report.problem is not None:
        print(report.problem, file=sys.stderr)
    return report


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise ValueError(f"{path} exists already: choose another name.")


def _facts(report: Report, *names: str) -> list[str]:
    values = [report.facts.get(name) for name in names]
    return [
        "-" if value is None else f"{value:.4f}" if type(value) is float else str(value) for value in values
    ]


def _verdict(report: Report) -> str:
    if report.problem is None:
        return "yes"
    return f"no: {report.problem.removeprefix(str(report.path)).strip()}"


def _print_table(rows: list[list[str]]) -> None:
    """Columns as wide as their widest cell: text to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        middle = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        if rows[0][-1] == "valid":  # a sentence
            middle[-1] = row[-1]
        print("  ".join([row[0].ljust(widths[0]), *middle]))
