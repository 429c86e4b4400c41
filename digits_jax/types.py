"""Data types used throughout the package."""

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


class Split(NamedTuple):
    """Examples as indices into digits in memory.

    images: [D, 28, 28] uint8; labels: [D] uint8; rows: [N, k] int32, the digits of each example;
    pool: [P] int32, sorted, all digits of the split; fresh pairs are sampled from it. With
    cross-validation, `rows` and `pool` have a leading axis of folds.
    """

    images: Array
    labels: Array
    rows: Array
    pool: Array

    @property
    def size(self) -> int:
        """How many examples there are."""
        return self.rows.shape[-2]

    def of(self, fold: Array | int) -> "Split":
        """The split of a member that holds out `fold`."""
        if self.rows.ndim == 2:
            return self
        return self._replace(rows=self.rows[fold], pool=self.pool[fold])


class Normalizer(NamedTuple):
    """(x - mean) * scale for pixels in [0, 1]; each [H, W] float32."""

    mean: Array
    scale: Array


class Batch(NamedTuple):
    """Examples as a step takes them.

    images: [B, H, W] float, normalised, in training augmented; labels: {head: [B] int32}; mask: [B]
    float, 1 for an example that counts and 0 for padding; targets: {head: [B, C]} a teacher's
    probabilities at `distill.temperature`, None without a teacher.
    """

    images: Array
    labels: Mapping[str, Array]
    mask: Array
    targets: Mapping[str, Array] | None = None


class Metrics(NamedTuple):
    """Sums over examples, so that metrics of parts add up to those of the whole.

    loss: [] the summed loss (mean over heads), as it is trained on or evaluated; correct:
    {head: []} right on that head; examples: [] how many there were; finite: [] how many batches
    had a finite loss.
    """

    loss: Array
    correct: Mapping[str, Array]
    examples: Array
    finite: Array

    def means(self, member: int) -> dict[str, float]:
        """`{'loss', 'accuracy'}` of one member: its sums over its examples, heads averaged."""
        count = float(self.examples[member])
        hits = [float(correct[member]) for correct in self.correct.values()]
        return {"loss": float(self.loss[member]) / count, "accuracy": sum(hits) / len(hits) / count}


@struct.dataclass
class Hyper:
    """Hyperparameters that may differ between members: floats, [] each."""

    learning_rate: Array
    weight_decay: Array | float = 0.0
    dropout: Array | float = 0.0
    label_smoothing: Array | float = 0.0


class Members(NamedTuple):
    """What tells the members of a population apart, [S] each.

    seed: uint32, of weights, order, augmentation and dropout; fold: int32, which part of the
    digits is left out for validation; hyper: their hyperparameters.
    """

    seed: Array
    fold: Array
    hyper: Hyper


class Weights(NamedTuple):
    """What a network predicts with: its parameters, and BatchNorm's running statistics ({} without
    BatchNorm).
    """

    params: PyTree
    model_state: PyTree


class Teacher(NamedTuple):
    """A trained run that others learn from: its weights, [S, ...] by slice, and its normaliser."""

    weights: list[Weights]
    normalizer: Normalizer


class PrecomputedTargets(NamedTuple):
    """V distorted copies of the P training digits, and what a teacher answers to each of them.

    images: [V * P, 28, 28] uint8, one copy of the whole pool after another; probabilities:
    [V * P, C] float16.
    """

    images: Array
    probabilities: Array


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


class Carry(NamedTuple):
    """What a scan over the steps of an epoch carries: every leaf has a leading axis of members.

    totals: sums over the epoch so far; order: [S, steps * B] int32, the examples of the epoch in
    the order in which each member sees them.
    """

    state: TrainState
    totals: Metrics
    order: Array
    members: Members


class Shared(NamedTuple):
    """What all members of a slice share: not vmapped, and replicated on every device.

    mask: [B], in evaluation only.
    """

    split: Split
    normalizer: Normalizer
    teacher: Teacher | PrecomputedTargets | None = None
    mask: Array | None = None
