"""A model with every kind of term, its data and its training, on any number of devices."""

import sys

import keras
import numpy as np
from keras import ops

import keras_jointloss as kj

BATCH, ITEMS, EPOCHS = 8, 40, 2  # 10 steps
CHUNK = 3  # Does not divide the batch, nor the part of a process.
GENERATOR = np.random.default_rng(1)
X = GENERATOR.normal(size=(ITEMS, 6))
WEIGHT = GENERATOR.uniform(0.5, 2, ITEMS) * (np.arange(ITEMS) % 5 > 0)
INPUTS = {"x": X, "weight": WEIGHT}
TARGETS = {"rating": X[:, :1] ** 2, "views": np.resize([0, 1, 2], ITEMS)}


def use_float64(is_on=True):
    """Computes in float64, or as before.

    On JAX and PyTorch, Keras computes many operations on float64 in float32.
    """
    keras.utils.clear_session()
    keras.config.set_floatx("float64" if is_on else "float32")
    if keras.backend.backend() != "tensorflow":
        dtypes = sys.modules["keras.src.backend.common.dtypes"]
        dtypes.BIT64_TO_BIT32_DTYPE["float64"] = "float64" if is_on else "float32"
    if keras.backend.backend() == "jax":
        import jax

        jax.config.update("jax_enable_x64", is_on)


def compiled():
    """Returns a model with an annealed term, a rule, a balancer, chunks and terms on all items."""
    keras.utils.set_random_seed(3)
    x, weight = keras.Input((6,), name="x"), keras.Input((), name="weight")
    hidden = keras.layers.Dense(8, activation="relu", name="trunk")(x)
    z = kj.layers.GradientBalancer(["pair", "rating"], "imtlg")(hidden)
    a = keras.layers.Dense(4)(z["pair"])
    b = kj.layers.ChunkedTower(keras.layers.Dense(4), CHUNK)(z["pair"])
    pair = kj.layers.ContrastiveTerm(kj.losses.InfoNCE(), name="pair")
    a, b = pair((a, b), sample_weight=weight)
    anneal = kj.schedules.Linear(0.1, 1.0, 6)
    tiles = kj.layers.ContrastiveTerm(kj.losses.SigLIP(tile_size=4), anneal, name="tiles")
    a, b = tiles((a, b))
    classes = kj.layers.ProxyTerm("ProxyAnchor", 4, 0.1, metrics=["accuracy"], name="classes")
    a = classes((a, ops.argmax(x[:, :4], axis=1)), sample_weight=weight)
    rating = keras.layers.Dense(1)(ops.concatenate([z["rating"], a, b], axis=1))
    outputs = {"rating": rating, "views": ops.stack([a, b], axis=1)}
    model = keras.Model({"x": x, "weight": weight}, outputs)
    losses = {"rating": "mse", "views": kj.losses.SupCon()}
    metrics = {"views": [kj.metrics.RecallAtK(1)]}
    joint = kj.joint_loss(losses, weighting=kj.weighting.FAMO(), metrics=metrics)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.5), **joint)
    return model


class Logs(keras.callbacks.Callback):
    """Keeps the logs of each epoch, also in a folder, for a process that resumes.

    Args:
        folder: The folder, or `None`.
    """

    def __init__(self, folder=None):
        super().__init__()
        self.folder = folder
        self.found = {}

    def on_epoch_end(self, epoch, logs=None):
        found = {f"{epoch} {name}": np.asarray(value) for name, value in logs.items()}
        self.found |= found
        if self.folder is not None:
            np.savez(self.folder / f"epoch_{epoch}.npz", **found)


def fitted(model, *data, callbacks=None, folder=None, **options):
    """Trains a model; returns its weights, the logs of each epoch and those of `evaluate`."""
    logs = Logs(folder)
    callbacks = callbacks or [kj.callbacks.JointLossCallback()]
    options = {"verbose": 0, **options}
    model.fit(*data, epochs=EPOCHS, shuffle=False, callbacks=[*callbacks, logs], **options)
    evaluated = model.evaluate(*data, return_dict=True, **options)
    evaluated = {f"evaluated {name}": np.asarray(value) for name, value in evaluated.items()}
    weights = {x.path: ops.convert_to_numpy(x) for x in model.trainable_variables}
    return {**logs.found, **evaluated, **weights}


RATING = np.where(GENERATOR.uniform(size=(ITEMS, 1)) < 0.4, np.nan, X[:, :1])
LABEL = GENERATOR.integers(0, 3, ITEMS)
MASKED = np.where(np.arange(ITEMS)[:, None] % 7 == 3, 0.0, X)
#: The last batch has 5 items.
LOOP_BATCHES = [np.arange(start, min(start + BATCH, 37)) for start in range(0, 37, BATCH)] * 2


def with_terms(x, views, weight, pair=1.0, tile_size=None):
    """Returns two embeddings after terms that use all options; `views` are they and labels."""
    chosen = {"num_hard_negatives": 4, "false_negative_margin": 0.01, "hardness": 1.0}
    a, b = kj.layers.ContrastiveTerm(
        # With a given size, only one of the two forms is compiled, which is faster than both.
        kj.losses.InfoNCE(same_label="ignore", tile_size=tile_size, directions="within", **chosen),
        pair,
        learn_temperature=True,
        memory_size=10,
        metrics=[kj.metrics.RecallAtK(1), kj.metrics.Uniformity()],
        name="pair",
    )(
        views,
        sample_weight=weight,
        sampling_probability=ops.sigmoid(x[:, 0]),
        guide=(x, ops.flip(x, axis=1)),
    )
    gate = keras.layers.Dense(1, activation="sigmoid")(x)  # Learned sample weights.
    loss = kj.losses.SigLIP(tile_size=tile_size)
    tiles = kj.layers.ContrastiveTerm(loss, 0.2, learn_temperature=True, name="tiles")
    a, b = tiles((a, b), sample_weight=gate)
    for loss in ("ArcFace", "ProxyAnchor"):
        name, options = loss.lower(), {"unlabelled": 2, "metrics": ["accuracy"]}
        classes = kj.layers.ProxyTerm(loss, 2, 0.02, **options, name=name)
        a = classes((a, views[2]), sample_weight=weight)
    points = kj.layers.PointWeights(3, kj.points.Residual(0.9, 0.5), 0.1, name="points")
    a = points(a, a[:, :1] - b[:, :1], views[2], sample_weight=weight)
    return kj.layers.ContrastiveTerm("VICReg", 0.02, name="statistics")((a, b))


def for_loop():
    """Returns a model for a custom loop: all options of a term, chunks, and missing targets."""
    keras.utils.set_random_seed(3)
    x, label, weight = keras.Input((6,)), keras.Input((), dtype="int64"), keras.Input(())
    z = kj.layers.GradientBalancer(["pair", "rating"], "mgda")(keras.layers.Dense(6)(x))
    a = kj.layers.ChunkedTower(keras.layers.Dense(4), CHUNK)(keras.layers.Masking()(x))
    b = kj.layers.ChunkedTower(keras.layers.Dense(4), CHUNK)(z["pair"])
    a, b = with_terms(x, (a, b, label), weight, tile_size=4)
    rating = keras.layers.Dense(1)(ops.concatenate([z["rating"], a, b], axis=1))
    outputs = {"rating": rating, "views": ops.stack([a, b], axis=1)}
    model = keras.Model([x, label, weight], outputs)
    losses = {"rating": "mse", "views": kj.losses.SupCon(unlabelled=2)}
    model.compile(**kj.joint_loss(losses, missing={"rating": np.nan}))
    return model


def looped(model, forward, own_part):
    """Trains a model in a loop of PyTorch; returns its weights and the logged values of its terms.

    Args:
        model: The model.
        forward: The model, or what computes it on several processes.
        own_part: Returns which rows of a global batch this process takes.
    """
    import torch

    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for batch in LOOP_BATCHES:
        rows = own_part(batch)
        x = [torch.as_tensor(values[rows]) for values in (MASKED, LABEL, WEIGHT)]
        optimizer.zero_grad()
        outputs = forward(x, training=True)
        y = {"rating": torch.as_tensor(RATING[rows]), "views": torch.as_tensor(LABEL[rows])}
        loss = model.compute_loss(y=y, y_pred=outputs)
        loss.backward()
        optimizer.step()
    found = {x.path: ops.convert_to_numpy(x) for x in model.trainable_variables}
    for layer in model.layers:
        if isinstance(
            layer, kj.layers.ContrastiveTerm | kj.layers.PointWeights | kj.layers.ProxyTerm
        ):
            found |= {f"{layer.name} {key}": value for key, value in layer.weight.read().items()}
        elif isinstance(layer, kj.layers.GradientBalancer):
            found["lengths"] = layer.statistics().norms
    return found
