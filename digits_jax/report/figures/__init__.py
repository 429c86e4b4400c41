"""Pictures of runs: light, at most 8 inches wide, readable at 800 pixels.

Each function draws one PNG file from arrays or rows. It imports matplotlib and uses its object
interface: no pyplot, no display, no global state.
"""

from digits_jax.report.figures.comparisons import ablation, frontier, learning, pruning, search
from digits_jax.report.figures.draw import noted
from digits_jax.report.figures.images import (
    Part,
    Shown,
    attribution,
    errors,
    readings,
    sheet,
    signed_maps,
)
from digits_jax.report.figures.runs import confusion, curves, reliability, robustness
