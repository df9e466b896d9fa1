# %% [markdown]
"""
# Your kind of model and data

`joint_loss` returns arguments for `compile`, so it takes every model that Keras can train and every
kind of data that `fit` reads. This guide has one section for each kind: models (Functional,
Sequential, subclassed, a list of outputs, a `train_step` of your own), data (arrays, `tf.data`,
`PyDataset`, generators), weights of classes, and segmentation with two losses on one output.

The data are 1,797 scanned digits of 8 x 8 pixels from scikit-learn.
"""

# %%
import keras
import numpy as np
import tensorflow as tf
from keras import ops
from sklearn.datasets import load_digits

import keras_jointloss as kj

images, digits = load_digits(return_X_y=True)
images = (images / 16).astype("float32")
x, x_test = images[:1437], images[1437:]
y = {"digit": digits[:1437], "image": x}
y_test = {"digit": digits[1437:], "image": x_test}

LOSSES = {"digit": "sparse_categorical_crossentropy", "image": "mean_squared_error"}
OPTIONS = {"batch_size": 64, "epochs": 3, "shuffle": False, "verbose": 0}


def joint(losses=LOSSES, **options):
    """Returns a joint loss in which the image fades in. Each model needs one of its own."""
    fade_in = kj.schedules.Linear(0.0, 20.0, steps=46)
    return kj.joint_loss(losses, weights={"image": fade_in}, **options)


def fit(model, *data, **options):
    """Trains the model and returns what the last epoch has logged."""
    callbacks = [kj.callbacks.JointLossCallback()]
    logs = model.fit(*data, callbacks=callbacks, **{**OPTIONS, **options}).history
    return {name: values[-1] for name, values in logs.items()}


def show(title, logs):
    """Prints the losses and the weight of the image."""
    values = (logs[key] for key in ("loss", "digit_loss", "image_loss", "image_weight"))
    print(f"{title:<24}", *(f"{value:9.5f}" for value in values))


# %% [markdown]
"""
## A Functional model

Give the outputs names, in a dict. Losses, weights, metrics and targets go by the same names.
"""


# %%
def functional(model_class=keras.Model):
    """Returns a network that recognizes the digit and draws it again."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((64,))
    hidden = keras.layers.Dense(64, activation="relu")(inputs)
    digit = keras.layers.Dense(10, activation="softmax")(hidden)
    return model_class(inputs, {"digit": digit, "image": keras.layers.Dense(64)(hidden)})


model = functional()
model.compile("adam", **joint(metrics={"digit": "accuracy"}))
expected = fit(model, x, y)
print(f"{'':24}", *(f"{title:>9}" for title in ("loss", "digit", "image", "weight")))
show("Functional", expected)

# %% [markdown]
"""
## A subclassed model

If `call` returns a dict, nothing changes. If it returns a list or a tuple, the outputs have no names
in Keras: write the losses in the order of the outputs and add `outputs="list"`. Weights, metrics and
logs still go by your names; `y` is a list, in the order of the outputs.
"""


# %%
@keras.saving.register_keras_serializable(package="guide")
class Network(keras.Model):
    """The same network as a class, which returns a dict or a list."""

    def __init__(self, returns, **kwargs):
        super().__init__(**kwargs)
        self.returns = returns
        self.hidden = keras.layers.Dense(64, activation="relu")
        self.digit = keras.layers.Dense(10, activation="softmax")
        self.image = keras.layers.Dense(64)

    def call(self, inputs):
        hidden = self.hidden(inputs)
        outputs = {"digit": self.digit(hidden), "image": self.image(hidden)}
        return outputs if self.returns == "dict" else list(outputs.values())

    def get_config(self):
        return {**super().get_config(), "returns": self.returns}


keras.utils.set_random_seed(0)
model = Network("dict")
model.compile("adam", **joint())
show("subclassed, a dict", fit(model, x, y))

keras.utils.set_random_seed(0)
model = Network("list")
model.compile("adam", **joint(outputs="list"))
logs = fit(model, x, [y["digit"], y["image"]])
show("subclassed, a list", logs)
np.testing.assert_allclose(logs["loss"], expected["loss"], rtol=1e-4)

# %% [markdown]
"""
All rows are the same: the form of a model does not change what it learns.

## A Sequential model

A model with one output takes a loss without the dict, and that loss is the term `output`. A list
makes one term for each loss, under the names of the losses:
"""

# %%
keras.utils.set_random_seed(0)
model = keras.Sequential([keras.layers.Dense(16), keras.layers.Dense(64)])
losses = ["mean_squared_error", "mean_absolute_error"]
model.compile("adam", **kj.joint_loss(losses, weights={"mean_absolute_error": 0.1}))
logs = fit(model, x, x)
print({name: round(value, 4) for name, value in logs.items()})

# %% [markdown]
"""
## A `train_step` of your own

If the step only changes the data, change them and call that of Keras. On TensorFlow and PyTorch a
step receives the data, on JAX the state of the model before them: `*state` takes both.
"""


# %%
class Mixed(keras.Model):
    """Adds a tenth of another image of the batch to each image."""

    def train_step(self, *arguments):
        *state, (x, y) = arguments
        return super().train_step(*state, (0.9 * x + 0.1 * ops.roll(x, 1, axis=0), y))


model = functional(Mixed)
model.compile("adam", **joint())
show("other data in the step", fit(model, x, y))

# %% [markdown]
"""
A step that does everything itself calls `self.compute_loss`, with the targets and outputs as Keras
has them: there the terms are computed, weighted and recorded. On JAX, where all state is passed
around, this is `self.compute_loss_and_updates`, whose last result is the new state of the metrics. Keep
it, and return that of `compute_metrics`: the records and weights of the terms are in them. Without the
first, the losses of terms are NaN in the logs; without the second, weights stand still, which a warning
says. `self.metrics[0]` is the mean of the loss: unless the step updates it, the logs have a loss of 0
and no shares. The step below adds the length of the gradient to the logs; the rest is what Keras does.
"""

# %%
BACKEND = keras.backend.backend()
if BACKEND == "jax":
    import jax
elif BACKEND == "torch":
    import torch


def length(gradients):
    """Returns the length of all gradients together."""
    return ops.sqrt(sum(ops.sum(ops.square(gradient)) for gradient in gradients))


class Measured(keras.Model):
    """Logs the length of the gradient."""

    def train_step(self, *arguments):
        *state, (x, y) = arguments
        return getattr(self, f"step_with_{BACKEND}")(*state, x, y)

    def step_with_tensorflow(self, x, y):
        with tf.GradientTape() as tape:
            outputs = self(x, training=True)
            loss = self.compute_loss(x, y, outputs)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        self.metrics[0].update_state(loss, sample_weight=ops.shape(x)[0])
        return {**self.compute_metrics(x, y, outputs), "gradient": length(gradients)}

    def step_with_torch(self, x, y):
        self.zero_grad()
        outputs = self(x, training=True)
        loss = self.compute_loss(x, y, outputs)
        loss.backward()
        gradients = [variable.value.grad for variable in self.trainable_variables]
        with torch.no_grad():
            self.optimizer.apply(gradients, self.trainable_variables)
        self.metrics[0].update_state(loss, sample_weight=ops.shape(x)[0])
        return {**self.compute_metrics(x, y, outputs), "gradient": length(gradients)}

    def step_with_jax(self, state, x, y):
        trained, others, optimizer, metrics = state
        differentiate = jax.value_and_grad(self.compute_loss_and_updates, has_aux=True)
        (_, (loss, outputs, others, metrics)), gradients = differentiate(
            trained, others, metrics, x, y, None, training=True, optimizer_variables=optimizer
        )
        trained, optimizer = self.optimizer.stateless_apply(optimizer, gradients, trained)
        variables = self.metrics_variables
        with keras.StatelessScope(list(zip(variables, metrics, strict=True))) as scope:
            self.metrics[0].update_state(loss, sample_weight=x.shape[0])
            logs = {**self.compute_metrics(x, y, outputs), "gradient": length(gradients)}
        metrics = [scope.get_current_value(variable) for variable in variables]
        return logs, (trained, others, optimizer, metrics)


model = functional(Measured)
model.compile("adam", **joint())
logs = fit(model, x, y)
show("a step of its own", logs)
print(f"length of the gradient: {logs['gradient']:.3f}")
np.testing.assert_allclose(logs["loss"], expected["loss"], rtol=1e-4)

# %% [markdown]
"""
Validation uses Keras' `test_step` here. A `compute_loss` of your own calls `super().compute_loss`;
often [`across`](detector.py) can take its place.

## Where the data come from

Whatever yields batches, each is `(x, y)` or `(x, y, sample_weight)`, with `y` and `sample_weight` in
the form of the outputs. The models above were trained on arrays. Here every kind has the batches that
they had, the last one smaller:
"""


# %%
class Batches(keras.utils.PyDataset):
    """Reads one batch at a time."""

    def __len__(self):
        return -(-len(x) // 64)

    def __getitem__(self, index):
        rows = slice(64 * index, 64 * (index + 1))
        return x[rows], {name: target[rows] for name, target in y.items()}


def generate():
    """Yields batches without an end."""
    batches = Batches()
    while True:
        for index in range(len(batches)):
            yield batches[index]


KINDS = {
    "tf.data": (tf.data.Dataset.from_tensor_slices((x, y)).batch(64), {}),
    "PyDataset": (Batches(), {}),
    "generator": (generate(), {"steps_per_epoch": len(Batches())}),
}
for name, (data, options) in KINDS.items():
    model = functional()
    model.compile("adam", **joint())
    logs = fit(model, data, batch_size=None, **options)
    show(name, logs)
    np.testing.assert_allclose(logs["loss"], expected["loss"], rtol=1e-4)

# %% [markdown]
"""
A `torch.utils.data.DataLoader` works like the `PyDataset`. A schedule counts batches, so its `steps`
follow from the size of the data: here 23 batches an epoch. `kj.data` has data sets for what is not one
batch after the other: [tasks with data of their own](missing_targets.py), [batches of classes](pairs.py).

## Weights of classes

Keras takes `fit(class_weight=)` for models with one output only. `joint_loss(class_weight=)` takes
weights for each output, with every kind of data. Here a sixth of the eights is left in training:
"""

# %%
kept = (y["digit"] != 8) | (np.random.default_rng(0).random(len(x)) < 0.15)
rare = {name: target[kept] for name, target in y.items()}
print(f"eights among {kept.sum()} digits: {np.sum(rare['digit'] == 8)}")
try:
    model.fit(x[kept], rare, class_weight={8: 10.0}, verbose=0)
except ValueError as error:
    print("error:", error)
for class_weight in (None, {"digit": {8: 10.0}}):
    model = functional()
    model.compile(keras.optimizers.Adam(0.003), **kj.joint_loss(LOSSES, class_weight=class_weight))
    fit(model, x[kept], rare, epochs=8)
    found = np.argmax(model.predict(x_test, verbose=0)["digit"], axis=1)
    right, eights = found == y_test["digit"], y_test["digit"] == 8
    print(f"eights found: {right[eights].mean():.1%}, other digits: {right[~eights].mean():.1%}")

# %% [markdown]
"""
Without weights 15 to 18 % of the unseen eights are found, depending on the backend, and 76 to 82 % with a
weight of 10; of the other digits 88 to 89 % both times. For a model with one output, the argument of
`fit` and that of `joint_loss` do the same.
Validation has no weights of classes, as in Keras. [Missing targets](missing_targets.py) has weights of
single elements.

## Segmentation: Dice and cross-entropy on one output

A dict in place of a loss makes several terms of one output, with one target. A usual pair for masks
is the cross-entropy of each pixel and the Dice loss, one minus the overlap of mask and prediction
(Milletari et al., 2016): where few pixels belong to the mask, the first is small even if it finds none
of them. Here a digit is to be found among pieces of others; 7 % of the pixels are its strokes.

With `axis=(1, 2, 3)`, `Dice` is computed for each image; by default Keras takes the whole batch as one
image.
"""

# %%
SIZE = 16


def scenes(digits, count, seed):
    """Returns images of a digit and pieces of others, and the mask of the digit."""
    generator = np.random.default_rng(seed)
    images, masks = np.zeros((2, count, SIZE, SIZE), "float32")
    for image, mask in zip(images, masks, strict=True):
        for piece in digits[generator.integers(len(digits), size=8)].reshape(-1, 8, 8):
            top, left = generator.integers(SIZE - 3, size=2)
            image[top : top + 3, left : left + 3] = piece[2:5, 2:5]
        digit = digits[generator.integers(len(digits))].reshape(8, 8)
        top, left = generator.integers(SIZE - 7, size=2)
        image[top : top + 8, left : left + 8] = digit
        mask[top : top + 8, left : left + 8] = digit > 0.5
    return images[..., None], masks[..., None]


def build_segmenter():
    """Returns a network that sees the surroundings of each pixel at two scales."""
    keras.utils.set_random_seed(0)
    options = {"padding": "same", "activation": "relu"}
    inputs = keras.Input((SIZE, SIZE, 1))
    fine = keras.layers.Conv2D(8, 3, **options)(inputs)
    coarse = keras.layers.Conv2D(16, 3, strides=2, **options)(fine)
    coarse = keras.layers.Conv2D(16, 3, **options)(coarse)
    coarse = keras.layers.Conv2DTranspose(8, 2, strides=2, **options)(coarse)
    hidden = keras.layers.Conv2D(8, 3, **options)(keras.layers.Concatenate()([fine, coarse]))
    return keras.Model(inputs, {"mask": keras.layers.Conv2D(1, 1, activation="sigmoid")(hidden)})


def overlap(mask, predicted):
    """Returns how much of what mask and prediction cover together both of them cover."""
    found = ops.cast(predicted > 0.5, "float32")
    both, either = (ops.sum(f(mask, found), (1, 2, 3)) for f in (ops.minimum, ops.maximum))
    return both / ops.maximum(either, 1.0)


scene, mask = scenes(x, 1000, seed=0)
test_scene, test_mask = scenes(x_test, 300, seed=1)
print(f"pixels in a mask: {mask.mean():.1%}")
PARTS = {"bce": "binary_crossentropy", "dice": keras.losses.Dice(axis=(1, 2, 3))}
for names in (["bce"], ["dice"], ["bce", "dice"]):
    model = build_segmenter()
    losses = {"mask": {name: PARTS[name] for name in names}}
    model.compile(keras.optimizers.Adam(0.005), **kj.joint_loss(losses, metrics=[overlap]))
    validation = {"validation_data": (test_scene, {"mask": test_mask})}
    logs = fit(model, scene, {"mask": mask}, epochs=6, batch_size=50, shuffle=True, **validation)
    losses = {key: round(logs[key], 3) for key in logs if key.endswith(("_loss", "_share"))}
    print(f"{' + '.join(names):<12} overlap {logs['val_overlap']:.3f}", losses)

# %% [markdown]
"""
After these 120 steps the cross-entropy alone marks no pixel. Dice alone and both together reach an
overlap of 0.60 to 0.67 on the three backends, where now one, now the other is ahead. Each part has a
weight and logs of its own: `mask_bce` and `mask_dice` are the names of the terms. Pixels without a
label are left out of both with `missing=-1.0`, say: see [missing targets](missing_targets.py).
"""
