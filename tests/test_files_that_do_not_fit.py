"""Weights files and configs that do not fit are refused by name, and change nothing."""

import json
import resource
import shutil

import h5py
import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from tests.backends import BACKEND, once_compiled, values_only
from tests.small_models import fit
from tests.terms import RULES

# Keras tries what did not fit again on each path on which it finds the object.
pytestmark = pytest.mark.filterwarnings("ignore:Skipping nested container")

X = np.random.default_rng(0).normal(size=(24, 3)).astype("float32")
Y = {name: X[:, i : i + 1] for i, name in enumerate("abc")}

LOSSES = {"a": "mse", "b": "mse"}


def make_model():
    """Returns a model with each kind of state that a file can hold."""
    inputs = keras.Input((3,))
    z = kj.layers.GradientBalancer(["a", "b"], name="balancer")(keras.layers.Dense(4)(inputs))
    options = {"learn_temperature": True, "memory_size": 8, "name": "pair"}
    term = kj.layers.ContrastiveTerm(kj.losses.SupCon(temperature=0.3), **options)
    label = ops.cast(inputs[:, 0] > 0, "int32")
    a, b = term((*z.values(), label))
    options = {"proxies_initializer": keras.initializers.GlorotUniform(0), "name": "classes"}
    b = kj.layers.ProxyTerm("ArcFace", 2, **options)((b, label))
    a = kj.layers.LossTerm(weight=kj.schedules.Linear(0.0, 1.0, 10), name="energy")(a, a * a)
    head = keras.layers.Dense(1)
    slow = kj.layers.MomentumTower(head, name="slow")
    model = keras.Model(inputs, {"a": head(a) + slow(b), "b": keras.layers.Dense(1)(b)})
    model.compile("sgd", **kj.joint_loss(LOSSES, weighting=kj.weighting.FAMO()))
    return model


def train(model, epochs=1):
    model.run_eagerly = BACKEND != "jax"
    fit(model, y={name: Y[name] for name in model.loss}, x=X, batch_size=8, epochs=epochs)
    return model


def parts_of(model):
    """Returns the objects of the package whose state a file holds, by name."""
    weights = {name: loss.weight for name, loss in model.loss.items()}
    layers = [x for x in model.layers if type(x).__module__.startswith("keras_jointloss")]
    layers = {layer.name: layer for layer in layers}
    return {**weights, "rule": weights["a"].weighting, **layers}


def states_of(model):
    states = {}
    for name, part in parts_of(model).items():
        store = {}
        part.save_own_variables(store)
        states[name] = {key: np.array(ops.convert_to_numpy(x)) for key, x in store.items()}
    return states


def assert_same(actual, expected):
    for name, state in expected.items():
        assert actual[name].keys() == state.keys()
        for key, value in state.items():
            np.testing.assert_array_equal(actual[name][key], value, err_msg=f"{name}/{key}")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "m.weights.h5"
    train(make_model(), epochs=2).save_weights(path)
    return path


@pytest.fixture(scope="module")
def model():
    return train(make_model())


def changed(file, tmp_path, key, change):
    """Returns a copy of the file in which `change` has replaced the values of an entry."""
    path = tmp_path / "changed.weights.h5"
    shutil.copy(file, path)
    with h5py.File(path, "r+") as opened:
        names = []
        opened.visit(lambda name: names.append(name) if name.endswith(key) else None)
        assert names
        for name in names:
            value = change(np.array(opened[name]))
            del opened[name]
            if value is not None:
                opened[name] = value
    return path


def assert_refused(model, path, message):
    """Asserts that loading this file raises an error with the message, which may have lines."""
    with pytest.raises(ValueError, match=f"(?s){message}"):
        model.load_weights(path)


def put(index, value):
    """Returns a change that replaces one number of an array."""

    def change(values):
        values = values.astype("float64")
        values[index] = value
        return values

    return change


CHANGES = {
    "negative weight": ("term_loss/weight/vars/value", put((), -1.0), "`value`.*term 'a'"),
    "weight that is nan": ("term_loss_1/weight/vars/value", put((), np.nan), "`value`.*term 'b'"),
    "negative factor": ("term_loss/weight/vars/factor", put((), -5.0), "`factor`.*factor=-5"),
    "vector as factor": ("term_loss/weight/vars/factor", lambda x: np.ones(2), r"shape \(2,\)"),
    "negative step": ("term_loss/weight/vars/step", put((), -1), "`step`.*step=-1"),
    "weight without step": ("term_loss/weight/vars/step", lambda x: None, "`step`.*none"),
    "switch of 2": ("term_loss/weight/vars/off", put((), 2), "`off`.*<= 1.*off=2"),
    "layer weight": ("loss_term/vars/value", put((), -1.0), "`value`.*LossTerm 'energy'"),
    "step of a layer": ("loss_term/vars/step", put((), 0.5), "`step`.*LossTerm 'energy'"),
    "temperature": ("contrastive_term/vars/0", put((), np.nan), "`log_scale`.*Term 'pair'"),
    "out of bounds": ("contrastive_term/vars/0", put((), -5.0), "`log_scale`.*log_scale=-5"),
    "memory": ("vars/memory_views", put((1, 1, 2), np.nan), "`memory_views`.*Term 'pair'"),
    "memory of 7": ("vars/memory_views", lambda x: x[:7], r"\(8, 2, 4\).*\(7, 2, 4\)"),
    "memory without mask": ("vars/memory_valid", lambda x: None, "`memory_valid`.*none"),
    "position": ("vars/memory_position", put((), 8), "`memory_position`.*<= 7"),
    "labels": ("vars/memory_labels", put((1,), np.inf), "`memory_labels`"),
    "record": ("vars/latest", put((0, 1, 1), np.nan), "`latest`.*GradientBalancer"),
    "negative record": ("vars/latest", put((0, 1, 1), -1.0), "`latest`.*>= 0"),
    "record of 3": ("vars/latest", lambda x: np.zeros((2, 6, 3)), r"`latest`.*\(2, 5, 2\)"),
    "step of a record": ("gradient_balancer/vars/step", put((), -3), "`step`.*GradientBalancer"),
    "proxies": ("proxy_term/vars/0", put((1, 2), np.nan), "`proxies`.*ProxyTerm 'classes'"),
    "proxies of 3": ("proxy_term/vars/0", lambda x: np.ones((3, 4)), r"`proxies`.*\(2, 4\)"),
    "step of a tower": ("momentum_tower/vars/0", put((), -1), "`step`.*MomentumTower 'slow'"),
    "rule": ("weighting/vars/state", put((0, 1), -1.0), "`state`.*FAMO.*state=-1"),
    "rule with nan": ("weighting/vars/state", put((5, 0), np.nan), "`state`.*FAMO.*state=nan"),
    "rule of 9": ("weighting/vars/state", lambda x: x[:9], r"`state`.*\(10, 5\).*\(9, 5\)"),
    "epoch": ("weighting/vars/epoch", put((), -1), "`epoch`.*FAMO"),
    "names": ("weighting/vars/terms", lambda x: x[:-1], "`terms`.*FAMO.*distinct names"),
}


@values_only
@pytest.mark.parametrize("change", CHANGES)
def test_state_that_does_not_fit_is_refused_and_nothing_changes(file, model, tmp_path, change):
    key, replace, message = CHANGES[change]
    path, before = changed(file, tmp_path, key, replace), states_of(model)
    assert_refused(model, path, message)
    assert_same(states_of(model), before)


@values_only
def test_array_that_no_memory_holds_is_refused_unread(file, model, tmp_path):
    path = tmp_path / "large.weights.h5"
    shutil.copy(file, path)
    with h5py.File(path, "r+") as opened:
        names = []
        opened.visit(lambda name: names.append(name) if name.endswith("memory_views") else None)
        for name in names:
            del opened[name]
            # Keras itself refuses those of 4 GiB and more.
            opened.create_dataset(name, (10**9,), "float32", chunks=(1024,))
    assert path.stat().st_size < 10**6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert_refused(model, path, r"`memory_views`.*'pair'.*shape \(1000000000,\)")
    # The array alone has 3.7 GiB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < peak + 2**20  # KiB


def test_what_was_loaded_before_an_error_is_undone(file, tmp_path):
    """The weight of the first term and the rule come before that of the second."""
    key, replace, message = CHANGES["weight that is nan"]
    model = make_model()
    assert_refused(model, changed(file, tmp_path, key, replace), message)
    assert_same(states_of(model), states_of(make_model()))
    rule = parts_of(model)["rule"]
    assert (rule.step, rule.terms, rule.factors, rule.variables) == (0, (), {}, [])
    train(model)
    assert rule.step == 3


def test_file_that_fits_loads_after_one_that_does_not(file, tmp_path):
    model = train(make_model())
    assert_refused(
        model, changed(file, tmp_path, "weighting/vars/state", put((0, 1), -1.0)), "`state`"
    )
    model.load_weights(file)
    other = make_model()
    other.load_weights(file)
    assert_same(states_of(model), states_of(other))
    assert model.loss["a"].weight.weighting.step == other.loss["a"].weight.weighting.step > 0
    assert float(model.loss["a"].weight) == pytest.approx(float(other.loss["a"].weight))


@once_compiled
@pytest.mark.parametrize("change", ["negative weight", "memory", "record", "rule"])
def test_skip_mismatch_leaves_only_what_does_not_fit(file, tmp_path, change):
    key, replace, message = CHANGES[change]
    model = train(make_model())
    before = states_of(model)
    with pytest.warns(UserWarning, match=f"(?s)A total of 1 objects.*{message}"):
        model.load_weights(changed(file, tmp_path, key, replace), skip_mismatch=True)
    expected = make_model()
    expected.load_weights(file)
    expected, actual = states_of(expected), states_of(model)
    kept = {"negative weight": "a", "memory": "pair", "record": "balancer", "rule": "rule"}[change]
    for name, state in actual.items():
        factor = state.pop("factor", None)  # The rule sets it.
        if factor is not None:
            assert factor == pytest.approx(parts_of(model)["rule"].factors[name])
        states = before if name == kept else expected
        states[name].pop("factor", None)
        assert_same({name: state}, {name: states[name]})


@once_compiled
def test_broken_model_file_does_not_load(tmp_path):
    path = tmp_path / "m.keras"
    model = train(make_model())
    model.loss["b"].weight._value.variable.assign(-1.0)
    model.save(path)
    with pytest.raises(ValueError, match="value"):
        keras.models.load_model(path)


# Rules


def of_rule(rule, outputs="ab", term=None):
    """Returns a model with a rule, and with a layer term if there is a name for it."""
    z = inputs = keras.Input((3,))
    if term is not None:
        z = kj.layers.LossTerm(name=term)(z, z * z)
    model = keras.Model(inputs, {name: keras.layers.Dense(1)(z) for name in outputs})
    model.compile("sgd", **kj.joint_loss(dict.fromkeys(outputs, "mse"), weighting=rule))
    return model


@pytest.fixture(scope="module")
def uncertainty(tmp_path_factory):
    path = tmp_path_factory.mktemp("rule") / "m.weights.h5"
    train(of_rule(kj.weighting.Uncertainty())).save_weights(path)
    return path


@once_compiled
@pytest.mark.parametrize("name", [*RULES, "update_every"])
def test_file_of_another_rule_is_refused(uncertainty, name):
    arguments = {"update_every": {"update_every": 2}, "Constraint": {"bounds": {"a": 1.0}}}
    arguments["Shares"] = {"shares": {"a": 1.0, "b": 1.0}}
    cls = kj.weighting.Uncertainty if name == "update_every" else getattr(kj.weighting, name)
    rule = cls(**arguments.get(name, {}))
    model = of_rule(rule)
    if name == "Uncertainty":
        model.load_weights(uncertainty)
        assert rule.step == 3
        return
    assert_refused(model, uncertainty, rf"`state`.*{type(rule).__name__}.*Uncertainty")
    assert rule.factors == {}
    assert float(model.loss["a"].weight) == 1.0


OTHER_TERMS = r"terms \['a', 'c'\].*skip_mismatch=True.*terms \['a', 'b'\]"


@once_compiled
@pytest.mark.parametrize("is_bound", [True, False])
def test_file_of_other_terms_is_refused(uncertainty, is_bound):
    rule = kj.weighting.Uncertainty()
    model = of_rule(rule, "ac")
    if is_bound:
        train(model)
    before = rule.factors
    assert_refused(model, uncertainty, OTHER_TERMS)
    with pytest.warns(UserWarning, match=f"(?s)A total of 1 objects.*{OTHER_TERMS}"):
        model.load_weights(uncertainty, skip_mismatch=True)
    assert rule.factors == before
    train(model)
    assert rule.step == (6 if is_bound else 3)


@once_compiled
def test_model_of_other_terms_trains_after_a_refused_file(uncertainty, tmp_path):
    """Without names from `joint_loss`, the rule loads before the weight that does not fit."""
    path = changed(uncertainty, tmp_path, "1/weight/vars/value", put((), -1.0))
    rule = kj.weighting.Uncertainty()
    model = of_rule(rule, "ac")
    rule.output_terms = ()
    assert_refused(model, path, r"`value`.*term 'c'")
    train(model)
    assert (rule.terms, rule.step) == (("a", "c"), 3)


@once_compiled
@pytest.mark.parametrize("copies", [["file"], ["clone"], ["file", "clone"]])
def test_copy_refuses_the_file_of_other_terms_before_its_first_fit(uncertainty, tmp_path, copies):
    model = of_rule(kj.weighting.Uncertainty(), "ac")
    for copy in copies:
        if copy == "file":
            model.save(tmp_path / "m.keras")
            model = keras.models.load_model(tmp_path / "m.keras")
        else:
            config = model.get_compile_config()
            model = keras.models.clone_model(model)
            model.compile_from_config(config)
    assert_refused(model, uncertainty, OTHER_TERMS)
    train(model)
    assert model.loss["a"].weight.weighting.step == 3


@once_compiled
def test_file_of_other_layer_terms_is_named_as_the_cause(tmp_path):
    path = tmp_path / "m.weights.h5"
    train(of_rule("uncertainty", term="energy")).save_weights(path)
    model = of_rule("uncertainty", term="penalty")
    model.load_weights(path)
    terms = r"terms \['a', 'b', 'energy'\].*\['a', 'b', 'penalty'\]"
    with pytest.raises(ValueError, match=f"(?s){terms}.*file or config.*new weighting"):
        train(model)
    model.compile("sgd", **kj.joint_loss(LOSSES, weighting="uncertainty"))
    train(model)
    assert model.loss["a"].weight.weighting.step == 3


@once_compiled
def test_file_without_the_description_of_the_rule_loads(uncertainty, tmp_path):
    path = changed(uncertainty, tmp_path, "vars/rule", lambda x: None)
    rule = kj.weighting.Uncertainty()
    of_rule(rule).load_weights(path)
    assert rule.step == 3
    assert_refused(of_rule(kj.weighting.FAMO()), path, r"`state`.*FAMO.*shape \(10, 2\)")


@once_compiled
def test_file_without_a_rule_leaves_a_rule_as_it_is(tmp_path, uncertainty):
    path = tmp_path / "plain.weights.h5"
    of_rule(None).save_weights(path)
    fresh, trained = kj.weighting.Uncertainty(), kj.weighting.Uncertainty()
    of_rule(fresh).load_weights(path)  # No warning.
    model = train(of_rule(trained))
    before = trained.factors
    message = "no state of Uncertainty, which keeps its own, of 3 steps"
    with pytest.warns(UserWarning, match=message):
        model.load_weights(path)
    assert trained.factors == before
    other = of_rule(None)
    other.load_weights(uncertainty)
    assert float(other.loss["a"].weight) == 1.0


# Configs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": [[-1.0, 1.0]] * 6}, "`state`.*Uncertainty.*>= 0.*state=-1"),
        ({"state": [[float("nan"), 1.0]] * 6}, "`state`.*state=nan"),
        ({"state": [[1.0, 1.0]] * 3}, r"`state`.*\(6, 2\).*\(3, 2\)"),
        ({"state": "x"}, "`state`.*state="),
        ({"step": -1}, "`step`.*step=-1"),
        ({"epoch": 0.5}, "`epoch`.*epoch=0.5"),
        ({"terms": ["a", "a"]}, "`terms`.*terms="),
        ({"terms": "ab"}, "`terms`.*terms="),
        ({"output_terms": ["a", "a"]}, "`output_terms`.*output_terms="),
        ({"output_terms": "ab"}, "`output_terms`.*output_terms="),
    ],
)
def test_progress_of_a_config_that_does_not_fit_is_refused(change, message):
    rule = kj.weighting.Uncertainty()
    rule.runner.know_terms(("a", "b"))
    config = json.loads(json.dumps(rule.get_config()))
    assert kj.weighting.Uncertainty.from_config(config).factors == rule.factors
    (config if "output_terms" in change else config["progress"]).update(change)
    with pytest.raises(ValueError, match=message):
        kj.weighting.Uncertainty.from_config(config)


@once_compiled
def test_present_state_that_is_not_finite_is_restored(file, tmp_path):
    model = train(make_model())
    memory = model.get_layer("pair")._comparison.memory._state["views"]
    memory.assign(np.full(memory.shape, np.nan))
    before = states_of(model)
    assert_refused(model, changed(file, tmp_path, *CHANGES["layer weight"][:2]), "`value`")
    assert_same(states_of(model), before)
