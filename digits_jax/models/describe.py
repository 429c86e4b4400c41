"""A network layer by layer: shapes, receptive fields, parameters, operations.

All of it is read off the network itself, which is traced with shapes alone.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from flax import linen as nn
from flax.linen.module import Interceptor, InterceptorContext

from digits_jax import models
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
Pair = tuple[int, int]  # rows and columns


class Layer(NamedTuple):
    """One layer of a network, for one example.

    name: its path in the parameters, with a number from its second call on; kind: 'conv 3x3', ...;
    before, after: shapes, [H, W, C] or [C]; receptive_field: pixels of the image, padding included,
    that one output depends on, None for all of them (in a tower: all of its digit); jump: pixels
    between the receptive fields of neighbouring outputs, None for a single output; parameters:
    trainable numbers, counted at the first call; flops: 2 for a multiplication and its addition,
    1 for each pixel in a pool's windows, 2 for each that BatchNorm scales and shifts; activations
    and sums of branches are left out.
    """

    name: str
    kind: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    receptive_field: Pair | None
    jump: Pair | None
    parameters: int
    flops: int


def layers(model: nn.Module, shape: Pair) -> list[Layer]:
    """The layers of `model` for images of `shape` [H, W], in the order in which they are called.

    A window of k with a stride of s takes the receptive field r and the jump j to r + (k - 1) j and
    j s (Araujo et al. 2019, Computing Receptive Fields of Convolutional Neural Networks). Where
    branches are summed, the values of the branch called last go on: of a residual, the main one.
    """
    rows: list[Layer] = []
    field: Pair | None = (1, 1)
    jump: Pair = (1, 1)
    # By id(input): (input, field, jump). Keeping the array keeps its id from being used again.
    starts: dict[int, tuple[Array, Pair | None, Pair]] = {}

    def watch(layer: nn.Module, name: str, before: Array, after: Array) -> Array:
        nonlocal field, jump
        if any(part.startswith("SqueezeExcite") for part in layer.path[:-1]):
            return after
        # Branches that read the same array start with the same field and jump.
        _, field, jump = starts.setdefault(id(before), (before, field, jump))
        kind, window, strides = _window(layer, before.shape)
        if field is not None and window is not None:
            field = (field[0] + (window[0] - 1) * jump[0], field[1] + (window[1] - 1) * jump[1])
        else:
            field = None
        jump = (jump[0] * strides[0], jump[1] * strides[1])
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

    def init(key: jax.Array, images: jax.Array) -> object:
        return model.init(key, images, train=False, dropout_rate=0.0)

    with nn.intercept_methods(interceptor(_SHOWN, watch)):
        jax.eval_shape(init, jax.random.key(0), jax.ShapeDtypeStruct((1, *shape), np.float32))
    return rows


def interceptor(
    shown: type[nn.Module] | tuple[type[nn.Module], ...],
    watch: Callable[[nn.Module, str, Array, Array], Array],
) -> Interceptor:
    """For `nn.intercept_methods`: calls `watch(layer, name, input, output) -> output`.

    Once for each call of a layer of the classes `shown`, also where such a class calls another of
    them. name: the layer's path, with a number from its second call on.
    """
    inside: set[str] = set()
    calls: Counter[str] = Counter()

    def intercept(call: Callable, args: tuple, kwargs: dict, context: InterceptorContext) -> object:
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


def _window(layer: nn.Module, shape: tuple[int, ...]) -> tuple[str, Pair | None, Pair]:
    """-> (kind, window, strides); window: None for a layer that sees its whole input."""
    if isinstance(layer, nn.Conv):
        height, width = np.broadcast_to(layer.kernel_size, 2).tolist()
        down, right = np.broadcast_to(layer.strides or 1, 2).tolist()
        return f"conv {height}x{width}", (height, width), (down, right)
    if isinstance(layer, Edges):
        return f"edges {layer.size}x{layer.size}", (layer.size, layer.size), (1, 1)
    if isinstance(layer, MaxPool | AveragePool):
        return f"{'max' if isinstance(layer, MaxPool) else 'average'} 2x2", (2, 2), (2, 2)
    if isinstance(layer, AdaptiveAveragePool):
        (height, width), (down, right) = adaptive_window(shape[1:3], layer.size)
        return f"average {height}x{width}", (height, width), (down, right)
    if isinstance(layer, nn.BatchNorm):
        return "batch norm", (1, 1), (1, 1)
    return ("attention" if isinstance(layer, SqueezeExcite) else "dense"), None, (1, 1)


def _flops(
    layer: nn.Module, window: Pair | None, before: Array, after: Array, params: Mapping[str, Array]
) -> int:
    if isinstance(layer, SqueezeExcite):
        return 2 * models.count_parameters(params) + 2 * before.size
    if isinstance(layer, Edges):
        return 2 * before.size * (9 * layer.size + 6 * layer.features)
    if "kernel" in params:
        return 2 * params["kernel"].size * after.size // after.shape[-1]
    if isinstance(layer, nn.BatchNorm):
        return 2 * after.size
    assert window is not None
    return math.prod(window) * after.size
