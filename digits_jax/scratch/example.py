"""Backpropagation on one page: a 2-3-1 network that learns to add, by gradient descent.

Two inputs, three hidden units with ReLU, one output as it is; four points at once, their mean
squared error. Every line of `gradients` is one application of the chain rule.

>>> points = np.array([[1.0, 2.0], [2.0, 1.0], [3.0, 1.0], [1.0, 3.0]])
>>> sums = points.sum(axis=1)
>>> weights = start()
>>> round(loss(weights, points, sums), 4)
5.7239
>>> for step in range(5000):
...     weights = descend(weights, gradients(weights, points, sums), 0.01)
>>> round(loss(weights, points, sums), 3)
0.0
>>> predict(weights, np.array([[2.0, 2.0]])).round(1).tolist()
[4.0]
"""

from typing import NamedTuple

import numpy as np


class Weights(NamedTuple):
    """hidden: [2, 3] and [3]; output: [3] and []."""

    hidden: np.ndarray
    hidden_bias: np.ndarray
    output: np.ndarray
    output_bias: np.ndarray


def start() -> Weights:
    """Small and all different: equal units would stay equal."""
    hidden = np.array([[0.1, 0.2, -0.1], [0.2, -0.1, 0.3]])
    return Weights(hidden, np.zeros(3), np.array([0.3, -0.2, 0.1]), np.array(0.0))


def predict(weights: Weights, x: np.ndarray) -> np.ndarray:
    """x: [N, 2] -> [N]."""
    h = np.maximum(x @ weights.hidden + weights.hidden_bias, 0)
    return h @ weights.output + weights.output_bias


def loss(weights: Weights, x: np.ndarray, target: np.ndarray) -> float:
    """L = mean of (y - t)^2 / 2."""
    return float(((predict(weights, x) - target) ** 2).mean() / 2)


def gradients(weights: Weights, x: np.ndarray, target: np.ndarray) -> Weights:
    """dL/dw for every weight w."""
    # forward, keeping what the way back needs
    z = x @ weights.hidden + weights.hidden_bias  # [N, 3]
    h = np.maximum(z, 0)
    y = h @ weights.output + weights.output_bias  # [N]
    # backward, from the loss to the input
    dy = (y - target) / len(y)  # L = sum of (y - t)^2 / 2N
    doutput = h.T @ dy  # y = h v + c
    doutput_bias = dy.sum()
    dh = np.outer(dy, weights.output)
    dz = dh * (z > 0)  # h = max(z, 0)
    dhidden = x.T @ dz  # z = x W + b
    dhidden_bias = dz.sum(axis=0)
    return Weights(dhidden, dhidden_bias, doutput, doutput_bias)


def descend(weights: Weights, gradient: Weights, rate: float) -> Weights:
    """w <- w - rate dL/dw."""
    return Weights(*(w - rate * g for w, g in zip(weights, gradient, strict=True)))
