"""Small convolutional networks, given layer by layer in the config."""

import functools
import re
from collections.abc import Iterable, Mapping

from flax import linen as nn

from digits_jax.errors import UserError, check_choice
from digits_jax.models.layers import (
    AdaptiveAveragePool,
    Edges,
    MaxPool,
    SqueezeExcite,
    activation,
    batch_norm,
    conv,
    crop,
    dense,
    dropout,
    initializer,
)
from digits_jax.types import Array

NORMS = ("after", "before", "none")
_BLOCKS = ("conv", "sep", "again")  # with activation and BatchNorm
_LAYER = re.compile(r"again|pool|(average|edges|fc|(conv|linear|sep)[1-9]) ([1-9]\d*|classes)")
_NETWORK = re.compile(
    r"(edges \d+, )?"
    r"((pool|(average|linear\d) \d+|(conv|sep)\d \d+((, pool)*, again)*), )*"
    r"((fc \d+, )*fc classes|linear\d classes(, pool|, average \d+)*)"
)
_GRAMMAR = (
    "'edges 16' (only first), 'conv3 16' (with activation, BatchNorm and dropout), 'sep3 16' (the "
    "same, separable), 'again' (that before it once more, with at most 'pool' and 'again' "
    "between), 'linear1 8' (bare), 'pool', 'average 3', 'fc 72' (and no other kind after it); then "
    "one of 'linear1 classes', 'linear3 classes', 'fc classes', and after that at most 'pool' and "
    "'average'"
)


class Compact(nn.Module):
    """The network with the given `layers`.

    layers: 'edges N', the N fixed filters of `layers.Edges`; 'convK N', a KxK convolution to N
    channels with activation, BatchNorm and dropout; 'sepK N', the same with a separable convolution
    (Chollet 2017, arXiv:1610.02357); 'again', the 'conv' or 'sep' before it once more, with the
    same convolutions and its own BatchNorm and attention (Jastrzebski et al. 2018,
    arXiv:1710.04773); 'linearK N', a KxK convolution alone; 'pool', 2x2 maximum; 'average N',
    adaptive average to NxN (1: global); 'fc N', fully connected with activation and dropout. Each
    head begins with the layer whose N is 'classes', without activation; its pixels are averaged.
    heads: classes by head; activation: one of `layers.ACTIVATIONS`; norm: BatchNorm 'after' or
    'before' the activation, or 'none'; scale: whether BatchNorm learns one; padding; bias: of the
    convolutions except depthwise ones (fully connected layers always have one); spatial: dropout of
    whole channels; dropout_start: the first layer's dropout as a fraction of the last one's, which
    is `model.dropout`, linear in between; squeeze: reduction of the channel attention after each
    'conv', 'sep' and 'again', 0 for none; residual: adds their input, cropped to the output, where
    the channels agree.
    """

    heads: Mapping[str, int]
    layers: tuple[str, ...]
    activation: str = "relu"
    norm: str = "after"
    scale: bool = True
    padding: str = "VALID"
    bias: bool = False
    spatial: bool = True
    dropout_start: float = 1.0
    squeeze: int = 0
    residual: bool = False

    @nn.compact
    def __call__(
        self, images: Array, *, train: bool = False, dropout_rate: Array | float = 0.0
    ) -> dict[str, Array]:
        """images: [B, H, W] float; dropout_rate: [] -> {head: [B, classes]} logits."""
        check_choice("model.norm", self.norm, NORMS)
        begin = self._check_layers()
        rates = self._dropout_rates(dropout_rate, self.layers[:begin])
        x = images[..., None]
        convolutions: list[nn.Module] = []
        channels = 0  # the input channels of `convolutions`
        for i, layer in enumerate(self.layers[:begin]):
            if layer == "again":
                if x.shape[-1] != channels:
                    raise UserError(
                        f"model.layers: 'again' meets {x.shape[-1]} channels, and what it repeats "
                        f"began with {channels}"
                    )
            elif new := self._convolutions(layer, x.shape[-1]):
                convolutions, channels = new, x.shape[-1]
            x = self._apply(layer, x, train, convolutions)
            if train and i in rates:
                spatial = self.spatial and x.ndim == 4
                x = dropout(x, rates[i], self.make_rng("dropout"), spatial=spatial)
        logits = {}
        for head, classes in self.heads.items():
            y = x
            for layer in self.layers[begin:]:
                layer = layer.replace("classes", str(classes))
                y = self._apply(layer, y, train, self._convolutions(layer, y.shape[-1]), bare=True)
            logits[head] = y.mean(axis=(1, 2)) if y.ndim == 4 else y
        return logits

    def _convolutions(self, layer: str, channels: int) -> list[nn.Module]:
        """The new convolutions of a 'conv', 'sep' or 'linear', in order; of other layers none."""
        kind, _, number = layer.partition(" ")
        if not kind.startswith(("conv", "sep", "linear")):
            return []
        padded = functools.partial(conv, padding=self.padding)
        init, size = initializer(self.activation), int(kind[-1])
        full = functools.partial(padded, int(number), bias=self.bias, kernel_init=init)
        if not kind.startswith("sep"):
            return [full(size)]
        return [padded(channels, size, bias=False, depthwise=True), full(1)]

    def _apply(
        self,
        layer: str,
        x: Array,
        train: bool,
        convolutions: Iterable[nn.Module],
        bare: bool = False,
    ) -> Array:
        kind, _, number = layer.partition(" ")
        if kind == "pool":
            return MaxPool()(x)
        if kind == "edges":
            return Edges(int(number))(x)
        if kind == "average":
            return AdaptiveAveragePool(int(number))(x)
        if kind == "fc":
            init = initializer(self.activation)
            y = dense(int(number), kernel_init=init)(x.reshape(x.shape[0], -1))
            return y if bare else activation(self.activation)(y)
        y = x
        for convolution in convolutions:
            y = convolution(y)
        if kind.startswith("linear"):
            return y
        if self.norm == "before":
            y = batch_norm(train, scale=self.scale)(y)
        y = activation(self.activation)(y)
        if self.norm == "after":
            y = batch_norm(train, scale=self.scale)(y)
        if self.squeeze:
            y = SqueezeExcite(self.squeeze)(y)
        if self.residual and x.shape[-1] == y.shape[-1]:
            y = y + crop(x, y.shape)
        return y

    def _check_layers(self) -> int:
        """-> the index of the layer where the heads begin."""
        for layer in self.layers:
            if not _LAYER.fullmatch(layer):
                raise UserError(f"model.layers: there is no layer '{layer}'; there are {_GRAMMAR}")
        if not _NETWORK.fullmatch(", ".join(self.layers)):
            raise UserError(f"model.layers: {self.layers} is no network; there are {_GRAMMAR}")
        return next(i for i, layer in enumerate(self.layers) if layer.endswith("classes"))

    def _dropout_rates(
        self, last: Array | float, layers: tuple[str, ...]
    ) -> dict[int, Array | float]:
        """{index of a layer: rate of the dropout after it}, after blocks (and their pool) and 'fc'.

        Not before a max pool: it would take the maximum of scaled survivors, unlike in evaluation.
        """
        sites = [i for i, layer in enumerate(layers) if layer.startswith((*_BLOCKS, "fc"))]
        rise = (1 - self.dropout_start) / max(len(sites) - 1, 1)
        return {
            i + (layers[i + 1 : i + 2] == ("pool",)): last * (self.dropout_start + rise * n)
            for n, i in enumerate(sites)
        }
