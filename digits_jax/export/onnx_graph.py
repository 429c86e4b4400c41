"""A JAX function as an ONNX graph: a node or a few for each primitive that the networks use.

What depends on weights alone is computed at export, so BatchNorm becomes one product and one sum.
Images stay [B, H, W, C]; ONNX wants [B, C, H, W] for convolutions and pools, which are transposed
around. Runtimes remove most of these transpositions.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
import onnxruntime
from jax import export
from jax.core import ShapedArray
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var
from onnx import helper, numpy_helper
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process

from digits_jax.data.batches import to_float
from digits_jax.types import Array

Value = str | np.ndarray  # of a variable: an array where it is known, else a node's output

_IR = 10  # the format that goes with opset 18; older runtimes refuse newer ones

_SAME = {  # primitives that are an operator of ONNX
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "max": "Max",
    "min": "Min",
    "neg": "Neg",
    "exp": "Exp",
    "log": "Log",
    "tanh": "Tanh",
    "sqrt": "Sqrt",
    "abs": "Abs",
    "logistic": "Sigmoid",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "lt": "Less",
    "pow": "Pow",
    "stop_gradient": "Identity",
    "erf": "Erf",
}
_INNER = ("jaxpr", "call_jaxpr")


def convert(
    function: Callable[[Array], tuple[Array, ...]],
    shape: Sequence[int],
    outputs: Sequence[str],
    facts: Mapping[str, str],
    opset: int,
) -> onnx.ModelProto:
    """`function` of images [B, *shape] float32, which returns a tuple of arrays [B, ...].

    outputs: their names; the input is named `images`; B is symbolic. facts: the model's metadata.
    Raises NotImplementedError for a primitive that no network here uses.
    """
    (batch,) = export.symbolic_shape("B")
    images = jax.ShapeDtypeStruct((batch, *shape), np.float32)
    traced = jax.make_jaxpr(function, return_shape=True)(images)
    graph = _Graph()
    results = graph.run(traced[0].jaxpr, traced[0].consts, ["images"])
    for name, result in zip(outputs, results, strict=True):
        graph.output(name, result)

    def value(name: str, array: jax.ShapeDtypeStruct) -> onnx.ValueInfoProto:
        sizes = [d if isinstance(d, int) else "B" for d in array.shape]
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, sizes)

    inputs, ends = [value("images", images)], list(map(value, outputs, traced[1]))
    model = helper.make_model(
        helper.make_graph(graph.nodes, "digits_jax", inputs, ends, graph.constants),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=_IR,
        producer_name="digits_jax",
    )
    helper.set_model_props(model, dict(facts))
    onnx.checker.check_model(model, full_check=True)
    return model


def quantize(path: Path, into: Path, images: np.ndarray) -> None:
    """Writes the graph with activations in 8 bits and weights in 7, exact on any processor.

    images: [N, H, W] float32, which give the ranges of activations.
    """

    class Reader(quantization.CalibrationDataReader):
        parts = iter(np.array_split(images, 10))

        def get_next(self) -> dict[str, np.ndarray] | None:
            part = next(self.parts, None)
            return None if part is None else {"images": part}

    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(path, prepared, skip_symbolic_shape=True)
        quantization.quantize_static(
            prepared,
            into,
            Reader(),
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            # Weights of -64 to 64: x86 without VNNI sums two products with bytes in 16 bits.
            reduce_range=True,
            # ONNX Runtime 1.31 fails to adjust the scales of several channels.
            extra_options={"QDQDisableWeightAdjustForInt32Bias": True},
        )


def run(path: Path, images: np.ndarray) -> list[np.ndarray]:
    """images: [N, H, W] uint8 -> ONNX Runtime's answers, [N, classes] for each head."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    parts = np.array_split(images, max(len(images) // 1000, 1))
    answers = [session.run(None, {"images": to_float(part, np.float32)}) for part in parts]
    return [np.concatenate(answer) for answer in zip(*answers, strict=True)]


class _Graph:
    """The nodes and constants of a graph, in the order in which they are added."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._count = 0

    def add(self, kind: str, inputs: Sequence[Value], **attributes: Any) -> str:
        """Adds a node; -> the name of its output."""
        self._count += 1
        name = f"{kind}_{self._count}"
        names = [x if isinstance(x, str) else self._constant(x) for x in inputs]
        self.nodes.append(helper.make_node(kind, names, [name], **attributes))
        return name

    def output(self, name: str, value: Value) -> None:
        """Gives `value` the name of one of the graph's outputs."""
        inner = value if isinstance(value, str) else self._constant(value)
        self.nodes.append(helper.make_node("Identity", [inner], [name]))

    def _constant(self, value: np.ndarray) -> str:
        self._count += 1
        name = f"constant_{self._count}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def run(
        self, jaxpr: Jaxpr, consts: Sequence[jax.Array], arguments: Sequence[Value]
    ) -> list[Value]:
        """The values of `jaxpr`'s results."""
        known: dict[Var, Value] = dict(zip(jaxpr.invars, arguments, strict=True))
        known |= zip(jaxpr.constvars, map(np.asarray, consts), strict=True)

        def read(atom: Var | Literal) -> Value:
            return (
                np.asarray(atom.val, _array(atom).dtype)
                if isinstance(atom, Literal)
                else known[atom]
            )

        for equation in jaxpr.eqns:
            values = [read(atom) for atom in equation.invars]
            known |= zip(equation.outvars, self._equation(equation, values), strict=True)
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, equation: JaxprEqn, values: list[Value]) -> list[Value]:
        name, params = equation.primitive.name, equation.params
        for inner in (params[key] for key in _INNER if key in params):
            consts = getattr(inner, "consts", ())
            return self.run(getattr(inner, "jaxpr", inner), consts, values)
        shape = _array(equation.outvars[0]).shape
        if not any(isinstance(v, str) for v in values) and all(isinstance(d, int) for d in shape):
            result = equation.primitive.bind(*map(jax.numpy.asarray, values), **params)
            return [np.asarray(result)]
        if name in _SAME:
            return [self.add(_SAME[name], values)]
        method = getattr(self, f"_{name}", None)
        if method is None:
            raise NotImplementedError(f"ONNX for the primitive {name}")
        return [method(equation, *values)]

    # One method for each other primitive, by its name: of an equation and its operands' values.

    def _rsqrt(self, _: JaxprEqn, x: Value) -> str:
        return self.add("Reciprocal", [self.add("Sqrt", [x])])

    def _square(self, _: JaxprEqn, x: Value) -> str:
        return self.add("Mul", [x, x])

    def _integer_pow(self, equation: JaxprEqn, x: Value) -> str:
        exponent = np.asarray(equation.params["y"], _array(equation.outvars[0]).dtype)
        return self.add("Pow", [x, exponent])

    def _select_n(self, _: JaxprEqn, condition: Value, no: Value, yes: Value) -> str:
        return self.add("Where", [condition, yes, no])

    def _convert_element_type(self, equation: JaxprEqn, x: Value) -> str:
        dtype = helper.np_dtype_to_tensor_dtype(_array(equation.outvars[0]).dtype)
        return self.add("Cast", [x], to=dtype)

    def _reshape(self, equation: JaxprEqn, x: Value) -> str:
        return self.add("Reshape", [x, _sizes(_array(equation.outvars[0]).shape)])

    _squeeze = _expand_dims = _reshape

    def _transpose(self, equation: JaxprEqn, x: Value) -> str:
        return self.add("Transpose", [x], perm=list(equation.params["permutation"]))

    def _concatenate(self, equation: JaxprEqn, *parts: Value) -> str:
        return self.add("Concat", parts, axis=equation.params["dimension"])

    def _pad(self, equation: JaxprEqn, x: Value, filling: Value) -> str:
        low, high, between = zip(*equation.params["padding_config"], strict=True)
        if any(between):
            raise NotImplementedError(f"ONNX for a padding between elements, {between}")
        return self.add("Pad", [x, np.asarray(low + high, np.int64), filling])

    def _slice(self, equation: JaxprEqn, x: Value) -> str:
        params = equation.params
        ends = [e if isinstance(e, int) else 2**31 - 1 for e in params["limit_indices"]]
        steps, axes = params["strides"] or (1,) * len(ends), range(len(ends))
        cuts = (params["start_indices"], ends, axes, steps)
        return self.add("Slice", [x, *(np.asarray(list(cut), np.int64) for cut in cuts)])

    def _broadcast_in_dim(self, equation: JaxprEqn, x: Value) -> str:
        shape = _array(equation.outvars[0]).shape
        wide = [1] * len(shape)
        axes = equation.params["broadcast_dimensions"]
        for size, axis in zip(_array(equation.invars[0]).shape, axes, strict=True):
            wide[axis] = size
        x = self.add("Reshape", [x, _sizes(wide)])
        if tuple(wide) == tuple(shape):
            return x
        if any(not isinstance(d, int) and str(d) != "B" for d in shape):
            raise NotImplementedError(f"ONNX for an array of shape {shape}")
        batch = self.add("Shape", ["images"], start=0, end=1)
        sizes = [np.asarray([d], np.int64) if isinstance(d, int) else batch for d in shape]
        return self.add("Expand", [x, self.add("Concat", sizes, axis=0)])

    def _dot_general(self, equation: JaxprEqn, x: Value, kernel: Value) -> str:
        (left, right), batch = numbers = equation.params["dimension_numbers"]
        ranks = [_array(atom).ndim for atom in equation.invars]
        if batch != ((), ()) or tuple(left) != (ranks[0] - 1,) or ranks[1] > 2:
            raise NotImplementedError(f"ONNX for a product like {numbers}")
        if right[0] == 1:
            kernel = self.add("Transpose", [kernel], perm=[1, 0])
        return self.add("MatMul", [x, kernel])

    def _reduce_sum(self, equation: JaxprEqn, x: Value, kind: str = "ReduceSum") -> str:
        return self.add(kind, [x, np.asarray(equation.params["axes"], np.int64)], keepdims=0)

    def _reduce_max(self, equation: JaxprEqn, x: Value) -> str:
        return self._reduce_sum(equation, x, "ReduceMax")

    def _conv_general_dilated(self, equation: JaxprEqn, x: Value, kernel: np.ndarray) -> str:
        params = equation.params
        into, filters, out = params["dimension_numbers"]
        low, high = zip(*params["padding"], strict=True)
        y = self.add(
            "Conv",
            [self.add("Transpose", [x], perm=list(into)), np.transpose(kernel, filters)],
            strides=list(params["window_strides"]),
            pads=[*low, *high],
            dilations=list(params["rhs_dilation"]),
            group=params["feature_group_count"],
        )
        return self.add("Transpose", [y], perm=np.argsort(out).tolist())

    def _window(self, kind: str, equation: JaxprEqn, x: Value, **more: int) -> str:
        """A pool over the middle two axes of [B, H, W, C]."""
        params = equation.params
        low, high = zip(*params["padding"][1:3], strict=True)
        y = self.add(
            kind,
            [self.add("Transpose", [x], perm=[0, 3, 1, 2])],
            kernel_shape=list(params["window_dimensions"][1:3]),
            strides=list(params["window_strides"][1:3]),
            pads=[*low, *high],
            **more,
        )
        return self.add("Transpose", [y], perm=[0, 2, 3, 1])

    def _reduce_window_max(self, equation: JaxprEqn, x: Value) -> str:
        return self._window("MaxPool", equation, x)

    def _reduce_window_sum(self, equation: JaxprEqn, x: Value) -> str:
        mean = self._window("AveragePool", equation, x, count_include_pad=1)
        count = np.prod(equation.params["window_dimensions"])
        return self.add("Mul", [mean, np.asarray(count, _array(equation.outvars[0]).dtype)])


def _array(atom: Var | Literal) -> ShapedArray:
    """The shape and dtype of a variable."""
    assert isinstance(atom.aval, ShapedArray)
    return atom.aval


def _sizes(shape: Sequence[object]) -> np.ndarray:
    """[rank] int64, -1 for the symbolic batch."""
    return np.asarray([d if isinstance(d, int) else -1 for d in shape], np.int64)
