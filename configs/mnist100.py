"""Two digits side by side, 28x56, 100 classes.

python launch.py --config=configs/mnist100.py            # cnn
python launch.py --config=configs/mnist100.py:mlp
python launch.py --config=configs/mnist100.py:tower
"""

from ml_collections import ConfigDict

from configs.base import get_base

VARIANTS = ("cnn", "mlp", "tower")


def get_config(variant: str = "") -> ConfigDict:
    config = get_base("mnist100", variant, VARIANTS)
    config.data.dataset = "mnist100"
    optimizer = config.optimizer
    match variant or VARIANTS[0]:
        case "cnn":
            config.model.update(name="cnn", features=(16, 32), hidden=(256,), padding="SAME")
            config.model.dropout = 0.4
            optimizer.weight_decay = 1e-4
            optimizer.schedule = "cosine"
            config.early_stopping.update(patience=5, min_delta=1e-3)
            config.augment.shift_x = 2.0
            config.augment.brightness = 0.1
            config.augment.contrast = 0.1
        case "mlp":
            config.model.update(name="mlp", hidden=(512, 256))
        case "tower":
            config.model.update(name="tower", features=(24, 48, 96), depths=(1, 1, 2))
            config.model.hidden = 128
            config.epochs = 8
            config.batch_size = 128
            config.data.fresh_pairs = True
            config.model.dropout = 0.3
            optimizer.learning_rate = 3e-3
            optimizer.weight_decay = 1e-2
            optimizer.decoupled = True
            optimizer.schedule = "one_cycle"
            optimizer.ema = 0.998
            augment = config.augment
            augment.per_digit = True
            augment.shift_x = augment.shift_y = 1.5
            augment.rotate = 10.0
            augment.shear = 8.0
            augment.scale = 0.1
            augment.elastic = 0.6
    return config
