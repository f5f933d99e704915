"""Tables on the terminal, by rich (which knows that a Chinese character takes two columns)."""

import sys
from collections.abc import Sequence


def print_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], total: Sequence[str] | None = None
) -> None:
    """Print a table; `total` is a last row below a rule. Wide cells are wrapped, never cut."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, show_footer=total is not None, pad_edge=False)
    for index, header in enumerate(headers):
        numeric = bool(rows) and all(row[index][:1].isdigit() for row in rows)
        footer = total[index] if total is not None else ""
        table.add_column(header, footer, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    # Into a file or a pipe there is no width to keep to: do not fold the cells there.
    width = None if sys.stdout.isatty() else 160
    Console(highlight=False, markup=False, width=width).print(table)
