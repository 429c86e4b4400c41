"""LeNet-5 (LeCun et al. 1998), 28x28.

python launch.py --config=configs/lenet5.py
python launch.py --config=configs/lenet5.py:skip
python launch.py --config=configs/lenet5.py --config.model.activation=tanh \\
    --config.model.pooling=average

Test accuracy, chosen on validation, mean and standard deviation of five seeds:

plain   61,706 parameters   99.14 ± 0.10 %
skip    61,808 parameters   99.10 ± 0.10 %, with a skip connection
numpy   61,706 parameters   99.12 ± 0.05 %, by digits_jax/scratch, in 10 epochs
"""

from ml_collections import ConfigDict

from digits_jax.defaults import get_base

VARIANTS = ("plain", "skip", "numpy")


def get_config(variant: str = "") -> ConfigDict:
    config = get_base("lenet5", variant, VARIANTS)
    config.data.dataset = "mnist"
    config.model.update(name="lenet5", activation="relu", pooling="max", batch_norm=False)
    config.model.skip = variant == "skip"
    config.quoted = () if config.model.skip else (88.0,)
    config.epochs = 15
    if variant == "numpy":
        config.engine = "numpy"
        config.epochs = 10
    config.batch_size = 64
    config.optimizer.update(learning_rate=2e-3, schedule="cosine", warmup=1.0)
    return config
