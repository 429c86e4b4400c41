"""A network layer by layer: shapes, receptive fields, parameters, operations. Nothing is typed in.

The network is traced with shapes alone, and each layer says what it is when it is called.
"""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict
from rich.box import SIMPLE
from rich.measure import Measurement
from rich.table import Table

from digits_jax import models
from digits_jax.console import console, printer
from digits_jax.data.recipes import RECIPES
from digits_jax.errors import check_choice
from digits_jax.models.layers import (
    AdaptiveAveragePool,
    AveragePool,
    Edges,
    MaxPool,
    SqueezeExcite,
    adaptive_window,
)
from digits_jax.types import Array

_POOLS = (MaxPool, AveragePool, AdaptiveAveragePool)
_SHOWN = (nn.Conv, nn.Dense, nn.BatchNorm, Edges, *_POOLS, SqueezeExcite)
_ALL = None  # the receptive field of what sees the whole image


class Layer(NamedTuple):
    """One layer of a network, for one example.

    name: its path in the parameters, and the number of a later call; kind: 'conv 3x3', 'max 2x2',
    ...; before, after: shapes, [H, W, C] or [C]; receptive_field: rows and columns of the image
    that one output sees, with the padding, None where it sees all (in the tower: of its digit);
    jump: px between the fields of neighbouring outputs, None where there are no neighbours;
    parameters: trainable numbers, where a layer is called again none; flops: 2 for a multiplication
    with its addition, 1 for each pixel in a pool's windows, 2 for each that BatchNorm scales and
    shifts; activations and sums of branches do not count.
    """

    name: str
    kind: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    receptive_field: tuple[int, int] | None
    jump: tuple[int, int] | None
    parameters: int
    flops: int


def layers(model: nn.Module, shape: tuple[int, int]) -> list[Layer]:
    """The layers of `model` for images [H, W] of `shape`, in the order in which they are called.

    A window of k at a stride of s takes the receptive field r and the jump j to r + (k - 1) j and
    j s (Araujo et al. 2019, Computing Receptive Fields of Convolutional Neural Networks). After a
    sum of branches those of the branch that was called last go on, which is the main one.
    """
    rows: list[Layer] = []
    field: Any = (1, 1)
    jump: Any = (1, 1)
    begun: dict[int, Any] = {}  # by the identity of an array, which is kept so that it stays one

    def watch(layer: nn.Module, name: str, before: Array, after: Array) -> Array:
        nonlocal field, jump
        if any(part.startswith("SqueezeExcite") for part in layer.path[:-1]):
            return after
        # A branch, of a residual or of a head, goes on from what another began with.
        _, field, jump = begun.setdefault(id(before), (before, field, jump))
        kind, window, strides = _window(layer, before.shape)
        if window is _ALL:
            field = _ALL
        elif field is not _ALL:
            field = tuple(r + (k - 1) * j for r, k, j in zip(field, window, jump, strict=True))
        jump = tuple(j * s for j, s in zip(jump, strides, strict=True))
        several = after.ndim == 4 and max(after.shape[1:3]) > 1
        params = layer.variables.get("params", {})
        rows.append(
            Layer(
                name,
                kind,
                before.shape[1:],
                after.shape[1:],
                field,
                jump if several else None,
                models.count_parameters(params) if name == "/".join(layer.path) else 0,
                _flops(layer, window, before, after, params),
            )
        )
        return after

    def call(key: Any, image: Any) -> Any:
        init: Any = model.init
        return init(key, image, train=False, dropout_rate=0.0)

    with nn.intercept_methods(interceptor(_SHOWN, watch)):
        jax.eval_shape(call, jax.random.key(0), jax.ShapeDtypeStruct((1, *shape), np.float32))
    return rows


def interceptor(
    shown: Any, watch: Callable[[nn.Module, str, Array, Array], Array]
) -> Callable[..., Any]:
    """For `nn.intercept_methods`: `watch(layer, name, before, after)` may change what comes after.

    It sees each call of a layer of the classes `shown` once, though a class may extend another of
    them, by a name of its own: the layer's path, from its second call on with a number.
    """
    inside: set[str] = set()
    calls: Counter[str] = Counter()

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        layer, path = context.module, "/".join(context.module.path)
        if not isinstance(layer, shown) or path in inside:
            return call(*args, **kwargs)
        inside.add(path)
        after = call(*args, **kwargs)
        inside.remove(path)
        calls[path] += 1
        name = path if calls[path] == 1 else f"{path}, call {calls[path]}"
        return watch(layer, name, args[0], after)

    return intercept


def _window(layer: nn.Module, shape: tuple[int, ...]) -> tuple[str, Any, Any]:
    """-> (kind, window, strides), over rows and columns."""
    if isinstance(layer, nn.Conv):
        size: Any = layer.kernel_size
        return f"conv {size[0]}x{size[1]}", size, np.broadcast_to(layer.strides or 1, 2).tolist()
    if isinstance(layer, Edges):
        return f"edges {layer.size}x{layer.size}", (layer.size, layer.size), (1, 1)
    if isinstance(layer, MaxPool | AveragePool):
        return f"{'max' if isinstance(layer, MaxPool) else 'average'} 2x2", (2, 2), (2, 2)
    if isinstance(layer, AdaptiveAveragePool):
        window, strides = adaptive_window(shape[1:3], layer.size)
        return f"average {window[0]}x{window[1]}", window, strides
    if isinstance(layer, nn.BatchNorm):
        return "batch norm", (1, 1), (1, 1)
    return ("attention" if isinstance(layer, SqueezeExcite) else "dense"), _ALL, (1, 1)


def _flops(layer: nn.Module, window: Any, before: Any, after: Any, params: Any) -> int:
    if isinstance(layer, SqueezeExcite):
        return 2 * models.count_parameters(params) + 2 * before.size
    if isinstance(layer, Edges):
        return 2 * before.size * (9 * layer.size + 6 * layer.features)
    if "kernel" in params:
        return 2 * params["kernel"].size * after.size // after.shape[-1]
    return 2 * after.size if isinstance(layer, nn.BatchNorm) else math.prod(window) * after.size


def describe(config: ConfigDict) -> None:
    """Prints the network of `config` as a table."""
    check_choice("data.dataset", config.data.dataset, RECIPES)
    recipe = RECIPES[config.data.dataset]
    rows = layers(models.from_config(config, recipe.heads), recipe.shape)
    columns = ("layer", "", "input", "output", "receptive field", "jump", "parameters", "FLOPs")
    total = sum(row.parameters for row in rows), sum(row.flops for row in rows)
    table = Table(title=f"{config.name}: {config.model.name}, {total[0]:,} parameters", box=SIMPLE)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < 2 else "right", no_wrap=True)
    for row in rows:
        parameters = f"{row.parameters:,}" if row.parameters else ""
        shapes = _times(row.before), _times(row.after)
        seen = _times(row.receptive_field) or "all", _times(row.jump)
        table.add_row(row.name, row.kind, *shapes, *seen, parameters, f"{row.flops:,}")
    table.add_section()
    table.add_row("all", "", "", "", "", "", *(f"{n:,}" for n in total))
    # As wide as it is: numbers that are cut off are none.
    width = Measurement.get(console, console.options.update(max_width=999), table).maximum
    printer(width).print(table)


def _times(numbers: tuple[int, ...] | None) -> str:
    """(28, 28, 16) -> '28x28x16'; two equal numbers are one."""
    if numbers is None:
        return ""
    square = len(numbers) == 2 and numbers[0] == numbers[1]
    return "x".join(map(str, numbers[:1] if square else numbers))
