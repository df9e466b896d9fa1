"""What a term records, against a loop over the steps in float64."""

import gc
import weakref

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from keras_jointloss.terms.record import KEPT_STEPS


def steps(count):
    rng = np.random.default_rng(0)
    for step in range(count):
        batch = 8 if step % 50 else 5
        items = int(rng.integers(0, batch + 1))
        yield float(rng.normal(3.0) ** 2), items, step % 7 != 0, batch


@pytest.mark.parametrize("count", [1, 2, KEPT_STEPS - 1, KEPT_STEPS + 3, 2 * KEPT_STEPS])
@pytest.mark.parametrize("has_tensors", [False, True])
def test_sums_and_comparison_equal_a_loop(count, has_tensors):
    weight = kj.LossWeight(0.5)
    sums, compared, before = np.zeros(5), np.zeros(3), (0.0, 0.0)
    for loss, items, counts, batch in steps(count):
        numbers = [items, counts, batch, batch]
        given = [ops.convert_to_tensor(x) for x in numbers] if has_tensors else numbers
        weight.record(ops.convert_to_tensor(loss, "float32"), *given)
        sums += items, items * loss, batch * loss * 0.5, batch, batch
        counted = items * counts
        same = counted * (counted == before[1])
        compared += counted, same, same * abs(loss - before[0])
        before = loss, counted
        if count == 2:  # A reader between the steps.
            assert weight.totals().size > 0
    np.testing.assert_allclose(weight.totals().sums[0], sums, rtol=1e-5)
    np.testing.assert_allclose(weight.recorded._read()[5:], [*compared, *before], rtol=1e-5)
    weight.recorded.reset_comparison()
    assert not weight.recorded.has_counted
    np.testing.assert_allclose(weight.totals().sums[0], sums, rtol=1e-5)
    weight.reset()
    assert not weight.recorded._read().any()


def test_steps_hold_neither_a_graph_nor_the_memory_of_others():
    if keras.backend.backend() != "torch":
        pytest.skip("only PyTorch keeps a graph")
    weight = kj.LossWeight()
    x = ops.convert_to_tensor([1.0, 2.0]).requires_grad_()
    batch = x * 3.0
    loss = batch[0]
    node = weakref.ref(batch)
    weight.record(loss, 4)
    with_graph = loss.grad_fn is not None
    del batch, loss
    gc.collect()
    assert with_graph
    assert node() is None
    assert weight.totals().read()["loss"] == pytest.approx(3.0)


def test_a_loss_that_is_overwritten_keeps_its_value_in_the_record():
    weight = kj.LossWeight()
    latest = keras.Variable(0.0, trainable=False)
    for loss in (1.0, 2.0, 6.0):
        latest.assign(loss)
        weight.record(ops.convert_to_tensor(latest), 4)
    assert weight.totals().read()["loss"] == pytest.approx(3.0)


def test_a_stateless_step_belongs_to_its_scope():
    weight = kj.LossWeight()
    weight.record(ops.convert_to_tensor(3.0), 1)
    variables = [x for x in weight.variables if "sums" in x.path]
    with keras.StatelessScope() as scope:
        weight.reset()
        weight.record(ops.convert_to_tensor(2.0), 4)
        weight.recorded.loss()
    assert weight.totals().read()["loss"] == 3.0
    found = [scope.get_current_value(x) for x in variables]
    np.testing.assert_allclose(ops.convert_to_numpy(found[0])[:5], [4, 8, 8, 4, 4])


def test_losses_of_any_dtype_are_recorded():
    weight = kj.LossWeight()
    for dtype in ("float16", "float32", "bfloat16"):
        weight.record(ops.convert_to_tensor(2.5, dtype), 4)
    assert weight.totals().read()["loss"] == pytest.approx(2.5)
