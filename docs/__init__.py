"""Makes the site."""

import inspect

import keras_jointloss as kj

#: The package and its modules for users.
MODULES = [kj, *filter(inspect.ismodule, (getattr(kj, name) for name in kj.__all__))]
#: The public classes and functions by their full names.
NAMES = {
    f"{module.__name__}.{name}": value
    for module in MODULES
    for name in module.__all__
    if callable(value := getattr(module, name))
}
