"""The few data types that every room shares."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import struct

Array = jax.Array | np.ndarray
PyTree = Any


class Digits(NamedTuple):
    """Single digits, ink bright on dark.

    images: [N, 28, 28] uint8; labels: [N] uint8, 0 to 9.
    """

    images: Array
    labels: Array


class Batch(NamedTuple):
    """Examples as a step takes them.

    images: [B, H, W] float, augmented and normalised; labels: {head: [B] int32}; mask: [B] float,
    1 for an example that counts and 0 for padding; targets: {head: [B, C]} a teacher's softened
    probabilities, None without a teacher.
    """

    images: Array
    labels: Mapping[str, Array]
    mask: Array
    targets: Mapping[str, Array] | None = None


class Metrics(NamedTuple):
    """Sums over examples, so that metrics of parts add up to those of the whole.

    loss: [] summed cross-entropy (mean over heads); correct: {head: []} right on that head;
    all_heads: [] right on every head; examples: [] how many there were; finite: [] how many parts,
    steps say, had a loss that is a number.
    """

    loss: Array
    correct: Mapping[str, Array]
    all_heads: Array
    examples: Array
    finite: Array


@struct.dataclass
class Hyper:
    """What may differ between the members of a population: float32 arrays, [] each."""

    learning_rate: Array
    weight_decay: Array
    dropout: Array
    label_smoothing: Array


class Members(NamedTuple):
    """What tells the members of a population apart, [S] each.

    seed: uint32, of weights, order, augmentation and dropout; fold: int32, which part of the
    digits is left out for validation; hyper: their hyperparameters.
    """

    seed: Array
    fold: Array
    hyper: Hyper


@struct.dataclass
class Best:
    """The weights that did best on validation so far, and what early stopping must remember.

    score: [] validation accuracy; epoch: [] int32; reference: [] the score that the next one must
    beat by min_delta; wait: [] int32 epochs since it was beaten; stopped: [] bool.
    """

    params: PyTree
    model_state: PyTree
    score: Array
    epoch: Array
    reference: Array
    wait: Array
    stopped: Array


@struct.dataclass
class TrainState:
    """All that training changes; arrays only. In a population every leaf has a leading member axis.

    step: [] int32; model_state: running statistics of BatchNorm, {} without; ema: averaged params,
    None where off.
    """

    step: Array
    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    ema: PyTree
    best: Best
