# %% [markdown]
"""
# A recommender: retrieval beside a rating

A recommender of two towers embeds queries and candidates; candidates near a query are retrieved,
and a second head rates them. Both are trained at once, on pairs that were observed: a contrastive
loss for the retrieval, a regression for the rating. Here both are terms of one `fit`, beside layers
of [KerasRS](https://keras.io/keras_rs).

The data: words that describe emoji. A query is a word, a candidate an emoji, and a pair is observed
where the word describes the emoji. The rating is how early the word stands in the description, from
1 for the first word, which is that of the name, to 0 for the last. Words of 3 to 60 emoji take part.
A tenth of the pairs is held out. Run the guide in the root of the repository.
"""

# %%
from collections import Counter

import keras
import keras_rs
import numpy as np

import keras_jointloss as kj

with np.load("examples/data/emoji_pairs.npz") as file:
    texts, codes = [text.split() for text in file["text"]], file["unified"]
counts = Counter(word for text in texts for word in text)
words = sorted(word for word, count in counts.items() if 3 <= count <= 60)
number = {word: i for i, word in enumerate(words)}
pairs = [
    (number[word], emoji, 1 - position / (len(text) - 1))
    for emoji, text in enumerate(texts)
    for position, word in enumerate(text)
    if word in number and len(text) > 1
]
np.random.default_rng(0).shuffle(pairs)
query, candidate, rating = (np.array(column) for column in zip(*pairs, strict=True))
query, candidate = query.astype("int32"), candidate.astype("int32")
split = len(pairs) // 10
train, test = slice(split, None), slice(split)
print(f"{len(words)} words, {len(texts)} emoji, {len(pairs)} pairs")

# %% [markdown]
"""
## The model

`ContrastiveTerm` compares each query with all candidates of the batch and returns the embeddings for
the head. An emoji that stands in a batch twice must not be its own negative: the ids of the
candidates are the labels, and `same_label="ignore"` leaves such candidates out, as TensorFlow Recommenders does
with `remove_accidental_hits=True`. The temperature is learned.

The head is KerasRS' `FeatureCross`. It reads the embeddings that both terms train.
"""


# %%
def build(weights):
    """Returns the compiled model of two towers and a head."""
    inputs = {name: keras.Input((), dtype="int32", name=name) for name in ("query", "candidate")}
    q = keras.layers.Embedding(len(words), 32, name="queries")(inputs["query"])
    c = keras.layers.Embedding(len(texts), 32, name="candidates")(inputs["candidate"])
    loss = kj.losses.InfoNCE(temperature=0.1, same_label="ignore")
    options = {"learn_temperature": True, "name": "retrieval"}
    term = kj.layers.ContrastiveTerm(loss, weights["retrieval"], **options)
    q, c = term((q, c, inputs["candidate"]))
    x = keras.layers.Concatenate()([q, c, q * c])
    x = keras.layers.Dense(32, activation="relu")(keras_rs.layers.FeatureCross()(x, x))
    model = keras.Model(inputs, {"rating": keras.layers.Dense(1, name="rating")(x)})
    weight = {"rating": weights["rating"]}
    model.compile(keras.optimizers.Adam(0.01), **kj.joint_loss({"rating": "mse"}, weight))
    return model


# %% [markdown]
"""
## The evaluation

`RetrievalEvaluation` searches with each word among all emoji. `relevant` lists the held-out emoji of
each word; those it was trained with count as wrong, so that the recall is lower than what a user
would see. The rating is measured by the explained variance of the held-out pairs.
"""

# %%
asked = np.unique(query[test])
search = kj.callbacks.RetrievalEvaluation(
    queries={"query": asked},
    candidates={"candidate": np.arange(len(texts), dtype="int32")},
    relevant=[candidate[test][query[test] == word].tolist() for word in asked],
    embeddings="retrieval",
    k=(10, 50),
    name="emoji",
)


def inputs_of(part):
    """Returns the inputs of some of the pairs."""
    return {"query": query[part], "candidate": candidate[part]}


def explained(model):
    """Returns the explained variance of the held-out ratings."""
    predicted = model.predict(inputs_of(test), verbose=0)["rating"][:, 0]
    return 1 - np.mean(np.square(predicted - rating[test])) / np.var(rating[test])


# %% [markdown]
"""
## One task, the other, both

The rating's loss is far smaller than that of the retrieval, so its weight is larger. The report after
the table shows what each term contributed in the last training.
"""

# %%
trainings = {
    "rating alone": {"retrieval": 0.0, "rating": 10.0},
    "retrieval alone": {"retrieval": 1.0, "rating": 0.0},
    "both": {"retrieval": 1.0, "rating": 10.0},
}
print(f"{'':<18}{'R@10':>8}{'R@50':>8}{'rating':>8}")
for name, weights in trainings.items():
    keras.utils.set_random_seed(0)
    model = build(weights)
    callback = kj.callbacks.JointLossCallback()
    options = {"batch_size": 512, "epochs": 6, "verbose": 0, "callbacks": [callback]}
    history = model.fit(inputs_of(train), {"rating": rating[train]}, **options)
    found = search.evaluate(model)
    recalls = [found[f"emoji_a_to_b_recall_at_{k}"] for k in (10, 50)]
    explained_variance = f"{explained(model):.1%}" if weights["rating"] else "-"
    print(f"{name:<18}{recalls[0]:>8.1%}{recalls[1]:>8.1%}{explained_variance:>8}")
print(kj.report(history))

# %% [markdown]
"""
The rating gains from embeddings that the retrieval trains; the retrieval gives up a little.

## Serve it

The embeddings go to an index for the nearest candidates, by cosine as in training.
`BruteForceRetrieval` compares with all of them.
"""

# %%
tables = [
    keras.ops.convert_to_numpy(model.get_layer(x).embeddings) for x in ("queries", "candidates")
]
queries, candidates = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in tables)
index = keras_rs.layers.BruteForceRetrieval(candidates, k=6, return_scores=False)
for word in ("fruit", "music", "winter", "cat"):
    nearest = keras.ops.convert_to_numpy(index(queries[[number[word]]]))[0]
    emoji = ("".join(chr(int(code, 16)) for code in codes[i].split("-")) for i in nearest)
    print(f"{word:<8}", *emoji)

# %% [markdown]
"""
## On MovieLens

[movielens.py](../movielens.py) trains a recommender on 100,000 real ratings, in the set-up of
TensorFlow Recommenders' tutorial. There the loss of the retrieval is a sum over the batch, here a
mean, which for `Adagrad(0.1)` and batches of 8,192 is too small a loss: its gradient is small beside
the 0.1 with which Adagrad's sum of squares starts, and nothing is learned of the retrieval. Give the
term the batch size as its weight: `ContrastiveTerm(loss, weight=8192)`. `Adam`, as above, divides by
the size of the gradient, so that only the ratio of the weights matters.

Popular movies are in more batches, hence negatives more often, and score too low. With
`sampling_probability`, the share of each movie in the training data, in the call of the term, a search
for 100 movies finds 39 % of those held out, without it 23 %.

`Retrieval` and `Ranking` of TensorFlow Recommenders are compared name by name in
[Coming from](coming_from.py). More than two tasks, or tasks that conflict: see
[Which weighting](weighting.py) and [Conflicts](conflicts.py).
"""
