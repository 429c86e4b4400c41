"""Metrics as masked sums: parts add up, and no example is dropped or counted twice."""

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp

from digits_jax.types import Array, Batch, Metrics


def measure(logits: Mapping[str, Array], losses: Array, batch: Batch) -> Metrics:
    """Sums over the batch. logits: {head: [B, C]}; losses: [B]."""
    right = {head: scores.argmax(axis=1) == batch.labels[head] for head, scores in logits.items()}
    all_right = jnp.stack(list(right.values())).all(axis=0)
    loss = (losses * batch.mask).sum()
    return Metrics(
        loss=loss,
        correct={head: (hit * batch.mask).sum() for head, hit in right.items()},
        all_heads=(all_right * batch.mask).sum(),
        examples=batch.mask.sum(),
        finite=jnp.isfinite(loss).astype(batch.mask.dtype),
    )


def zeros(heads: Iterable[str], shape: tuple[int, ...] = ()) -> Metrics:
    """Empty sums; a fresh buffer for each leaf, since they are donated."""

    def zero() -> Array:
        return jnp.zeros(shape, jnp.result_type(float))

    return Metrics(zero(), {head: zero() for head in heads}, zero(), zero(), zero())


def add(a: Metrics, b: Metrics) -> Metrics:
    """The sums of both parts."""
    return jax.tree.map(jnp.add, a, b)


def means(metrics: Metrics, member: int) -> dict[str, float]:
    """`{'loss', 'accuracy'}` of one member: its sums over its examples, heads averaged."""
    count = float(metrics.examples[member])
    hits = [float(correct[member]) for correct in metrics.correct.values()]
    return {
        "loss": float(metrics.loss[member]) / count,
        "accuracy": sum(hits) / len(hits) / count,
    }
