"""99 % of the test images after seconds of compiling and training on two CPU cores.

python launch.py --config=configs/fast.py

Test accuracy after one epoch on all 60,000 images, mean and standard deviation of five seeds:

vgg   103,650 parameters   99.06 ± 0.02 %
"""

from ml_collections import ConfigDict

from digits_jax.defaults import get_base

VARIANTS = ("vgg",)


def get_config(variant: str = "") -> ConfigDict:
    config = get_base("fast", variant, VARIANTS)
    config.data.update(dataset="mnist", validation=0.0)
    config.model.update(name="vgg", features=(8, 32), depths=(1, 1), hidden=(64,))
    config.label_smoothing = 0.1
    config.epochs = 1
    config.batch_size = 64
    config.optimizer.update(learning_rate=1e-2, weight_decay=1e-2, decoupled=True)
    config.optimizer.schedule = "one_cycle"
    return config
