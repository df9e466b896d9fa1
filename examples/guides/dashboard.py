# %% [markdown]
"""
# Reading the dashboard

With several terms, a total that falls says little: one term may outweigh the others, a schedule may
not have begun, two tasks may conflict. The logs have each term apart. This guide trains a model
with three terms twice and shows which figure answers which question. Run the guide in the root of
the repository.
"""

# %%
import time

import keras
import numpy as np

import keras_jointloss as kj

LOGS = time.strftime("logs/dashboard/%Y%m%d-%H%M%S")
with np.load("examples/data/emoji_pairs.npz") as file:
    order = np.random.default_rng(0).permutation(len(file["category"]))[:1000]
    names = ("google", "twitter", "category", "subcategory")
    google, twitter, category, subcategory = (file[name][order] for name in names)


def build(weight):
    """Returns a model of emoji: category, subcategory, and pairs of drawings."""
    keras.utils.set_random_seed(0)
    images = [keras.Input((32, 32, 3), dtype="uint8") for _ in range(2)]
    tower = keras.Sequential([keras.layers.Rescaling(1 / 255), keras.layers.Flatten()])
    tower.add(keras.layers.Dense(64, activation="relu"))
    pair = kj.layers.ContrastiveTerm("InfoNCE", weight, learn_temperature=True, name="pair")
    a, b = pair([tower(image) for image in images])
    # Changes nothing in training, and logs how the gradients of the two heads stand.
    z = kj.layers.GradientBalancer(["category", "subcategory"], aggregator=None)(a + b)
    model = keras.Model(images, {name: keras.layers.Dense(98, name=name)(z[name]) for name in z})
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    fade = kj.schedules.Linear(1.0, 0.2, steps=40)
    model.compile("adam", **kj.joint_loss(dict.fromkeys(z, loss), {"category": fade}))
    return model


# %% [markdown]
"""
## Log a training

`JointLossCallback("logs/NAME")` writes the runs `train` and `validation` to that folder, once an
epoch or, with `update_freq=10`, every ten batches, each time the means since the last point. They
are on the disk ten seconds later at most.
With `hparams=` the training is a row in TensorBoard's HParams tab: your values, weights, weighting
and aggregator, beside the last losses and metrics. `RetrievalEvaluation` adds its recalls to the
same folder.
"""

# %%
histories = {}
targets = {"category": category, "subcategory": subcategory}
for name, weight in (("pair x 0.1", 0.1), ("pair x 1", 1.0)):
    folder = f"{LOGS}/{name}"
    logger = kj.callbacks.JointLossCallback(folder, update_freq=10, hparams={"optimizer": "adam"})
    search = kj.callbacks.RetrievalEvaluation([google[800:], twitter[800:]], log_dir=folder)
    options = {"batch_size": 64, "epochs": 6, "validation_split": 0.2, "verbose": 0}
    model = build(weight)
    histories[name] = model.fit([google, twitter], targets, callbacks=[logger, search], **options)
    print(f"{name}\n{kj.report(histories[name])}")

# %% [markdown]
"""
The table, explained in [first steps](first_steps.py), is that of the last epoch. `kj.plot` draws
what `fit` returned, a folder, or several of them to compare, and returns a Plotly figure, which
`write_html("figure.html")` saves. A color is that of a term; runs in the same axes differ by dashes
and symbols. Above the axes, ◆ marks the end of a schedule, ■ a term that was switched off, and ▲ a
fault that `kj.diagnose` finds. Each run has y axes that suit it; `ranges="shared"` makes them equal.

**Which term drives training?** The weighted losses, stacked; `share=True` draws shares.
"""

# %%
kj.plot(histories)

# %% [markdown]
"""
**Does each term learn, and does validation follow?** The raw losses, without weights.
"""

# %%
kj.plot(histories["pair x 1"], "losses")

# %% [markdown]
"""
**What did a schedule or a rule do to the weights?** From a folder, the figure also has the rest of
a schedule, dashed. Other values of terms, such as the learned temperature, are in `"readings"`.
"""

# %%
kj.plot(f"{LOGS}/pair x 1", "weights")

# %% [markdown]
"""
**How long are the gradients, and how often do two of them conflict?** If one is many times as long
as another, change the weights.
"""

# %%
kj.plot(histories["pair x 1"], "gradients")

# %% [markdown]
"""
**Which terms conflict?** The share above counts every cosine below 0. Here the cosines are near 0,
so nothing has to be done. If they are far below 0, see [Conflicts](conflicts.py).
"""

# %%
kj.plot(histories["pair x 1"], "cosines")

# %% [markdown]
"""
**Would a search find the pairs?** The recalls of `RetrievalEvaluation`.
"""

# %%
kj.plot(LOGS, "retrieval")

# %% [markdown]
"""
**Which training is the best compromise?** The final losses of two terms, or any two logged values,
with the Pareto front.
"""

# %%
kj.plot(histories, "pareto", a="pair", b="category")

# %% [markdown]
"""
**Is anything wrong, and what should I try next?** `kj.diagnose` takes the same sources, also while
the training runs, and judges the numbers behind these figures. A fault has `!` before it, what is
worth knowing `-`.
"""

# %%
print(kj.diagnose(histories))

# %% [markdown]
"""
| it finds that a term | if |
|---|---|
| drives | it has the largest share of the weighted losses |
| stands still | its loss or gradient has not changed, or its loss does not fall while another one does; a plateau after a fall is no fault |
| is overfitted | its validation loss rises while its training loss does not |
| is nearly off | it has less than 1 % of the weighted losses for half of the training |
| has a weight that ran away, or that never moved | the weight has grown 1,000-fold against the others and takes all; it has not followed its schedule or rule |
| is not finite | its loss was the first that was infinite or NaN |

and which gradients conflict, more or less than at the start. Whether a loss falls, stays or turns is
judged from six epochs on, and only where its scatter does not explain it, so that little is said of
noisy losses. `findings`, `faults`, `by_term` and `by_run` have the term, kind, epoch, sentence and
advice of each for programs. While `fit` runs, `JointLossCallback` warns by the same rules of terms
that stand still, weights that run away or do not move, and losses that are not finite; the others may
be meant. Epochs count from 1 here, as in the progress bar, and from 0 in warnings, as in callbacks.
"""

# %% [markdown]
"""
## TensorBoard

`tensorboard --logdir logs` has the tab "Joint loss" with these figures for one run or several, over
steps, epochs or minutes, and a table of the latest values. A `!` before a term marks a fault that
`kj.diagnose` finds in it; the reason shows when the pointer is on the mark. A view without data is
dimmed. The address holds the view: a link shares it. TensorBoard keeps 1,000 points of a line unless started with
`--samples_per_plugin scalars=0`; the page says where points are left out. Without Plotly, the tab
"Custom scalars" has all terms in one chart.

## All points, as arrays

`kj.tensorboard.read` returns every point by run and tag:
"""

# %%
runs = kj.tensorboard.read(f"{LOGS}/pair x 1")
for tag, series in runs["train"].items():
    if tag.startswith(("joint_loss/pair/", "gradients/")):
        print(f"{tag:<46}{len(series.values):>4} points, the last {series.values[-1]:.3f}")

# %% [markdown]
"""
| tag | what it holds |
|---|---|
| `joint_loss/<term>/raw`, `weight`, `weighted`, `share`, `<reading>` | mean loss, weight now, mean of weight times loss, its share of the total, temperature, `skipped` and so on |
| `joint_loss/total`, `other`, `fixed_total`, `score` | what is minimized, what is added to it without being a term (`joint_loss/other/<layer>/weighted` by layer), the total at `validation_weights`, the `score` over tasks |
| `gradients/<term>/norm`, `coefficient`; `gradients/<a>~<b>/cosine`, `conflict`; `retrieval/<name>/...` | of layers that combine or watch gradients; of `RetrievalEvaluation` |

## Another tracker

`on_log=` receives the same numbers, with or without a folder. [Search and trackers](search.py) passes
them to Weights & Biases and MLflow. Here it fills a list. (To log
trainings of another kind, take `write_hparams`, `write_projector` or `SummaryWriter` of
`kj.tensorboard`. They need no TensorFlow.)
"""

# %%
rows = []
logger = kj.callbacks.JointLossCallback(on_log=lambda run, values, step: rows.append((run, step)))
model.fit([google, twitter], targets, epochs=1, batch_size=64, verbose=0, callbacks=[logger])
print("received:", rows)
