"""Two digits side by side, 28x56, 100 classes.

python launch.py --config=configs/mnist100.py
python launch.py --config=configs/mnist100.py:mlp
python launch.py --config=configs/mnist100.py:tower

Test accuracy, chosen on validation, mean and standard deviation of five seeds:

cnn     833,572 parameters   98.63 ± 0.15 %
mlp     960,356 parameters   92.27 ± 0.40 %, it memorises the training pairs
tower    73,082 parameters   99.25 ± 0.06 %, one residual network reads each digit
numpy   833,572 parameters   98.60 % (one seed), `cnn` by digits_jax/scratch
"""

from ml_collections import ConfigDict

from digits_jax.defaults import get_base

VARIANTS = ("cnn", "mlp", "tower", "numpy")


def get_config(variant: str = "") -> ConfigDict:
    config = get_base("mnist100", variant, VARIANTS)
    config.data.dataset = "mnist100"
    optimizer = config.optimizer
    match variant or VARIANTS[0]:
        case "cnn" | "numpy":
            config.engine = "numpy" if variant == "numpy" else "jax"
            config.quoted = (97.88,)
            config.model.update(name="cnn", features=(16, 32), hidden=(256,), padding="SAME")
            config.model.dropout = 0.4
            config.epochs = 15
            config.batch_size = 128
            config.data.fresh_pairs = True
            optimizer.update(learning_rate=2e-3, schedule="cosine", warmup=1.0)
            optimizer.update(weight_decay=1e-4, ema=0.999)
            config.early_stopping.update(patience=5, min_delta=1e-3)
            config.augment.update(shift_x=2.0, brightness=0.1, contrast=0.1)
            config.search.space = {
                "optimizer": {
                    "learning_rate": ("log", 3e-4, 1e-2),
                    "weight_decay": ("log", 1e-6, 1e-2),
                },
                "model": {"dropout": ("uniform", 0.0, 0.7)},
                "label_smoothing": ("uniform", 0.0, 0.1),
            }
        case "mlp":
            config.quoted = (87.0,)
            config.model.update(name="mlp", hidden=(512, 256), activation="relu")
        case "tower":
            config.model.update(name="tower", stem=16, features=(32, 64), blocks=1)
            config.model.dropout = 0.1
            config.epochs = 8
            config.batch_size = 64
            config.data.fresh_pairs = True
            optimizer.update(name="muon", momentum=0.95, learning_rate=1e-2)
            optimizer.update(schedule="one_cycle", warmup=1.0, ema=0.998)
            config.augment.update(per_digit=True, shift_x=2.0, shift_y=2.0, rotate=10.0)
            config.augment.update(shear=8.0, scale=0.1, elastic=0.6)
    return config
