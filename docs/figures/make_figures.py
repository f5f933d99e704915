"""The figures of the front page and the guides: `python -m docs.figures.make_figures`, from the root.

(no flag)   draw all figures from the lessons' folders and from resumed_run.json
--measure   first train again, kill and resume (about two minutes), and write resumed_run.json
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from docs.figures import course_map, resumed_run

FOLDER = Path(__file__).resolve().parent
FIGURES: dict[str, Callable[[str], str]] = {"map": course_map.draw, "resumed_run": resumed_run.draw}


def figures() -> dict[Path, str]:
    """Path → text of every figure, in both languages."""
    endings = {"en": "", "zh": "_zh"}
    return {
        FOLDER / f"{name}{ending}.svg": draw(language)
        for name, draw in FIGURES.items()
        for language, ending in endings.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the figures of the front page and the guides.")
    parser.add_argument("--measure", action="store_true", help="train, kill and resume again first")
    if parser.parse_args().measure:
        resumed_run.measure()
    for path, text in figures().items():
        path.write_text(text, encoding="utf-8", newline="\n")
        print(f"wrote {path.relative_to(FOLDER.parent.parent)} ({len(text.encode())} bytes)")


if __name__ == "__main__":
    main()
