"""`python -m testcases.torture`: the whole fault matrix. `… matrix --sample`: the part of it that `make test` runs.

`python -m testcases.torture bad_inputs [options]`: what is said to whom gives a bad configuration, text or checkpoint.
`python -m testcases.torture cli [options]`: kill the command of training/ again and again, resume, compare every bit.
`python -m testcases.torture resume [options]`: the same with the pieces of lesson 09, at every micro-step.
"""

import argparse
import random
import sys
from pathlib import Path

from course.errors import CourseError


def main(argv: list[str] | None = None) -> int:
    given = sys.argv[1:] if argv is None else argv
    if given[:1] == ["bad_inputs"]:
        from testcases.torture.bad_inputs import main as bad_inputs

        return bad_inputs(given[1:])
    parser = build_parser()
    is_option = given[:1] and given[0].startswith("-") and given[0] not in ("-h", "--help")
    args = parser.parse_args(["matrix", *given] if not given or is_option else given)
    try:
        return run(args)  # the modules import torch: not for --help
    except (CourseError, ValueError) as error:
        parser.error(str(error))


def run(args: argparse.Namespace) -> int:
    if args.command == "matrix":
        from testcases.torture.matrix import matrix

        seed = random.SystemRandom().randrange(10**6) if args.seed is None else args.seed
        return matrix(args.sample, seed, args.only, args.folder)
    if args.command == "cli":
        from testcases.torture.cli import sweep

        return sweep(args.kills, args.seed, args.folder)
    from testcases.torture.resume import torture

    return torture(args.impl, args.seed, args.sample, args.device, args.folder)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m testcases.torture",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", title="commands (default: matrix)")
    matrix = commands.add_parser("matrix", help="all classes of faults, in one table")
    matrix.add_argument("--sample", action="store_true", help="some trials of each class, and not all")
    matrix.add_argument("--seed", type=int, default=None, help="of every choice (default: another each time)")
    matrix.add_argument("--only", default="", metavar="WORD", help="only the modules with WORD in their name")
    resume = commands.add_parser("resume", help="lesson 09: kill at every micro-step and inside every save")
    resume.add_argument("--impl", default="solutions", help="tutorial, solutions or a folder")
    resume.add_argument("--seed", type=int, default=0, help="of the run, and of the choice of kill points")
    resume.add_argument("--sample", type=int, default=None, metavar="N", help="so many kill points, not all")
    resume.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    cli = commands.add_parser(
        "cli", help="python -m training pretrain --resume auto: kill -9 at random moments"
    )
    cli.add_argument("--kills", type=int, default=100, help="at least so many (default: 100)")
    cli.add_argument("--seed", type=int, default=0, help="of the moments")
    for command in (matrix, resume, cli):
        command.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    commands.add_parser(
        "bad_inputs", add_help=False, help="the table of bad inputs: what was said and needed"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
