"""`python -m testcases.torture`: the whole fault matrix. `… matrix --sample`: the part of it that `make test` runs.

`python -m testcases.torture bad_inputs [options]`: what is said to whom gives a bad configuration, text or checkpoint.
`python -m testcases.torture resume [options]`: kill trainings of lesson 09, resume them, compare bit by bit.
"""

import argparse
import random
import sys
from pathlib import Path

from course.errors import CourseError


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m testcases.torture",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", title="commands (default: matrix)")
    _add_resume(
        commands.add_parser("resume", help="lesson 09: kill at every micro-step and inside every save")
    )
    _add_matrix(commands.add_parser("matrix", help="all classes of faults, in one table"))
    commands.add_parser(
        "bad_inputs", add_help=False, help="the table of bad inputs: what was said and needed"
    )
    given = sys.argv[1:] if argv is None else argv
    if given[:1] == ["bad_inputs"]:
        from testcases.torture.bad_inputs import main as bad_inputs

        return bad_inputs(given[1:])
    is_option = given[:1] and given[0].startswith("-") and given[0] not in ("-h", "--help")
    args = parser.parse_args(["matrix", *given] if not given or is_option else given)
    if args.command == "matrix":
        from testcases.torture.matrix import matrix

        seed = random.SystemRandom().randrange(10**6) if args.seed is None else args.seed
        return matrix(args.sample, seed, args.only, args.folder)
    from testcases.torture.resume import torture  # imports torch: not for --help

    try:
        return torture(args.impl, args.seed, args.sample, args.device, args.folder)
    except CourseError as error:
        parser.error(str(error))


def _add_resume(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--impl", default="solutions", help="tutorial, solutions or a folder")
    parser.add_argument("--seed", type=int, default=0, help="of the run, and of the choice of kill points")
    parser.add_argument("--sample", type=int, default=None, metavar="N", help="so many kill points, not all")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    _add_folder(parser)


def _add_matrix(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sample", action="store_true", help="some trials of each class, and not all")
    parser.add_argument("--seed", type=int, default=None, help="of every choice (default: another each time)")
    parser.add_argument("--only", default="", metavar="WORD", help="only the modules with WORD in their name")
    _add_folder(parser)


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--folder", type=Path, default=None, help="where to work (default: a temporary folder)"
    )


if __name__ == "__main__":
    sys.exit(main())
