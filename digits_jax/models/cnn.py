"""The plain convolutional network of the MNIST-100, single-digit and two-head systems."""

from collections.abc import Mapping

from flax import linen as nn

from digits_jax.models.layers import MaxPool, conv, dense, dropout
from digits_jax.types import Array


class CNN(nn.Module):
    """[conv3x3 - ReLU - pool2] by `features`, [fc - ReLU - dropout] by `hidden`, a layer per head.

    heads: classes by head; features: channels by convolution; hidden: units by layer;
    padding: 'SAME' or 'VALID'. With features (16, 32), hidden (256,) and 'SAME', a 28x56 image and
    one head of 100 it has 833,572 parameters; with (32, 64), (128,) and 'VALID', a 28x28 image and
    one of 10, 225,034.
    """

    heads: Mapping[str, int]
    features: tuple[int, ...] = (16, 32)
    hidden: tuple[int, ...] = (256,)
    padding: str = "SAME"

    @nn.compact
    def __call__(
        self, images: Array, *, train: bool = False, dropout_rate: Array | float = 0.0
    ) -> dict[str, Array]:
        """images: [B, H, W] float; dropout_rate: [] -> {head: [B, classes]} logits."""
        x = images[..., None]
        for channels in self.features:
            x = MaxPool()(nn.relu(conv(channels, padding=self.padding)(x)))
        x = x.reshape(x.shape[0], -1)
        for units in self.hidden:
            x = nn.relu(dense(units)(x))
            if train:
                x = dropout(x, dropout_rate, self.make_rng("dropout"))
        return {head: dense(n, name=head)(x) for head, n in self.heads.items()}
