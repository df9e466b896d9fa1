"""The package as a whole: imports, names and version."""

import ast
import functools
import graphlib
import importlib
import re
import runpy
import tomllib
from pathlib import Path

import keras
import pytest

import keras_jointloss as kj
from keras_jointloss._core import backend
from keras_jointloss._core import keras as _keras
from tests.backends import importable_modules
from tests.processes import run_python

ROOT = Path(__file__).parents[1]
PACKAGE = kj.__name__


def levels(text: str) -> list[set[str]]:
    """Returns the parts of the package by level, from the indented lines of a text."""
    lines = re.findall(r"^    (\w+(?:, \w+)*)$", text, re.MULTILINE)
    return [set(line.split(", ")) for line in lines]


LEVELS = levels(kj.__doc__)
LEVEL = {family: level for level, families in enumerate(LEVELS) for family in families}
BACKENDS = {"jax", "tensorflow", "torch"}
# The TensorBoard server does not have to load these.
NOT_FOR_TENSORBOARD = {"keras", PACKAGE, *BACKENDS}
BACKEND = f"{PACKAGE}._core.backend"


def sources() -> dict[str, tuple[Path, str, str]]:
    """Returns the file, the text and the base of relative imports of each module, by its name."""
    result = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        module = name.removesuffix(".__init__")
        package = module if module != name else module.rpartition(".")[0]
        result[module] = path, path.read_text("utf-8"), package
    return result


MODULES = sources()


def family(module: str) -> str:
    """Returns the part of a module name that has a level; empty for the package itself."""
    return module.split(".")[1] if "." in module else ""


def imported(source: str, package: str) -> set[str]:
    """Returns the full names of all imports in `source`, at any position.

    Args:
        source: The text of a module.
        package: The base package of relative imports.
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(start if node.level else []), *filter(None, [node.module])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "keras.src":
            names.add("keras.src")
    return names


def violations(module: str, source: str, package: str | None = None) -> list[str]:
    """Returns a sentence for each invalid import of a module."""
    importer = family(module)
    if importer and importer not in LEVEL:
        return [f"{module}: has no level yet, give it one in the docstring of the package"]
    found = []
    for name in sorted(imported(source, package or module.rpartition(".")[0])):
        top = name.partition(".")[0]
        if f"{name}.".startswith("keras.src."):
            found.append(f"{module}: imports the private {name}")
        if top in BACKENDS and not f"{module}.".startswith(f"{BACKEND}."):
            found.append(f"{module}: imports {name}, which only `_core.backend` may")
        is_allowed = family(name) == importer or name.startswith(f"{PACKAGE}._core.validation.")
        if importer == "tensorboard" and top in NOT_FOR_TENSORBOARD and not is_allowed:
            found.append(f"{module}: imports {name}, which TensorBoard does not need")
        if top == PACKAGE and importer and family(name) != importer:
            if family(name) not in LEVEL:
                found.append(f"{module}: imports {name}, which is of no level, or of the top one")
            elif LEVEL[family(name)] >= LEVEL[importer]:
                found.append(f"{module}: imports {name}, which is not of a lower level")
    return found


@functools.cache
def names_of_keras() -> frozenset[str]:
    """Returns the private attributes of the Keras base classes."""
    bases = keras.layers.Layer, keras.metrics.Metric, keras.losses.Loss, keras.callbacks.Callback
    names = {name for base in bases for value in [base()] for name in {*dir(value), *vars(value)}}
    return frozenset(x for x in names if x.startswith("_") and not x.endswith("__"))


def defined_names(source: str) -> set[str]:
    """Returns the private names that classes of a module define or set on `self` or `cls`."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


OWN_NAMES = set().union(*(defined_names(text) for _, text, _ in MODULES.values()))
OWN_NAMES -= names_of_keras()


#: What Keras and Python do not document, beside names with an underscore: attributes, also as a
#: string for `getattr`, and names that a class or a call may not use.
UNDOCUMENTED = {
    *("f_back", "f_code", "f_globals", "f_locals", "currentframe", "_getframe"),
    *("train_function", "test_function", "predict_function", "CompileLoss", "CompileMetrics"),
    *("inner_optimizer", "gradient_accumulation_steps", "overwrite_with_gradient"),
    *("StatelessScope", "state_mapping", "original_scope", "SeedGenerator", "seed_generator_state"),
    *("CallbackList", "async_safe", "jax_state_sync", "output_names", "distribute_strategy"),
    *("get_bind_params", "Tracer", "__module__"),
}
#: Classes of Keras that the package may not derive from, since they do not document how.
NO_BASES = ("Variable", "SeedGenerator", "StatelessScope", "KerasTensor", "CallbackList")
#: Those whose constructor a class has to call.
CONSTRUCTED = ("Callback", "Layer", "Loss", "Metric", "Model")
#: Methods by which Keras and a backend take an object for a tensor.
CONVERSIONS = {"__tf_tensor__", "__jax_array__", "__torch_function__"}


def private_uses(source: str) -> list[str]:
    """Returns what a module uses although neither Keras documents nor the package defines it.

    `_keras` lists the Keras methods that a class may override, with the reasons.
    """
    tree = ast.parse(source)
    found = [use for node in ast.walk(tree) for use in (_name_of(node), _kind_of(node)) if use]
    return list(dict.fromkeys(found))


def _name_of(node) -> str | None:
    """Returns the private name that a node uses."""
    name = getattr(node, "attr", None) if isinstance(node, ast.Attribute) else None
    if isinstance(node, ast.FunctionDef) and node.name in names_of_keras():
        name = node.name
    if name == "_replace":  # Python documents it, for named tuples.
        return None
    if name is None or not name.startswith("_") or name.endswith("__"):
        return None
    is_overridden = name in _keras.OVERRIDDEN and (
        isinstance(node, ast.FunctionDef) or ast.unparse(node.value) == "super()"
    )
    return None if name in OWN_NAMES or is_overridden else f"line {node.lineno}: {name}"


def _kind_of(node) -> str | None:
    """Returns the undocumented behaviour that a node relies on."""
    text, relies = None, False
    if isinstance(node, ast.Attribute | ast.Constant):
        text = node.attr if isinstance(node, ast.Attribute) else node.value
        # `keras.callbacks.CallbackList` and the others are public, to be called or asked for.
        relies = text in UNDOCUMENTED and not ast.unparse(node).startswith("keras.")
    elif isinstance(node, ast.ImportFrom):
        is_own = str(node.module).startswith(PACKAGE)  # A function for an attribute of its name.
        relies = not is_own and any(alias.name in UNDOCUMENTED for alias in node.names)
    elif isinstance(node, ast.ClassDef):
        bases = [ast.unparse(base).split(".")[-1] for base in node.bases]
        is_without = bool({*bases} & {*CONSTRUCTED}) and _skips_constructor(node)
        relies = bool({*bases} & {*NO_BASES}) or is_without
    elif isinstance(node, ast.FunctionDef):
        relies = node.name in CONVERSIONS
    elif isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        relies = any(ast.unparse(x).endswith(".__name__") for x in sides) or (
            isinstance(node.ops[0], ast.Is | ast.IsNot) and any(map(_is_tensor_of_keras, sides))
        )
    elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("setattr", "delattr"):
        relies = ast.unparse(node.args[0]) != "self"
    elif isinstance(node, ast.Assign):
        # Of a class of Keras, which is replaced for all.
        relies = any(ast.unparse(x).startswith("keras.") for x in node.targets)
    elif isinstance(node, ast.Subscript):
        relies = ast.unparse(node.value) == "sys.modules" and isinstance(node.ctx, ast.Load)
    return f"line {node.lineno}: {ast.unparse(node).splitlines()[0]}" if relies else None


def _skips_constructor(node: ast.ClassDef) -> bool:
    """Returns whether a class has a constructor that calls none of its bases."""
    own = [x for x in node.body if isinstance(x, ast.FunctionDef) and x.name == "__init__"]
    return bool(own) and "__init__(" not in ast.unparse(own[0].body)


def _is_tensor_of_keras(node) -> bool:
    """Returns whether a node is the result of a loss or reduction, as if Keras made no copy."""
    name = ast.unparse(node.func).split(".")[-1] if isinstance(node, ast.Call) else ""
    return "reduce" in name or "loss" in name


#: All modules but those that hold the assumptions.
#: These may; one reads the call stack, but for methods of the package itself.
PRIVATE = (f"{PACKAGE}._core.keras", f"{PACKAGE}._core.receiver", BACKEND)
USERS = [x for x in MODULES if not x.startswith(PRIVATE)]
#: Those for a backend have checks as well, but may not use names of Keras.
OF_BACKENDS = [x for x in MODULES if x.startswith(BACKEND)]


@pytest.mark.parametrize("module", USERS)
def test_undocumented_behaviour_is_used_in_one_place(module):
    assert private_uses(MODULES[module][1]) == []


@pytest.mark.parametrize("module", OF_BACKENDS)
def test_private_keras_names_are_not_used_for_a_backend(module):
    tree = ast.parse(MODULES[module][1])
    assert [use for node in ast.walk(tree) if (use := _name_of(node))] == []


@pytest.mark.parametrize(
    "source",
    [
        "model._flatten_layers()",
        "self._get_call_context()",
        "self.trunk._call_has_training_arg",
        "self._losses.clear()",
        "layer._get_own_losses()",
        "import tensorflow as tf\ntf._private()",
        "class Term:\n    def _set_mask_metadata(self):\n        pass",
        # The call stack.
        "model = frame.f_locals.get('self')",
        "frame.f_code.co_name",
        "frame = inspect.currentframe()",
        "from inspect import currentframe",
        "frame = sys._getframe(1)",
        # Lists of callbacks, and the state of a step.
        "owner = find(CallbackList)\nowner.CallbackList",
        "self.async_safe = True",
        "model.jax_state_sync()",
        # Compiled functions and optimizers.
        "model.train_function = None",
        "getattr(optimizer, 'inner_optimizer', optimizer)",
        "getattr(optimizer, 'gradient_accumulation_steps', None)",
        # Variables, their scope and their names.
        "class State(keras.random.SeedGenerator):\n    pass",
        "class Number(keras.Variable):\n    pass",
        "class Run(keras.StatelessScope):\n    pass",
        "class Metric(keras.metrics.Metric):\n    def __init__(self):\n        self.x = 1",
        "scope.state_mapping.items()",
        "variable.name == 'seed_generator_state'",
        "variable.overwrite_with_gradient = True",
        # Classes and modules by their names.
        "type(operation).__name__ == 'Stack'",
        "operation.__class__.__name__ in ('Stack',)",
        "type(layer).__module__.startswith('keras')",
        "hasattr(model, 'output_names')",
        "model.distribute_strategy",
        # Objects that are no tensors, and tensors that are the same.
        "class Loss:\n    def __tf_tensor__(self, dtype=None):\n        pass",
        "reduce_values(ones, first) is ones",
        "None if loss(y, y) is values else 1",
        # What is replaced in Keras.
        "setattr(trainer, 'fit', fit)",
        "keras.Model.fit = fit",
        "sys.modules[trainer].reduce",
        # JAX.
        "equation.primitive.get_bind_params(params)",
        "isinstance(x, jax.core.Tracer)",
    ],
)
def test_checker_catches_undocumented_behaviour(source):
    assert len(private_uses(source)) >= 1


def test_checker_accepts_what_is_documented():
    for source in (
        "isinstance(callbacks, keras.callbacks.CallbackList)",
        "def find(x) -> keras.StatelessScope:\n    return x",
        "found is not None",
        "name = type(self).__name__",
        "class Metric(keras.metrics.Metric):\n    def __init__(self):\n        super().__init__()",
        "setattr(self, name, value)",
    ):
        assert private_uses(source) == []


@pytest.mark.parametrize("module", MODULES)
def test_modules_import_only_from_lower_levels(module):
    _, source, package = MODULES[module]
    assert violations(module, source, package) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("losses.info_nce", "from keras_jointloss.layers import ContrastiveTerm"),
        ("losses.info_nce", "from keras_jointloss import layers"),
        ("losses.info_nce", "import keras_jointloss.metrics"),
        ("losses.info_nce", "from ..layers import ContrastiveTerm"),
        ("losses.info_nce", "from .. import layers"),
        ("losses.info_nce", "from keras_jointloss import LossWeight"),
        ("losses.info_nce", "import keras_jointloss"),
        ("losses.info_nce", "def call(self):\n    import tensorflow as tf"),
        ("joint", "from jax import numpy"),
        ("_core.math", "from keras_jointloss.terms import LossWeight"),
        ("callbacks.joint_loss_callback", "import torch.distributed"),
        ("layers", "from keras.src.backend import Variable"),
        ("layers", "from keras import src"),
        ("layers", "import keras\nkeras.src.backend.Variable()"),
        ("_core.backend", "import keras.src"),
        ("tensorboard.writer", "import keras"),
        ("tensorboard.writer", "from keras_jointloss._core import math"),
        ("tensorboard.writer", "def write(self):\n    from tensorflow import summary"),
        ("utils", ""),
    ],
)
def test_checker_reports_violations(module, source):
    assert len(violations(f"{PACKAGE}.{module}", source)) >= 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("losses.info_nce", "from keras_jointloss._core.math import dot\nfrom .base import x"),
        ("losses.info_nce", "import keras\nfrom keras import ops\nimport numpy as np"),
        ("_core.backend.jax", "def gather(x):\n    import tensorflow as tf\n    import jax, torch"),
        ("callbacks", "from keras_jointloss.tensorboard import SummaryWriter"),
        ("tensorboard.writer", "from tensorboard.plugins.scalar import metadata"),
        ("tensorboard.plugin", "from keras_jointloss.tensorboard.writer import SummaryWriter"),
    ],
)
def test_checker_accepts_valid_imports(module, source):
    assert violations(f"{PACKAGE}.{module}", source) == []


def test_map_of_the_source_states_the_same_levels():
    assert levels((ROOT / "docs" / "contributing.md").read_text("utf-8")) == LEVELS


def test_modules_import_one_another_in_no_circle():
    imports = {}
    for module, (_, source, package) in MODULES.items():
        imports[module] = {
            next((x for x in (name, name.rpartition(".")[0]) if x in MODULES), module)
            for name in imported(source, package)
        } - {module}
    graphlib.TopologicalSorter(imports).prepare()


def test_completion_knows_the_public_names():
    assert {*kj.__all__} <= {*dir(kj)}
    assert all(hasattr(kj, name) for name in dir(kj))
    with pytest.raises(AttributeError, match="no attribute 'loss'"):
        _ = kj.loss


@pytest.mark.parametrize(
    "call",
    [
        lambda: kj.aggregators.Aggregator().coefficients(None),
        lambda: kj.aggregators.Aggregator().next_coefficients(None, None, None),
        lambda: kj.metrics.base.ViewsMetric().values(None),
        lambda: kj.metrics.retrieval.RetrievalMetric().gain(None),
        lambda: kj.points.PointRule().initial_state(3),
        lambda: kj.points.PointRule().update({}, None, None),
        lambda: kj.points.PointRule().weights({}),
        lambda: kj.schedules._Schedule()(0),
        lambda: kj.weighting.Weighting().update(None, 0),
    ],
)
def test_bases_leave_the_formula_to_a_subclass(call):
    with pytest.raises(NotImplementedError):
        call()


def test_import_loads_only_the_package():
    # `tests.benchmarks.benchmark_import` measures the time.
    code = "import keras, sys; before = set(sys.modules); import keras_jointloss; "
    code += "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    assert run_python(code).stdout.split() == [PACKAGE]


def test_only_one_module_queries_the_backend():
    assert [name for name, (_, x, _) in MODULES.items() if "backend.backend()" in x] == [BACKEND]


def test_backends_offer_the_same_names():
    further = ("for_chunks", "gradient_step", "native_values")

    def offered(backend):
        """Returns the `__all__` and the parameters of the functions of a backend's package."""
        names, functions = None, {}
        for module, (_, source, _) in MODULES.items():
            own, shared = f"{BACKEND}.{backend}", f"{BACKEND}.numbers"
            if module not in (own, shared) and not module.startswith(f"{own}."):
                continue
            for node in ast.parse(source).body:
                if isinstance(node, ast.FunctionDef):
                    functions[node.name] = [x.arg for x in node.args.args]
                elif isinstance(node, ast.ClassDef):
                    functions[node.name] = []
                elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                    names = ast.literal_eval(node.value)
        return {name: functions[name] for name in (*names, *further)}

    jax, tensorflow, torch = (offered(backend) for backend in sorted(BACKENDS))
    assert jax == tensorflow == torch
    assert {*re.findall(r"^- `(\w+)", backend.__doc__, re.MULTILINE)} == {*jax}
    assert all(hasattr(backend, name) for name in jax)


def test_other_backends_are_refused(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "numpy")
    with pytest.raises(ImportError, match="Received: numpy"):
        runpy.run_path(MODULES[BACKEND][0])


def test_tensorboard_loads_neither_keras_nor_a_backend():
    code = "import sys, tensorboard.program, keras_jointloss.tensorboard.plugin; "
    code += f"print(sorted({ {'keras', 'plotly', *BACKENDS} } & set(sys.modules)))"
    assert run_python(code).stdout.strip() == "[]"


def serializable_classes() -> list[type]:
    """Returns the public classes with a config, except the base classes of families."""
    classes = [
        value
        for module in importable_modules()
        for name, value in vars(importlib.import_module(module)).items()
        if isinstance(value, type) and value.__module__ == module and name[0] != "_"
    ]
    bases = {base for value in classes for base in value.__mro__[1:]}
    return [value for value in classes if hasattr(value, "get_config") and value not in bases]


#: Classes whose name another family has registered.
REGISTERED = {kj.aggregators.Shares: "GradientShares"}


@pytest.mark.parametrize("value", serializable_classes(), ids=lambda value: value.__name__)
def test_class_is_registered_and_available_at_its_public_path(value):
    name = f"{PACKAGE}>{REGISTERED.get(value, value.__name__)}"
    assert keras.saving.get_registered_name(value) == name
    assert kj.custom_objects().get(name) is value
    home = importlib.import_module(".".join(value.__module__.split(".")[:2]))
    assert getattr(home, value.__name__) is value
    assert value.__name__ in getattr(home, "__all__", [value.__name__])


@pytest.mark.parametrize("module", [PACKAGE, *importable_modules()])
def test_public_names_exist(module):
    module = importlib.import_module(module)
    names = getattr(module, "__all__", [])
    assert len(names) == len(set(names))
    for name in names:
        assert hasattr(module, name), f"{module.__name__} has no {name}"


def test_version_is_defined_once():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert "version" in project["project"]["dynamic"]
    dynamic = project["tool"]["setuptools"]["dynamic"]
    assert dynamic["version"] == {"attr": f"{PACKAGE}.__version__"}
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    headings = re.findall(r"^## \[(.+?)\]", changelog, re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert headings[1:2] in ([], [kj.__version__])
    dated = re.findall(r"^## \[[\d.]+\] - \d{4}-\d\d-\d\d$", changelog, re.MULTILINE)
    assert len(dated) == len(headings) - 1
    for file in ("pyproject.toml", "README.md", "docs/conf.py", "docs/citation.md"):
        assert kj.__version__ not in (ROOT / file).read_text("utf-8")
    assert "version: " not in (ROOT / "docs/CITATION.cff").read_text("utf-8").partition("\n")[2]


def test_no_module_is_longer_than_a_reader_follows():
    lengths = {module: text.count("\n") for module, (_, text, _) in MODULES.items()}
    assert {module: lines for module, lines in lengths.items() if lines > 300} == {}
