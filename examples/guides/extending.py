# %% [markdown]
"""
# Extending: your own loss, metric, rule, aggregator, schedule

Each family of the package has a base class that validates, masks, logs and saves. You write one
function or method. This guide writes one of each, tests them, trains with them, and loads the saved
model. To add one to the package itself, see [Contributing](../../docs/contributing.md).
"""

# %%
import keras
import numpy as np
from keras import ops

import keras_jointloss as kj

# %% [markdown]
"""
## A loss of views

`function` returns `(batch,)`. It receives the stacked views `(batch, views, dim)`, labels if
`label_kind` is `"class"`, `"pair"` or `"score"`, and `valid`: which items to include (`None` for
all). Keyword arguments of `super().__init__` become arguments of the function and part of the
config. For a loss of `ProxyTerm`, derive from `kj.losses.ProxyLoss` in the same way: the function
receives the embeddings `(batch, dim)`, the proxies `(classes, dim)`, labels and `valid`.
"""


# %%
def absolute_difference(views, labels=None, valid=None, scale=1.0):
    """Returns the mean absolute difference of two views of each item."""
    distance = ops.mean(ops.abs(views[:, 0] - views[:, 1]), axis=-1) / scale
    return distance if valid is None else ops.where(valid, distance, 0)


@keras.saving.register_keras_serializable(package="my_package")
class AbsoluteDifference(kj.losses.ViewsLoss):
    """The mean absolute difference of two views."""

    function = staticmethod(absolute_difference)
    compares_items = False  # The loss of an item does not depend on the others.

    def __init__(self, scale=1.0, name=None, reduction="sum_over_batch_size", dtype=None):
        super().__init__(name, reduction, dtype, scale=scale)


# %% [markdown]
"""
## A metric of views

`values` returns the value of each item and how much it counts. Override `finish` to change the
mean, such as to its root.
"""


# %%
@keras.saving.register_keras_serializable(package="my_package")
class MeanNorm(kj.metrics.ViewsMetric):
    """The mean length of the embeddings."""

    def values(self, views, labels=None, valid=None):
        norms = ops.mean(ops.norm(views, axis=-1), axis=-1)
        return norms, ops.ones_like(norms) if valid is None else ops.cast(valid, norms.dtype)


# %% [markdown]
"""
## A rule

`update` receives the losses of a step, `(terms,)`, and returns the weights of the next one.
`initial_state` names what to keep, with the first value for each term; `readout` may log some of
it.
"""


# %%
@keras.saving.register_keras_serializable(package="my_package")
class Inverse(kj.weighting.Weighting):
    """Weights each term by the inverse of its mean loss so far."""

    initial_state = {"mean": 1.0}  # noqa: RUF012

    def update(self, losses, step):
        self.state["mean"] = 0.9 * self.state["mean"] + 0.1 * losses
        return 1 / self.state["mean"]


# %% [markdown]
"""
## An aggregator and a schedule

`coefficients` maps the Gramian of the gradients, `(terms, terms)`, with a mean diagonal of 1, to a
coefficient for each gradient. An aggregator that learns from step to step implements `state_rows`
and `next_coefficients` instead, and the layer keeps its state. A schedule is a
`LearningRateSchedule` of Keras.
"""


# %%
@keras.saving.register_keras_serializable(package="my_package")
class Longest(kj.aggregators.Aggregator):
    """Keeps the longest gradient."""

    def coefficients(self, gramian):
        return ops.one_hot(ops.argmax(ops.diagonal(gramian)), gramian.shape[0], dtype=gramian.dtype)


@keras.saving.register_keras_serializable(package="my_package")
class Halving(keras.optimizers.schedules.LearningRateSchedule):
    """A weight that halves every 100 steps."""

    def __call__(self, step):
        return 0.5 ** (ops.cast(step, "float32") / 100)

    def get_config(self):
        return {}


# %% [markdown]
"""
## Test them

Compare a loss with a loop in NumPy, and check that an item of weight 0 changes nothing. Compare an
aggregator with gradients whose combination is known. Send every class through its config, a `fit`,
and a saved model that trains on.
"""

# %%
views = np.random.default_rng(0).normal(size=(5, 2, 3)).astype("float32")
loss = AbsoluteDifference(scale=2.0)
by_hand = np.array([sum(abs(a - b)) / 3 / 2.0 for a, b in views])
np.testing.assert_allclose(loss.call(None, views), by_hand, rtol=1e-5)
weighted = loss(np.zeros(5), views, sample_weight=np.array([1, 1, 1, 1, 0]))
np.testing.assert_allclose(weighted, sum(by_hand[:4]) / 5, rtol=1e-5)
np.testing.assert_allclose(Longest()([[3.0, 4.0], [1.0, 0.0]]), [3.0, 4.0])
copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
print("the copy has scale", copy.scale)

with np.load("examples/data/emoji_pairs.npz") as file:
    google, twitter, category = (file[key][:1000] for key in ("google", "twitter", "category"))
images = [keras.Input((32, 32, 3), dtype="uint8") for _ in range(2)]
tower = keras.Sequential([keras.layers.Rescaling(1 / 255), keras.layers.Flatten()])
tower.add(keras.layers.Dense(32))
a, b = (tower(image) for image in images)
z = kj.layers.GradientBalancer(["pair", "label"], Longest())(ops.stack([a, b], axis=1))
label = keras.layers.Dense(9, activation="softmax")(ops.mean(z["label"], axis=1))
model = keras.Model(images, {"pair": z["pair"], "label": label})
losses = {"pair": loss, "label": "sparse_categorical_crossentropy"}
joint = kj.joint_loss(losses, {"pair": Halving()}, "inverse", metrics={"pair": MeanNorm()})
model.compile("adam", **joint)
y = {"pair": category, "label": category}
options = {"batch_size": 100, "verbose": 0, "callbacks": [kj.callbacks.JointLossCallback()]}
logs = model.fit([google, twitter], y, epochs=2, **options).history
for key in ("pair_loss", "pair_weight", "pair_mean_norm", "label_loss", "label_weight"):
    print(f"{key:<16}", *np.round(logs[key], 3))

model.save("extended.keras")
loaded = keras.saving.load_model("extended.keras")
print("trained:", float(model.loss["label"].weight), "loaded:", float(loaded.loss["label"].weight))
loaded.fit([google, twitter], y, epochs=3, initial_epoch=2, **options)

# %% [markdown]
"""
A registered class has a name: `weighting="inverse"`. Import the module that registers your classes
before you load a model. A rule that weighs the points of an equation derives from
`kj.points.PointRule`, whose docstring has an example.
"""
