"""One digit, 28x28.

python launch.py --config=configs/mnist.py
python launch.py --config=configs/mnist.py:mlp10

Test accuracy, chosen on validation, mean and standard deviation of five seeds:

cnn            225,034 parameters   99.40 ± 0.05 %
mlp10            7,960 parameters   93.33 ± 0.34 %
mlp10-tuned      7,960 parameters   93.34 ± 0.29 %, batches of 64
mlp128         101,770 parameters   97.72 ± 0.12 %
mlp128-tuned   101,770 parameters   98.10 ± 0.04 %, LeakyReLU, cosine schedule, slight distortion
"""

from ml_collections import ConfigDict

from digits_jax.defaults import get_base

VARIANTS = ("cnn", "mlp10", "mlp10-tuned", "mlp128", "mlp128-tuned")


def get_config(variant: str = "") -> ConfigDict:
    config = get_base("mnist", variant, VARIANTS)
    config.data.dataset = "mnist"
    config.epochs = 10
    config.batch_size = 32
    config.optimizer.update(name="sgd", learning_rate=0.1, momentum=0.0)
    match variant or VARIANTS[0]:
        case "cnn":
            config.model.update(name="cnn", features=(32, 64), hidden=(128,), padding="VALID")
            config.model.dropout = 0.5
            config.optimizer.update(learning_rate=0.01, momentum=0.9, schedule="cosine")
            config.augment.update(rotate=8.0, shift_x=1.0, shift_y=1.0)
            config.quoted = (99.17,)
        case "mlp10":
            config.quoted = (92.05,)
            config.model.update(name="mlp", hidden=(10,), activation="relu")
        case "mlp10-tuned":
            config.quoted = (92.99,)
            config.model.update(name="mlp", hidden=(10,), activation="relu")
            config.batch_size = 64
        case "mlp128":
            config.quoted = (97.69,)
            config.model.update(name="mlp", hidden=(128,), activation="relu")
        case "mlp128-tuned":
            config.quoted = (97.70,)
            config.model.update(name="mlp", hidden=(128,), activation="leaky_relu")
            config.optimizer.schedule = "cosine"
            config.augment.update(rotate=8.0, shift_x=1.0, shift_y=1.0)
    return config
