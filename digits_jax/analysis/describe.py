"""The network of a config as a table."""

from ml_collections import ConfigDict
from rich.box import SIMPLE
from rich.measure import Measurement
from rich.table import Table

from digits_jax import models
from digits_jax.console import console, printer, status
from digits_jax.data import dataset
from digits_jax.data.recipes import RECIPES, recipe_of
from digits_jax.errors import check_choice
from digits_jax.models.describe import Layer, layers


def layers_of(config: ConfigDict) -> list[Layer]:
    """The layers of the config's network; UserError where it cannot be built."""
    check_choice("data.dataset", config.data.dataset, RECIPES)
    recipe = recipe_of(dataset.with_classes(config.data))
    return layers(models.from_config(config, recipe.heads), recipe.shape)


def describe(config: ConfigDict) -> None:
    """Prints the network of `config`, a row per layer. Raises UserError as `layers_of` does."""
    rows = layers_of(config)
    parameters, flops = sum(row.parameters for row in rows), sum(row.flops for row in rows)
    title = f"{config.name}: {config.model.name}, {parameters:,} parameters"
    table = Table(title=title, box=SIMPLE)
    columns = ("layer", "", "input", "output", "receptive field", "jump", "parameters", "FLOPs")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < 2 else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.name,
            row.kind,
            _shape(row.before),
            _shape(row.after),
            _shape(row.receptive_field) or "all",
            _shape(row.jump),
            f"{row.parameters:,}" if row.parameters else "",
            f"{row.flops:,}",
        )
    table.add_section()
    table.add_row("all", "", "", "", "", "", f"{parameters:,}", f"{flops:,}")
    status("")  # another console prints
    # As wide as its content, whatever the terminal: a truncated number would mislead.
    width = Measurement.get(console, console.options.update(max_width=999), table).maximum
    printer(width).print(table)


def _shape(numbers: tuple[int, ...] | None) -> str:
    """(28, 28, 16) -> '28x28x16'; (3, 3) -> '3'; None -> ""."""
    numbers = numbers or ()
    square = len(numbers) == 2 and numbers[0] == numbers[1]
    return "x".join(map(str, numbers[:1] if square else numbers))
