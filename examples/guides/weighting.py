# %% [markdown]
"""
# Which weighting?

The weights of a joint loss decide between its terms. They can be numbers that you choose, or
schedules, or come from a rule. This guide says when to take which, how each fails, and compares
some of them.

| you know | take |
|---|---|
| nothing yet | what `kj.probe` says, below: how long gradients are, whether they conflict, what is broken |
| that the losses are of similar size | equal weights: look at the shares first |
| which result matters, and there is time for several trainings | constant weights from a grid such as 0.1, 1, 10, 100, compared by validation |
| when a term should begin or end to count | a [schedule](first_steps.py) |
| what share of the total each term should have | `Shares({"label": 0.8, "pair": 0.2})` |
| what a loss may be at most | `Constraint({"kl": 10.0})` |
| only that the losses differ in size, and there is time for one training | `weights("gradient")` of a probe, or `Uncertainty()` |
| that the gradients differ in length, in a shared trunk | `weights("gradient")` of a probe, `GradNorm()`, `InverseGradientNorm()`, or an [aggregator](conflicts.py) |
| that a rule is better than chance | compare it with a grid and `RandomWeighting()` |

The data are 1,797 scanned digits from scikit-learn. From the left half of an image, one network
recognizes the digit and draws the right half. The second loss is much smaller than the first.
"""

# %%
import keras
import numpy as np
from sklearn.datasets import load_digits

import keras_jointloss as kj

images, digits = load_digits(return_X_y=True)
halves = np.split((images / 16).reshape(-1, 8, 8).astype("float32"), 2, axis=2)
left, right = (half.reshape(-1, 32) for half in halves)
x, y = left[:1400], {"digit": digits[:1400], "right": right[:1400]}

LOSSES = {"digit": "sparse_categorical_crossentropy", "right": "mean_squared_error"}


def build(weights=None, weighting=None, **options):
    """Returns the compiled network."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((32,))
    hidden = keras.layers.Dense(32, activation="relu")(inputs)
    outputs = {
        "digit": keras.layers.Dense(10, activation="softmax")(hidden),
        "right": keras.layers.Dense(32)(hidden),
    }
    model = keras.Model(inputs, outputs)
    joint = kj.joint_loss(LOSSES, weights, weighting, **options)
    model.compile(keras.optimizers.Adam(0.003), **joint)
    return model


def run(title, weights=None, weighting=None):
    """Trains the network and prints the weight, and how well it does on unseen images."""
    model = build(weights, weighting)
    callbacks = [kj.callbacks.JointLossCallback()]
    logs = model.fit(x, y, batch_size=64, epochs=12, verbose=0, callbacks=callbacks).history
    predicted = model.predict(left[1400:], verbose=0)
    accuracy = np.mean(np.argmax(predicted["digit"], axis=1) == digits[1400:])
    explained = 1 - np.mean((predicted["right"] - right[1400:]) ** 2) / np.var(right[1400:])
    ratio = logs["right_weight"][-1] / logs["digit_weight"][-1]
    print(f"{title:20}{ratio:8.1f}{logs['right_share'][-1]:9.1%}{accuracy:9.1%}{explained:9.1%}")


# %% [markdown]
"""
## Measure first

`kj.probe` measures the terms before the training: the size of each loss, the length of its gradient
on the layers that terms share, how much the gradient differs from batch to batch, and the angle
between each two. It takes a few batches, trains for an epoch with equally long gradients, measures
again, and puts everything back: weights, optimizer, memories and random numbers are bit for bit what
they were.
"""

# %%
probe = kj.probe(build(), x, y, batch_size=64, verbose=0)
print(probe)

# %% [markdown]
"""
A look at the untrained model alone would mislead. The gradient of the digit is twice as long at
first, and about five times after an epoch; the two do not conflict at first, and then they do. `faults`
names what no weight mends: a term that reaches no parameter, whose loss is constant, or whose gradient is
noise at this batch size; outputs that are one tensor; a balancer where nothing conflicts. `advice`
says what to try, with the numbers it rests on.

`weights("gradient")` returns constants that make the gradients equally long, and `weights("loss")`
the losses. They are a start for a search, or a replacement where there is no time for one: then take
the first, since the second can lose a term whose gradient is short for the size of its loss. With
`shares={"digit": 0.8, "right": 0.2}` the terms get these shares. `kj.plot(probe)` draws lengths and
cosines, and `log_dir=` writes the untrained ones to TensorBoard as step 0.
"""

# %%
for by in ("gradient", "loss"):
    weights = probe.weights(by)
    print(f"probe by {by}: right x {weights['right'] / weights['digit']:.1f}")

# %% [markdown]
"""
It costs two measurements and the epoch between them: with k terms, a measured batch has one forward
and k backward passes.

## Constant weights

The table shows the last weight of the right half (that of the digit is 1, or the ratio of the two),
its share in the total, and two results on unseen images: the accuracy of the digit, and how much of
the right half is explained.
"""

# %%
print(f"{'':20}{'ratio':>8}{'share':>9}{'digit':>9}{'right':>9}")
for weight in (1.0, 10.0, 100.0):
    run(f"right x {weight:g}", {"right": weight})
run("probe", probe.weights())

# %% [markdown]
"""
One result rises as the other falls: no weight is best for both. A grid shows the choice, at the
price of one training for each weight. Larger weights also make larger gradients, which matters for
SGD and hardly for Adam: see [learning rate and clipping](optimizer.py).

## One score for all results

To compare trainings, or the epochs of one, by a single number, give the callback a baseline for each
result: say, what a network for this task alone reaches. `joint_score` in the logs is then the mean
relative gain over the baselines (Maninis et al., 2019, *Attentive Single-Tasking of Multiple
Tasks*), a fraction as in LibMTL: 0.05 is 5 % better, and below 0 the tasks cost each other something.
"""

# %%
UNSEEN = (left[1400:], {"digit": digits[1400:], "right": right[1400:]})


def train(weights, *callbacks, score=None):
    """Trains the network with validation and returns the logs."""
    model = build(weights, metrics={"digit": "accuracy", "right": "mae"})
    callbacks = [kj.callbacks.JointLossCallback(score=score), *callbacks]
    options = {"batch_size": 64, "epochs": 12, "verbose": 0, "validation_data": UNSEEN}
    return model.fit(x, y, callbacks=callbacks, **options).history


alone = {
    "val_digit_accuracy": train({"right": 0.0})["val_digit_accuracy"][-1],
    "val_right_mae": train({"digit": 0.0})["val_right_mae"][-1],
}
stop = keras.callbacks.EarlyStopping("joint_score", mode="max", patience=3)
for weight in (1.0, 10.0, 100.0):
    scores = train({"right": weight}, stop, score=alone)["joint_score"]
    print(f"score, right x {weight:g}: {max(scores):.3f} in epoch {1 + int(np.argmax(scores))}")

# %% [markdown]
"""
`ModelCheckpoint`, `CSVLogger` and TensorBoard find it too, and KerasTuner with
`keras_tuner.Objective("joint_score", "max")`. Keras knows in which direction its metrics are better,
and the callback that a loss is to fall. For other values write `("max", 0.9)` or `("min", 0.3)`. For
tasks with several results each, `score={"depth": {...}, "normals": {...}}` counts the tasks alike,
as LibMTL does. Values of `RetrievalEvaluation` and `KNNEvaluation` count as well, but not those of
callbacks of other origin, which add them later.

## Rules

A rule computes the weights of a step from the losses of the steps before it. It sets all weights,
those of layer terms included, and moves in `fit` with the callback only. Given `weights` multiply
those of the rule.
"""

# %%
for rule in ("uncertainty", "geometric_mean", "dynamic_weight_average"):
    run(rule, weighting=rule)

# %% [markdown]
"""
In one training, `Uncertainty` and `GeometricMean` find a compromise between those of the grid: both
divide, in effect, by the size of a loss. `DynamicWeightAverage` looks at how fast losses fall, not
at their size: here it does as equal weights do.

| rule | paper | the weight follows | what to know, and how it fails |
|---|---|---|---|
| `Uncertainty` | Kendall 2018 | the noise of the task, learned along | takes some hundred steps to settle, from above at once; grows up to 5e11 for a loss near 0: set `max_weight` |
| `GeometricMean` | Chennupati 2019 | 1 / loss | a loss that reaches 0 takes all the weight: set `min_weight`, or a `floor` |
| `FAMO` | Liu 2023 | equal relative rates of fall | as `GeometricMean`; the weights sum to 1 |
| `DynamicWeightAverage` | Liu 2019 | how little a loss fell from epoch to epoch | ignores the size of a loss; weights stay 1 for two epochs |
| `Uncertainty(softmax=True)` | Kirchdorfer 2024 | softmax of 1 / (temperature loss) | sums to 1; the `temperature` has to fit the size of the losses |
| `IMTLL` | Liu 2021 | 1 / loss, learned along | is `Uncertainty` times 2, with its failures |
| `ReLoBRaLo` | Bischof 2021 | how little a loss fell since the last step, at random since the first | ignores the size of a loss |
| `SoftAdapt` | Heydari 2019 | the slope of the last losses, in three variants | depends on the size of a loss: lower `beta`, or scale losses first; weights stay equal for two epochs |
| `SmoothTchebycheff` | Lin 2024 | how far a loss is above its best so far | depends on the size of a loss: scale losses first, or give a `preference` |
| `GradNorm` | Chen 2018 | lengths of gradients, and what learned less | needs a `GradientBalancer` or `SharedTrunk` in the model |
| `InverseGradientNorm` | Wang 2023 | 1 / length of the gradient | as `GradNorm`; a gradient near 0 takes a weight without end: set `max_weight` |
| `NeuralTangentKernel` | Wang 2022 | 1 / (length of the gradient)^2 times the loss, an estimate of the trace | as `InverseGradientNorm` |
| `Shares` | | the asked share of the total | a loss near 0 takes nearly all the weight: set `max_weight` |
| `Constraint` | Rezende 2018 | how far a loss is above its bound | a bound that cannot be reached drives the weight to `max_weight` |
| `RandomWeighting` | Lin 2022 | chance | is there to compare with |

A negative loss is an error at the end of the epoch, except with `SmoothTchebycheff`, `SoftAdapt` (but
for `variant="loss_weighted"`), `InverseGradientNorm`, `Constraint` and `RandomWeighting`;
`FAMO(minimum_loss=...)` sets another limit. The callback warns of a term that
contributes less than 1/10,000 of what another does, and says whether its weight or the size of its
loss is the cause. All rules take `warmup_steps`, `ema`, `min_weight`, `max_weight`, `update_every`
and `on_nonfinite`.

No rule needs a further forward or backward pass. [Benchmarks](../../docs/benchmarks.md) has the time
that a rule adds to a step. Its state is in the model's file, and a training that was interrupted
continues with it. A rule of your own is one method: see [extending](extending.py).

## Losses of any size

All rules compute their weights from losses of 1e-8 to 1e12 as their formulas give them. Whether each
term is then trained is another question. Four regressions on one small trunk, whose losses are
multiplied by 1e-8, 1, 1e5 and 1e12, after 1,600 steps with `Adam(0.003, global_clipnorm=1.0)`:

| weights | share of the smallest | explained: 1e-8 | 1 | 1e5 | 1e12 | losses of any size? |
|---|---|---|---|---|---|---|
| equal | 2e-16 | -51% | 35% | 98% | 100% | no |
| 1 / size | 49% | 100% | 100% | 100% | 100% | yes, if you know the size |
| `Uncertainty()` | 0.6%, rising | 100% | 100% | 100% | 100% | yes; a weight rises by 1.25% a step |
| `Uncertainty(analytic=True)` | 25% | 100% | 100% | 100% | 100% | yes |
| `GeometricMean()` | 2.7% | 73% | 100% | 100% | 100% | from 1e-7 on |
| `GeometricMean(floor=1e-12)` | 25% | 100% | 100% | 100% | 100% | yes |
| `FAMO(floor=1e-12)` | 27% | 38% | 95% | 99% | -36% | shares yes; the total is as small as the smallest loss, and Adam's `epsilon` then counts |
| `Shares({...: 1.0})` | 3e-10 | -48% | 100% | 100% | 100% | up to a ratio of 1e6, `max_weight` |
| `GradNorm()` | 1e-11 | -67% | 100% | 100% | 100% | all of one size; very unlike ones take thousands of steps |
| `Constraint` of the larger three | 1e-10 | -52% | 99% | 100% | 100% | of named terms; the others count as they are |
| `DynamicWeightAverage()` | 2e-16 | -51% | 35% | 98% | 100% | no, and `RandomWeighting` neither |
| `SmoothTchebycheff()` | 0 | -43% | 37% | 99% | 100% | no: scale by `preference` |

Mind the first step. A rule knows no loss then, and the gradient of a loss of 1e5 is 1e5 times as
long as later. Adam remembers it for thousands of steps: without `global_clipnorm`, `Uncertainty`
gives the same shares, but explains 98%, 98%, 30% and -36%. `mixed_float16` skips that step.

## Do you need a rule?

Kurin et al. (2022, *In Defense of the Unitary Scalarization for Deep Multi-Task Learning*) found
that the plain sum of the losses, regularized and tuned as well as its rivals, does as well as the
methods for multi-task learning that they tested. Xin et al. (2022, *Do Current Multi-Task
Optimization Methods in Deep Learning Even Help?*) found that such methods do not get beyond what
tuned constant weights reach. So a rule saves a search; do not expect a better optimum from it.

The [study](../../docs/study.md) compares constants, the proposals of `kj.probe`, rules and
aggregators on five problems, each with its own search for the learning rate. In nine cases, a problem
with an optimizer, it compares the mean score of three seeds with that of constants tuned by 8 trials.
By more than one deviation over the seeds, equal constants were worse in seven cases,
`weights("gradient")` of a probe in four, each time by less, and better in one, and `weights("loss")`
worse in three, in two of which it lost the retrieval on MovieLens. `FairGrad` and `NashMTL`, which make
up for the lengths of gradients in each step, did best over all cases: better in three, and never worse
by more than 1.4 deviations. Of the rules, `IMTLL` and `Uncertainty` were never worse by more than 2.3
and 4.0. Those that make up for nothing, such as `DynamicWeightAverage` or `PCGrad`, did about as equal
constants do. Some broke: `FAMO` and `GeometricMean` where a loss comes near 0, and
`Uncertainty(softmax=True)` with its `temperature` of 1. Three seeds make no ranking: which of the good
ways is best lies within the noise.

[weighting.py](../weighting.py) compares all rules with a grid on emoji: the category from a
drawing, and the meaning of its group. All have the same learning rate. Unseen emoji, 12 epochs,
mean ± deviation over three seeds
(`python examples/weighting.py --seeds 3`):

| weights | share of the meaning | accuracy of the category | meaning explained |
|---|---|---|---|
| meaning x 0.3 | 23.1% | 61.7% ± 2.3% | -11.1% ± 6.6% |
| meaning x 1 | 50.0% | 62.9% ± 1.7% | 13.3% ± 3.3% |
| meaning x 3 | 75.0% | 60.9% ± 1.0% | 25.2% ± 0.9% |
| meaning x 10 | 90.9% | 58.7% ± 1.1% | 34.5% ± 1.2% |
| meaning x 30 | 96.8% | 57.9% ± 1.5% | 37.8% ± 1.6% |
| meaning x 100 | 99.0% | 57.9% ± 1.0% | 38.8% ± 2.1% |
| meaning x 300 | 99.7% | 55.8% ± 1.9% | 40.0% ± 1.6% |
| `Uncertainty` | 89.5% | 61.1% ± 0.4% | 33.2% ± 1.0% |
| `DynamicWeightAverage` | 50.5% | 62.4% ± 1.5% | 8.9% ± 0.6% |
| `GeometricMean` | 92.8% | 59.1% ± 1.5% | 35.0% ± 0.5% |
| `SmoothTchebycheff` | 45.2% | 61.3% ± 2.0% | 10.1% ± 3.7% |
| `FAMO` | 92.0% | 59.2% ± 0.9% | 34.2% ± 0.3% |
| `GradNorm` | 86.7% | 59.6% ± 0.8% | 31.6% ± 3.1% |
| `Uncertainty(softmax=True)` | 100.0% | 30.5% ± 6.6% | 40.1% ± 1.0% |
| `IMTLL` | 92.2% | 60.6% ± 1.9% | 35.0% ± 1.8% |
| `ReLoBRaLo` | 55.7% | 61.1% ± 1.8% | 12.3% ± 4.0% |
| `SoftAdapt` | 50.1% | 61.3% ± 1.2% | 10.5% ± 2.4% |
| `InverseGradientNorm` | 84.0% | 61.2% ± 1.0% | 29.8% ± 1.6% |
| `NeuralTangentKernel` | 73.6% | 61.0% ± 0.4% | 23.7% ± 1.4% |
| `RandomWeighting` | 9.0% | 61.3% ± 1.1% | 14.1% ± 3.0% |

The share is that of the meaning's weight in the sum of the weights at the end. Here `Uncertainty` finds
a compromise like the best of the grid, `IMTLL` and `InverseGradientNorm` one as good, and
`GeometricMean`, `FAMO` and `GradNorm` are near its front. `DynamicWeightAverage`,
`SmoothTchebycheff`, `ReLoBRaLo` and `SoftAdapt` do not make up for the difference in size, and
`NeuralTangentKernel` does in part. `Uncertainty(softmax=True)` with its `temperature` of 1 leaves all
to the smaller loss: the inverse losses are about 14 and 0.5.

![Left: the share of the meaning's weight over the epochs for seven of the rules. Right: results on unseen emoji, with the Pareto front of the grid](../images/weighting.png)
"""
