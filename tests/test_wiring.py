"""Wrong wiring of the layers that combine gradients: refused where certain, else reported."""

import contextlib

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from keras_jointloss.joint.find_terms import find_terms
from keras_jointloss.joint.wiring import Wiring
from tests import small_models
from tests.comparisons import assert_all_close

GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(20, 5)).astype("float32")
TARGET = GENERATOR.normal(size=(20, 1)).astype("float32")
LAYERS = ("GradientBalancer", "SharedTrunk")
L1_L2 = {"l1": "mae", "l2": "mse"}


def trunk(terms, layer="GradientBalancer", inputs=None):
    """Returns inputs and the copies of a small trunk."""
    inputs = keras.Input((5,)) if inputs is None else inputs
    if layer == "SharedTrunk":
        return inputs, kj.layers.SharedTrunk(keras.layers.Dense(4), terms, name="shared")(inputs)
    return inputs, kj.layers.GradientBalancer(terms, name="shared")(keras.layers.Dense(4)(inputs))


def with_heads(terms, reads, layer="GradientBalancer"):
    """Returns a model in which each output reads the sum of copies."""
    inputs, z = trunk(terms, layer)
    heads = {
        output: keras.layers.Dense(1)(sum(z[copy] for copy in copies) if copies else inputs)
        for output, copies in reads.items()
    }
    return keras.Model(inputs, heads)


def connect(model, losses=None, **options):
    losses = dict.fromkeys(model.output, "mse") if losses is None else losses
    model.compile("sgd", **kj.joint_loss(losses, **options))
    check(model)


def check(model):
    """Lets the callback check a compiled model."""
    kj.callbacks.JointLossCallback().set_model(model)


def misnamed(model):
    """Returns the copies of each layer that a warning names: misnamed ones and unread ones."""
    found = Wiring(model, find_terms(model)).misnamed()
    return [(names, unread, unnamed) for _, names, unread, unnamed in found]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    ("reads", "message"),
    [
        ({"a": "a", "b": "a"}, r"head of the term 'b'.*`z\['b'\]`.*Received:.*copies of \['a'\]"),
        ({"a": "b", "b": "a"}, r"head of the term 'a'.*`z\['a'\]`.*Received:.*copies of \['b'\]"),
        ({"a": "a", "b": ""}, r"head of the term 'b'.*`z\['b'\]`.*Received:.*none of the copies"),
    ],
    ids=["same copy", "swapped", "no copy"],
)
def test_head_that_does_not_read_its_copy_is_refused(reads, message, layer):
    with pytest.raises(ValueError, match=message):
        connect(with_heads(["a", "b"], reads, layer))


def test_plain_losses_are_checked_too():
    model = with_heads(["a", "b"], {"a": "a", "b": "a"})
    model.compile("sgd", loss={"a": "mse", "b": "mse"})
    with pytest.raises(ValueError, match="head of the term 'b'"):
        check(model)


@pytest.mark.parametrize("terms", [["a_l1", "a_l2"], ["a_l1", "b"]])
def test_names_of_several_losses_of_one_output_are_refused(terms):
    model = with_heads(terms, {"a": ["a_l1"], "b": terms[1:]})
    message = r"`terms` of the layer 'shared'.*'a', for its losses \['a_l1', 'a_l2'\].*Received"
    with pytest.raises(ValueError, match=message):
        connect(model, {"a": L1_L2, "b": "mse"})


def test_grad_norm_says_what_several_losses_of_one_output_need():
    model = with_heads(["a"], {"a": "a"})
    message = r"GradNorm expects.*\['a_l1', 'a_l2'\].*an output for each"
    with pytest.raises(ValueError, match=message):
        connect(model, {"a": L1_L2}, weighting="grad_norm")
    # The remedy: one head, called on each copy, and outputs of different names.
    inputs, z = trunk(["l1", "l2"])
    head = keras.layers.Dense(1)
    outputs = {name: keras.layers.Identity(name=name)(head(z[name])) for name in z}
    connect(keras.Model(inputs, outputs), L1_L2, weighting="grad_norm")


def several_layers():
    """Two layers, one above the other, each for some terms; a head that reads two copies."""
    inputs, lower = trunk(["a", "upper"])
    upper = kj.layers.GradientBalancer(["b", "c"])(keras.layers.Dense(4)(lower["upper"]))
    heads = {"a": keras.layers.Dense(1)(lower["a"])}
    heads["b"] = keras.layers.Dense(1)(ops.concatenate([upper["b"], lower["a"]], axis=1))
    heads["c"] = keras.layers.Dense(1)(upper["c"])
    return keras.Model(inputs, heads)


def in_series():
    """The copy for the upper layer is for one term, which has a copy of its own there."""
    inputs, lower = trunk(["a", "upper"])
    upper = kj.layers.GradientBalancer(["b"])(keras.layers.Dense(4)(lower["upper"]))
    return keras.Model(inputs, {"a": lower["a"], "b": keras.layers.Dense(1)(upper["b"])})


def with_two_copies():
    """A head reads a second copy."""
    return with_heads(["a", "b", "second"], {"a": "a", "b": ["b", "second"]})


def with_features():
    """A copy is an output without a loss."""
    inputs, z = trunk(["a", "features"])
    return keras.Model(inputs, {"a": keras.layers.Dense(1)(z["a"]), "code": z["features"]})


def called_twice():
    """A trunk for points inside and on the edge; one term is that of a layer."""
    shared = kj.layers.SharedTrunk(keras.layers.Dense(4), ["equation", "edge"])
    inside, edge = keras.Input((5,)), keras.Input((5,))
    residual = keras.layers.Dense(1)(shared(inside)["equation"])
    u = keras.layers.Dense(1)(shared(edge)["edge"])
    u = kj.layers.LossTerm(name="equation")(u, ops.square(residual))
    return keras.Model([inside, edge], {"edge": u})


def nested():
    """Everything is in a model within the model."""
    inner = with_heads(["a", "b"], {"a": "a", "b": "b"})
    inputs = keras.Input((5,))
    return keras.Model(inputs, inner(inputs))


def of_features():
    """The copies are lists of tensors."""
    inputs = keras.Input((5,))
    features = [keras.layers.Dense(4)(inputs), keras.layers.Dense(2)(inputs)]
    z = kj.layers.GradientBalancer(["b", "a"])(features)
    return keras.Model(inputs, {x: keras.layers.Dense(1)(ops.concatenate(z[x], 1)) for x in "ab"})


RIGHT = several_layers, in_series, with_two_copies, with_features, called_twice, nested, of_features


@pytest.mark.parametrize("make", RIGHT, ids=lambda make: make.__name__)
def test_right_wiring_is_accepted(make):
    model = make()
    connect(model, dict.fromkeys(set(model.output) - {"code"}, "mse"))
    assert misnamed(model) == []


@pytest.mark.parametrize("kind", ["joint", "off", "plain", "plain list"])
@pytest.mark.parametrize("copies", ["", "b"])
def test_head_without_a_weight_may_read_anything(kind, copies):
    model = with_heads(["a", "b"], {"a": copies, "b": "b"})
    losses, weights = {"a": "mse", "b": "mse"}, {"a": 0.0, "b": 0.5}
    if kind == "plain":
        model.compile("sgd", loss=losses, loss_weights=weights)
    elif kind == "plain list":
        outputs = [keras.layers.Identity(name=x)(model.output[x]) for x in losses]
        model = keras.Model(model.inputs, outputs)
        model.compile("sgd", loss=["mse", "mse"], loss_weights=[0.0, 0.5])
    else:
        model.compile("sgd", **kj.joint_loss(losses, weights if kind == "joint" else None))
        if kind == "off":
            model.loss["a"].weight.switch_off()
    check(model)


def test_head_whose_weight_starts_at_0_has_to_read_its_copy():
    model = with_heads(["a", "b"], {"a": "b", "b": "b"})
    with pytest.raises(ValueError, match="head of the term 'a'"):
        connect(model, weights={"a": kj.schedules.Linear(0.0, 1.0, steps=4)})


def test_name_of_a_loss_beside_others_of_weight_0_is_accepted():
    model = with_heads(["a_l1", "b"], {"a": ["a_l1"], "b": "b"})
    connect(model, {"a": L1_L2, "b": "mse"}, weights={"a_l2": 0.0})
    assert misnamed(model) == []


def test_outputs_without_a_loss_and_names_of_layers_are_accepted():
    # As for a loss that a layer adds itself.
    inputs, z = trunk(["a", "b", "sampling"])
    sampled = keras.layers.Dense(4, name="sampling")(z["sampling"])
    heads = {x: keras.layers.Dense(1)(ops.concatenate([z[x], sampled], axis=1)) for x in "ab"}
    model = keras.Model(inputs, heads)
    connect(model, {"a": "mse"})
    assert misnamed(model) == []


@pytest.mark.parametrize("loss", ["mse", ["mse", "mse"]])
def test_outputs_that_nobody_has_named_leave_the_names_of_copies_free(loss):
    inputs, z = trunk(["a", "b"])
    model = keras.Model(inputs, [keras.layers.Dense(1)(z[x]) for x in "ab"])
    model.compile("sgd", loss=loss)
    check(model)
    assert misnamed(model) == []


def test_only_output_leaves_the_name_of_its_copy_free():
    inputs, z = trunk(["label", "pair"])
    a, b = kj.layers.ContrastiveTerm("InfoNCE", name="pair")((z["pair"], z["pair"]))
    model = keras.Model(inputs, keras.layers.Dense(1)(ops.concatenate([z["label"], a + b], 1)))
    connect(model, "mse")
    assert misnamed(model) == []


def test_layer_with_an_activity_regularizer_may_read_a_copy_of_any_name():
    inputs, z = trunk(["a", "sparse"])
    code = keras.layers.Dense(4, activity_regularizer="l2")(z["sparse"])
    model = keras.Model(inputs, {"a": keras.layers.Dense(1)(z["a"]), "b": code})
    connect(model)
    assert Wiring(model, find_terms(model)).may_have_other_losses


def test_outputs_in_a_list_are_matched_by_the_names_of_their_losses():
    inputs, z = trunk(["a", "b"])
    for order, is_right in (("ab", True), ("ba", False)):
        model = keras.Model(inputs, [keras.layers.Dense(1)(z[x]) for x in order])
        model.compile("sgd", **kj.joint_loss({"a": "mse", "b": "mse"}, outputs="list"))
        wrong = pytest.raises(ValueError, match="head of the term 'a'")
        with contextlib.nullcontext() if is_right else wrong:
            check(model)


@pytest.mark.parametrize(
    ("terms", "reads", "unknown"),
    [
        (["a", "bb"], {"a": "a", "b": ["bb"]}, (["bb"], [], ["b"])),
        (["x", "y"], {"a": "x", "b": "x", "c": "y"}, None),  # A copy serves several terms.
        (["x", "c"], {"a": "x", "b": "x", "c": "c"}, None),
        (["a", "x"], {"a": "ax", "b": "x"}, None),
        (["a", "b"], {"a": "a"}, ([], ["b"], [])),
        (["a", "bb"], {"a": "a", "b": "a"}, ([], ["bb"], [])),
    ],
    ids=["misnamed", "groups", "group and term", "shared", "unread", "unread and misnamed"],
)
def test_unknown_names_are_found_unless_a_copy_may_serve_several_terms(terms, reads, unknown):
    model = with_heads(terms, reads)
    connect(model)
    assert misnamed(model) == ([] if unknown is None else [unknown])


@pytest.mark.parametrize(
    ("terms", "unknown"),
    [(["a", "x"], (["x"], [], ["b"])), (["a", "x", "b"], None), (["x"], None)],
    ids=["misnamed", "unread", "group"],
)
def test_names_are_unknown_in_a_subclassed_model_only_if_terms_lack_a_copy(terms, unknown):
    model = Custom(terms)
    model.compile("sgd", **kj.joint_loss({"a": "mse", "b": "mse"}))
    assert misnamed(model) == ([] if unknown is None else [unknown])


def test_copy_that_nothing_reads_changes_no_number_and_is_reported_once(recwarn):
    weights = []
    for terms in (["a", "b"], ["a", "later", "b"]):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((5,))
        z = kj.layers.GradientBalancer(terms, "cagrad")(keras.layers.Dense(4)(inputs))
        model = keras.Model(inputs, {x: keras.layers.Dense(1)(z[x]) for x in "ab"})
        model.compile("sgd", **kj.joint_loss({"a": "mse", "b": "mse"}))
        small_models.fit(model, y={"a": TARGET, "b": -TARGET}, x=X, epochs=2)
        dense = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
        weights.append([layer.get_weights() for layer in dense])
    assert_all_close(weights[1], weights[0], 1e-5, 1e-7)
    (found,) = (str(x.message) for x in recwarn if "`terms`" in str(x.message))
    assert "['a', 'later', 'b'], of which nothing reads ['later']" in found


class Custom(keras.Model):
    """A model whose graph is unknown: head `b` reads another copy, and some terms train nothing."""

    def __init__(self, terms):
        super().__init__()
        self.trunk = keras.layers.Dense(4)
        self.shared = kj.layers.GradientBalancer(terms, "mgda", name="shared")
        self.heads = [keras.layers.Dense(1) for _ in range(4)]

    def build(self, input_shape):
        self.trunk.build(input_shape)
        for layer in (self.shared, *self.heads):
            layer.build((None, 4))

    def call(self, x, training=None):
        z = self.shared(self.trunk(x), training=training)
        read = [z["a"], z["a"], ops.stop_gradient(z["off"]), ops.stop_gradient(z["zero"])]
        names = ("a", "b", "off", "zero")
        return {name: head(x) for name, head, x in zip(names, self.heads, read, strict=True)}


def zero(y_true, y_pred):
    """A loss whose floor is reached."""
    return ops.relu(-ops.square(y_pred[:, 0]) - 1)


def fit(model, **compiled):
    model(X[:1])
    model.compile("sgd", **compiled)
    y = dict.fromkeys(("a", "b", "off", "zero"), TARGET)
    small_models.fit(model, y=y, x=X, batch_size=8, epochs=2)


@pytest.mark.parametrize("is_joint", [True, False])
def test_term_whose_gradient_is_0_in_every_step_is_reported_once(is_joint, recwarn):
    model = Custom(["a", "b", "off", "zero"])
    losses = {"a": "mse", "b": "mae", "off": "mse", "zero": zero}
    weights = {"a": 1.0, "b": 0.5, "off": 0.0, "zero": 1.0}
    plain = {"loss": losses, "loss_weights": weights}
    fit(model, **(kj.joint_loss(losses, weights) if is_joint else plain))
    (found,) = (str(x.message) for x in recwarn if "The gradient of the term" in str(x.message))
    assert "'b' at the layer 'shared' was 0 in every step of epoch 0" in found


def test_name_that_is_no_term_is_reported_once_after_the_first_epoch(recwarn):
    model = with_heads(["a", "bb"], {"a": "a", "b": ["bb"]})
    model.compile("sgd", **kj.joint_loss({"a": "mse", "b": "mse"}))
    small_models.fit(model, y=dict.fromkeys("ab", TARGET), x=X, epochs=2)
    (found,) = (str(x.message) for x in recwarn if "`terms`" in str(x.message))
    assert "['bb'] are not among" in found
    assert "The terms ['b'] have no copy of their name" in found
