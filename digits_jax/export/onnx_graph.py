"""A JAX function as an ONNX graph: one node, or a few, for each primitive that networks here use.

What depends on weights alone is computed here, so that BatchNorm arrives as one product and one
sum. Images stay [B, H, W, C] around convolutions and pools, which ONNX wants as [B, C, H, W];
runtimes take most of these transpositions out again.
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
from onnx import helper, numpy_helper
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process

_IR = 10  # the format that goes with opset 18; newer ones are refused by older runtimes

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
    function: Callable,
    shape: Sequence[int],
    outputs: Sequence[str],
    facts: Mapping[str, str],
    opset: int,
) -> onnx.ModelProto:
    """`function` of images [B, *shape] float32, which returns a tuple of arrays [B, ...].

    outputs: their names; the input is `images`, B is left open. facts: the model's metadata.
    NotImplementedError for a primitive that no network here uses.
    """
    (batch,) = export.symbolic_shape("B")
    images = jax.ShapeDtypeStruct((batch, *shape), np.float32)
    closed: Any = jax.make_jaxpr(function)(images)
    graph = _Graph()
    results = graph.run(closed.jaxpr, closed.consts, ["images"])
    for name, result in zip(outputs, results, strict=True):
        graph.add("Identity", [result], [name])

    def value(name: str, dims: Sequence[Any]) -> onnx.ValueInfoProto:
        sizes = [d if isinstance(d, int) else "B" for d in dims]
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, sizes)

    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "digits_jax",
            [value("images", images.shape)],
            [
                value(name, v.aval.shape)
                for name, v in zip(outputs, closed.jaxpr.outvars, strict=True)
            ],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=_IR,
        producer_name="digits_jax",
    )
    helper.set_model_props(model, dict(facts))
    onnx.checker.check_model(model, full_check=True)
    return model


def quantize(path: Path, into: Path, images: np.ndarray) -> None:
    """The graph with activations in 8 bits and weights in 7, which any processor adds up exactly.

    images: [N, H, W] float32, from which the ranges of activations are taken.
    """

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self._parts = iter(np.array_split(images, 10))

        def get_next(self) -> dict[str, np.ndarray] | None:
            part = next(self._parts, None)
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
            # -64 to 64: x86 without VNNI adds two products of weights and bytes in 16 bits.
            reduce_range=True,
            # ONNX Runtime 1.31 fails where it adjusts the scales of several channels.
            extra_options={"QDQDisableWeightAdjustForInt32Bias": True},
        )


def run(path: Path, images: np.ndarray) -> list[np.ndarray]:
    """images: [N, H, W] uint8 -> what ONNX Runtime makes of them, [N, classes] for each head."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    parts = np.array_split(images, max(len(images) // 1000, 1))
    answers = [session.run(None, {"images": part.astype(np.float32) / 255}) for part in parts]
    return [np.concatenate(answer) for answer in zip(*answers, strict=True)]


class _Graph:
    """Nodes and constants as they come; a value is an array that is known, or the name of one."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._count = 0

    def add(
        self, kind: str, inputs: Sequence[Any], names: list[str] | None = None, **how: Any
    ) -> str:
        """A node; -> the name of its first output."""
        if names is None:
            self._count += 1
            names = [f"{kind}_{self._count}"]
        self.nodes.append(helper.make_node(kind, [self._named(x) for x in inputs], names, **how))
        return names[0]

    def _named(self, value: Any) -> str:
        if isinstance(value, str):
            return value
        self._count += 1
        name = f"constant_{self._count}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def run(self, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
        """The values of `jaxpr`'s results."""
        known: dict[Any, Any] = {}

        def read(atom: Any) -> Any:
            if hasattr(atom, "val"):
                return np.asarray(atom.val, atom.aval.dtype)
            return known[atom]

        for variable, value in zip(jaxpr.constvars, consts, strict=True):
            known[variable] = np.asarray(value)
        known |= dict(zip(jaxpr.invars, arguments, strict=True))
        for equation in jaxpr.eqns:
            values = [read(atom) for atom in equation.invars]
            known |= dict(zip(equation.outvars, self._equation(equation, values), strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, equation: Any, values: list[Any]) -> list[Any]:
        name, how = equation.primitive.name, equation.params
        inner = next((how[key] for key in _INNER if key in how), None)
        if inner is not None:
            consts = getattr(inner, "consts", ())
            return self.run(getattr(inner, "jaxpr", inner), consts, values)
        shape = equation.outvars[0].aval.shape
        if not any(isinstance(v, str) for v in values) and all(isinstance(d, int) for d in shape):
            result = equation.primitive.bind(*map(jax.numpy.asarray, values), **how)
            return [np.asarray(result)]
        if name in _SAME:
            return [self.add(_SAME[name], values)]
        method = getattr(self, f"_{name}", None)
        if method is None:
            raise NotImplementedError(f"ONNX for the primitive {name}")
        shapes = [atom.aval.shape for atom in equation.invars]
        return [method(values, shapes, equation.outvars[0].aval, **how)]

    def _rsqrt(self, values: list, *_: Any, **__: Any) -> str:
        return self.add("Reciprocal", [self.add("Sqrt", values)])

    def _square(self, values: list, *_: Any, **__: Any) -> str:
        return self.add("Mul", [values[0], values[0]])

    def _integer_pow(self, values: list, _: Any, like: Any, *, y: int) -> str:
        return self.add("Pow", [values[0], np.asarray(y, like.dtype)])

    def _select_n(self, values: list, *_: Any) -> str:
        condition, no, yes = values
        return self.add("Where", [condition, yes, no])

    def _convert_element_type(self, values: list, _: Any, like: Any, **__: Any) -> str:
        return self.add("Cast", values, to=helper.np_dtype_to_tensor_dtype(like.dtype))

    def _reshape(self, values: list, _: Any, like: Any, **__: Any) -> str:
        return self.add("Reshape", [values[0], _sizes(like.shape)])

    _squeeze = _expand_dims = _reshape

    def _transpose(self, values: list, *_: Any, permutation: Sequence[int]) -> str:
        return self.add("Transpose", values, perm=list(permutation))

    def _concatenate(self, values: list, *_: Any, dimension: int) -> str:
        return self.add("Concat", values, axis=dimension)

    def _pad(self, values: list, *_: Any, padding_config: Any) -> str:
        low, high, between = zip(*padding_config, strict=True)
        if any(between):
            raise NotImplementedError(f"ONNX for a padding of {padding_config}")
        x, filling = values
        return self.add("Pad", [x, np.asarray(low + high, np.int64), filling])

    def _slice(
        self, values: list, *_: Any, start_indices: Any, limit_indices: Any, strides: Any
    ) -> str:
        ends = [e if isinstance(e, int) else 2**31 - 1 for e in limit_indices]
        steps = strides or (1,) * len(ends)
        axes = range(len(ends))
        cuts = (np.asarray(list(x), np.int64) for x in (start_indices, ends, axes, steps))
        return self.add("Slice", [values[0], *cuts])

    def _broadcast_in_dim(
        self, values: list, shapes: list, like: Any, *, broadcast_dimensions: Any, **_: Any
    ) -> str:
        wide: list[Any] = [1] * len(like.shape)
        for size, at in zip(shapes[0], broadcast_dimensions, strict=True):
            wide[at] = size
        x = self.add("Reshape", [values[0], _sizes(wide)])
        if tuple(wide) == tuple(like.shape):
            return x
        if any(not isinstance(d, int) and str(d) != "B" for d in like.shape):
            raise NotImplementedError(f"ONNX for an array of shape {like.shape}")
        batch = self.add("Shape", ["images"], start=0, end=1)
        sizes = [np.asarray([d], np.int64) if isinstance(d, int) else batch for d in like.shape]
        return self.add("Expand", [x, self.add("Concat", sizes, axis=0)])

    def _dot_general(
        self, values: list, shapes: list, *_: Any, dimension_numbers: Any, **__: Any
    ) -> str:
        (left, right), batch = dimension_numbers
        if (
            batch != ((), ())
            or len(left) != 1
            or left[0] != len(shapes[0]) - 1
            or len(shapes[1]) > 2
        ):
            raise NotImplementedError(f"ONNX for a product like {dimension_numbers}")
        x, kernel = values
        if right[0] == 1:
            kernel = self.add("Transpose", [kernel], perm=[1, 0])
        return self.add("MatMul", [x, kernel])

    def _reduce_sum(self, values: list, *_: Any, axes: Sequence[int], **__: Any) -> str:
        return self.add("ReduceSum", [values[0], np.asarray(axes, np.int64)], keepdims=0)

    def _reduce_max(self, values: list, *_: Any, axes: Sequence[int], **__: Any) -> str:
        return self.add("ReduceMax", [values[0], np.asarray(axes, np.int64)], keepdims=0)

    def _conv_general_dilated(
        self,
        values: list,
        *_: Any,
        window_strides: Any,
        padding: Any,
        rhs_dilation: Any,
        dimension_numbers: Any,
        feature_group_count: int,
        **__: Any,
    ) -> str:
        x, kernel = values
        into, filters, out = dimension_numbers
        y = self.add(
            "Conv",
            [
                self.add("Transpose", [x], perm=list(into)),
                np.transpose(kernel, filters),
            ],
            strides=list(window_strides),
            pads=[low for low, _ in padding] + [high for _, high in padding],
            dilations=list(rhs_dilation),
            group=feature_group_count,
        )
        return self.add("Transpose", [y], perm=list(np.argsort(out)))

    def _window(self, kind: str, values: list, how: Mapping[str, Any], **more: Any) -> str:
        """A pool over the middle two axes of [B, H, W, C]."""
        low, high = zip(*how["padding"][1:3], strict=True)
        y = self.add(
            kind,
            [self.add("Transpose", values, perm=[0, 3, 1, 2])],
            kernel_shape=list(how["window_dimensions"][1:3]),
            strides=list(how["window_strides"][1:3]),
            pads=[*low, *high],
            **more,
        )
        return self.add("Transpose", [y], perm=[0, 2, 3, 1])

    def _reduce_window_max(self, values: list, *_: Any, **how: Any) -> str:
        return self._window("MaxPool", values, how)

    def _reduce_window_sum(self, values: list, _: Any, like: Any, **how: Any) -> str:
        mean = self._window("AveragePool", values, how, count_include_pad=1)
        count = np.prod(how["window_dimensions"])
        return self.add("Mul", [mean, np.asarray(count, like.dtype)])


def _sizes(shape: Sequence[Any]) -> np.ndarray:
    """[rank] int64, -1 where the batch is."""
    return np.asarray([d if isinstance(d, int) else -1 for d in shape], np.int64)
