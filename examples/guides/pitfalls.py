"""
# What trips people

Each section shows a fault that costs hours when it is not known, and its mend.

The data are 1,797 scanned digits from scikit-learn (`pip install scikit-learn`): one network
recognizes the digit and draws the image again.
"""

import warnings

import keras
import numpy as np
from sklearn.datasets import load_digits

import keras_jointloss as kj

images, digits = load_digits(return_X_y=True)
images = (images / 16).astype("float32")
TARGETS = {"digit": digits, "image": images}
LOSSES = {"digit": "sparse_categorical_crossentropy", "image": "mean_squared_error"}


def build(joint, width=64):
    """Returns a compiled network, whose second output has `width` numbers."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((64,))
    hidden = keras.layers.Dense(32, activation="relu", name="hidden")(inputs)
    outputs = {
        "digit": keras.layers.Dense(10, activation="softmax")(hidden),
        "image": keras.layers.Dense(width)(hidden),
    }
    model = keras.Model(inputs, outputs)
    model.compile("adam", **joint)
    return model


def fit(model, *callbacks, y=TARGETS, epochs=2):
    """Trains the model, prints the warnings and returns the logs of the last epoch."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        history = model.fit(
            images,
            y,
            validation_split=0.2,
            batch_size=64,
            epochs=epochs,
            verbose=0,
            callbacks=list(callbacks),
        )
    for warning in caught:
        print("warning:", str(warning.message).split(". ")[0])
    return {key: round(values[-1], 3) for key, values in history.history.items()}


"""
## The callback is missing

Weights move only in a `fit` with `JointLossCallback`. Without it, a term that fades in from 0 never
begins. A warning says so; add the callback.
"""


def fade_in():
    """Returns a joint loss whose second weight rises from 0 to 1 in 100 steps."""
    return kj.joint_loss(LOSSES, {"image": kj.schedules.Linear(0.0, 1.0, steps=100)})


print("without:", fit(build(fade_in()))["image_weight"])
print("with:   ", fit(build(fade_in()), kj.callbacks.JointLossCallback())["image_weight"])

"""
## `EarlyStopping` on `val_loss` while weights move

`val_loss` is the sum with the weights of the moment. When a weight rises, it rises too, and
`EarlyStopping`, `ReduceLROnPlateau` and `ModelCheckpoint` compare different sums. Give the callback
`validation_weights`, and monitor `val_joint_loss`, the sum with weights that stay.
"""

fit(build(fade_in()), kj.callbacks.JointLossCallback(), keras.callbacks.EarlyStopping("val_loss"))
logs = fit(
    build(fade_in()),
    kj.callbacks.JointLossCallback(validation_weights="equal"),
    keras.callbacks.EarlyStopping("val_joint_loss", mode="min"),
)
print({key: logs[key] for key in ("val_loss", "val_joint_loss")})

"""
A rule that adapts weights moves them as well. If terms should stop one by one, take
`kj.callbacks.TermStopping`.

## The order of callbacks

`JointLossCallback` moves to the front of the list by itself, so others find its values wherever it
stands. `RetrievalEvaluation` does not: put it before the callbacks that monitor its values.

## Compiling again starts schedules again

A schedule counts the steps of the optimizer. After you freeze a layer, Keras wants `compile` again,
and a new optimizer is at step 0.
"""

model = build(fade_in())
fit(model, kj.callbacks.JointLossCallback())
step = int(model.optimizer.iterations)
model.get_layer("hidden").trainable = False
model.compile("adam", **fade_in())
print("new optimizer:", fit(model, kj.callbacks.JointLossCallback())["image_weight"])

optimizer = keras.optimizers.Adam()
optimizer.iterations.assign(step)
model.compile(optimizer, **fade_in())
print("new optimizer, old step:", fit(model, kj.callbacks.JointLossCallback())["image_weight"])

"""
The learning rate schedule of the new optimizer continues at that step, too.

## One `joint_loss` for several models

What `joint_loss` returns holds the weights of one model. Call it for each, as in each fold of a
cross-validation; `fit` refuses the second model otherwise. `clone_model` gives the clone weights of
its own, whose schedules start again.
"""

joint = fade_in()
first, second = build(joint), build(joint)
fit(first, kj.callbacks.JointLossCallback())
try:
    fit(second, kj.callbacks.JointLossCallback())
except ValueError as error:
    print("error:", error)
for name, model in {"first": first, "clone": keras.models.clone_model(first)}.items():
    print(f"weight of the {name}:", round(float(model.loss["image"].weight), 3))

"""
## A loss that reaches 0

`GeometricMean` and `FAMO` weigh a loss by its inverse, so a loss that can reach 0 takes everything:
here the second target is constant. A `floor` on the scale of the other losses says below which
value it counts as solved; a `min_weight` for all terms helps as well.
"""

constant = {"digit": digits, "image": np.zeros((len(digits), 1), "float32")}
for rule in (
    kj.weighting.GeometricMean(),
    kj.weighting.GeometricMean(floor={"image": 0.1}),
):
    model = build(kj.joint_loss(LOSSES, weighting=rule), width=1)
    logs = fit(model, kj.callbacks.JointLossCallback(), y=constant, epochs=12)
    print({key: logs[key] for key in ("digit_weight", "image_weight", "val_digit_loss")})

"""
## The mean with sample weights of 0

A sample weight of 0 leaves an item out of the sum, but Keras divides by the number of all items.
Use `missing`, as [missing targets](missing_targets.py) explains.

## Contrastive losses depend on the batch

The negatives are the other items of the batch, so the loss grows with the batch size. Compare
validation losses at one batch size, or better, compare what a search finds
(`kj.callbacks.RetrievalEvaluation`).
"""

noise = np.random.default_rng(0).normal(scale=0.3, size=images.shape).astype("float32")
views = np.stack([images, images + noise], axis=1)  # (items, 2, 64)
for batch in (32, 256):
    loss = kj.losses.InfoNCE(temperature=0.1)(np.zeros(batch), views[:batch])
    print(f"InfoNCE of the same embeddings in a batch of {batch}: {float(loss):.3f}")

"""
A loss of classes, such as `SupCon` or `Triplet` with one view, needs other items of the class in the
batch. With many classes, random batches have few. Draw some classes for each batch, and some items
of each.
"""

for classes in (10, 100, 1000):
    alone = (1 - 1 / classes) ** 63
    print(
        f"{classes:4} classes, batch of 64: {alone:.0%} of the items have no other of their class"
    )

"""
## In short

Targets and metrics:

- Keras wants a target in `y` for every output, also for one whose loss has no use for it: pass
  zeros.
- `compile` needs all that `joint_loss` returns. Pass metrics to `joint_loss`, not beside it.
- A model with one unnamed output, such as a `keras.Sequential`, takes its loss without a dict:
  `kj.joint_loss("mse", weights=0.5)`. The term is called `output`.
- Pair labels are 1 for views that belong together. Some data have 0 for these: pass `1 - y`.
- On JAX, Keras cuts integers to 32 bits unless `jax_enable_x64` is set. Replace larger ids by
  `np.unique(ids, return_inverse=True)[1]`.

Layers and optimizers:

- No two terms share a name. The name of a layer term is that of its layer.
- A `ContrastiveTerm` that is called several times is one term, the sum of its losses. A `LossTerm`
  refuses a second call in a step.
- An optimizer with weight decay also shrinks a learned temperature. Before the optimizer is built,
  `optimizer.exclude_from_weight_decay(var_names=["log_scale", "bias"])` prevents it, for the biases
  of other layers, too.

Logs and files:

- A rule skips a step whose loss is not finite. The error that names the term comes at the end of
  the epoch.
- Keras counts a smaller last batch fully in `<term>_loss` of an output, and by its size in `loss`.
  TensorBoard's `raw` is weighted by size, and there the terms sum up to the total.
- A model saved on PyTorch loads on other backends with `compile=False` only: its optimizer is a
  class that exists on PyTorch alone.
- A legacy `.h5` file keeps weights of the terms as plain numbers, and layer terms begin again. Load
  it with `compile=False` and compile; a `.keras` file keeps everything.

Loops of your own:

- A model with its own `train_step` calls `self.compute_loss` and `self.compute_metrics`.
- Take the gradient of a loss in tiles within the compiled function. With `jax.jit` or
  `jax.checkpoint` inside `jax.grad`, or a `tf.function` of unknown batch size inside the tape, these
  losses fail.
"""
