"""The set of terms of a compiled model, and what connects them to its clock and its rule."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras

from keras_jointloss._core.backend import variable_scope
from keras_jointloss._core.keras_calls import running_loop
from keras_jointloss._core.keras_models import (
    accumulated_steps,
    compile_again,
    is_to_compile,
    output_names,
)
from keras_jointloss.joint.find_terms import (
    find_gradient_layers,
    find_losses,
    find_scales,
    find_terms,
)
from keras_jointloss.joint.other_losses import OtherLosses
from keras_jointloss.joint.wiring import Wiring
from keras_jointloss.terms.clock import Clock
from keras_jointloss.terms.output_form import validate_form
from keras_jointloss.terms.output_weight import LossWeight
from keras_jointloss.terms.weight import TermWeight
from keras_jointloss.weighting import Weighting


class ModelTerms(Mapping[str, TermWeight]):
    """The weights of the terms of a compiled model by name.

    Output terms come first, then layer terms, as in `keras_jointloss.joint.find_terms.find_terms`.
    `connect` has to be called before the model trains.

    Raises:
        ValueError: If the model has no term and no layer that reports gradients, two terms of the
            same name, losses that do not match its outputs, weights or a weighting that belong to
            another model, a weighting that needs gradients that no layer reports, or a term that
            does not read its copy of a layer that combines gradients.
    """

    def __init__(self, model: keras.Model):
        self._weights = find_terms(model)
        #: The layers of the model that combine gradients and report statistics.
        self.gradient_layers = find_gradient_layers(model)
        #: The scales of gradients that follow a schedule, by their names in the logs.
        self.scales = find_scales(model)
        if not (self._weights or self.gradient_layers or self.scales):
            raise ValueError(
                "JointLossCallback expects a model with a term: compile it with "
                "`keras_jointloss.joint_loss`, or add a `ContrastiveTerm` or a `GradientBalancer` "
                f"to it. Received: model {model.name!r} without any of these"
            )
        #: The terms of each output with several losses, of which Keras logs the weighted sum.
        self.output_sums = {
            output: list(losses)
            for output, losses in find_losses(model).items()
            if isinstance(model.loss, Mapping | list) and output not in losses
        }
        names = output_names(model)  # Of a model whose outputs are known.
        if names is not None:
            validate_form(model.loss, model.output, names)
        elif isinstance(model, keras.Sequential):
            validate_form(model.loss, None, None)
        #: What the copies of these layers stand for.
        self.wiring = Wiring(model, self._weights)
        self.wiring.validate()
        rules = [weight.weighting for weight in self.output_weights.values()]
        #: The rule that adapts the weights, or `None`.
        self.weighting: Weighting | None = next((x for x in rules if x is not None), None)
        #: Records what is added to the loss without being a term.
        self.other = OtherLosses.of(model)
        #: Counts the training steps for all terms and the rule.
        self.clock = Clock.of(model)

    def __getitem__(self, name: str) -> TermWeight:
        return self._weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    @property
    def output_weights(self) -> dict[str, LossWeight]:
        """The weights of the output terms by name."""
        return {name: x for name, x in self._weights.items() if isinstance(x, LossWeight)}

    def connect(self, model: keras.Model, on_nonfinite: str | None = None) -> None:
        """Connects the terms to the clock and the rule, and gives their metrics the names to log.

        Keras compiles the steps of the model again if this changes them. What training does
        `on_nonfinite` values stays as it is in an evaluation.
        """
        self.clock.attach({**self._weights, **self.scales}, self.weighting)
        steps = accumulated_steps(model.optimizer)
        are_new = [layer.accumulate(steps) for layer in self.gradient_layers]
        if any(are_new):
            compile_again(model)
        changed = [x for x in self._weights.values() if x.on_nonfinite != on_nonfinite]
        if changed and running_loop() not in ("evaluate", "test_on_batch"):
            for weight in changed:
                weight.on_nonfinite = on_nonfinite
            compile_again(model)
        if self.other.connect():
            compile_again(model, evaluation=True)
        if self._bind_weighting(model):
            # Functions that were compiled without the rule would not run it.
            compile_again(model, evaluation=True)
        if is_to_compile(model):
            for weight in self.output_weights.values():
                weight.is_applied = weight.is_counted = False
        if self._name_weights(model):
            # The compiled functions return it under the old name.
            compile_again(model, evaluation=True)

    def _bind_weighting(self, model: keras.Model) -> bool:
        """Binds the rule to the terms, and returns whether this changes a training step."""
        rule = self.weighting
        if rule is None:
            # The model may have had a weighting when it was last compiled.
            for weight in self._weights.values():
                weight.release()
            return False
        names = output_names(model) or []
        if len(set(names)) < len(names):
            raise ValueError(
                "Expected a model whose outputs have different names, since its terms have a "
                f"weighting. Received: a model with outputs {names}"
            )
        with variable_scope(model):
            is_new = rule.bind(self._weights)
        rule.bind_gradients(self.gradient_layers)
        return is_new

    def _name_weights(self, model: keras.Model) -> bool:
        """Gives each output weight the name that Keras logs as `<term>_weight`.

        Returns whether a name has changed.
        """
        count = len(getattr(model, "outputs", None) or [])
        has_changed = False
        for output, losses in find_losses(model).items() if count else ():
            for term, loss in losses.items():
                weight, long = loss.weight, f"{term}_weight"
                short = long.removeprefix(f"{output}_")
                # Keras prefixes a metric's name with the output's if there are several outputs.
                right, wrong = (short, long) if count > 1 else (long, short)
                if weight.name != right and weight.name in ("weight", wrong):
                    weight.name, has_changed = right, True
        return has_changed

    def validate_use(self, metrics: Iterable[Any]) -> None:
        """Raises `ValueError` if the model has trained without using a weight of an output term."""
        metrics = [x for metric in metrics for x in getattr(metric, "metrics", [metric])]
        for name, weight in self.output_weights.items():
            is_metric = any(weight is metric for metric in metrics)
            if not (is_metric and weight.is_applied and weight.is_counted):
                raise ValueError(
                    f"The model does not use the weight of the term {name!r}. Expected a model "
                    "that is compiled with everything that `keras_jointloss.joint_loss` returns, "
                    "`compile(..., **joint_loss(...))`, with further metrics passed to "
                    "`joint_loss`; a custom `metrics` property must include "
                    "`super().metrics`, and a custom `train_step` must call "
                    "`self.compute_loss` and `self.compute_metrics`. Received: a model in which "
                    f"the weight is {'' if weight.is_applied else 'not '}applied to the loss and "
                    f"{'' if is_metric and weight.is_counted else 'not '}among the metrics"
                )
