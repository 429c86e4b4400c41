"""Layers by hand: each a pair of pure functions, forward and backward, in NumPy.

`y, saved = layer(x, *weights, **options)` computes the layer and saves what its gradient needs;
`dx, *dweights = layer_backward(dy, saved)` turns dy = dL/dy, L the loss, into the gradients with
respect to x and the weights, by the chain rule.

Vectors are [B, C]. Images are [C, B, H, W]: with the channels first, the inputs of one tap are a
block of rows, and a convolution over the whole batch is one matrix product.
"""

import numpy as np

Array = np.ndarray
Shape = tuple[int, ...]
ConvSaved = tuple[Array, Array, Shape, int, int]  # columns, kernel, shape of x, stride, padding
PoolSaved = tuple[Array, Array, Array, Shape]  # which pixel was the largest, shape of x
NormSaved = tuple[Array, Array, Array, Array]  # mean, variance, normalised x, scale / deviation


# Fully connected


def linear(x: Array, kernel: Array, bias: Array) -> tuple[Array, tuple[Array, Array]]:
    """y = x K + b. x: [B, C]; kernel: [C, F]; bias: [F] -> [B, F]."""
    return x @ kernel + bias, (x, kernel)


def linear_backward(dy: Array, saved: tuple[Array, Array]) -> tuple[Array, Array, Array]:
    """dx = dy K', dK = x' dy, db = the sum of dy over the batch."""
    x, kernel = saved
    return dy @ kernel.T, x.T @ dy, dy.sum(axis=0)


# Convolution


def im2col(x: Array, size: int, stride: int = 1, padding: int = 0) -> Array:
    """[C, B, H, W] -> [size, size, C, B, H', W']: the input of each tap at every position.

    H' = (H + 2 padding - size) // stride + 1, and W' likewise.
    """
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    height, width = ((n - size) // stride + 1 for n in x.shape[2:])
    columns = np.empty((size, size, *x.shape[:2], height, width), x.dtype)
    for i, j in np.ndindex(size, size):
        columns[i, j] = x[..., i : i + stride * height : stride, j : j + stride * width : stride]
    return columns


def col2im(columns: Array, shape: Shape, stride: int = 1, padding: int = 0) -> Array:
    """The transpose of `im2col`: each pixel of [C, B, H, W] = `shape` sums its entries."""
    size, (height, width) = len(columns), columns.shape[-2:]
    rows, cols = (n + 2 * padding for n in shape[2:])
    x = np.zeros((*shape[:2], rows, cols), columns.dtype)
    for i, j in np.ndindex(size, size):
        x[..., i : i + stride * height : stride, j : j + stride * width : stride] += columns[i, j]
    return x[..., padding : rows - padding, padding : cols - padding]


def conv(
    x: Array, kernel: Array, bias: Array, *, stride: int = 1, padding: int = 0
) -> tuple[Array, ConvSaved]:
    """y[f, b, h, w] = bias[f] + sum over i, j, c of kernel[i, j, c, f] x[c, b, s h + i, s w + j].

    x: [C, B, H, W], padded with zeros; kernel: [k, k, C, F]; bias: [F] -> [F, B, H', W']. Computed
    as one product, K' columns (Chellapilla et al. 2006).
    """
    columns = im2col(x, len(kernel), stride, padding)
    taps = kernel.reshape(-1, kernel.shape[-1])
    y = taps.T @ columns.reshape(len(taps), -1)
    y += bias[:, None]
    return y.reshape(-1, *columns.shape[3:]), (columns, kernel, x.shape, stride, padding)


def conv_backward(dy: Array, saved: ConvSaved) -> tuple[Array, Array, Array]:
    """dK = columns dy', dx = col2im(K dy), db = the sum of dy over all but the channels."""
    columns, kernel, shape, stride, padding = saved
    taps, flat = kernel.reshape(-1, len(dy)), dy.reshape(len(dy), -1)
    dkernel = columns.reshape(len(taps), -1) @ flat.T
    dx = col2im((taps @ flat).reshape(columns.shape), shape, stride, padding)
    return dx, dkernel.reshape(kernel.shape), flat.sum(axis=1)


# Pooling: 2x2 windows with a stride of 2; the last row or column of an odd size is left out


def _quarters(x: Array) -> tuple[Array, Array, Array, Array]:
    """The four pixels of every window: views of x, [C, B, H // 2, W // 2] each."""
    h, w = (n // 2 * 2 for n in x.shape[2:])
    top, bottom = x[..., 0:h:2, :w], x[..., 1:h:2, :w]
    return top[..., 0::2], top[..., 1::2], bottom[..., 0::2], bottom[..., 1::2]


def max_pool(x: Array) -> tuple[Array, PoolSaved]:
    """y = the largest of each window. [C, B, H, W] -> [C, B, H // 2, W // 2]."""
    a, b, c, d = _quarters(x)
    top, bottom = np.maximum(a, b), np.maximum(c, d)
    return np.maximum(top, bottom), (a >= b, c >= d, top >= bottom, x.shape)


def max_pool_backward(dy: Array, saved: PoolSaved) -> tuple[Array]:
    """dx = dy where x was the largest of its window (the first of equals), else 0."""
    left_of_top, left_of_bottom, up, shape = saved
    dx = np.zeros(shape, dy.dtype)
    a, b, c, d = _quarters(dx)
    top = dy * up
    bottom = dy - top
    np.multiply(top, left_of_top, out=a)
    np.subtract(top, a, out=b)
    np.multiply(bottom, left_of_bottom, out=c)
    np.subtract(bottom, c, out=d)
    return (dx,)


def average_pool(x: Array) -> tuple[Array, Shape]:
    """y = the mean of each window. [C, B, H, W] -> [C, B, H // 2, W // 2]."""
    a, b, c, d = _quarters(x)
    return (a + b + c + d) / 4, x.shape


def average_pool_backward(dy: Array, saved: Shape) -> tuple[Array]:
    """dx = dy / 4, for each of the four."""
    dx = np.zeros(saved, dy.dtype)
    for quarter in _quarters(dx):
        quarter[...] = dy / 4
    return (dx,)


def flatten(x: Array) -> tuple[Array, Shape]:
    """[C, B, H, W] -> [B, H W C]: a vector for each example."""
    return x.transpose(1, 2, 3, 0).reshape(x.shape[1], -1), x.shape


def flatten_backward(dy: Array, saved: Shape) -> tuple[Array]:
    """The inverse of `flatten`."""
    channels, batch, height, width = saved
    return (dy.reshape(batch, height, width, channels).transpose(3, 0, 1, 2),)


# Activations, of any shape


def relu(x: Array) -> tuple[Array, Array]:
    """y = max(x, 0)."""
    y = np.maximum(x, 0)
    return y, y


def relu_backward(dy: Array, saved: Array) -> tuple[Array]:
    """dx = dy where x > 0, else 0."""
    return (dy * (saved > 0),)


def leaky_relu(x: Array, *, slope: float = 0.01) -> tuple[Array, tuple[Array, float]]:
    """y = x where x >= 0, else slope x."""
    return np.where(x >= 0, x, slope * x), (x, slope)


def leaky_relu_backward(dy: Array, saved: tuple[Array, float]) -> tuple[Array]:
    """dx = dy where x >= 0, else slope dy."""
    x, slope = saved
    return (np.where(x >= 0, dy, slope * dy),)


def sigmoid(x: Array) -> tuple[Array, Array]:
    """y = 1 / (1 + exp(-x)) = (1 + tanh(x / 2)) / 2, which does not overflow."""
    y = (1 + np.tanh(x / 2)) / 2
    return y, y


def sigmoid_backward(dy: Array, saved: Array) -> tuple[Array]:
    """dx = dy y (1 - y)."""
    return (dy * saved * (1 - saved),)


def tanh(x: Array) -> tuple[Array, Array]:
    """y = tanh(x)."""
    y = np.tanh(x)
    return y, y


def tanh_backward(dy: Array, saved: Array) -> tuple[Array]:
    """dx = dy (1 - y^2)."""
    return (dy * (1 - saved * saved),)


# Normalisation and dropout


def batch_norm(
    x: Array, scale: Array, bias: Array, *, epsilon: float = 1e-5
) -> tuple[Array, NormSaved]:
    """y = scale (x - m) / sqrt(v + epsilon) + bias, m and v the mean and variance of a channel.

    As in training: over the batch and the pixels (Ioffe and Szegedy 2015). x: [C, B, H, W]; scale,
    bias: [C]. `saved` begins with m and v, for the running statistics.
    """
    mean, var = x.mean(axis=(1, 2, 3)), x.var(axis=(1, 2, 3))
    deviation = np.sqrt(var + epsilon)
    unit = (x - _channels(mean)) / _channels(deviation)
    return unit * _channels(scale) + _channels(bias), (mean, var, unit, scale / deviation)


def batch_norm_backward(dy: Array, saved: NormSaved) -> tuple[Array, Array, Array]:
    """With u = (x - m) / sqrt(v + epsilon), sums and means over the batch and the pixels:

    dscale = sum(dy u), dbias = sum(dy),
    dx = scale / sqrt(v + epsilon) (dy - mean(dy) - u mean(dy u)), as m and v depend on x, too.
    """
    _, _, unit, factor = saved
    dscale, dbias = (dy * unit).sum(axis=(1, 2, 3)), dy.sum(axis=(1, 2, 3))
    count = unit[0].size
    dx = dy - _channels(dbias / count) - unit * _channels(dscale / count)
    return dx * _channels(factor), dscale, dbias


def batch_norm_by(
    x: Array, scale: Array, bias: Array, mean: Array, var: Array, *, epsilon: float = 1e-5
) -> Array:
    """`batch_norm` with running statistics instead of the batch's, as in evaluation."""
    factor = scale / np.sqrt(var + epsilon)
    return x * _channels(factor) + _channels(bias - mean * factor)


def _channels(values: Array) -> Array:
    """[C] -> [C, 1, 1, 1]."""
    return values[:, None, None, None]


def dropout(x: Array, *, mask: Array) -> tuple[Array, Array]:
    """y = x mask; mask is 0 with probability r, else 1 / (1 - r) (Srivastava et al. 2014)."""
    return x * mask, mask


def dropout_backward(dy: Array, saved: Array) -> tuple[Array]:
    """dx = dy mask."""
    return (dy * saved,)


# Loss


def softmax_cross_entropy(
    logits: Array, labels: Array, label_smoothing: float = 0.0
) -> tuple[Array, tuple[Array, Array]]:
    """L[b] = -sum over c of t[b, c] log p[b, c], p = softmax(logits), of each example.

    t is 1 at the label, else 0; smoothed, (1 - s) of that plus s / C everywhere. logits: [B, C];
    labels: [B] integers -> [B].
    """
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    classes = logits.shape[1]
    targets = np.full_like(logits, label_smoothing / classes)
    targets[np.arange(len(labels)), labels] += 1 - label_smoothing
    return -(targets * log_p).sum(axis=1), (log_p, targets)


def softmax_cross_entropy_backward(dy: Array, saved: tuple[Array, Array]) -> tuple[Array]:
    """dlogits = dL (p - t). dy: [B], the gradient with respect to each example's loss."""
    log_p, targets = saved
    return (dy[:, None] * (np.exp(log_p) - targets),)
