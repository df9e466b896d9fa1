"""The clock of a model: how many training steps its terms have counted, and whether they count."""

import weakref
from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from keras_jointloss._core.keras_calls import running_loop
from keras_jointloss._core.keras_models import accumulated_steps, inner_optimizer
from keras_jointloss._core.math import to_numpy
from keras_jointloss.terms.clocked_value import ClockedValue
from keras_jointloss.terms.output_weight import LossWeight
from keras_jointloss.terms.weight import TermWeight

_clocks: "weakref.WeakKeyDictionary[keras.Model, Clock]" = weakref.WeakKeyDictionary()


def optimizer_updates(model: keras.Model) -> int:
    """Returns how often the optimizer has updated the model; loss scaling skips some batches."""
    return int(to_numpy(ops.convert_to_tensor(inner_optimizer(model.optimizer).iterations)))


def optimizer_step(model: keras.Model) -> int:
    """Returns the number of batches that the optimizer has used; loss scaling skips some."""
    return optimizer_updates(model) * accumulated_steps(model.optimizer)


def learning_rate(model: keras.Model) -> float:
    """Returns the learning rate of the next update."""
    return float(to_numpy(ops.convert_to_tensor(inner_optimizer(model.optimizer).learning_rate)))


class Clock:
    """Counts the training steps of one model for all of its terms and for its weighting.

    The variables of the terms hold the count and move in the compiled step. The clock sets all of
    them and switches them on and off, always at the same time.

    Use `Clock.of(model)`.

    Args:
        model: The model.
    """

    def __init__(self, model: keras.Model):
        self._get_model = weakref.ref(model)
        self._get_optimizer: Any = None
        self._terms: dict[str, ClockedValue] = {}
        self._weighting: Any = None
        #: Whether the steps that the terms have counted belong to this model and optimizer.
        self._counts_are_known = True
        self._get_driver: Any = lambda: None
        self._is_custom_loop = False
        self._counts_at_begin: tuple[int, ...] | None = None

    @staticmethod
    def of(model: keras.Model) -> "Clock":
        """Returns the clock of a model, always the same one."""
        if model not in _clocks:
            _clocks[model] = Clock(model)
        return _clocks[model]

    def attach(self, terms: Mapping[str, ClockedValue], weighting: Any) -> None:
        """Attaches the clock to the terms of the model, as currently compiled.

        Args:
            terms: As `keras_jointloss.joint.find_terms` returns them, with the scales of gradients.
            weighting: The `Weighting` of the model, or `None`.

        Raises:
            ValueError: If a term or the weighting belongs to another model.
        """
        self._validate_owner(terms, weighting)
        model: Any = self._get_model()
        optimizer = inner_optimizer(model.optimizer)
        is_recompiled = self._get_optimizer and self._get_optimizer() is not optimizer
        is_taken_over = any(term.clock not in (None, self) for term in terms.values())
        if is_recompiled or is_taken_over:
            self._counts_are_known = False
        self._get_optimizer = weakref.ref(optimizer)
        for term in self._terms.values():
            if term.clock is self:
                term.clock = None
        self._terms, self._weighting = dict(terms), weighting
        for term in terms.values():
            term.clock = self
        if weighting is not None:
            weighting.clock = self

    def _validate_owner(self, terms, weighting) -> None:
        for name, term in terms.items():
            other = term.clock
            if other is None or other is self:
                continue
            if isinstance(term, LossWeight):
                raise ValueError(
                    f"The weight of the term {name!r} belongs to another model. Expected separate "
                    "weights for each model: call `keras_jointloss.joint_loss` again, and compile "
                    "the model with the result"
                )
            is_alive = other._get_model() is not None
            has_rule = other._weighting is not None or weighting is not None
            if is_alive and has_rule and isinstance(term, TermWeight):
                raise ValueError(
                    f"The layer {name!r} is a term of two models. At least one of them has a "
                    "weighting, which would change the weight in both. Expected a separate layer "
                    "for each model: use `keras.models.clone_model`, or train without a weighting"
                )
        if weighting is not None and weighting.clock not in (None, self):
            raise ValueError(
                f"The weighting {type(weighting).__name__} belongs to another model. Expected a "
                "separate one for each model: create one per call of `keras_jointloss.joint_loss`"
            )

    # Moves the clock.

    def start_training(self, driver: Any, is_custom_loop: bool) -> None:
        """Lets a callback move the clock in the training that begins.

        Args:
            driver: The callback.
            is_custom_loop: Whether a loop other than `fit` calls it.
        """
        self._get_driver = weakref.ref(driver)
        self._is_custom_loop = is_custom_loop
        self._counts_at_begin = None

    def start_epoch(self) -> None:
        """Switches annealing on for an epoch.

        The first epoch continues at the step of the terms if they have counted the steps of this
        model so far. Otherwise it starts at the step of the optimizer, which is less exact under
        gradient accumulation and loss scaling.
        """
        is_first = self._counts_at_begin is None
        self.start(self._first_step() if is_first else None, is_new_epoch=True)
        self._counts_at_begin = self._counts()

    def _first_step(self) -> int:
        model: Any = self._get_model()
        counted = self.step if self._counts_are_known else None
        self._counts_are_known = True
        steps = accumulated_steps(model.optimizer)
        if counted is not None and counted // steps >= optimizer_step(model) // steps:
            return counted
        return optimizer_step(model)

    def start(self, step: int | None = None, is_new_epoch: bool = False) -> None:
        """Switches annealing on, at `step` or at the current step of the terms."""
        for term in self._terms.values():
            term.start_annealing(step)
        if self._weighting is not None:
            self._weighting.start(is_new_epoch)

    def stop(self) -> None:
        """Switches annealing off."""
        for term in self._terms.values():
            term.stop_annealing()
        if self._weighting is not None:
            self._weighting.stop()

    def end_training(self) -> None:
        """Switches annealing off at the end of training."""
        self.stop()
        self._get_driver, self._is_custom_loop = (lambda: None), False

    def outlasts_reset(self) -> bool:
        """Returns whether annealing stays on while a Keras loop resets the metrics.

        `fit` and `evaluate` reset them before they begin. The callback then switches annealing on
        again, except in an evaluation, where it stays off. But `train_on_batch` resets them in each
        step, in the middle of a custom loop.
        """
        return self._is_custom_loop and running_loop() == "train_on_batch"

    # Reads the clock.

    @property
    def driver(self) -> Any:
        """The callback that moves the clock, the last one if there are several in one `fit`."""
        return self._get_driver()

    @property
    def is_on(self) -> bool:
        """Whether the terms count the steps."""
        return all(term.annealing for term in self._terms.values())

    @property
    def step(self) -> int | None:
        """The number of steps that the terms have counted; `None` if none of them counts."""
        steps = [term.step for term in self._terms.values() if term.counts_steps]
        return max(steps, default=None)

    def _counts(self) -> tuple[int, ...]:
        rule = () if self._weighting is None else (self._weighting.step,)
        return (*(term.step for term in self._terms.values() if term.counts_steps), *rule)

    def has_missed(self, batches: int) -> bool:
        """Returns whether a schedule or the weighting has counted fewer steps in this epoch.

        Args:
            batches: The number of batches that have begun in this epoch.
        """
        before = self._counts_at_begin or ()
        return any(new - old < batches for old, new in zip(before, self._counts(), strict=True))
