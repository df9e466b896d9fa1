"""The clock of a model: how many training steps its terms have counted, and whether they count."""

import weakref
from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from keras_jointloss._loops import running_loop
from keras_jointloss.terms.output_weight import LossWeight
from keras_jointloss.terms.weight import TermWeight

_clocks: "weakref.WeakKeyDictionary[keras.Model, Clock]" = weakref.WeakKeyDictionary()


def _inner_optimizer(model: keras.Model) -> Any:
    # The optimizer around it, that scales the loss, is another one each time a model is compiled.
    return getattr(model.optimizer, "inner_optimizer", model.optimizer)


def accumulated_steps(model: keras.Model) -> int:
    """Returns the number of batches over which the optimizer of a model accumulates gradients."""
    return getattr(_inner_optimizer(model), "gradient_accumulation_steps", None) or 1


def optimizer_step(model: keras.Model) -> int:
    """Returns the number of batches that the optimizer has used: under loss scaling not all."""
    iterations = ops.convert_to_tensor(_inner_optimizer(model).iterations)
    return int(ops.convert_to_numpy(iterations)) * accumulated_steps(model)


class Clock:
    """Counts the training steps of one model for all of its terms and for its weighting.

    The count itself is in the variables of the terms, which move in the compiled step. All of them
    are set, switched on and switched off here, and at the same time.

    Use `Clock.of(model)`.

    Args:
        model: The model.
    """

    def __init__(self, model: keras.Model):
        self._get_model = weakref.ref(model)
        self._get_optimizer: Any = None
        self._terms: dict[str, TermWeight] = {}
        self._weighting: Any = None
        #: Whether the steps that the terms have counted are those of this model and optimizer.
        self._counts_are_known = True
        self._get_driver: Any = lambda: None
        self._is_custom_loop = False
        self._counts_at_begin: tuple[int, ...] | None = None

    @staticmethod
    def of(model: keras.Model) -> "Clock":
        """Returns the clock of a model, the same one whenever it is asked for."""
        if model not in _clocks:
            _clocks[model] = Clock(model)
        return _clocks[model]

    def attach(self, terms: Mapping[str, TermWeight], weighting: Any) -> None:
        """Makes the clock that of the terms of the model, as it is compiled now.

        Args:
            terms: As `keras_jointloss.find_terms.find_terms` returns them.
            weighting: The `Weighting` of the model, or `None`.

        Raises:
            ValueError: If a term or the weighting belongs to another model.
        """
        self._validate_owner(terms, weighting)
        model: Any = self._get_model()
        optimizer = _inner_optimizer(model)
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
                    f"The weight of the term {name!r} belongs to another model. Expected weights "
                    "for each model: call `keras_jointloss.joint_loss` again, and compile the "
                    "model with what it returns"
                )
            is_alive = other._get_model() is not None
            if is_alive and (other._weighting is not None or weighting is not None):
                raise ValueError(
                    f"The layer {name!r} is a term of two models, at least one of which has a "
                    "weighting, which would change the weight in both. Expected a layer for each "
                    "model: use `keras.models.clone_model`, or train without a weighting"
                )
        if weighting is not None and weighting.clock not in (None, self):
            raise ValueError(
                f"The weighting {type(weighting).__name__} belongs to another model. Expected one "
                "for each model: make a new one for each call of `keras_jointloss.joint_loss`"
            )

    # Moving it.

    def start_training(self, driver: Any, is_custom_loop: bool) -> None:
        """Makes a callback the one that moves the clock in the training that begins.

        Args:
            driver: The callback.
            is_custom_loop: Whether it is called by a loop other than `fit`.
        """
        self._get_driver = weakref.ref(driver)
        self._is_custom_loop = is_custom_loop
        self._counts_at_begin = None

    def start_epoch(self) -> None:
        """Switches annealing on for an epoch.

        The first one goes on where the terms stand, if they have counted the steps of this model
        up to now, and else at the step of the optimizer: under gradient accumulation and loss
        scaling that one is less exact.
        """
        is_first = self._counts_at_begin is None
        self.start(self._first_step() if is_first else None, is_new_epoch=True)
        self._counts_at_begin = self._counts()

    def _first_step(self) -> int:
        model: Any = self._get_model()
        counted = self.step if self._counts_are_known else None
        self._counts_are_known = True
        steps = accumulated_steps(model)
        if counted is not None and counted // steps >= optimizer_step(model) // steps:
            return counted
        return optimizer_step(model)

    def start(self, step: int | None = None, is_new_epoch: bool = False) -> None:
        """Switches annealing on, at a step or where the terms stand."""
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
        """Returns whether annealing stays on while a loop of Keras resets the metrics.

        `fit` and `evaluate` reset them before they begin: the callback switches annealing on
        again, and in an evaluation it stays off. But `train_on_batch` resets them in the middle of
        a custom loop, in each step.
        """
        return self._is_custom_loop and running_loop() == "train_on_batch"

    # Reading it.

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
        steps = [term.step for term in self._terms.values() if term.schedule is not None]
        return max(steps, default=None)

    def _counts(self) -> tuple[int, ...]:
        rule = () if self._weighting is None else (self._weighting.step,)
        return (*(term.step for term in self._terms.values() if term.schedule is not None), *rule)

    def has_missed(self, batches: int) -> bool:
        """Returns whether a schedule or the weighting has counted fewer steps in this epoch.

        Args:
            batches: How many batches have begun in this epoch.
        """
        before = self._counts_at_begin or ()
        return any(new - old < batches for old, new in zip(before, self._counts(), strict=True))
