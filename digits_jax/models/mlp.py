"""The multilayer perceptron, a baseline."""

from collections.abc import Mapping

from flax import linen as nn

from digits_jax.models.layers import activation, dense, dropout, initializer
from digits_jax.types import Array


class MLP(nn.Module):
    """[fully connected - activation - dropout] for each of `hidden`, then one layer per head.

    heads: classes by head; hidden: units by layer; activation: one of `layers.ACTIVATIONS`. With
    hidden (10,), a 28x28 image and one head of 10 it has 7,960 parameters; with (128,), 101,770;
    with (64, 64), a 42x28 image and two heads, 80,788.
    """

    heads: Mapping[str, int]
    hidden: tuple[int, ...] = (512, 256)
    activation: str = "relu"

    @nn.compact
    def __call__(
        self, images: Array, *, train: bool = False, dropout_rate: Array | float = 0.0
    ) -> dict[str, Array]:
        """images: [B, H, W] float; dropout_rate: [] -> {head: [B, classes]} logits."""
        act, init = activation(self.activation), initializer(self.activation)
        x = images.reshape(images.shape[0], -1)
        for units in self.hidden:
            x = act(dense(units, kernel_init=init)(x))
            if train:
                x = dropout(x, dropout_rate, self.make_rng("dropout"))
        return {head: dense(n, name=head)(x) for head, n in self.heads.items()}
