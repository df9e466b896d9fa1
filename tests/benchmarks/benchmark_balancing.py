"""Measures the time cost of combining the gradients of several terms.

The model is a convolutional trunk of about 20 ms a step or more, with a head for each of 2, 3 or 8
terms. `fit` trains it with and without a `GradientBalancer`. On PyTorch, loops also train the same
network: with torchjd's `mtl_backward`, with its `autogram.Engine` and with a plain backward pass.
PyTorch has an overhead for each operation, so balancing costs a few milliseconds regardless of the
trunk. `--width 2` doubles the width of the trunk.

Run: python -m tests.benchmarks.benchmark_balancing [aggregators] --terms 2 3 8
     KERAS_BACKEND=torch python -m tests.benchmarks.benchmark_balancing --peer
"""

import argparse

import keras
import numpy as np

import keras_jointloss as kj
from tests.benchmarks.timing import compare

# Those that torchjd has, and all.
PEERS = "aligned_mtl", "cagrad", "imtl_g", "mean", "mgda", "nash_mtl", "pcgrad", "sum", "upgrad"
PEERS += ("fair_grad", "con_fig", "dual_proj", "grad_vac", "pcd")
RULES = (*PEERS, "shares", "db_mtl")
# The maximum median for each number of terms.
TARGETS = {2: 1.05, 3: 1.05, 8: 1.15}
STEPS, BATCH_SIZE, FILTERS = 20, 64, (32, 64, 64)


def load(terms):
    """Returns the inputs (channels last) and the targets of each term."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(STEPS * BATCH_SIZE, 32, 32, 3)).astype("float32")
    return x, [x[:, index, :4, index % 3] for index in range(terms)]


def build(terms, width, rule=None):
    inputs = keras.Input((32, 32, 3))
    x = inputs
    for filters in FILTERS:
        x = keras.layers.Conv2D(width * filters, 3, padding="same", activation="relu")(x)
        x = keras.layers.MaxPooling2D()(x)
    x = keras.layers.Dense(128, activation="relu")(keras.layers.Flatten()(x))
    names = [f"term{index}" for index in range(terms)]
    z = dict.fromkeys(names, x)
    if rule is not None:
        z = kj.layers.GradientBalancer(names, rule)(x)
    model = keras.Model(inputs, {name: keras.layers.Dense(4)(z[name]) for name in names})
    model.compile("adam", loss=dict.fromkeys(names, "mean_squared_error"))
    return model


def ratio(rule, terms, width, pairs):
    """Measures the time of `fit` with a `GradientBalancer` relative to `fit` without one."""
    x, targets = load(terms)
    y = {f"term{index}": target for index, target in enumerate(targets)}
    balanced, plain = build(terms, width, rule), build(terms, width)

    def fit(model):
        model.fit(x, y, batch_size=BATCH_SIZE, shuffle=False, verbose=0)

    return compare(lambda: fit(balanced), lambda: fit(plain), pairs)


def peer_aggregator(rule, terms):
    """Returns the aggregator of torchjd with its default settings."""
    from torchjd import aggregation

    name = rule.replace("_", "")
    name = next(x for x in aggregation.__all__ if x.lower() == name)
    needed = {"NashMTL": {"n_tasks": terms}, "CAGrad": {"c": 0.5}, "FairGrad": {"alpha": 1.0}}
    return getattr(aggregation, name)(**needed.get(name, {}))


def peer_ratios(rule, terms, width, pairs):
    """Measures torchjd's ways relative to a plain backward pass, all in a loop.

    The `autogram.Engine` needs a rule that works on the Gramian. The weighted sum of the losses
    then also weighs the gradients of the heads.
    """
    import torch
    from torchjd.autogram import Engine
    from torchjd.autojac import jac_to_grad, mtl_backward

    aggregator = peer_aggregator(rule, terms)
    weighting = getattr(aggregator, "gramian_weighting", None)

    def run(way):
        layers, channels = [], 3
        for filters in (width * filters for filters in FILTERS):
            layers += [torch.nn.Conv2d(channels, filters, 3, padding="same"), torch.nn.ReLU()]
            layers += [torch.nn.MaxPool2d(2)]
            channels = filters
        layers += [torch.nn.Flatten(), torch.nn.Linear(16 * channels, 128), torch.nn.ReLU()]
        trunk = torch.nn.Sequential(*layers)
        heads = torch.nn.ModuleList(torch.nn.Linear(128, 4) for _ in range(terms))
        optimizer = torch.optim.Adam([*trunk.parameters(), *heads.parameters()])
        engine = Engine(trunk, batch_dim=None) if way == "Engine" else None

        def train():
            for start in range(0, len(x), BATCH_SIZE):
                rows = slice(start, start + BATCH_SIZE)
                z = trunk(x[rows])
                losses = [
                    torch.nn.functional.mse_loss(head(z), target[rows])
                    for head, target in zip(heads, targets, strict=True)
                ]
                optimizer.zero_grad()
                if way == "mtl_backward":
                    mtl_backward(losses, features=z)
                    jac_to_grad(trunk.parameters(), aggregator)
                elif engine is not None:
                    losses = torch.stack(losses)
                    losses.backward(weighting(engine.compute_gramian(losses)))
                else:
                    sum(losses).backward()
                optimizer.step()

        return train

    x, targets = load(terms)
    x = torch.from_numpy(np.moveaxis(x, 3, 1).copy())
    targets = [torch.from_numpy(target.copy()) for target in targets]
    ways = ["mtl_backward"] + ["Engine"] * (weighting is not None)
    return {way: compare(run(way), run("plain"), pairs) for way in ways}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(RULES)}; default: all")
    parser.add_argument("--terms", type=int, nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--width", type=int, default=1, help="how much wider to make the trunk")
    parser.add_argument("--pairs", type=int, default=9, help="how often to measure, 5 or more")
    parser.add_argument("--peer", action="store_true", help="measure torchjd as well, on PyTorch")
    arguments = parser.parse_args(argv)
    for terms in arguments.terms:
        for rule in arguments.names or RULES:
            measured = ratio(rule, terms, arguments.width, arguments.pairs)
            peer = ""
            if arguments.peer and rule in PEERS:
                ratios = peer_ratios(rule, terms, arguments.width, arguments.pairs)
                peer = "".join(f"; {way}: {found}" for way, found in ratios.items())
            print(f"{rule}, {terms} terms: {measured}, target {TARGETS[terms]}{peer}", flush=True)


if __name__ == "__main__":
    main()
