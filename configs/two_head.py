"""Two overlapping digits, one above the other, 42x28, a head for each.

python launch.py --config=configs/two_head.py
"""

from ml_collections import ConfigDict

from configs.base import get_base

VARIANTS = ("cnn",)


def get_config(variant: str = "") -> ConfigDict:
    config = get_base("two_head", variant, VARIANTS)
    config.data.dataset = "two_digit"
    config.model.update(name="cnn", features=(32, 64), hidden=(128,), padding="VALID")
    config.model.dropout = 0.5
    config.epochs = 20
    config.batch_size = 128
    config.data.fresh_pairs = True
    config.optimizer.update(learning_rate=2e-3, schedule="cosine", warmup=1.0)
    return config
