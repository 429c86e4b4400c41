"""LeNet-5 (LeCun et al. 1998), with all connections in its second convolution (C3)."""

from collections.abc import Mapping

from flax import linen as nn

from digits_jax.errors import check_choice
from digits_jax.models.layers import (
    POOLINGS,
    activation,
    batch_norm,
    conv,
    crop,
    dense,
    dropout,
    initializer,
)
from digits_jax.types import Array


class LeNet5(nn.Module):
    """conv5x5,6 (padding 2) - pool2 - conv5x5,16 - pool2 - fc120 - fc84 - a layer per head.

    An activation follows every layer but the last; dropout follows the fully connected ones. heads:
    classes by head; activation: one of `layers.ACTIVATIONS`; pooling: 'max' or 'average';
    batch_norm: before the activations of the convolutions; skip: adds to each convolution a 1x1
    one of its input, the projection shortcut of He et al. 2016 (arXiv:1512.03385). With a 28x28
    image and one head of 10 it has 61,706 parameters, with `skip` 102 more.
    """

    heads: Mapping[str, int]
    activation: str = "relu"
    pooling: str = "max"
    batch_norm: bool = False
    skip: bool = False

    @nn.compact
    def __call__(
        self, images: Array, *, train: bool = False, dropout_rate: Array | float = 0.0
    ) -> dict[str, Array]:
        """images: [B, H, W] float; dropout_rate: [] -> {head: [B, classes]} logits."""
        check_choice("model.pooling", self.pooling, POOLINGS)
        act, init = activation(self.activation), initializer(self.activation)
        x = images[..., None]
        for channels, padding in ((6, "SAME"), (16, "VALID")):
            shortcut = conv(channels, 1, bias=False, kernel_init=init)(x) if self.skip else None
            y = conv(channels, 5, padding=padding, kernel_init=init)(x)
            if self.batch_norm:
                y = batch_norm(train)(y)
            if shortcut is not None:
                y = y + crop(shortcut, y.shape)
            x = POOLINGS[self.pooling]()(act(y))
        x = x.reshape(x.shape[0], -1)
        for units in (120, 84):
            x = act(dense(units, kernel_init=init)(x))
            if train:
                x = dropout(x, dropout_rate, self.make_rng("dropout"))
        return {head: dense(n, name=head)(x) for head, n in self.heads.items()}
