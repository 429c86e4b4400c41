"""Reads handwriting: up to four digits that touch, or `?` for what is no digit.

python launch.py --config=configs/demo.py
python launch.py --mode=read --data=photo.jpg
python launch.py --config=configs/demo.py --workdir=results/demo --mode=demo

The second command reads photographs with the network of results/demo, which the first one trained;
the third serves a page to write on with it.

Test accuracy, chosen on validation, seed 0. Four fifths of the images are one to four touching
MNIST digits, a fifth is no digit. Of MNIST's own test images 99.07 % are read right:

line   215,164 parameters   digit 97.55 %, second 98.72 %, third 99.25 %, fourth 99.72 %
"""

from ml_collections import ConfigDict

from digits_jax.defaults import get_base

VARIANTS = ("line",)


def get_config(variant: str = "") -> ConfigDict:
    config = get_base("demo", variant, VARIANTS)
    config.data.dataset = "number"
    config.data.drawn_extra = 30_000  # rarer handwriting: ones with a flag, crossed sevens
    config.data.nondigits = 60_000
    config.model.update(name="line", stem=16, features=(32, 64), blocks=2, mix=64)
    config.model.dropout = 0.1
    config.epochs = 8
    config.batch_size = 64
    config.optimizer.update(learning_rate=3e-3, weight_decay=1e-2, decoupled=True)
    config.optimizer.update(schedule="one_cycle", ema=0.999)
    config.augment.update(shift_x=1.0, shift_y=1.0, rotate=8.0, shear=8.0, scale=0.1)
    config.augment.update(elastic=0.5, pen=1.5, blur=0.7, noise=0.05)
    return config
