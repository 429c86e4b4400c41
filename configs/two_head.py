"""Two overlapping digits, one above the other, 42x28, a head for each.

python launch.py --config=configs/two_head.py
python launch.py --config=configs/two_head.py:mlp

Test accuracy, chosen on validation, mean and standard deviation of five seeds:

cnn   390,164 parameters   upper 99.28 ± 0.15 %, lower 98.76 ± 0.16 %, both 98.05 %
mlp    80,788 parameters   upper 95.61 ± 0.12 %, lower 94.73 ± 0.29 %, both 90.47 %
"""

from ml_collections import ConfigDict

from digits_jax.defaults import get_base

VARIANTS = ("cnn", "mlp")


def get_config(variant: str = "") -> ConfigDict:
    config = get_base("two_head", variant, VARIANTS)
    config.data.dataset = "two_digit"
    config.epochs = 20
    config.batch_size = 128
    config.data.fresh_pairs = True
    config.optimizer.update(learning_rate=2e-3, schedule="cosine", warmup=1.0)
    match variant or VARIANTS[0]:
        case "cnn":
            config.quoted = (98.08, 97.58)
            config.model.update(name="cnn", features=(32, 64), hidden=(128,), padding="VALID")
            config.model.dropout = 0.3
            config.epochs = 40
            config.optimizer.update(learning_rate=3e-3, ema=0.999)
            config.augment.update(per_digit=True, rotate=6.0, scale=0.05, elastic=0.4)
        case "mlp":
            config.quoted = (91.2, 90.2)
            config.model.update(name="mlp", hidden=(64, 64), activation="relu")
    return config
