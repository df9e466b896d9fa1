"""Two targets of which one is missing for most items: three ways to train on them in plain `fit`.

One network tells the returns of two companies in a month from those of six other prices. Microsoft
has been listed all the time, Dell in its present form only since 2016: four fifths of its targets
do not exist. The first way drops the months that lack a target, and with them most of what is
known of Microsoft. The second fills them with zeros of weight 0, but Keras' mean runs over all the
items of a batch, so that the term of Dell weighs as little as it is labelled. With `missing=` all
targets that exist are in use, and the mean of each term is over its own.

A table shows how much of the variance of each target is explained, in months that were not in the
training: each month is left out once.

Run: python examples/missing_targets.py    (with the extra `examples` of README)

Data: Stocks.csv, monthly prices from 1990 to 2022 that come with matplotlib, from Yahoo Finance.
"""

import argparse
import csv

import keras
import numpy as np

import keras_jointloss as kj

INPUTS = ("^GSPC", "^IXIC", "IBM", "AAPL", "XRX", "ADBE")
TARGETS = {"microsoft": "MSFT", "dell": "DELL"}
FOLDS = 4
WAYS = ("drop months", "fill, weight 0", "missing=")


def load():
    """Returns the inputs, `(months, 6)`, and each target, `(months, 1)`, NaN where it is missing.

    All are logarithms of the ratio of two months' prices, divided by their deviation.
    """
    from matplotlib.cbook import get_sample_data

    with get_sample_data("Stocks.csv") as file:
        lines = [line for line in file if not line.startswith("#")]
    rows = [row for row in csv.DictReader(lines) if row["IBM"]]  # Others are days of dividends.

    def returns(name):
        logarithms = np.log([float(row[name] or "nan") for row in rows])
        values = np.diff(logarithms)[:, None]
        return ((values - np.nanmean(values)) / np.nanstd(values)).astype("float32")

    inputs = np.concatenate([returns(name) for name in INPUTS], axis=1)
    return inputs, {name: returns(symbol) for name, symbol in TARGETS.items()}


def build_model(seed):
    """Returns a small network with a trunk that both targets share."""
    keras.utils.set_random_seed(seed)
    x = keras.Input((len(INPUTS),), name="returns")
    h = keras.layers.Dense(16, activation="tanh")(x)
    return keras.Model(x, {name: keras.layers.Dense(1, name=name)(h) for name in TARGETS})


def train(way, x, y, epochs, seed):
    """Returns a network that was trained in one of the three ways."""
    model = build_model(seed)
    known = {name: ~np.isnan(target[:, 0]) for name, target in y.items()}
    weights, missing = None, None
    if way == "drop months":
        complete = np.all(list(known.values()), axis=0)
        x, y = x[complete], {name: target[complete] for name, target in y.items()}
    elif way == "fill, weight 0":
        y = {name: np.nan_to_num(target) for name, target in y.items()}
        weights = {name: there.astype("float32") for name, there in known.items()}
    else:
        missing = float("nan")
    losses = dict.fromkeys(TARGETS, "mean_squared_error")
    model.compile(keras.optimizers.Adam(0.01), **kj.joint_loss(losses, missing=missing))
    model.fit(x, y, sample_weight=weights, batch_size=64, epochs=epochs, verbose=0)
    return model


def explained(way, x, y, epochs, seed):
    """Returns the explained variance of each target, from predictions for months left out."""
    fold = np.random.default_rng(seed).permutation(len(x)) % FOLDS
    errors = {name: np.zeros_like(target) for name, target in y.items()}
    for index in range(FOLDS):
        held_out = fold == index
        training = {name: target[~held_out] for name, target in y.items()}
        model = train(way, x[~held_out], training, epochs, seed)
        predicted = model.predict(x[held_out], batch_size=len(x), verbose=0)
        for name, target in y.items():
            errors[name][held_out] = predicted[name] - target[held_out]
    return [float(1 - np.nanmean(np.square(error))) for error in errors.values()]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=1, help="how many times, in other folds")
    arguments = parser.parse_args(argv)
    x, y = load()
    labelled = [np.mean(~np.isnan(target)) for target in y.values()]
    print("".join(f"{cell:>16}" for cell in ("", *TARGETS)))
    print(f"{'labelled':<16}" + "".join(f"{share:>16.1%}" for share in labelled))
    results = {}
    for way in WAYS:
        runs = [explained(way, x, y, arguments.epochs, seed) for seed in range(arguments.seeds)]
        results[way] = np.mean(runs, axis=0)
        cells = "".join(f"{value:>16.1%}" for value in results[way])
        print(f"{way:<16}{cells}", flush=True)
    return results


if __name__ == "__main__":
    main()
