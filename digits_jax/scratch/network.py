"""Networks as lists of layers, run forward and backward.

Parameters have the JAX engine's names and shapes, so either engine reads what the other trained.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from ml_collections import ConfigDict

from digits_jax.errors import UserError, check_choice
from digits_jax.scratch import layers
from digits_jax.scratch.optim import Tree
from digits_jax.types import PyTree

NETWORKS = ("mlp", "cnn", "lenet5")
Array = np.ndarray
Saved = PyTree  # what a layer's forward function keeps for its backward one


class Layer(NamedTuple):
    """A pair of functions of `layers`, and the names of its weights in the parameters, if any.

    shape: the kernel's, without the input channels; gain: its entries have variance gain / inputs.
    """

    forward: Callable[..., tuple[Array, Saved]]
    backward: Callable[..., tuple[Array, ...]]
    name: str = ""
    weights: tuple[str, ...] = ()
    options: Mapping[str, int | Array] = {}
    shape: tuple[int, ...] = ()
    gain: float = 2.0


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """The layers that all heads share, and the last layer of each head."""

    trunk: tuple[Layer, ...]
    heads: Mapping[str, Layer]


class Tape(NamedTuple):
    """What `forward` saves for `backward`, by layer; a dropout layer that was off is left out."""

    trunk: list[tuple[Layer, Saved]]
    heads: dict[str, tuple[Layer, Saved]]


def build(config: ConfigDict, heads: Mapping[str, int]) -> Network:
    """The network of `config`, a run's config.model; UserError for one not supported here."""
    check_choice("config.engine=numpy: model.name", config.name, NETWORKS)
    if config.get("skip"):
        raise UserError("config.engine=numpy knows no model.skip; config.engine=jax does")
    act = config.get("activation", "relu")
    check_choice("model.activation", act, _ACTIVATIONS)
    # He et al. 2015 for ReLU, Glorot and Bengio 2010 (about) for activations linear around 0.
    gain = 1.0 if act in ("sigmoid", "tanh") else 2.0
    trunk: list[Layer] = []
    count: Counter[str] = Counter()

    def add(kind: str, flax_kind: str = "", **fields: Any) -> None:
        """Appends a layer of `layers`; one with weights is named and numbered as Flax does."""
        name = f"{flax_kind}_{count[flax_kind]}" if flax_kind else ""
        count[flax_kind] += 1
        trunk.append(_layer(kind, name, gain=gain, **fields))

    def conv(features: int, size: int, padding: int) -> None:
        shape, options = (size, size, features), {"padding": padding}
        add("conv", "Conv", weights=_KERNEL, shape=shape, options=options)

    if config.name == "cnn":
        for features in config.features:
            conv(features, 3, padding=1 if config.padding == "SAME" else 0)
            add(act)
            add("max_pool")
    elif config.name == "lenet5":
        check_choice("model.pooling", config.pooling, ("max", "average"))
        for features, padding in ((6, 2), (16, 0)):
            conv(features, 5, padding)
            if config.batch_norm:
                add("batch_norm", "BatchNorm", weights=("scale", "bias"))
            add(act)
            add(f"{config.pooling}_pool")
    add("flatten")
    for units in (120, 84) if config.name == "lenet5" else config.hidden:
        add("linear", "Dense", weights=_KERNEL, shape=(units,))
        add(act)
        add("dropout")
    last = {h: _layer("linear", h, weights=_KERNEL, shape=(n,)) for h, n in heads.items()}
    return Network(tuple(trunk), last)


_ACTIVATIONS = ("relu", "leaky_relu", "sigmoid", "tanh")
_KERNEL = ("kernel", "bias")


def _layer(kind: str, name: str, **fields: Any) -> Layer:
    return Layer(getattr(layers, kind), getattr(layers, f"{kind}_backward"), name, **fields)


def initialize(
    rng: np.random.Generator, network: Network, image_shape: tuple[int, int], dtype: npt.DTypeLike
) -> tuple[Tree, Tree]:
    """-> (params, running statistics): normal kernels of variance gain / inputs, biases of 0."""
    params: Tree = {}
    statistics: Tree = {}

    def draw(layer: Layer, x: Array) -> None:
        *window, features = layer.shape or [0]
        channels = len(x) if x.ndim == 4 else x.shape[-1]
        if layer.weights == _KERNEL:
            shape = (*window, channels, features)
            deviation = np.sqrt(layer.gain / np.prod(shape[:-1]))
            kernel = deviation * rng.standard_normal(shape)
            params[layer.name] = {"kernel": kernel.astype(dtype), "bias": np.zeros(features, dtype)}
        elif layer.weights:
            one, zero = np.ones(channels, dtype), np.zeros(channels, dtype)
            params[layer.name] = {"scale": one, "bias": zero}
            statistics[layer.name] = {"mean": zero, "var": one}

    x = np.zeros((1, 1, *image_shape), dtype)
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
) -> tuple[dict[str, Array], Tape, Tree]:
    """As in training. images: [B, H, W] -> ({head: [B, C] logits}, tape, batch statistics).

    masks: shape -> the factors of dropout, None for no dropout. The statistics are BatchNorm's,
    {layer: {"mean": [C], "var": [C]}}.
    """
    x, tape = images[None], Tape([], {})
    logits, statistics = {}, {}
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
        tape.trunk.append((layer, saved))
    for head, layer in network.heads.items():
        logits[head], saved = layer.forward(x, *_weights(layer, params))
        tape.heads[head] = (layer, saved)
    return logits, tape, statistics


def backward(dlogits: Mapping[str, Array], tape: Tape) -> Tree:
    """The gradients of the parameters, from those of the logits: every layer in reverse order.

    The gradients of several heads add up at the layers that they share.
    """
    gradients: Tree = {}

    def step(layer: Layer, saved: Saved, dy: Array) -> Array:
        dx, *dweights = layer.backward(dy, saved)
        if layer.weights:
            gradients[layer.name] = dict(zip(layer.weights, dweights, strict=True))
        return dx

    dx = sum(step(*part, dlogits[head]) for head, part in tape.heads.items())
    assert not isinstance(dx, int)  # there is at least one head
    for layer, saved in reversed(tape.trunk):
        dx = step(layer, saved, dx)
    return gradients


def predict(network: Network, params: Tree, statistics: Tree, images: Array) -> dict[str, Array]:
    """As in evaluation: no dropout, BatchNorm by `statistics`. [B, H, W] -> {head: [B, C]}."""
    x = images[None]
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
