"""Records: small networks distilled from an ensemble, on precomputed distorted digits.

python launch.py --config=configs/records.py --config.population.size=5
python launch.py --config=configs/records.py:cnn --config.population.size=10
python launch.py --config=configs/records.py:lenet5 --config.population.size=5
python launch.py --config=configs/records.py:mlp --config.population.size=5
python launch.py --config=configs/records.py:p20000 --config.population.size=5
python launch.py --config=configs/records.py:p8000 --config.population.size=5
python launch.py --config=configs/records.py:p3500 --config.population.size=5
python launch.py --config=configs/records.py:p2000 --config.population.size=5
python launch.py --config=configs/records.py:p690 --config.population.size=5
python launch.py --config=configs/records.py:stacked --config.population.size=5

Test accuracy, mean and standard deviation of five seeds, chosen on validation, or (*) after the
last epoch on all 60,000 digits:

mnist100   49,184 parameters   99.40 ± 0.04 %, pairs; the network of `cnn` reads each digit
cnn        49,184 parameters   99.69 ± 0.02 % (ten seeds); their ensemble 99.75 %
p20000     16,956 parameters   99.66 ± 0.03 % *, as p8000, 64 wide
p8000       7,812 parameters   99.66 ± 0.04 % *, 40 wide; the first layer is fixed: edges and lines
p3500       3,471 parameters   99.55 ± 0.05 % *, as p8000, 24 wide
p2000       1,920 parameters   99.39 ± 0.05 % *, as p3500, each of two layers twice
p690          640 parameters   98.63 ± 0.12 % *, as p3500, 16 wide, one layer five times
stacked   136,628 parameters   upper 99.55 ± 0.04 %, lower 99.30 ± 0.04 % *, both 98.84 %
lenet5     61,706 parameters   99.59 ± 0.03 %, the network of configs/lenet5.py
mlp     1,201,162 parameters   99.58 ± 0.04 % *, 784-768-768-10
"""

from ml_collections import ConfigDict

from digits_jax.defaults import get_base

UNPADDED = (
    "conv3 16",
    "pool",
    "conv3 32",
    "conv3 32",
    "conv3 48",
    "conv3 48",
    "average 1",
    "linear1 classes",
)
STACKED = (
    "edges 32",
    "conv3 32",
    "pool",
    "conv3 48",
    "conv3 48",
    "conv3 64",
    "pool",
    "conv3 96",
    "fc classes",
)
SEPARABLE = {  # filters of the fixed first layer, the layers after it, epochs, learning rate
    "p20000": (28, ("sep3 64",) * 4, 25, 4e-2),
    "p8000": (28, ("sep3 40",) * 4, 25, 4e-2),
    "p3500": (23, ("sep3 24",) * 4, 30, 6e-2),
    "p2000": (24, ("sep3 24", "again") * 2, 40, 3.5e-2),
    "p690": (16, ("sep3 16", *("again",) * 4), 30, 6e-2),
}
VARIANTS = ("mnist100", "stacked", "cnn", "lenet5", "mlp", *SEPARABLE)


def get_config(variant: str = "") -> ConfigDict:
    config = get_base("records", variant, VARIANTS)
    config.data.dataset = "mnist"
    config.distill.update(teacher="results/records-cnn", weight=0.9, temperature=4.0, views=24)
    config.augment.update(rotate=10.0, shift_x=1.5, shift_y=1.5, shear=8.0, scale=0.1, elastic=0.4)
    match variant or VARIANTS[0]:
        case "mnist100":
            config.distill.teacher = "results/compact"
            config.data.update(dataset="mnist100", fresh_pairs=True)
            config.augment.per_digit = True
            config.epochs = 20
            config.batch_size = 64
            _compact(config, UNPADDED)
            config.model.name = "compact_tower"
            config.optimizer.ema = 0.999
        case "cnn":
            config.distill.teacher = "results/compact"
            config.epochs = 12
            config.batch_size = 128
            _compact(config, UNPADDED)
        case "stacked":
            config.data.update(dataset="two_digit", fresh_pairs=True, validation=0.0)
            config.augment.update(rotate=6.0, shift_x=0.0, shift_y=0.0, shear=0.0, scale=0.05)
            config.augment.per_digit = True
            config.distill.views = 8
            config.epochs = 16
            config.batch_size = 64
            _compact(config, STACKED)
            config.optimizer.learning_rate = 1e-2
        case _ if variant in SEPARABLE:
            filters, layers, epochs, learning_rate = SEPARABLE[variant]
            config.data.validation = 0.0
            config.epochs = epochs
            config.batch_size = 64
            _compact(config, (f"edges {filters}", "pool", *layers, "average 1", "linear1 classes"))
            config.optimizer.learning_rate = learning_rate
        case "lenet5":
            config.epochs = 30
            config.batch_size = 64
            config.model.update(name="lenet5", activation="relu", pooling="max", batch_norm=False)
            config.model.skip = False
            _muon(config, 4e-3)
            config.optimizer.schedule = "cosine"
            config.quoted = (99.2,)  # LeCun et al. 1998, with distortions
        case "mlp":
            config.data.validation = 0.0
            config.epochs = 40
            config.batch_size = 1024
            config.model.update(name="mlp", hidden=(768, 768), activation="relu")
            _muon(config, 1e-2)
            config.quoted = (99.65,)  # Ciresan et al. 2010, up to 12 million weights
    return config


def _compact(config: ConfigDict, layers: tuple[str, ...]) -> None:
    config.model.update(name="compact", layers=layers, activation="silu", norm="before")
    config.model.update(scale=False, padding="VALID", bias=False, residual=True)
    config.model.update(spatial=True, dropout_start=1.0, squeeze=0)
    _muon(config, 4e-2)


def _muon(config: ConfigDict, learning_rate: float) -> None:
    config.optimizer.update(name="muon", momentum=0.95, learning_rate=learning_rate, ema=0.998)
    config.optimizer.update(schedule="one_cycle", warmup=1.0)
