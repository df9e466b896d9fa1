# %% [markdown]
"""
# Pairs: contrastive losses and retrieval

An image and its caption, two drawings of one thing, a question and its answer: such *views* of one
item should have similar embeddings, and views of different items should not. This guide trains
pairs as an output and as a layer, measures a search with them, and says which loss fits which data.

The data are 1,906 emoji, drawn by Google and by Twitter (sources and licences:
`examples/data/README.md`). Run the guide in the root of the repository.
"""

# %%
import keras
import numpy as np

import keras_jointloss as kj

keras.utils.set_random_seed(0)
with np.load("examples/data/emoji_pairs.npz") as file:
    order = np.random.default_rng(0).permutation(len(file["category"]))
    keys = ("google", "twitter", "category", "subcategory")
    google, twitter, category, subcategory = (file[key][order] for key in keys)
train, test = slice(1500), slice(1500, None)


def build_tower():
    """Returns a model from images to embeddings of dimension 64."""
    image = keras.Input((32, 32, 3), dtype="uint8")
    x = keras.layers.Conv2D(32, 4, 4, activation="relu")(keras.layers.Rescaling(1 / 255)(image))
    return keras.Model(image, keras.layers.Dense(64)(keras.layers.Flatten()(x)))


# %% [markdown]
"""
## Views as an output

Stack the embeddings to one output of shape `(batch, views, dim)`. A loss of `kj.losses` takes it
like any Keras loss, and `kj.metrics` measure a search of the batch. InfoNCE does not use a target,
but Keras requires one for each output: pass zeros.
"""

# %%
images = [keras.Input((32, 32, 3), dtype="uint8", name=name) for name in ("google", "twitter")]
tower = build_tower()
views = keras.ops.stack([tower(image) for image in images], axis=1)
model = keras.Model(images, {"pair": views})
loss = kj.losses.InfoNCE(temperature=0.1)
metrics = {"pair": [kj.metrics.RecallAtK(1), kj.metrics.Uniformity()]}
model.compile("adam", **kj.joint_loss({"pair": loss}, metrics=metrics))
x, y = [google[train], twitter[train]], {"pair": np.zeros(1500)}
callback = kj.callbacks.JointLossCallback()
history = model.fit(x, y, batch_size=128, epochs=3, verbose=0, callbacks=[callback]).history
print("recall at 1 in the batch: ", *np.round(history["recall_at_1"], 3))

# %% [markdown]
"""
## Views inside the model

`ContrastiveTerm` is a layer that adds a loss, as `LossTerm` of the [first steps](first_steps.py).
It needs neither an output nor a target, and computes the loss in `fit` and `evaluate` only. Use the
embeddings that it returns, which are unchanged, or the layer is not part of the model.

It can learn the temperature, and the bias of SigLIP. Weight decay would shrink a learned
temperature: exclude it before the first step (for SigLIP also `"bias"`, the biases of all layers).
A temperature or a margin can follow a schedule, too, with the clock of the weights:
`kj.losses.InfoNCE(temperature=kj.schedules.Linear(0.5, 0.1, steps=1000))`.

`RetrievalEvaluation` searches a whole set after each epoch, in both directions and in little
memory. Its values do not depend on temperature and batch size. Ties count against the model.
"""

# %%
tower = build_tower()
pair = kj.layers.ContrastiveTerm("InfoNCE", weight=0.5, learn_temperature=True, name="pair")
a, b = pair([tower(image) for image in images])
label = keras.layers.Dense(9, activation="softmax", name="label")(keras.layers.ReLU()(a + b))
model = keras.Model(images, {"label": label})
optimizer = keras.optimizers.AdamW(0.002, weight_decay=0.01)
optimizer.exclude_from_weight_decay(var_names=["log_scale"])
model.compile(optimizer, **kj.joint_loss({"label": "sparse_categorical_crossentropy"}))
search = kj.callbacks.RetrievalEvaluation([google[test], twitter[test]], k=(1, 10))
print(f"before: R@1 of {len(google[test])} emoji {search.evaluate(model)['pair_recall_at_1']:.3f}")
history = model.fit(
    x, category[train], batch_size=128, epochs=4, verbose=0, callbacks=[callback, search]
).history
for key in ("pair_temperature", "pair_loss", "label_loss", "pair_recall_at_1", "pair_median_rank"):
    print(f"{key:<26}", *np.round(history[key], 3))

# %% [markdown]
"""
List `RetrievalEvaluation` before callbacks that monitor its values, as with
`monitor="pair_recall_at_10", mode="max"`. With `log_dir=` it writes to TensorBoard, with
`projector=True` and `thumbnails=` also the embeddings.

A query can have several right candidates, as an image has five captions. Then pass both sets, and
in `relevant` for each query an index, a list of indices, or a row of booleans. Recall counts a
query as a hit if any right candidate is among the first `k`, as CLIP reports R@k; nDCG and mean
average precision count all right candidates.
"""

# %%
sets = kj.callbacks.RetrievalEvaluation(
    queries=google[test],
    candidates=twitter[train],
    relevant=category[test][:, None] == category[train][None, :],
    k=10,
    name="category",
)
found = sets.evaluate(model)
for key in ("recall_at_10", "ndcg_at_10", "mean_average_precision"):
    print(f"category_a_to_b_{key:<26}{found[f'category_a_to_b_{key}']:.3f}")

# %% [markdown]
"""
## Negatives

For InfoNCE, each view after the second is a hard negative: here two other emoji of the same
category for each pair.
"""

# %%
generator = np.random.default_rng(0)
members = [np.flatnonzero(category[train] == kind) for kind in category[train]]
negatives = [twitter[train][[generator.choice(x) for x in members]] for _ in range(2)]
inputs = [keras.Input((32, 32, 3), dtype="uint8") for _ in range(4)]
tower = build_tower()
hard = kj.layers.ContrastiveTerm(kj.losses.InfoNCE(0.1, symmetric=False), name="hard")
model = keras.Model(inputs, hard([tower(image) for image in inputs]))
model.compile("adam")
options = {"batch_size": 128, "epochs": 2, "verbose": 0, "callbacks": [callback]}
history = model.fit([*x, *negatives], **options)
print("loss with two hard negatives: ", *np.round(history.history["hard_loss"], 3))

# %% [markdown]
"""
Options of InfoNCE choose and weight the negatives of each anchor, all in tiles, too:

| your batches | option |
|---|---|
| have many easy negatives | `num_hard_negatives=k` keeps the `k` most similar; `hardness=beta` weights all by `exp(beta * similarity)` |
| have unlabelled duplicates | `false_negative_margin=m` leaves out those about as similar as the pair, or more. By the embeddings of a better model: `term((a, b), guide=(c, d))` |
| are samples of a catalogue with popular items | `term((a, b), sampling_probability=q)` with the share `q` of each item in the data: the scores are then those of a softmax over the whole catalogue |
| are small | `directions="within"` compares each view also with those of its own kind; with `partition="joint"` in one sum (GTE) |

## Shorter embeddings

`Matryoshka` adds a loss of the first features alone, here 16 of 64. After training, embeddings can
be cut to these: a search is faster then and needs less memory. The metrics of retrieval take `dim`.
"""

# %%
for name, loss in (
    ("InfoNCE", kj.losses.InfoNCE(temperature=0.1)),
    ("Matryoshka", kj.losses.Matryoshka(kj.losses.InfoNCE(temperature=0.1), dims=[64, 16])),
):
    keras.utils.set_random_seed(0)
    tower = build_tower()
    model = keras.Model(images, keras.ops.stack([tower(image) for image in images], axis=1))
    model.compile("adam", loss)
    model.fit(x, np.zeros(1500), batch_size=128, epochs=4, verbose=0)
    found = model.predict([google[test], twitter[test]], verbose=0)
    for dim in (64, 16):
        recall = kj.metrics.RecallAtK(10, dim=dim)(None, found)
        print(f"{name:<11} R@10 with {dim} features: {float(recall):.3f}")

# %% [markdown]
"""
## Labels

Labels come last in the call of the layer, or as the target of an output. Here each emoji has one
view, and emoji of the same category are positives of each other. (Do not stack a view twice: an
item would be its own positive.)
"""

# %%
image, kind = keras.Input((32, 32, 3), dtype="uint8"), keras.Input((), dtype="int32")
precision = kj.metrics.MeanAveragePrecisionAtR(name="map_at_r")
term = kj.layers.ContrastiveTerm(kj.losses.SupCon(0.1), metrics=[precision], name="same")
model = keras.Model([image, kind], term((build_tower()(image), kind)))
model.compile("adam")
options = {"batch_size": 128, "verbose": 0}
history = model.fit([google[train], category[train]], epochs=4, callbacks=[callback], **options)
print("same category, MAP@R:     ", *np.round(history.history["same_map_at_r"], 3))

# %% [markdown]
"""
## Which items meet in a batch

The emoji have 98 subcategories. A random batch of 32 has few of the same one, so that `SupCon` has
little to learn from. `kj.data.ClassBatches` makes batches of some items of each of some classes,
here 4 of 8. `KNNEvaluation` measures how many emoji get their subcategory from the vote of their
nearest neighbours in the training set. (In `fit` it is a callback, as `RetrievalEvaluation`.)
"""

# %%
classes = kj.data.ClassBatches(google[train], subcategory[train], 8, per_class=4)
random = {"x": google[train], "y": subcategory[train], "batch_size": 32}
bank, data = (google[train], subcategory[train]), (google[test], subcategory[test])
neighbours = kj.callbacks.KNNEvaluation(*bank, *data, k=20)
for name, batches in (("random", random), ("of classes", {"x": classes, "shuffle": False})):
    keras.utils.set_random_seed(0)
    model = build_tower()
    model.compile("adam", kj.losses.SupCon(0.1))
    model.fit(**batches, epochs=8, verbose=0)
    accuracy = neighbours.evaluate(model)["val_knn_accuracy"]
    print(f"batches {name:<11} accuracy of the subcategory: {accuracy:.3f}")

# %% [markdown]
"""
## A proxy for each class

`ProxyTerm` learns an embedding of each class, its *proxy*, and draws the items of a class to it, so
that any batch will do. Losses such as ArcFace ask for a margin between the classes. The term
returns the embeddings; `logits` classifies them without the margin, and needs no labels:
"""

# %%
keras.utils.set_random_seed(0)
tower = build_tower()
loss = kj.losses.ArcFace(margin=0.3, scale=16.0)
term = kj.layers.ProxyTerm(loss, classes=98, metrics=["accuracy"], name="kind")
model = keras.Model([image, kind], term((tower(image), kind)))
model.compile("adam")
options = {"batch_size": 64, "epochs": 5, "verbose": 0, "callbacks": [callback]}
history = model.fit([google[train], subcategory[train]], **options)
print("proxies, accuracy:        ", *np.round(history.history["kind_accuracy"], 3))
accuracy = neighbours.evaluate(tower)["val_knn_accuracy"]
classifier = keras.Model(image, term.logits(tower(image)))
predicted = np.argmax(classifier.predict(google[test], verbose=0), axis=1)
right = np.mean(predicted == subcategory[test])
print(f"proxies: accuracy of the neighbours {accuracy:.3f}, of the logits {right:.3f}")

# %% [markdown]
"""
The scale is that of the logits: 64, the default, suits thousands of classes and long training.
`ModelParallel` of JAX divides the proxies [among devices](several_devices.py).

## Batches without duplicates, hard negatives

`kj.data.UniqueBatches` makes batches in which no id comes twice, such as that of an image with
several captions, and `kj.data.TaskBatches` batches of [several data sets](missing_targets.py) in
turn. `kj.data.hard_negatives` finds wrong candidates that are near, as a further view of each query.
With a margin it leaves out those that are nearly as near as the right one, which may be right, too:
"""

# %%
a, b = (build_tower().predict(x[train], verbose=0) for x in (google, twitter))
negatives = kj.data.hard_negatives(a, b, k=3, margin=0.05)
print(
    "negatives of the first emoji:", negatives[0], "emoji with fewer:", np.sum(negatives[:, -1] < 0)
)

# %% [markdown]
"""
| your data | your labels | take | call of the layer |
|---|---|---|---|
| two views of an item | none | `InfoNCE`, `SigLIP` | `term((a, b))` |
| the same, with duplicates in a batch | an id for each item | `InfoNCE(same_label="ignore")`, or `"positive"` | `term((a, b, ids))` |
| two views, no use of negatives | none | `VICReg`, `BarlowTwins` | `term((a, b))` |
| two views, to pull together and to spread | none | `AlignmentUniformity` | `term((a, b))` |
| a prediction and a target without a gradient, as in SimSiam | none | `NegativeCosineSimilarity` | `term((prediction, target))`, or of two views `term((p_a, p_b, z_a, z_b))` |
| two views, and those of a teacher | none | `SimilarityDistillation` | `term((a, b, teacher_a, teacher_b))` |
| embeddings that are to spread, beside another loss | none | `KoLeo`, `SpreadOut`, `SIGReg` | `term((a,))`, `term((a, b))` |
| three or more views | none | `NTXent`, `DecoupledContrastive` | `term((a, b, c))` |
| two views and hard negatives | none | `InfoNCE` | `term((a, b, negative))`, or more |
| anchor, positive, negative | none | `TripletMargin` | `term((a, p, n))` |
| single items | classes, `(batch,)` or rows of 0 and 1 | `SupCon`, `MultiSimilarity`, `Circle`, `Triplet` | `term((a, labels))` |
| the same, many classes or small batches | classes | `ArcFace`, `CosFace`, `NormSoftmax`, `ProxyNCA`, `ProxyAnchor` | `ProxyTerm(loss, classes)((a, labels))` |
| two views | classes | `SupCon`, `NPairs` | `term((a, b, labels))` |
| pairs that match or do not | 1 or 0 | `CosineEmbedding`, `Contrastive`, `MarginContrastive` | `term((a, b, labels))` |
| pairs that match more or less | any numbers, their order counts | `CoSENT`, `AnglE` | `term((a, b, scores))` |
| anchor, positive, negative | the margins of a teacher | `MarginMSE` | `term((a, p, n, margins))` |
| labels for some items | -1 for the others | any with labels, `unlabelled=-1`; `ProxyTerm(..., unlabelled=-1)` | as above |

- *One view.* `NTXent` and `DecoupledContrastive` take single items with classes, too, with
  `same_label="positive"`.
- *Pair labels* are 1 for views that belong together. Some data have 0 for these: pass `1 - y`.
- *Ids.* Keras on JAX cuts integers to 32 bits: replace larger ids by
  `np.unique(ids, return_inverse=True)[1]`.
- *Masks.* `term((a, b), sample_weight=w)`, or a Keras mask: an item of weight 0 is neither an
  anchor nor a candidate.
- *Small batches.* Negatives are the other items of the batch. `memory_size=4096` keeps the
  embeddings of earlier steps as further candidates (InfoNCE, SigLIP, NTXent, SupCon and
  DecoupledContrastive). [momentum.py](../momentum.py) combines it with a
  `MomentumTower`, a slow copy of the tower, so that old embeddings stay comparable.
- *Large batches* are computed [in tiles](several_devices.py), except by `MultiSimilarity`, `Circle`,
  `Triplet`, `CoSENT`, `AnglE`, `SimilarityDistillation`, `AlignmentUniformity` and `KoLeo`, which
  hold the matrix of all similarities.

[Benchmarks](../../docs/benchmarks.md) compare the losses on one task, and name their papers.
"""
