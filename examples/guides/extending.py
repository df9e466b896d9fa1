"""
# Extending: your own loss, metric, rule, aggregator, schedule

Each family of the package has a base class that validates, masks, logs and saves. What you write is
one function or method. This guide writes one of each, tests them as the package tests its own, trains
with them, and loads the saved model. The last part is a map for those who read or change the source.
"""

import keras
import numpy as np
from keras import ops

import keras_jointloss as kj

"""
## A loss of views

`function` receives the stacked views `(batch, views, dim)`, labels if `label_kind` is `"class"` or
`"pair"`, and `valid`, which items to include (`None` for all), and returns `(batch,)`. Arguments that
`__init__` passes to `super().__init__` become arguments of the function and part of the config, beside
`name`, `reduction` and `dtype`.
"""


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


"""
## A metric of views

`values` returns for each item its value and how much it counts; `finish` may turn the mean into
something else, such as a root.
"""


@keras.saving.register_keras_serializable(package="my_package")
class MeanNorm(kj.metrics.ViewsMetric):
    """The mean length of the embeddings."""

    def values(self, views, labels=None, valid=None):
        norms = ops.mean(ops.norm(views, axis=-1), axis=-1)
        return norms, ops.ones_like(norms) if valid is None else ops.cast(valid, norms.dtype)


"""
## A rule

`update` receives the losses of a step, `(terms,)`, and returns the weights of the next one. Values to
keep are in `initial_state`, a number for each term; `readout` may log some of them.
"""


@keras.saving.register_keras_serializable(package="my_package")
class Inverse(kj.weighting.Weighting):
    """Weights each term by the inverse of its mean loss so far."""

    initial_state = {"mean": 1.0}  # noqa: RUF012

    def update(self, losses, step):
        self.state["mean"] = 0.9 * self.state["mean"] + 0.1 * losses
        return 1 / self.state["mean"]


"""
## An aggregator and a schedule

`coefficients` receives the Gramian of the gradients, `(terms, terms)`, at a scale of 1, and returns
the coefficients of the gradients.
"""


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


"""
## Test them

The package tests a loss against a loop in NumPy, and checks that an item that is left out changes
nothing; an aggregator against gradients whose combination is known; and every class by a trip through
its config, a `fit`, and a saved model that goes on.
"""

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

"""
A registered class can be named: `weighting="inverse"`. Import the module that registers your classes
before you load a model.

## Public names

| module | holds |
|---|---|
| `keras_jointloss` | `joint_loss`, `LossWeight`, `report`, `plot`, `custom_objects` |
| `.losses` | the contrastive losses, each with a function (`InfoNCE`, `info_nce`), `gaussian_kl`; `ViewsLoss`, `LearnedParameter`, `Memory`, `get` |
| `.layers` | `LossTerm`, `ContrastiveTerm`, `GradientBalancer`, `SharedTrunk`, `ChunkedTower` |
| `.metrics` | ranking (`RecallAtK`, `MeanReciprocalRank`, `MeanAveragePrecision`, `MeanAveragePrecisionAtR`, `NormalizedDiscountedCumulativeGain`), similarity (`PairAccuracy`, `PositiveSimilarity`, `NegativeSimilarity`, `SimilarityGap`), geometry (`Alignment`, `Uniformity`); `ViewsMetric` |
| `.weighting`, `.aggregators`, `.schedules` | rules, with the base `Weighting`; aggregators, with `Aggregator` and `PreferenceAggregator`; schedules |
| `.callbacks` | `JointLossCallback`, `TermStopping`, `RetrievalEvaluation` |
| `.tensorboard` | `read`, `Series`, `plot`, `SummaryWriter`, `write_hparams`, `write_projector`, `heat_map` |
| `.distribution` | `enable_multi_worker_fit` |

## Where things are

To add a member to the package: one file in its family (`losses/`, `weighting/`, `aggregators/`,
`metrics/`; schedules are in `schedules.py`) with a docstring of formula, source and example, an entry
in the family's `__init__.py`, and a row in the tests' tables. Four walks through `keras_jointloss/`:

- **The losses that a user gives**: `_joint_arguments.py` validates them and their weights, and
  `joint.py` wraps each in the `TermLoss` of `terms/loss.py` and puts the term's `LossWeight`, from
  `terms/output_weight.py`, among the metrics.
- **The value of a loss in a training step**: `TermLoss.__call__` in `terms/loss.py` computes it and
  calls `record` in `terms/output_weight.py`. From there `terms/weight.py` adds it to the running means
  of `terms/means.py` and passes it on to the rule, if the model has one. Keras multiplies the loss by
  the `AppliedWeight` of `terms/applied_weight.py`.
- **An upstream gradient**: `layers/gradient_balancer.py` hands a copy of the trunk's output to each
  term. In the backward pass `layers/_gradient_combination.py` collects the gradients, the aggregator,
  as in `aggregators/mgda.py`, combines them, and `layers/_gradient_record.py` records their lengths
  and cosines.
- **A schedule**: `joint.py` hands it to the weight of the term, `terms/weight.py`, whose `advance`
  moves it in each training step while the clock of the model, `terms/clock.py`, is on, which
  `callbacks/joint_loss_callback.py` starts and stops.

`model_terms.py` finds and connects what a model has as a whole: its terms, its clock, its rule and its
layers that combine gradients. Modules import from lower levels only; `tests/test_package.py` lists the
levels. What depends on the backend is in `_backend/`, the private names of Keras in `_keras.py`, and
nowhere else.
"""
