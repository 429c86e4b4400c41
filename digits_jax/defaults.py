"""Every config field with its default, and the configs and runs that come with the package."""

from collections.abc import Iterable
from pathlib import Path

from ml_collections import ConfigDict

from digits_jax.errors import UserError, check_choice, nearest

AUGMENTATIONS = (  # the fields of `augment`
    "per_digit",
    "shift_x",
    "shift_y",
    "rotate",
    "shear",
    "scale",
    "elastic",
    "pen",
    "blur",
    "noise",
    "contrast",
    "brightness",
)
REGISTERED: set[str] = set()  # further ones, of `digits_jax.register_augmentation`


def shipped(folder: str) -> Path:
    """The folder 'configs' or 'results' of this package: in it if installed, beside it in a clone.

    An installed one holds of 'results' only the run that `digits_jax.load()` reads.
    """
    package = Path(__file__).parent
    return next(path for path in (package / folder, package.parent / folder) if path.is_dir())


def config_file(name: str) -> Path:
    """The file of the shipped config 'NAME', 'NAME.py' or 'configs/NAME.py'.

    A file of the user's own at that path comes first. UserError where there is neither.
    """
    if name.endswith(".py") and Path(name).is_file():
        return Path(name)
    stem = name.removeprefix("configs/").removesuffix(".py")
    path = shipped("configs") / f"{stem}.py"
    if stem.isidentifier() and path.is_file():
        return path
    near = nearest(name, config_names())
    raise UserError(f"--config: there is no file '{name}', and no config of that name; {near}")


def config_names() -> list[str]:
    """The names of the shipped configs."""
    return sorted(path.stem for path in shipped("configs").glob("[!_]*.py"))


def get_base(name: str, variant: str = "", variants: Iterable[str] = ("",)) -> ConfigDict:
    """The default config of `name` and `variant`; the first of `variants` is the default one.

    Raises UserError for a variant that does not exist.
    """
    variants = list(variants)
    variant = variant or variants[0]
    check_choice(f"configs/{name}.py", variant, variants)
    config = ConfigDict()
    config.name = name if variant == variants[0] else f"{name}-{variant}"

    config.seed = 0  # member i of a population has seed + i
    config.epochs = 20
    config.batch_size = 256
    config.eval_batch_size = 1000
    config.engine = "jax"  # jax, or numpy (digits_jax/scratch)
    config.bfloat16 = False  # activations in bfloat16 while training; weights stay in float32
    config.resume = True  # False: delete the run in the workdir and start over
    config.report_test = True  # evaluate the test split, once, at the end
    config.keep_epochs = False  # keep the weights of every epoch, for --mode=best-test-epoch
    config.quoted = ()  # accuracy of the reproduced system, by head, in percent

    config.data = data = ConfigDict()
    data.dataset = "mnist100"  # mnist, mnist100, two_digit, number
    data.source = "auto"  # mnist if it can be had, else drawn; a name, or a path: docs/data.md
    data.classes = ()  # filled in: names of the classes, () for the ten digits
    data.sha256 = ""  # filled in: of data of your own
    data.test_source = ""  # where the test digits come from; "": the same
    data.raw_dir = ""  # a folder with the four IDX files
    data.cache_dir = ""  # prepared data and compiled programs; default: the user's cache
    data.seed = 0  # seed of the split, the pairs and the drawn digits
    data.validation = 0.1  # fraction of the digits; 0: train on all of them, take the last epoch
    data.folds = 0  # cross-validation: member i is validated on fold i % folds
    data.normalize = "unit"  # unit, global, feature
    data.fresh_pairs = False  # datasets of two digits: new training pairs in every batch
    data.train = 0  # examples; 0: all. Fresh pairs use only the digits of these
    data.test = 0
    data.drawn_train = 60_000  # digits to draw if the source is drawn
    data.drawn_test = 10_000
    data.drawn_distortion = 0.5  # of them; 0.5: as legible as MNIST's, 1: as varied as they can be
    data.nondigits = 0  # dataset number: drawn images of what is no digit, for training
    data.drawn_extra = 0  # drawn digits of rarer handwriting, added to those of MNIST for training

    config.model = ConfigDict({"name": "", "dropout": 0.0})  # and the fields of the named model
    config.label_smoothing = 0.0

    config.optimizer = optimizer = ConfigDict()
    optimizer.name = "adam"  # adam, sgd, muon
    optimizer.learning_rate = 1e-3
    optimizer.b1 = 0.9  # b1 and b2: of adam, also where muon uses it
    optimizer.b2 = 0.999
    optimizer.momentum = 0.9  # of sgd and muon
    optimizer.nesterov = True  # of sgd and muon
    optimizer.weight_decay = 0.0  # of weights, not of biases and BatchNorm
    optimizer.decoupled = False  # True: decoupled, as in AdamW; False: L2 in the loss
    optimizer.schedule = "constant"  # constant, step, cosine, one_cycle
    optimizer.warmup = 0.0  # epochs of linear rise
    optimizer.final = 0.0  # last rate of cosine and one_cycle, as a fraction of the peak
    optimizer.step_epochs = ()  # epochs after which the schedule 'step' drops
    optimizer.step_factor = 0.1
    optimizer.ema = 0.0  # decay of averaged weights, which are then evaluated

    config.early_stopping = ConfigDict({"patience": 0, "min_delta": 0.0})  # patience 0: off

    config.augment = augment = ConfigDict()
    augment.per_digit = False  # distort each digit before the image is composed
    augment.shift_x = 0.0  # px; whole pixels if no other field moves the image
    augment.shift_y = 0.0
    augment.rotate = 0.0  # degrees
    augment.shear = 0.0
    augment.scale = 0.0  # 0.1: 0.9 to 1.1
    augment.elastic = 0.0  # px, standard deviation
    augment.pen = 0.0  # px, strokes up to that much thicker or half as much thinner
    augment.blur = 0.0  # px, most
    augment.noise = 0.0  # of the ink, standard deviation
    augment.contrast = 0.0  # standard deviations
    augment.brightness = 0.0
    augment.update(dict.fromkeys(sorted(REGISTERED), 0.0))

    config.population = ConfigDict({"size": 1, "slice": 0})  # slice 0: by the backend
    config.mesh = ConfigDict({"data": 1})  # devices per batch; the members share out the rest
    config.search = search = ConfigDict()
    # Has the structure of the config. A value is ("log", low, high), ("uniform", low, high) or
    # ("choice", one, other, ...).
    search.space = ConfigDict()
    search.trials = 32  # the first one is the config itself
    search.round = 8  # trials trained at once
    search.epochs = 0  # of a trial; 0: config.epochs
    search.halving = 0  # 3: after 1, 3, 9, ... epochs the best third of a program's trials goes on
    search.sampler = "tpe"  # tpe, random, grid
    search.storage = ""  # an Optuna RDB URL; default: study.db in the workdir
    search.retrain = 0  # new seeds to train the best trial and the default with afterwards

    config.distill = distill = ConfigDict()
    distill.teacher = ""  # the folder of a trained run; its members' ensemble is the teacher
    distill.weight = 0.9  # of the distillation loss; 1 - weight: of the labels' loss
    distill.temperature = 4.0
    distill.views = 0  # precomputed copies of each digit; 0: the teacher runs in every step
    config.prune = ConfigDict()
    config.prune.run = ""  # the folder of a trained run; its first member is pruned and trained on
    config.prune.fractions = ()  # of weights to prune, by member; (): seven, from 0 to 98 %
    config.lock()  # a misspelt field is an error
    config.model.unlock()  # its fields depend on the model
    config.search.space.unlock()
    return config
