"""An 8-bit ONNX graph in NumPy, integer by integer.

Products are summed exactly, or as x86 processors without VNNI sum those of unsigned and signed
bytes (vpmaddubsw): two neighbours at a time in 16 bits, which saturate.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

INT16 = np.iinfo(np.int16)
LAYERS = ("Conv", "Gemm", "MatMul")


class Levels(NamedTuple):
    """What DequantizeLinear reads; scale and zero are scalars, or lie along `axis`."""

    levels: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    axis: int

    def real(self) -> np.ndarray:
        shape = [1] * self.levels.ndim
        if self.scale.ndim:
            shape[self.axis] = -1
        whole = self.levels.astype(np.int32) - self.zero.astype(np.int32).reshape(shape)
        return whole.astype(np.float32) * self.scale.reshape(shape)


def run(model: onnx.ModelProto, images: np.ndarray, dot: Callable) -> dict[str, np.ndarray]:
    """All that the graph computes, by name; `dot` is `exact` or `saturating`.

    images: [B, H, W] float32. A layer whose operands are not both in 8 bits is an error.
    """
    known = {x.name: numpy_helper.to_array(x) for x in model.graph.initializer}
    known["images"] = images
    for node in model.graph.node:
        how = _how(node)
        values = [known[name] for name in node.input]
        if node.op_type == "QuantizeLinear":
            x, scale, zero = values
            result = np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.uint8)
        elif node.op_type == "DequantizeLinear":
            result = Levels(*values, how.get("axis", 1))
        elif node.op_type in LAYERS:
            result = _layer(node, dot, *values)
        else:
            reals = [x.real() if isinstance(x, Levels) else x for x in values]
            if node.op_type == "MaxPool":  # onnx's own takes a second for each image
                result = _windows(*reals, how, -np.inf).max(axis=(-2, -1))
            else:
                feeds = dict(zip(node.input, reals, strict=True))
                (result,) = ReferenceEvaluator(node).run(None, feeds)
        known[node.output[0]] = result
    return known


def exact(rows: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """[N, K] by [K, M] in integers; float64 holds all of them."""
    return np.rint(rows.astype(np.float64) @ kernel.astype(np.float64)).astype(np.int64)


def saturating(rows: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """As `exact`, with the sum of each two neighbouring products saturated to 16 bits."""
    odd = len(kernel) % 2
    rows = np.pad(rows.astype(np.int32), ((0, 0), (0, odd)))
    kernel = np.pad(kernel.astype(np.int32), ((0, odd), (0, 0)))
    sums = np.zeros((len(rows), kernel.shape[1]), np.int64)
    for k in range(0, len(kernel), 2):
        pair = rows[:, k : k + 1] * kernel[k] + rows[:, k + 1 : k + 2] * kernel[k + 1]
        sums += np.clip(pair, INT16.min, INT16.max)
    return sums


def kernels(model: onnx.ModelProto) -> Iterator[np.ndarray]:
    """The weights of each layer as they are multiplied, [K, output channels] int8."""
    known = {x.name: numpy_helper.to_array(x) for x in model.graph.initializer}
    read = {x.output[0]: x.input[0] for x in model.graph.node if x.op_type == "DequantizeLinear"}
    for node in model.graph.node:
        if node.op_type in LAYERS:
            weights = known[read[node.input[1]]]
            assert weights.dtype == np.int8
            yield _matrix(weights, node.op_type)


def _how(node: onnx.NodeProto) -> dict:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _matrix(weights: np.ndarray, kind: str) -> np.ndarray:
    """[K, M], the input channels of a convolution last in K, as runtimes lay them."""
    if kind == "Conv":
        return weights.transpose(2, 3, 1, 0).reshape(-1, len(weights))
    return weights


def _windows(x: np.ndarray, how: dict, filling: float) -> np.ndarray:
    """[B, C, H, W] -> [B, C, rows, columns, h, w]"""
    top, left, bottom, right = how["pads"]
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=filling)
    down, across = how["strides"]
    return sliding_window_view(x, how["kernel_shape"], (2, 3))[:, :, ::down, ::across]


def _layer(
    node: onnx.NodeProto, dot: Callable, x: Levels, weights: Levels, bias: Levels | None = None
) -> np.ndarray:
    """The layer's sums as float32; a bias is an integer in their scale."""
    kind, how = node.op_type, _how(node)
    assert not np.any(weights.zero)
    kernel = _matrix(weights.levels, kind)
    if kind == "Conv":
        assert (how["group"], set(how["dilations"])) == (1, {1})
        how["kernel_shape"] = weights.levels.shape[2:]
        rows = _windows(x.levels, how, x.zero).transpose(0, 2, 3, 4, 5, 1)
        shape = rows.shape[:3]
    else:
        assert not how.get("transA")
        assert not how.get("transB")
        rows, shape = x.levels, x.levels.shape[:-1]
    sums = dot(rows.reshape(-1, len(kernel)), kernel)
    sums -= int(x.zero) * kernel.sum(axis=0, dtype=np.int64)
    if bias is not None:
        assert bias.levels.dtype == np.int32
        sums += bias.levels.reshape(-1)
    real = (sums * (x.scale * weights.scale)).astype(np.float32).reshape(*shape, -1)
    return real.transpose(0, 3, 1, 2) if kind == "Conv" else real
