"""SGD and Adam by hand, over trees {layer: {weight: array}}.

Each is a `Rule`: `init(params)` gives its memory, `update(gradients, memory)` the direction, still
to be scaled by minus the learning rate, and the next memory.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Tree = dict[str, dict[str, np.ndarray]]


class Rule(NamedTuple):
    """init: params -> memory; update: (gradients, memory) -> (direction, memory)."""

    init: Callable[[Tree], Any]
    update: Callable[[Tree, Any], tuple[Tree, Any]]


def each(function: Callable[..., Any], *trees: Tree) -> Tree:
    """`function` of the arrays of the trees, place by place."""
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

    After t steps m^ = m / (1 - b1^t) and v^ = v / (1 - b2^t): both begin at 0 (Kingma and Ba 2015,
    arXiv:1412.6980).
    """

    def init(params: Tree) -> Any:
        return {
            "t": np.int32(0),
            "m": each(np.zeros_like, params),
            "v": each(np.zeros_like, params),
        }

    def update(gradients: Tree, memory: Any) -> tuple[Tree, Any]:
        t = memory["t"] + 1
        m = each(lambda g, m: b1 * m + (1 - b1) * g, gradients, memory["m"])
        v = each(lambda g, v: b2 * v + (1 - b2) * g * g, gradients, memory["v"])
        short, long = float(1 - b1 ** float(t)), float(1 - b2 ** float(t))
        direction = each(lambda m, v: (m / short) / (np.sqrt(v / long) + epsilon), m, v)
        return direction, {"t": t, "m": m, "v": v}

    return Rule(init, update)
