"""Markdown tables, and percent in their cells."""

import functools
from collections.abc import Iterable, Sequence

from digits_jax import console

percent = functools.partial(console.percent, unit="")
LEFT, RIGHT = "---", "---:"


def markdown(
    header: Sequence[str], rows: Iterable[Sequence[str]], align: Sequence[str] = ()
) -> str:
    """A table, without a newline at its end; align: LEFT or RIGHT by column, LEFT if not given."""
    lines = [header, align or [LEFT] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
