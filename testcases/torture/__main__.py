"""Kill trainings, resume them, compare bit by bit.

`python -m testcases.torture resume [options]`: the pieces of lesson 09; `… cli`: the command of training/.
"""

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
    cli = commands.add_parser(
        "cli", help="python -m training pretrain --resume auto: kill -9 at random moments"
    )
    cli.add_argument("--kills", type=int, default=100, help="at least so many (default: 100)")
    cli.add_argument("--seed", type=int, default=0, help="of the moments")
    for command in (resume, cli):
        command.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    args = parser.parse_args(argv)
    # The modules import torch: not for --help.
    try:
        if args.command == "cli":
            from testcases.torture.cli import sweep

            return sweep(args.kills, args.seed, args.folder)
        from testcases.torture.resume import torture

        return torture(args.impl, args.seed, args.sample, args.device, args.folder)
    except (CourseError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
