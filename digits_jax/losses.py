"""Cross-entropy per example, averaged over heads."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from digits_jax.types import Array


def cross_entropy(
    logits: Mapping[str, Array], labels: Mapping[str, Array], label_smoothing: Array | float = 0.0
) -> Array:
    """logits: {head: [B, C]}; labels: {head: [B] int} -> [B].

    Label smoothing s mixes the one-hot target with the uniform one: (1 - s) y + s / C (Szegedy et
    al. 2016, arXiv:1512.00567); it may be traced.
    """
    losses = []
    for head, scores in logits.items():
        log_p = jax.nn.log_softmax(scores)
        picked = jnp.take_along_axis(log_p, labels[head][:, None], axis=1)[:, 0]
        losses.append(-(1.0 - label_smoothing) * picked - label_smoothing * log_p.mean(axis=1))
    return jnp.stack(losses).mean(axis=0)
