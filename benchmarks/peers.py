"""The same networks and training steps elsewhere: PyTorch, and Flax as its documentation has it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import linen as nn
from torch.nn import functional

from benchmarks.ours import Step
from digits_jax import models
from digits_jax.core.optim import transformation
from digits_jax.models import layers

Labels = dict[str, np.ndarray]
_LazyConv2d: Any = torch.nn.LazyConv2d  # its annotations leave out padding by name


class _Average(torch.nn.Module):
    """`layers.AdaptiveAveragePool`."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        window, strides = layers.adaptive_window(tuple(x.shape[2:]), self.size)
        return functional.avg_pool2d(x, window, strides)


class _Residual(torch.nn.Module):
    """`models.resnet.Residual`."""

    def __init__(self, features: int, projected: bool):
        super().__init__()
        self.shortcut = torch.nn.Sequential(*(_conv_norm(features, 1) if projected else []))
        self.main = torch.nn.Sequential(
            *_conv_norm(features, 3), torch.nn.ReLU(), *_conv_norm(features, 3)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.shortcut(x) + self.main(x))


class _Network(torch.nn.Module):
    """A body, and a tail per head."""

    def __init__(self, body: list[torch.nn.Module], tails: dict[str, torch.nn.Module]):
        super().__init__()
        self.body, self.tails = torch.nn.Sequential(*body), torch.nn.ModuleDict(tails)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.body(images)
        return {head: tail(x) for head, tail in self.tails.items()}


def _conv_norm(features: int, size: int) -> list[torch.nn.Module]:
    convolution = _LazyConv2d(features, size, padding="same", bias=False)
    return [convolution, torch.nn.LazyBatchNorm2d()]


def _dense(hidden: tuple[int, ...], activation: type[torch.nn.Module], rate: float) -> list:
    parts = [(torch.nn.LazyLinear(n), activation(), torch.nn.Dropout(rate)) for n in hidden]
    return [torch.nn.Flatten(), *(layer for part in parts for layer in part)]


def _compact(model: Any, activation: type[torch.nn.Module]) -> Callable[[str], list]:
    """A token of `model.layers` -> its modules."""

    def modules(layer: str) -> list[torch.nn.Module]:
        kind, _, number = layer.partition(" ")
        if kind == "pool":
            return [torch.nn.MaxPool2d(2)]
        if kind == "average":
            return [_Average(int(number))]
        if kind == "fc":
            return [torch.nn.Flatten(), torch.nn.LazyLinear(int(number))]
        padding = model.padding.lower()
        made: list[torch.nn.Module] = [
            _LazyConv2d(int(number), int(kind[-1]), padding=padding, bias=model.bias)
        ]
        if kind.startswith("conv"):
            norm, act = torch.nn.LazyBatchNorm2d(), activation()
            made += {"before": [norm, act], "after": [act, norm], "none": [act]}[model.norm]
        return made

    return modules


def torch_network(config: Any, heads: dict[str, int], shape: tuple[int, int]) -> torch.nn.Module:
    """The network of `config` in PyTorch; checked to have as many parameters."""
    model, rate = config.model, config.model.dropout
    names = {"relu": "ReLU", "leaky_relu": "LeakyReLU", "silu": "SiLU"}
    names |= {"sigmoid": "Sigmoid", "tanh": "Tanh"}
    activation = getattr(torch.nn, names[model.get("activation", "relu")])
    tails: dict[str, torch.nn.Module] = {h: torch.nn.LazyLinear(n) for h, n in heads.items()}
    match model.name:
        case "mlp":
            body = _dense(model.hidden, activation, rate)
        case "cnn":
            body = []
            for n in model.features:
                convolution = _LazyConv2d(n, 3, padding=model.padding.lower())
                body += [convolution, torch.nn.ReLU(), torch.nn.MaxPool2d(2)]
            body += _dense(model.hidden, torch.nn.ReLU, rate)
        case "lenet5":
            body = []
            for n, padding in ((6, 2), (16, 0)):
                convolution = _LazyConv2d(n, 5, padding=padding)
                body += [convolution, activation(), torch.nn.MaxPool2d(2)]
            body += _dense((120, 84), activation, rate)
        case "resnet":
            body, width = [*_conv_norm(model.stem, 3), torch.nn.ReLU()], model.stem
            for n in model.features:
                body.append(torch.nn.MaxPool2d(2))
                for _ in range(model.blocks):
                    body.append(_Residual(n, width != n))
                    width = n
            body += [_Average(1), torch.nn.Flatten(), torch.nn.Dropout(rate)]
        case "compact":
            modules, body = _compact(model, activation), []
            begin = next(i for i, x in enumerate(model.layers) if x.endswith("classes"))
            drop = torch.nn.Dropout2d if model.spatial else torch.nn.Dropout
            pending: list[torch.nn.Module] = []
            for i, layer in enumerate(model.layers[:begin]):
                body += modules(layer)
                if layer.startswith("fc"):
                    body += [activation(), torch.nn.Dropout(rate)]
                if layer.startswith("conv") and rate:
                    pending = [drop(rate)]
                if model.layers[i + 1] != "pool":
                    body += pending
                    pending = []
            for head, n in heads.items():
                tail = [
                    m for x in model.layers[begin:] for m in modules(x.replace("classes", str(n)))
                ]
                tails[head] = torch.nn.Sequential(*tail, torch.nn.Flatten())
        case name:
            raise ValueError(f"there is no {name} in PyTorch here")
    network = _Network(body, tails)
    network(torch.zeros(2, 1, *shape))
    own = jax.eval_shape(
        lambda key: models.from_config(config, heads).init(
            key, jnp.zeros((1, *shape)), train=False, dropout_rate=0.0
        ),
        jax.random.key(0),
    )
    count = sum(p.numel() for p in network.parameters())
    assert count == models.count_parameters(own["params"]), (config.name, count)
    return network


def torch_train(
    network: torch.nn.Module, config: Any, images: np.ndarray, labels: Labels, compiled: bool
) -> Step:
    """images: [N, H, W] uint8; labels: {head: [N]}. A step takes the next batch of them."""
    o = config.optimizer
    if o.name == "sgd":
        optimizer: Any = torch.optim.SGD(
            network.parameters(),
            o.learning_rate,
            o.momentum,
            nesterov=o.nesterov and o.momentum > 0,
        )
    else:
        assert o.name == "adam", o.name
        optimizer = torch.optim.Adam(network.parameters(), o.learning_rate)
    network.train()
    forward = torch.compile(network) if compiled else network
    pixels = torch.tensor(images.copy())
    targets = {head: torch.tensor(y).long() for head, y in labels.items()}
    order = torch.randperm(len(images)).split(config.batch_size)[:-1]
    count = 0

    def step() -> torch.Tensor:
        nonlocal count
        rows = order[count % len(order)]
        count += 1
        logits = forward(pixels[rows].unsqueeze(1).float() / 255)
        losses = [functional.cross_entropy(x, targets[h][rows]) for h, x in logits.items()]
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


def torch_infer(network: torch.nn.Module, images: np.ndarray, compiled: bool) -> Step:
    """images: [B, H, W] uint8, always the same."""
    network.eval()
    forward = torch.compile(network) if compiled else network
    pixels = torch.tensor(images.copy())

    @torch.inference_mode()
    def infer() -> Any:
        logits = forward(pixels.unsqueeze(1).float() / 255)
        return {head: functional.log_softmax(x, dim=1) for head, x in logits.items()}

    return infer


def flax_train(config: Any, heads: dict[str, int], images: np.ndarray, labels: Labels) -> Step:
    """`nn.Conv`, `nn.max_pool`, optax and a loop of jitted steps over one member."""
    with _plain_flax():
        model: Any = models.from_config(config, heads)
        key = jax.random.key(0)
        variables = model.init(
            key, jnp.zeros((1, *images.shape[1:])), train=False, dropout_rate=0.0
        )
    tx = optax.chain(transformation(config.optimizer), optax.scale(-config.optimizer.learning_rate))
    pixels, targets = jnp.asarray(images), {h: jnp.asarray(y) for h, y in labels.items()}
    state = [variables["params"], variables.get("batch_stats", {}), tx.init(variables["params"])]

    def loss_fn(params: Any, stats: Any, rows: Any, key: Any) -> Any:
        logits, new = model.apply(
            {"params": params, "batch_stats": stats},
            pixels[rows].astype(jnp.float32) / 255,
            train=True,
            dropout_rate=config.model.dropout,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        losses = [
            optax.softmax_cross_entropy_with_integer_labels(x, targets[h][rows]).mean()
            for h, x in logits.items()
        ]
        return jnp.stack(losses).mean(), new.get("batch_stats", {})

    def step(state: Any, rows: Any, count: Any) -> Any:
        params, stats, opt_state = state
        with _plain_flax():
            grads, stats = jax.grad(loss_fn, has_aux=True)(
                params, stats, rows, jax.random.fold_in(key, count)
            )
        updates, opt_state = tx.update(grads, opt_state, params)
        return [optax.apply_updates(params, updates), stats, opt_state]

    jitted, count = jax.jit(step, donate_argnums=0), 0
    batches = len(images) // config.batch_size
    order = np.random.default_rng(0).permutation(len(images))[: batches * config.batch_size]
    rows = jnp.asarray(order.reshape(batches, -1))

    def one() -> Any:
        nonlocal state, count
        state = jitted(state, rows[count % batches], count)
        count += 1
        return state

    return one


def flax_infer(config: Any, heads: dict[str, int], images: np.ndarray) -> Step:
    """images: [B, H, W] uint8, always the same."""
    with _plain_flax():
        model: Any = models.from_config(config, heads)
        variables = model.init(
            jax.random.key(0), jnp.zeros((1, *images.shape[1:])), train=False, dropout_rate=0.0
        )

        def apply(variables: Any, images: Any) -> Any:
            pixels = images.astype(jnp.float32) / 255
            logits = model.apply(variables, pixels, train=False, dropout_rate=0.0)
            return jax.tree.map(jax.nn.log_softmax, logits)

        program = jax.jit(apply).lower(variables, images).compile()
    return lambda: program(variables, images)


@contextmanager
def _plain_flax() -> Iterator[None]:
    """Within, the package's networks are made of Flax's own layers."""

    def max_pool(self: Any, x: Any) -> Any:
        return nn.max_pool(x, (2, 2), strides=(2, 2))

    with (
        mock.patch.object(layers.MaxPool, "__call__", max_pool),
        mock.patch.object(layers.BatchNorm, "__call__", nn.BatchNorm.__call__),
        layers.portable(),
    ):
        yield
