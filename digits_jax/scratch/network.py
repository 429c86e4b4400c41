"""Networks as lists of layers, forward through them and backward again.

Parameters have the names and shapes of the JAX engine's: what one has trained, the other reads.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from digits_jax.errors import UserError, check_choice
from digits_jax.scratch import layers
from digits_jax.scratch.optim import Tree

NETWORKS = ("mlp", "cnn", "lenet5")
Array = np.ndarray


class Layer(NamedTuple):
    """A pair of functions, and where its weights are in the parameters, if it has any.

    shape: their kernel's, without the channels that come in; gain: of the variance of its entries.
    """

    forward: Callable[..., tuple[Any, Any]]
    backward: Callable[..., tuple[Any, ...]]
    name: str = ""
    weights: tuple[str, ...] = ()
    options: Mapping[str, Any] = {}
    shape: tuple[int, ...] = ()
    gain: float = 2.0


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """The layers that all heads share, and a last one for each head."""

    trunk: tuple[Layer, ...]
    heads: Mapping[str, Layer]


def build(config: ConfigDict, heads: Mapping[str, int]) -> Network:
    """The network that `config`, config.model of a run, describes.

    Raises UserError for one that is not written by hand here.
    """
    check_choice("config.engine=numpy: model.name", config.name, NETWORKS)
    if config.get("skip"):
        raise UserError("config.engine=numpy knows no model.skip; config.engine=jax does")
    parts = _Parts(config.get("activation", "relu"))
    if config.name == "cnn":
        for features in config.features:
            parts.conv(features, 3, padding=1 if config.padding == "SAME" else 0)
            parts.activation()
            parts.pool("max")
    elif config.name == "lenet5":
        for features, padding in ((6, 2), (16, 0)):
            parts.conv(features, 5, padding=padding)
            if config.batch_norm:
                parts.batch_norm()
            parts.activation()
            parts.pool(config.pooling)
    parts.add("flatten")
    for units in (120, 84) if config.name == "lenet5" else config.hidden:
        parts.dense(units)
        parts.activation()
        parts.add("dropout")
    last = {head: _linear(head, classes, 2.0) for head, classes in heads.items()}
    return Network(tuple(parts.layers), last)


class _Parts:
    """A list of layers in the making; counts them by kind, as Flax names them."""

    def __init__(self, activation: str):
        self.layers: list[Layer] = []
        self._activation = activation
        # He et al. 2015 for ReLU, Glorot and Bengio 2010 (about) where 0 is in the middle.
        self._gain = 1.0 if activation in ("sigmoid", "tanh") else 2.0
        self._count: dict[str, int] = {}

    def add(self, kind: str, **fields: Any) -> None:
        pair = getattr(layers, kind), getattr(layers, f"{kind}_backward")
        self.layers.append(Layer(*pair, **fields))

    def conv(self, features: int, size: int, padding: int) -> None:
        where = {"name": self._name("Conv"), "weights": ("kernel", "bias")}
        shape = (size, size, features)
        self.add("conv", **where, options={"padding": padding}, shape=shape, gain=self._gain)

    def batch_norm(self) -> None:
        self.add("batch_norm", name=self._name("BatchNorm"), weights=("scale", "bias"))

    def dense(self, units: int) -> None:
        self.layers.append(_linear(self._name("Dense"), units, self._gain))

    def activation(self) -> None:
        check_choice("model.activation", self._activation, _ACTIVATIONS)
        self.add(self._activation)

    def pool(self, kind: str) -> None:
        check_choice("model.pooling", kind, ("max", "average"))
        self.add(f"{kind}_pool")

    def _name(self, kind: str) -> str:
        number = self._count[kind] = self._count.get(kind, -1) + 1
        return f"{kind}_{number}"


_ACTIVATIONS = ("relu", "leaky_relu", "sigmoid", "tanh")


def _linear(name: str, units: int, gain: float) -> Layer:
    weights = ("kernel", "bias")
    pair = layers.linear, layers.linear_backward
    return Layer(*pair, name=name, weights=weights, shape=(units,), gain=gain)


def initialize(
    rng: np.random.Generator, network: Network, image_shape: tuple[int, int], dtype: Any
) -> tuple[Tree, Tree]:
    """-> (params, running statistics): normal kernels of variance gain / inputs, biases of 0."""
    params: Tree = {}
    statistics: Tree = {}

    def draw(layer: Layer, x: Array) -> None:
        *window, features = layer.shape or [0]
        channels = len(x) if x.ndim == 4 else x.shape[-1]
        if layer.weights == ("kernel", "bias"):
            shape = (*window, channels, features)
            deviation = np.sqrt(layer.gain / np.prod(shape[:-1]))
            kernel = deviation * rng.standard_normal(shape)
            params[layer.name] = {"kernel": kernel.astype(dtype), "bias": np.zeros(features, dtype)}
        elif layer.weights:
            one, zero = np.ones(channels, dtype), np.zeros(channels, dtype)
            params[layer.name] = {"scale": one, "bias": zero}
            statistics[layer.name] = {"mean": zero, "var": one}

    x: Any = np.zeros((1, 1, *image_shape), dtype)
    for layer in network.trunk:
        draw(layer, x)
        if layer.forward is not layers.dropout:
            x, _ = layer.forward(x, *_weights(layer, params), **layer.options)
    for layer in network.heads.values():
        draw(layer, x)
    return params, statistics


def _weights(layer: Layer, params: Tree) -> list[Array]:
    return [params[layer.name][name] for name in layer.weights]


def forward(
    network: Network, params: Tree, images: Array, masks: Callable[[tuple[int, ...]], Array | None]
) -> tuple[dict[str, Array], Any, Tree]:
    """As in training. images: [B, H, W] -> ({head: [B, C] logits}, tape, batch statistics).

    masks: shape -> what dropout multiplies by there, None for no dropout. The tape is what
    `backward` needs; the statistics are {layer: {"mean": [C], "var": [C]}} of BatchNorm.
    """
    x: Any = images[None]
    tape: list[tuple[Layer, Any]] = []
    statistics: Tree = {}
    for layer in network.trunk:
        options = layer.options
        if layer.forward is layers.dropout:
            mask = masks(x.shape)
            if mask is None:
                continue
            options = {"mask": mask}
        x, saved = layer.forward(x, *_weights(layer, params), **options)
        if layer.forward is layers.batch_norm:
            statistics[layer.name] = {"mean": saved[0], "var": saved[1]}
        tape.append((layer, saved))
    logits, ends = {}, {}
    for head, layer in network.heads.items():
        logits[head], ends[head] = layer.forward(x, *_weights(layer, params))
    return logits, (network, tape, ends), statistics


def backward(dlogits: Mapping[str, Array], tape: Any) -> Tree:
    """The gradients of the parameters, from those of the logits: every layer in reverse.

    Where the heads part, their gradients add up.
    """
    network, trunk, ends = tape
    gradients: Tree = {}

    def step(layer: Layer, dy: Array, saved: Any) -> Array:
        dx, *dweights = layer.backward(dy, saved)
        if layer.weights:
            gradients[layer.name] = dict(zip(layer.weights, dweights, strict=True))
        return dx

    dx: Any = sum(step(layer, dlogits[head], ends[head]) for head, layer in network.heads.items())
    for layer, saved in reversed(trunk):
        dx = step(layer, dx, saved)
    return gradients


def predict(network: Network, params: Tree, statistics: Tree, images: Array) -> dict[str, Array]:
    """As in evaluation: no dropout, BatchNorm by `statistics`. [B, H, W] -> {head: [B, C]}."""
    x: Any = images[None]
    for layer in network.trunk:
        weights = _weights(layer, params)
        if layer.forward is layers.batch_norm:
            (scale, bias), running = weights, statistics[layer.name]
            x = layers.batch_norm_by(x, scale, bias, running["mean"], running["var"])
        elif layer.forward is not layers.dropout:
            x, _ = layer.forward(x, *weights, **layer.options)
    return {
        head: layer.forward(x, *_weights(layer, params))[0] for head, layer in network.heads.items()
    }
