"""The types of the options that all rules share. A rule with one of its own takes the others."""

from typing import Literal, TypedDict

from keras_jointloss._core.types import DType


class CommonOptions(TypedDict, total=False):
    warmup_steps: int
    update_every: int
    on_nonfinite: Literal["raise", "skip"]
    name: str | None
    dtype: DType


class OptionsWithMinimum(CommonOptions, total=False):
    min_weight: float


class OptionsWithLimits(OptionsWithMinimum, total=False):
    max_weight: float | None


class Options(OptionsWithLimits, total=False):
    ema: float
