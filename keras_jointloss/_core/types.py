"""Types that no library gives a name."""

from typing import Any, TypeAlias

#: A tensor of the backend, or what `keras.ops` turns into one: an array, a number, a variable.
Tensor: TypeAlias = Any
