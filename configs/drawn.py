"""Trained on digits drawn by a program and on no handwriting, tested on MNIST.

python launch.py --config=configs/drawn.py

Test accuracy (MNIST), chosen on drawn digits, seed 0:

vgg   247,794 parameters   98.40 %
"""

from ml_collections import ConfigDict

from digits_jax.defaults import get_base

VARIANTS = ("vgg",)


def get_config(variant: str = "") -> ConfigDict:
    config = get_base("drawn", variant, VARIANTS)
    config.data.update(dataset="mnist", source="drawn", test_source="mnist")
    config.data.update(drawn_train=300_000, drawn_distortion=1.0)
    config.model.update(name="vgg", features=(24, 48, 96), depths=(1, 1, 2))
    config.model.hidden = (128,)
    config.model.dropout = 0.3
    config.label_smoothing = 0.05
    config.epochs = 4
    config.batch_size = 256
    config.optimizer.update(
        learning_rate=3e-3, weight_decay=1e-2, decoupled=True, schedule="one_cycle", ema=0.998
    )
    return config
