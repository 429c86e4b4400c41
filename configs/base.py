"""Every field with its default; the other configs are deltas of it."""

from collections.abc import Iterable

from ml_collections import ConfigDict

from digits_jax.errors import check_choice


def get_base(name: str, variant: str, variants: Iterable[str]) -> ConfigDict:
    """The defaults, named after the config and its variant; the first of `variants` is the default.

    Raises UserError for a variant that does not exist.
    """
    variants = list(variants)
    variant = variant or variants[0]
    check_choice(f"configs/{name}.py", variant, variants)
    config = ConfigDict()
    config.name = name if variant == variants[0] else f"{name}-{variant}"

    config.seed = 0  # member i of a population has the seed + i
    config.epochs = 20
    config.batch_size = 256
    config.eval_batch_size = 1000
    config.engine = "jax"  # jax, numpy: digits_jax/scratch
    config.bfloat16 = False  # train with activations in bfloat16; weights stay in float32
    config.resume = True  # False: start the run over
    config.report_test = True  # read the test split, once, at the end
    config.keep_epochs = False  # keep the weights of every epoch, for --mode=best-test-epoch
    config.quoted = ()  # what the system that it reproduces quotes, by head, in percent

    config.data = data = ConfigDict()
    data.dataset = "mnist100"  # mnist, mnist100, two_digit
    data.source = "auto"  # mnist, drawn, or whichever can be had
    data.test_source = ""  # where the test digits come from, if from elsewhere
    data.raw_dir = ""  # a folder with the four IDX files
    data.cache_dir = ""  # prepared data and compiled programs; default: the user's cache
    data.seed = 0  # of the split, the pairs and the drawn digits
    data.validation = 0.1  # fraction of the digits; 0: train on all of them, take the last epoch
    data.folds = 0  # cross-validation: member i leaves out fold i % folds instead
    data.normalize = "unit"  # unit, global, feature
    data.fresh_pairs = False  # of two digits: new training pairs in every batch
    data.train = 0  # examples; 0: as many as the recipe has; fresh pairs keep to their digits
    data.test = 0
    data.drawn_train = 60_000  # digits to draw where the source is drawn
    data.drawn_test = 10_000
    data.drawn_extra = 0  # drawn digits of rarer hands that train beside those of MNIST

    config.model = ConfigDict({"name": "", "dropout": 0.0})  # and the fields of that model
    config.label_smoothing = 0.0

    config.optimizer = optimizer = ConfigDict()
    optimizer.name = "adam"  # adam, sgd, muon
    optimizer.learning_rate = 1e-3
    optimizer.b1 = 0.9  # of adam, and of what muon leaves to it; so is b2
    optimizer.b2 = 0.999
    optimizer.momentum = 0.9  # of sgd and muon
    optimizer.nesterov = True  # of both
    optimizer.weight_decay = 0.0  # of weights, neither biases nor BatchNorm
    optimizer.decoupled = False  # True: AdamW's way
    optimizer.schedule = "constant"  # constant, step, cosine, one_cycle
    optimizer.warmup = 0.0  # epochs of linear rise
    optimizer.final = 0.0  # where cosine and one_cycle end, as a fraction of the peak
    optimizer.step_epochs = ()  # where the schedule 'step' drops
    optimizer.step_factor = 0.1
    optimizer.ema = 0.0  # decay of averaged weights, which are then the ones evaluated

    config.early_stopping = ConfigDict({"patience": 0, "min_delta": 0.0})  # patience 0: off

    config.augment = augment = ConfigDict()
    augment.per_digit = False  # distort each digit before the image is composed
    augment.shift_x = 0.0  # px; whole ones, where nothing else moves the image
    augment.shift_y = 0.0
    augment.rotate = 0.0  # degrees
    augment.shear = 0.0
    augment.scale = 0.0  # 0.1: 0.9 to 1.1
    augment.elastic = 0.0  # px, standard deviation
    augment.pen = 0.0  # px, lines that much thicker at most, or half as much thinner
    augment.contrast = 0.0  # standard deviations
    augment.brightness = 0.0

    config.population = ConfigDict({"size": 1, "slice": 0})  # slice 0: the backend's rule
    # data: how many devices share each batch; the members have the others.
    config.mesh = ConfigDict({"data": 1})
    config.search = search = ConfigDict()
    # Mirrors the config, with ("log", low, high), ("uniform", low, high) or ("choice", one, other,
    # ...) where that has a value.
    search.space = ConfigDict()
    search.trials = 32  # the first is the config as it stands
    search.round = 8  # how many are trained at once
    search.epochs = 0  # of a trial; 0: epochs
    search.halving = 0  # 3: after 1, 3, 9, ... epochs the best third of a program's trials goes on
    search.sampler = "tpe"  # tpe, random, grid
    search.storage = ""  # an Optuna RDB URL; default: study.db in the workdir
    search.retrain = 0  # fresh seeds that the best trial and the default are trained on afterwards

    config.distill = distill = ConfigDict()
    distill.teacher = ""  # the folder of a trained run, whose members teach together
    distill.weight = 0.9  # of the teacher's part of the loss
    distill.temperature = 4.0
    distill.views = 0  # copies of each digit that it is asked about beforehand; 0: every step
    config.prune = ConfigDict()
    config.prune.run = ""  # the folder of a trained run whose first member is pruned and trained on
    config.prune.fractions = ()  # of its weights, by member; (): seven, from none to 98 %
    config.lock()  # a misspelt field in a config is an error, too
    config.model.unlock()  # its fields are the model's own
    config.search.space.unlock()
    return config
