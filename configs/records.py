"""Records: small networks that learn from an ensemble, 28x28.

python launch.py --config=configs/records.py --config.population.size=5
python launch.py --config=configs/records.py:lenet5 --config.population.size=5

All learn from the ten networks of results/compact (their ensemble: 99.70 %), which were asked about
24 distorted copies of each training digit, once.
"""

from ml_collections import ConfigDict

from configs.base import get_base

VARIANTS = ("p3500", "lenet5")


def get_config(variant: str = "") -> ConfigDict:
    config = get_base("records", variant, VARIANTS)
    config.data.dataset = "mnist"
    config.batch_size = 64
    config.distill.update(teacher="results/compact", weight=0.9, temperature=4.0, views=24)
    config.augment.update(rotate=10.0, shift_x=1.5, shift_y=1.5, shear=8.0, scale=0.1, elastic=0.4)
    config.optimizer.ema = 0.999
    match variant or VARIANTS[0]:
        case "lenet5":
            config.epochs = 60
            config.model.update(name="lenet5", activation="relu", pooling="max", batch_norm=False)
            config.model.skip = False
            config.optimizer.update(learning_rate=2e-3, schedule="cosine", warmup=1.0)
            config.quoted = (99.05,)  # LeCun et al. 1998, without distortions
    return config
