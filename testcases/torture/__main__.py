"""`python -m testcases.torture resume [options]`: kill trainings, resume them, compare bit by bit."""

import argparse
import sys
from pathlib import Path

from course.errors import CourseError


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m testcases.torture", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    resume = commands.add_parser("resume", help="lesson 09: kill at every micro-step and inside every save")
    resume.add_argument("--impl", default="solutions", help="tutorial, solutions or a folder")
    resume.add_argument("--seed", type=int, default=0, help="of the run, and of the choice of kill points")
    resume.add_argument("--sample", type=int, default=None, metavar="N", help="so many kill points, not all")
    resume.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    resume.add_argument(
        "--folder", type=Path, default=None, help="where to work (default: a temporary folder)"
    )
    args = parser.parse_args(argv)
    from testcases.torture.resume import torture  # imports torch: not for --help

    try:
        return torture(args.impl, args.seed, args.sample, args.device, args.folder)
    except CourseError as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
