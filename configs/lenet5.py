"""LeNet-5 (LeCun et al. 1998), 28x28.

python launch.py --config=configs/lenet5.py
python launch.py --config=configs/lenet5.py:skip
python launch.py --config=configs/lenet5.py --config.model.activation=tanh \\
    --config.model.pooling=average

"""

from ml_collections import ConfigDict

from configs.base import get_base

VARIANTS = ("plain", "skip")


def get_config(variant: str = "") -> ConfigDict:
    config = get_base("lenet5", variant, VARIANTS)
    config.data.dataset = "mnist"
    config.model.update(name="lenet5", activation="relu", pooling="max", batch_norm=False)
    config.model.skip = variant == "skip"
    config.epochs = 15
    config.batch_size = 64
    config.optimizer.update(learning_rate=2e-3, schedule="cosine", warmup=1.0)
    return config
