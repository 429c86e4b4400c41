"""SGD and Adam in NumPy, over trees {layer: {weight: array}}."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from digits_jax.types import PyTree

Tree = dict[str, dict[str, np.ndarray]]
Memory = PyTree  # of arrays; each rule has its own structure


class Rule(NamedTuple):
    """An optimiser. init: params -> memory; update: (gradients, memory) -> (direction, memory).

    Parameters change by minus the learning rate times the direction.
    """

    init: Callable[[Tree], Memory]
    update: Callable[[Tree, Memory], tuple[Tree, Memory]]


def each(function: Callable[..., np.ndarray], *trees: Tree) -> Tree:
    """`function` of the trees' arrays, leaf by leaf."""
    return {
        layer: {name: function(*(tree[layer][name] for tree in trees)) for name in weights}
        for layer, weights in trees[0].items()
    }


def sgd(momentum: float = 0.9, nesterov: bool = True) -> Rule:
    """v <- momentum v + g; the direction is v, or Nesterov's: g + momentum v.

    Sutskever et al. 2013, "On the importance of initialization and momentum in deep learning".
    """

    def update(gradients: Tree, velocity: Tree) -> tuple[Tree, Tree]:
        velocity = each(lambda g, v: momentum * v + g, gradients, velocity)
        if not nesterov:
            return velocity, velocity
        return each(lambda g, v: g + momentum * v, gradients, velocity), velocity

    return Rule(lambda params: each(np.zeros_like, params), update)


def adam(b1: float = 0.9, b2: float = 0.999, epsilon: float = 1e-8) -> Rule:
    """m <- b1 m + (1 - b1) g, v <- b2 v + (1 - b2) g^2; the direction is m^ / (sqrt(v^) + epsilon).

    After t steps m^ = m / (1 - b1^t) and v^ = v / (1 - b2^t), as both begin at 0 (Kingma and Ba
    2015, arXiv:1412.6980).
    """

    def init(params: Tree) -> Memory:
        zeros = each(np.zeros_like, params)
        return {"t": np.int32(0), "m": zeros, "v": zeros}

    def update(gradients: Tree, memory: Memory) -> tuple[Tree, Memory]:
        t = memory["t"] + 1
        m = each(lambda g, m: b1 * m + (1 - b1) * g, gradients, memory["m"])
        v = each(lambda g, v: b2 * v + (1 - b2) * g * g, gradients, memory["v"])
        short, long = float(1 - b1 ** float(t)), float(1 - b2 ** float(t))
        direction = each(lambda m, v: (m / short) / (np.sqrt(v / long) + epsilon), m, v)
        return direction, {"t": t, "m": m, "v": v}

    return Rule(init, update)
