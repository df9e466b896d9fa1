"""Trains the examples with this package and with other libraries, and prints both results.

PyTorch only. Both trainings of a pair have the same seed, initial weights and batches:

- `losses`: the model of examples/emoji.py with a loss of the package, and with that of
  pytorch-metric-learning or PyTorch between images and texts. A temperature is trained in both.
- `aggregators`: the network of examples/multi_digit.py with a `GradientBalancer` or, with
  `--level parameters`, a `SharedTrunk`, and with torchjd's `mtl_backward`.
- `rules`: the network of examples/weighting.py with a rule of the package, and with that of LibMTL
  (`pip install --no-deps LibMTL`).

All have their default settings, except that the losses of a pair share those of ours. Mean +-
deviation are over the seeds.

Run: KERAS_BACKEND=torch python -m tests.benchmarks.benchmark_results losses [names] --seeds 3
"""

import argparse
import importlib.util
import sys

import keras
import numpy as np
import torch
from pytorch_metric_learning import distances, losses, miners
from torchjd.autojac import jac_to_grad, mtl_backward

import keras_jointloss as kj
from tests.benchmarks.benchmark_balancing import PEERS, peer_aggregator
from tests.benchmarks.benchmark_weights import import_example

EUCLIDEAN = distances.LpDistance(normalize_embeddings=False)


def of_samples(make, make_miner=None):
    """Returns a loss of pytorch-metric-learning as a function like those of `LOSSES`."""

    def function(views, labels, arguments):
        # Each emoji is a class of its own.
        classes = torch.arange(len(views)).repeat_interleave(views.shape[1])
        embeddings = views.flatten(0, 1)
        mined = make_miner(arguments)(embeddings, classes) if make_miner else None
        return make(arguments)(embeddings, classes, mined)

    return function


#: The losses of other libraries as functions of the views, the labels and our arguments.
LOSSES = {
    "NTXent": of_samples(lambda x: losses.NTXentLoss(x["temperature"])),
    "SupCon": of_samples(lambda x: losses.SupConLoss(x["temperature"])),
    "NPairs": of_samples(lambda x: losses.NPairsLoss()),
    "MultiSimilarity": of_samples(
        lambda x: losses.MultiSimilarityLoss(x["alpha"], x["beta"], x["base"])
    ),
    "Circle": of_samples(lambda x: losses.CircleLoss(x["margin"], x["gamma"])),
    "Triplet": of_samples(
        lambda x: losses.TripletMarginLoss(x["margin"], distance=EUCLIDEAN),
        lambda x: miners.TripletMarginMiner(x["margin"], "semihard", distance=EUCLIDEAN),
    ),
    "TripletMargin": lambda views, labels, x: torch.nn.TripletMarginLoss(x["margin"])(
        *views.unbind(1)
    ),
    "VICReg": lambda views, labels, x: losses.VICRegLoss()(views[:, 0], ref_emb=views[:, 1]),
}
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
SQUARED_ERROR = keras.losses.MeanSquaredError()
DIGITS = {"left": CROSS_ENTROPY, "right": CROSS_ENTROPY, "drawing": SQUARED_ERROR}
EMOJI = {"category": CROSS_ENTROPY, "meaning": SQUARED_ERROR}
#: The names of the rules in LibMTL, with the default arguments of its command line.
LIBMTL = {
    "Uncertainty": ("UW", {}),
    "DynamicWeightAverage": ("DWA", {"T": 2.0}),
    "GeometricMean": ("GLS", {}),
    "GradNorm": ("GradNorm", {"alpha": 1.5}),
    "RandomWeighting": ("RLW", {"dist": "Normal"}),
}


class Peer(keras.Model):
    """A model whose gradients come from another library: from `backward(x, y)`."""

    def train_step(self, data):
        self.zero_grad()
        self.backward(*data[:2])
        variables = self.trainable_variables
        self.optimizer.apply([variable.value.grad for variable in variables], variables)
        return {}


def fit(model, backward, functions, optimizer, *arguments, **options):
    peer = Peer(model.input, model.output)
    peer.backward = backward
    # To build the losses, Keras takes a batch: without them, the order of the others would differ.
    peer.compile(optimizer, loss=functions)
    peer.fit(*arguments, verbose=0, **options)


def trunk_and_heads(model):
    """Returns the parts of a model before and after its `GradientBalancer`."""
    (balancer,) = (x for x in model.layers if isinstance(x, kj.layers.GradientBalancer))
    return keras.Model(model.input, balancer.input), keras.Model(balancer.input, model.output)


def losses_of(functions, outputs, y):
    return [function(y[task], outputs[task]) for task, function in functions.items()]


def train_with_torchjd(example, data, epochs, seed, rule, level):
    """Trains the network of examples/multi_digit.py with torchjd; returns its scores."""
    keras.utils.set_random_seed(seed)
    model = example.build(None, "representation")
    trunk, heads = trunk_and_heads(model)
    shared = [variable.value for variable in trunk.trainable_variables]
    aggregator = peer_aggregator(rule, len(DIGITS))

    def backward(x, y):
        z = trunk(x)
        # Of the representation, a copy that no parameter of the trunk leads to.
        leaf = z if level == "parameters" else z.detach().requires_grad_()
        features = leaf.clone()
        mtl_backward(losses_of(DIGITS, heads(features), y), features=features)
        jac_to_grad(shared if leaf is z else [leaf], aggregator)
        if leaf is not z:
            z.backward(leaf.grad)

    x, y = data[0]
    fit(model, backward, DIGITS, keras.optimizers.Adam(0.002), x, y, batch_size=128, epochs=epochs)
    return example.scores(model, *data[2])


def compare_aggregators(name, epochs, seeds, level):
    """Returns accuracies of both digits and the explained variance, for each way and seed."""
    example = import_example("multi_digit")
    data = [example.load(seed) for seed in range(seeds)]
    ours, peer = [], []
    for seed, part in enumerate(data):
        ours.append(example.train(part, epochs, seed, aggregator=name, level=level).scores)
        peer.append(train_with_torchjd(example, part, epochs, seed, name, level))
    return ours, peer


def with_peer(name):
    """Returns our loss with the values of the other library in place of its own."""
    ours, compute = getattr(kj.losses, name), LOSSES[name]

    def function(views, labels=None, valid=None, **arguments):
        return compute(views, labels, arguments).expand(len(views))

    attributes = {"function": staticmethod(function), "takes_items": False}
    return type(name, (ours,), attributes)()


def search(loss, epochs, seed):
    """Trains the model of examples/emoji.py; returns R@1, R@5 and R@10 from images to texts."""
    example = import_example("emoji")
    keras.utils.set_random_seed(seed)
    data = example.load()
    indices, held_out = example.split(data, seed)
    vocabulary = sorted({word for text in data["text"][indices] for word in text.split()})
    steps = epochs * -(-len(indices) // example.BATCH_SIZE)
    model = example.build(len(vocabulary), len(data["categories"]), steps, loss)
    model.fit(
        *example.select(data, indices, vocabulary),
        batch_size=example.BATCH_SIZE,
        epochs=epochs,
        verbose=0,
        callbacks=[kj.callbacks.JointLossCallback()],
    )
    return example.retrieve(model, example.select(data, held_out, vocabulary)[0])["both -> text"]


def compare_losses(name, epochs, seeds, level):
    """Returns the recalls with our loss and with the other library's, for each seed."""
    return tuple(
        [search(loss, epochs, seed) for seed in range(seeds)] for loss in (name, with_peer(name))
    )


def libmtl_rules():
    """Returns the module of LibMTL's rules, without its models, which need an old torchvision."""
    spec = importlib.util.find_spec("LibMTL")
    sys.modules.setdefault("LibMTL", importlib.util.module_from_spec(spec))
    return importlib.import_module("LibMTL.weighting")


def train_with_libmtl(example, data, epochs, seed, rule):
    """Trains the network of examples/weighting.py with a rule of LibMTL; returns its scores."""
    weighting = libmtl_rules()
    keras.utils.set_random_seed(seed)
    training, held_out = data
    categories = 1 + int(max(training["category"]))
    model = example.build(training["image"].shape[1:], categories, training["target"].shape[1])
    trunk, heads = trunk_and_heads(model)
    shared = [variable.value for variable in trunk.trainable_variables]
    name, arguments = LIBMTL[rule]
    rule = getattr(weighting, name)()
    rule.task_num, rule.device, rule.rep_grad = len(EMOJI), "cpu", False
    rule.get_share_params = lambda: shared
    rule.zero_grad_share_params = lambda: trunk.zero_grad(set_to_none=False)
    rule.train_loss_buffer = np.zeros((rule.task_num, epochs))
    rule.init_param()
    # LibMTL trains the parameters of a rule as those of the network.
    parameters = list(rule.parameters())
    adam = torch.optim.Adam(parameters) if parameters else None
    seen = []

    def backward(x, y):
        values = torch.stack(losses_of(EMOJI, heads(trunk(x)), y))
        seen.append(values.detach().numpy())
        rule.zero_grad()
        rule.backward(values, **arguments)
        if adam:
            adam.step()

    def begin(epoch, logs):
        rule.epoch = epoch

    def end(epoch, logs):
        rule.train_loss_buffer[:, epoch] = np.mean(seen, axis=0)
        seen.clear()

    fit(
        model,
        backward,
        EMOJI,
        "adam",
        training["image"],
        {"category": training["category"], "meaning": training["target"]},
        batch_size=64,
        epochs=epochs,
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_begin=begin, on_epoch_end=end)],
    )
    return example.scores(model, held_out)


def compare_rules(name, epochs, seeds, level):
    """Returns the accuracy and the explained variance, for each way and seed."""
    example = import_example("weighting")
    data = example.load_emoji_with_targets()
    rule = example.RULES[name]
    return (
        [example.train(data, epochs, seed, weighting=rule())[0] for seed in range(seeds)],
        [train_with_libmtl(example, data, epochs, seed, name) for seed in range(seeds)],
    )


#: What runs, the names of what to compare and of the results, and the epochs of the example.
COMPARISONS = {
    "losses": (compare_losses, LOSSES, ("R@1", "R@5", "R@10"), 15),
    "aggregators": (compare_aggregators, PEERS, ("left", "right", "drawing"), 12),
    "rules": (compare_rules, LIBMTL, ("category", "meaning"), 12),
}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("comparison", choices=COMPARISONS)
    parser.add_argument("names", nargs="*", help="losses, aggregators or rules; default: all")
    parser.add_argument("--epochs", type=int, help="default: those of the example")
    parser.add_argument("--seeds", type=int, default=1, help="how many trainings of each kind")
    levels = ("representation", "parameters")
    parser.add_argument("--level", choices=levels, default=levels[0])
    arguments = parser.parse_args(argv)
    run, names, columns, epochs = COMPARISONS[arguments.comparison]
    print(f"{'':<22}{'':<9}" + "".join(f"{column:>18}" for column in columns))
    for name in arguments.names or names:
        results = run(name, arguments.epochs or epochs, arguments.seeds, arguments.level)
        for way, values in zip(("ours", "peer"), results, strict=True):
            pairs = zip(np.mean(values, axis=0), np.std(values, axis=0), strict=True)
            cells = "".join(f"{mean:>10.1%} +- {deviation:>4.1%}" for mean, deviation in pairs)
            print(f"{name:<22}{way:<9}{cells}", flush=True)


if __name__ == "__main__":
    main()
