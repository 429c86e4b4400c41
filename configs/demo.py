"""One digit, 28x28, for the page to draw on (--mode=demo): trained on MNIST and drawn digits.

python launch.py --config=configs/demo.py
python launch.py --config=configs/demo.py --workdir=results/demo --mode=demo

Test accuracy (MNIST), chosen on validation, seed 0:

resnet   73,082 parameters   99.21 %
"""

from ml_collections import ConfigDict

from digits_jax.defaults import get_base

VARIANTS = ("resnet",)


def get_config(variant: str = "") -> ConfigDict:
    config = get_base("demo", variant, VARIANTS)
    config.data.dataset = "mnist"
    config.data.drawn_extra = 60_000  # rarer handwriting: ones with a flag, crossed sevens
    config.model.update(name="resnet", stem=16, features=(32, 64), blocks=1, squeeze=0)
    config.model.dropout = 0.1
    config.epochs = 8
    config.batch_size = 64
    config.optimizer.update(learning_rate=3e-3, weight_decay=1e-2, decoupled=True)
    config.optimizer.update(schedule="one_cycle", ema=0.999)
    config.augment.update(shift_x=1.0, shift_y=1.0, rotate=8.0, shear=8.0, scale=0.1)
    config.augment.update(elastic=0.5, pen=1.5)
    return config
