"""Losses per example, averaged over heads."""

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


def distillation(
    logits: Mapping[str, Array], targets: Mapping[str, Array], temperature: float
) -> Array:
    """How far softened predictions are from a teacher's: T^2 KL(targets || softmax(logits / T)).

    Hinton et al. 2015, arXiv:1503.02531. logits: {head: [B, C]}; targets: {head: [B, C]}
    probabilities at the same temperature -> [B], the mean over heads.
    """
    losses = []
    for head, scores in logits.items():
        log_q, p = jax.nn.log_softmax(scores / temperature), targets[head]
        losses.append((jax.scipy.special.xlogy(p, p) - p * log_q).sum(axis=1))
    return temperature**2 * jnp.stack(losses).mean(axis=0)
