"""What several replicas of `tf.distribute` exchange: no more than they need, for exact values."""

import sys

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from keras_jointloss._core.backend.tensorflow import MirroredReplicas
from tests.backends import tf
from tests.comparisons import approx_logs, assert_all_close
from tests.loss_cases import tensor
from tests.test_metrics import CASES, OF_EACH_CLASS
from tests.test_replicas import X, distributed, loss_and_gradient, run
from tests.test_training import replicas

pytestmark = pytest.mark.backend("tensorflow")


def recorded_exchanges(monkeypatch):
    """Returns lists that receive the sizes of what each replica gathers, receives and adds up."""
    found = {"gather": [], "tensor_of": [], "sum": []}

    def recorded(name, exchange):
        def record(*args, **kwargs):
            result = exchange(*args, **kwargs)
            is_gathered = name == "gather"
            sizes = [int(ops.size(x)) for x in (result[0] if is_gathered else [result])]
            found[name].append(sizes if is_gathered else sizes[0])
            return result

        return record

    for name in found:
        exchange = getattr(MirroredReplicas, name)
        monkeypatch.setattr(MirroredReplicas, name, recorded(name, exchange))
    return found.values()


@pytest.mark.parametrize("count", [2, 4])
def test_exchanges_what_the_guide_says(monkeypatch, count):
    gathered, received, summed = recorded_exchanges(monkeypatch)
    strategy, sizes = replicas(count), (3,) * count
    with strategy.scope():
        layer, siglip = (kj.layers.ContrastiveTerm(loss) for loss in ("InfoNCE", "SigLIP"))
    views = distributed(strategy, X[: 3 * count].reshape(-1, 2, 3), sizes, "float32")
    strategy.run(lambda views: loss_and_gradient(layer, views, None)[0], (views,))
    # On each replica once all embeddings, and the sums of losses, divisors and items; backward once
    # the gradient of all embeddings.
    embeddings = 3 * count * 2 * 3
    assert (gathered, received) == ([[embeddings]] * count, [])
    assert sorted(summed) == [3] * count + [embeddings] * count
    gathered.clear()
    summed.clear()
    strategy.run(lambda views: loss_and_gradient(siglip, views, None)[0], (views,))
    # Of each replica the second views, forward and backward, and backward their gradient.
    views = 3 * 3
    assert (gathered, received) == ([[]] * count, [views] * (2 * count**2))
    assert sorted(summed) == [3] * count + [views] * count**2


@pytest.mark.parametrize("sizes", [(5, 3), (3, 0, 1, 4)])
def test_siglip_sees_the_views_of_one_replica_at_a_time(monkeypatch, sizes):
    keras.config.set_floatx("float64")
    strategy = replicas(len(sizes))
    options = {"unlabelled": 2, "reduction": "mean_with_sample_weight"}
    losses = [
        kj.losses.SigLIP(0.7, -1.0, "dot", "positive", **options),
        kj.losses.SigLIP(same_label="ignore", unlabelled=0, tile_size=3),
    ]

    def make():
        layers = [kj.layers.ContrastiveTerm(loss, 0.5, learn_temperature=True) for loss in losses]
        for layer in layers:
            layer.build([(None, 3)] * 2 + [(None,)] * layer.loss.has_labels)
        return layers

    def compute(layers, views, labels, weight, mask):
        """Returns for each layer its loss and the gradients with respect to all that it sees."""
        found = []
        for layer in layers:
            with tf.GradientTape() as tape:
                tape.watch([views, weight])
                others = [labels] * layer.loss.has_labels
                masks = [mask, None] + [None] * len(others)
                layer([views[:, 0], views[:, 1], *others], sample_weight=weight, mask=masks)
                loss = sum(layer.losses) / tf.distribute.get_strategy().num_replicas_in_sync
            sources = [views, weight, *(x.value for x in layer.trainable_variables)]
            found.append((loss, *tape.gradient(loss, sources)))
        return found

    with strategy.scope():
        several, plain = make(), make()
    items = sum(sizes)
    labels = np.array([0, 1, 2, 0, 1, 1, 0, 3])
    weight, mask = np.array([1, 0.5, 2, 0, 1, 3, 1.5, 1]), np.arange(8) != 5
    data = X[3 : 3 + items].reshape(-1, 2, 3), labels, weight, mask
    gathered, received, _ = recorded_exchanges(monkeypatch)
    parts = tuple(distributed(strategy, x, sizes) for x in data)
    results = strategy.run(lambda *data: compute(several, *data), parts)
    assert {size for sizes in gathered for size in sizes} == {items}  # Labels and masks.
    assert set(received) == {3 * max(sizes)}
    on_one = compute(plain, *map(tensor, data))
    for loss, result, expected in zip(losses, results, on_one, strict=True):
        found = [np.array(strategy.experimental_local_results(x), "object") for x in result]
        for i, (parts, value) in enumerate(zip(found, expected, strict=True)):
            total = np.concatenate([*parts]) if i in (1, 2) else sum(parts)
            assert_all_close([np.asarray(total, "float64")], [value], 1e-9, 1e-12, loss.name)


class _PairNorm(kj.metrics.ViewsMetric):
    """A metric of a user, without `items`: the mean length of the sum of an item's views."""

    def values(self, views, labels=None, valid=None):
        norms = ops.norm(ops.sum(views, axis=1), axis=-1)
        return norms, ops.ones_like(norms) if valid is None else ops.cast(valid, norms.dtype)


def test_metrics_see_all_replicas():
    def make():
        return kj.metrics.RecallAtK(1), _PairNorm()

    def compute(views):
        for metric in several:
            metric.update_state(None, views)
        return ops.zeros(())

    with replicas(2).scope():
        several = make()
    run(compute, 7, 3)
    for metric, plain in zip(several, make(), strict=True):
        expected = float(plain(None, X[:10].reshape(-1, 2, 3)))
        assert expected > 0
        assert ops.convert_to_numpy(metric.result()) == pytest.approx(expected)


def recorded_shapes(monkeypatch):
    """Returns a set that receives the shapes of the similarities that metrics compute."""
    shapes = set()

    def recorded(compute):
        def record(a, b, *args):
            shapes.add((len(a), len(b)))
            return compute(a, b, *args)

        return record

    functions = {"retrieval": "dot_matrix", "geometry": "dot_matrix", "pairs": "similarity_matrix"}
    for name, function in functions.items():
        module = sys.modules[f"keras_jointloss.metrics.{name}"]
        monkeypatch.setattr(module, function, recorded(getattr(module, function)))
    return shapes


def test_every_metric_sees_both_replicas(monkeypatch):
    keras.config.set_floatx("float64")
    sizes, strategy, shapes = (5, 3), replicas(2), recorded_shapes(monkeypatch)

    def make():
        metrics = [CASES[name][0](**CASES[name][2], name=name) for name in OF_EACH_CLASS]
        loss = kj.losses.SigLIP(same_label="ignore")
        return kj.layers.ContrastiveTerm(loss, metrics=[*metrics, _PairNorm("norm")])

    def compute(layer, views, labels, weight):
        layer((views[:, 0], views[:, 1], labels), sample_weight=weight)
        return sum(layer.losses)

    items, labels = sum(sizes), np.array([0, 1, 1, 0, 1, 0, 0, 1])
    data = X[: 2 * items].reshape(-1, 2, 6), labels, np.array([1, 0.5, 0, 2, 1, 0, 1.5, 1])
    with strategy.scope():
        layer, plain = make(), make()
    parts = tuple(distributed(strategy, x, sizes) for x in data)
    strategy.run(lambda *data: compute(layer, *data), parts)
    # A replica compares its own items, or each of their views, with those of all replicas.
    assert shapes == {(views * rows, views * items) for rows in sizes for views in (1, 2)}
    compute(plain, *map(tensor, data))
    expected = plain.weight.read()
    assert {*OF_EACH_CLASS, "norm"} < {*expected}
    assert layer.weight.read() == approx_logs(expected, 1e-9)
