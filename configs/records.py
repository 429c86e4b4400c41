"""Records: networks that learn from an ensemble, and each from the same distorted digits.

python launch.py --config=configs/records.py --config.population.size=5
python launch.py --config=configs/records.py:lenet5 --config.population.size=5

All learn from the ten networks of results/compact (their ensemble: 99.70 %), which were asked about
24 distorted copies of each training digit, once (a quarter of an hour on one core, a gigabyte in
the cache). Test accuracy, chosen on validation, mean and standard deviation of five seeds
(2026-11-22, one busy CPU core, 7 minutes of training a seed):

lenet5   61,706 parameters   99.52 ± 0.04 %   LeNet-5 as in configs/lenet5.py

`mnist100`, pairs of digits by a network of four unpadded convolutions past one pool, is under way.
"""

from ml_collections import ConfigDict

from configs.base import get_base

VARIANTS = ("mnist100", "lenet5")

UNPADDED = (
    *("conv3 16", "pool", "conv3 32", "conv3 32", "conv3 48", "conv3 48"),
    *("average 1", "linear1 classes"),
)


def get_config(variant: str = "") -> ConfigDict:
    config = get_base("records", variant, VARIANTS)
    config.data.dataset = "mnist"
    config.batch_size = 64
    config.distill.update(teacher="results/compact", weight=0.9, temperature=4.0, views=24)
    config.augment.update(rotate=10.0, shift_x=1.5, shift_y=1.5, shear=8.0, scale=0.1, elastic=0.4)
    config.optimizer.ema = 0.999
    match variant or VARIANTS[0]:
        case "mnist100":
            config.data.update(dataset="mnist100", fresh_pairs=True)
            config.augment.per_digit = True
            config.epochs = 20
            config.model.update(name="compact_tower", layers=UNPADDED, activation="silu")
            config.model.update(norm="before", scale=False, padding="VALID", bias=False)
            config.model.update(spatial=True, dropout_start=1.0, squeeze=0, residual=True)
            config.optimizer.update(learning_rate=1e-2, schedule="one_cycle")
        case "lenet5":
            config.epochs = 60
            config.model.update(name="lenet5", activation="relu", pooling="max", batch_norm=False)
            config.model.skip = False
            config.optimizer.update(learning_rate=2e-3, schedule="cosine", warmup=1.0)
            config.quoted = (99.2,)  # LeCun et al. 1998, with distortions
    return config
