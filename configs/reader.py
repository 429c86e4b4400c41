"""Reads handwriting (--mode=read): up to four digits that touch, or `?` for what is no digit.

python launch.py --config=configs/reader.py
python launch.py --config=configs/reader.py --mode=read --data=photo.jpg

The second command reads with the network that the first one trains. No run of it is in results/
yet: without a --config, --mode=read takes the one of configs/demo.py, which reads each piece of ink
as one digit.
"""

from ml_collections import ConfigDict

from digits_jax.defaults import get_base

VARIANTS = ("line",)


def get_config(variant: str = "") -> ConfigDict:
    config = get_base("reader", variant, VARIANTS)
    config.data.dataset = "number"
    config.data.drawn_extra = 60_000  # rarer handwriting: ones with a flag, crossed sevens
    config.data.nondigits = 30_000
    config.model.update(name="line", stem=16, features=(32, 64), blocks=1, mix=64)
    config.model.dropout = 0.1
    config.epochs = 8
    config.batch_size = 64
    config.optimizer.update(learning_rate=3e-3, weight_decay=1e-2, decoupled=True)
    config.optimizer.update(schedule="one_cycle", ema=0.999)
    config.augment.update(shift_x=1.0, shift_y=1.0, rotate=8.0, shear=8.0, scale=0.1)
    config.augment.update(elastic=0.5, pen=1.5, blur=0.6, noise=0.05)
    return config
