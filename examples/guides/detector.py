# %% [markdown]
"""
# A detector: one loss over two outputs

Keras computes the loss of an output from its own target and prediction. Some losses need more: a
detector returns a box and a score, the box counts only where there is something to detect, and a
good score says how well the box fits. Users override `compute_loss` for this. This guide trains a
small detector in plain `compile` and `fit`, with losses that see both outputs.

The data are scanned digits from scikit-learn, of two sizes, at random places of an image with
pieces of other digits. Half of the images have no digit.
"""

# %%
import keras
import numpy as np
from keras import ops
from sklearn.datasets import load_digits

import keras_jointloss as kj

SIZE = 24
digits = load_digits().images.astype("float32") / 16


def scenes(digits, count, seed):
    """Returns images, and the box (left, top, right, bottom) and presence of a digit in each."""
    rng = np.random.default_rng(seed)
    images = np.zeros((count, SIZE, SIZE), "float32")
    box, score = np.zeros((count, 4), "float32"), np.zeros((count, 1), "float32")
    for i, image in enumerate(images):
        for piece in digits[rng.integers(len(digits), size=6)]:
            top, left = rng.integers(SIZE - 3, size=2)
            image[top : top + 3, left : left + 3] = piece[2:5, 2:5]
        if i % 2:
            digit = digits[rng.integers(len(digits))]
            digit = digit[:, np.flatnonzero(digit.any(axis=0))]  # Without its empty margins.
            digit = np.kron(digit, np.ones((rng.integers(1, 3),) * 2))
            height, width = digit.shape
            top, left = rng.integers(SIZE - height + 1), rng.integers(SIZE - width + 1)
            image[top : top + height, left : left + width] = digit
            box[i] = np.array([left, top, left + width, top + height]) / SIZE
            score[i] = 1
    return images[..., None], {"box": box, "score": score}


x, y = scenes(digits[:1400], 8000, seed=0)
x_test, y_test = scenes(digits[1400:], 1000, seed=1)


def build(model_class=keras.Model):
    """Returns a detector."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((SIZE, SIZE, 1))
    hidden = inputs
    for filters in (16, 32, 64):
        hidden = keras.layers.Conv2D(filters, 3, 2, padding="same", activation="relu")(hidden)
    hidden = keras.layers.Dense(64, activation="relu")(keras.layers.Flatten()(hidden))
    middle = keras.layers.Dense(2, activation="sigmoid")(hidden)
    half = keras.layers.Dense(2, activation="sigmoid")(hidden) / 2
    box = ops.concatenate([middle - half, middle + half], axis=1)
    score = keras.layers.Dense(1, activation="sigmoid")(hidden)
    return model_class(inputs, {"box": box, "score": score})


# %% [markdown]
r"""
## Two losses

The overlap of two boxes is the area that both share, divided by the area that they cover together,
$\mathrm{IoU} = |A \cap B| \,/\, |A \cup B|$. Boxes that do not touch have the overlap 0, without a
gradient. The generalized overlap (Rezatofighi et al., 2019) subtracts the share of the smallest box
around both, $C$, that is empty:

$$ \mathrm{GIoU} = \mathrm{IoU} - \frac{|C| - |A \cup B|}{|C|} $$

Both losses below are functions of two dicts by the name of the output, the targets `y` and the
predictions `p`, and return one number for each item:

- `giou` is the loss of the box, where there is a digit: this it knows from the target of the score.
- `quality` is the loss of the score. Its target is not whether there is a digit, but how well the
  predicted box fits, 0 without a digit (Li et al., 2020). So the best boxes have the highest score.
"""


# %%
def overlaps(a, b):
    """Returns the IoU and the GIoU of boxes: `(batch,)` each."""

    def area(low, high):
        return ops.prod(ops.maximum(high - low, 0.0), axis=1)

    (a_low, a_high), (b_low, b_high) = ops.split(a, 2, axis=1), ops.split(b, 2, axis=1)
    shared = area(ops.maximum(a_low, b_low), ops.minimum(a_high, b_high))
    union = area(a_low, a_high) + area(b_low, b_high) - shared + 1e-7
    around = area(ops.minimum(a_low, b_low), ops.maximum(a_high, b_high)) + 1e-7
    return shared / union, shared / union - (around - union) / around


@keras.saving.register_keras_serializable(package="detector")
def giou(y, p):
    """Returns the loss of the box where there is a digit."""
    return y["score"][:, 0] * (1 - overlaps(y["box"], p["box"])[1])


@keras.saving.register_keras_serializable(package="detector")
def quality(y, p):
    """Returns the loss of the score, whose target is the overlap of the predicted box."""
    overlap, _ = overlaps(y["box"], p["box"])
    target = y["score"] * ops.stop_gradient(overlap)[:, None]
    return keras.losses.binary_crossentropy(target, p["score"])


# %% [markdown]
"""
## Compile and fit

`across` adds a term for each loss, with the names of its outputs. Such a term has a weight, which
may be a schedule, and logs like any other. The outputs need no loss of their own: here the box has
none, and the score has one, of whether there is a digit, only in the first model, for comparison.
"""

# %%
of_box = {"giou": (giou, ["box", "score"])}
VARIANTS = {
    "presence": {"losses": {"score": "binary_crossentropy"}, "across": of_box},
    "quality": {"losses": {}, "across": {**of_box, "quality": (quality, ["box", "score"])}},
}
options = {"batch_size": 100, "epochs": 8, "shuffle": False, "verbose": 0}
models = {}
for name, arguments in VARIANTS.items():
    models[name] = model = build()
    joint = kj.joint_loss(**arguments, weights={"giou": 2.0})
    model.compile(keras.optimizers.Adam(0.002), **joint)
    history = model.fit(x, y, **options, callbacks=[kj.callbacks.JointLossCallback()])
    print(f"{name}\n{kj.report(history)}")

# %% [markdown]
"""
How good are box and score together? A box is right if its overlap with the digit is 0.5 or more.
The average precision is the mean share of right boxes among those with a higher score:
"""


# %%
def average_precision(model, threshold=0.5):
    """Returns the mean precision at the score of each digit, 0 for one without a right box."""
    p = model.predict(x_test, batch_size=500, verbose=0)
    overlap = ops.convert_to_numpy(overlaps(y_test["box"], ops.convert_to_tensor(p["box"]))[0])
    has_digit = y_test["score"][:, 0] > 0
    is_right = (has_digit & (overlap >= threshold))[np.argsort(-p["score"][:, 0])]
    precision = np.cumsum(is_right) / np.arange(1, len(is_right) + 1)
    return precision[is_right].sum() / has_digit.sum(), overlap[has_digit].mean()


for name, model in models.items():
    precision, overlap = average_precision(model)
    print(f"{name}: mean overlap {overlap:.3f}, average precision {precision:.3f}")

# %% [markdown]
"""
With three seeds, the score that knows the box had the higher average precision and the higher mean
overlap each time, by 0.02 to 0.07 and 0.03 to 0.04: its gradient tells the trunk where boxes fail.

## The same as an overridden `compute_loss`

This is what `across` replaces. The weights after training are the same:
"""


# %%
class Overridden(keras.Model):
    """A detector that computes its loss itself."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return 2 * ops.mean(giou(y, y_pred)) + ops.mean(quality(y, y_pred))


part = x[:500], {name: values[:500] for name, values in y.items()}
overridden, model = build(Overridden), build()
overridden.compile(keras.optimizers.SGD(0.01))
joint = kj.joint_loss(**VARIANTS["quality"], weights={"giou": 2.0})
model.compile(keras.optimizers.SGD(0.01), **joint)
for each in (overridden, model):
    each.fit(*part, **options)
pairs = zip(model.get_weights(), overridden.get_weights(), strict=True)
print(f"largest difference of weights:   {max(np.abs(a - b).max() for a, b in pairs):.0e}")

# %% [markdown]
"""
The override has no `giou_loss` and `quality_loss` in the logs, no weights that follow a schedule or
a rule, and no missing targets. A model with `across` is saved and loaded as it is compiled:
"""

# %%
model = models["quality"]
model.save("detector.keras")
loaded = keras.models.load_model("detector.keras")
logs = loaded.evaluate(x_test, y_test, batch_size=500, verbose=0, return_dict=True)
for key, value in logs.items():
    print(f"{key:16} {value:.3f}")

# %% [markdown]
"""
## With everything else

- If the sample weights of the outputs differ, the smallest weight of an item applies. So an item
  counts where all of its outputs count, and one weight for all outputs applies once.
- With `missing`, an item that lacks a target of one of the outputs is left out, and the mean runs
  over the others. The loss must then return one value for each item.
- A loss that returns one number for the whole batch is fine otherwise, as is a `keras.losses.Loss`
  with `call(self, y_true, y_pred)`, whose `reduction` applies.
- With a `GradientBalancer`, the gradient of such a term is part of that of the copies that the heads
  of its outputs read. Heads that read `z["giou"]` give the term a gradient of its own.
- Targets and predictions have the dtype of the loss, float32 by default, also with mixed precision.

Anchors and several boxes of an image fit as well: an output may have any shape, as long as the loss
returns one number for each image.
"""
