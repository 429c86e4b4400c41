"""The multilayer perceptron: the baseline that memorises pixels."""

from collections.abc import Mapping

from flax import linen as nn

from digits_jax.layers import dense, dropout
from digits_jax.types import Array


class MLP(nn.Module):
    """[fully connected - ReLU - dropout] for each of `hidden`, then one linear layer per head.

    heads: classes by head; hidden: units by layer.
    """

    heads: Mapping[str, int]
    hidden: tuple[int, ...] = (512, 256)

    @nn.compact
    def __call__(self, images: Array, *, train: bool, dropout_rate: Array) -> dict[str, Array]:
        """images: [B, H, W] float; dropout_rate: [] -> {head: [B, classes]} logits."""
        x = images.reshape(images.shape[0], -1)
        for units in self.hidden:
            x = nn.relu(dense(units)(x))
            if train:
                x = dropout(x, dropout_rate, self.make_rng("dropout"))
        return {head: dense(n, name=head)(x) for head, n in self.heads.items()}
