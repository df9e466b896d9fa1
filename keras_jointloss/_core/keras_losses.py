"""What the package assumes of losses, most of which layers add, undocumented by Keras.

As in `_core/keras.py`, each function has a check of its name in `tests/test_keras.py`.
"""

import inspect
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import keras

from keras_jointloss._core.keras import flatten_layers, is_known


def copy_mask(source: Any, target: Any) -> None:
    """Gives a tensor the mask of another one, which Keras' losses ask for.

    Keras keeps a mask beside the tensor, where no function that it documents sets one.
    """
    masks: Any = inspect.getmodule(keras.layers.Layer).backend  # type: ignore[union-attr]
    mask = masks.get_keras_mask(source)
    if mask is not None:
        masks.set_keras_mask(target, mask)


def owners_of_losses(layer: keras.layers.Layer) -> dict[int, keras.layers.Layer]:
    """Returns the layer that has added each loss of the running step, by the identity of the loss.

    A layer keeps its losses, or within a scope their identities.
    """
    owners: dict[int, keras.layers.Layer] = {}
    for x in flatten_layers(layer):
        owners.update((id(loss), x) for loss in x._losses)
        owners.update((key, x) for key in x._loss_ids)
    return owners


def forget_own_losses(layer: keras.layers.Layer) -> None:
    """Forgets the identities of the losses that a layer itself has added in a step that is over.

    Within a scope, Keras knows the losses of a layer by identity, until the layer is called again.
    Meanwhile Python gives the identity of a loss that is gone to a new one, maybe of another layer,
    which Keras then takes for an old loss and drops: in some of a hundred steps that run eagerly.
    """
    layer._loss_ids.clear()


def sources_of_losses(
    layer: keras.layers.Layer, losses: Iterable[Any], owners: Mapping[int, keras.layers.Layer]
) -> list[Any]:
    """Returns what has added each of `layer.losses`, which have the owners.

    That is a layer, or the variable whose regularizer it is; `None` if it is unknown. Regularizers
    come last, in the order of the variables that train.
    """
    found: list[Any] = [owners.get(id(loss)) for loss in losses]
    if found and found[-1] is None:
        regularized = [x for x in layer.trainable_weights if x.regularizer is not None]
        begin = len(found) - len(regularized)
        if begin >= 0 and not any(x is not None for x in found[begin:]):
            found[begin:] = regularized
    return found


def own_variables(layer: keras.layers.Layer) -> list[keras.Variable]:
    """Returns the variables of a layer that are to be trained, without those of layers in it."""
    return list(layer._trainable_variables)


def direct_layers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Returns the layers that a layer or model itself holds, without those in them."""
    return list(layer._flatten_layers(include_self=False, recursive=False))


def may_add_losses(layer: keras.layers.Layer) -> bool:
    """Returns whether a layer itself may add losses.

    Layers of Keras only do so for a regularizer.
    """
    return (
        not layer.built
        or not is_known(type(layer))
        or layer.activity_regularizer is not None
        or any(x.regularizer is not None for x in own_variables(layer))
    )


#: Called in each step with the inputs of the model, the losses as in `model.losses`, and their
#: sources as from `sources_of_losses`.
Observer: TypeAlias = Callable[[Any, list, list], Any]


class ObservedLoss:
    """The `compute_loss` of a model that passes on what layers and regularizers add to the loss.

    On JAX a model holds these losses only while it computes the total, and Keras adds them one by
    one with a method of its own. Each replica of TensorFlow runs in a thread: as soon as one of
    them waits for another in a computation, the layers have the losses of that one.
    """

    def __init__(self, model: keras.Model):
        self._compute, self._aggregate = model.compute_loss, model._aggregate_additional_loss
        self._observed = model
        self._step = threading.local()
        self.observer: Observer = lambda x, losses, sources: None

    def aggregate(self, loss: Any) -> Any:
        """Returns what Keras adds to the total for a loss."""
        step = self._step.__dict__
        if not step.get("losses"):
            step.update(losses=[], owners=owners_of_losses(self._observed))
        step["losses"].append(loss)
        return self._aggregate(loss)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._step.__dict__.clear()
        total = self._compute(*args, **kwargs)
        step = {**self._step.__dict__}
        self._step.__dict__.clear()
        if step:
            sources = sources_of_losses(self._observed, step["losses"], step["owners"])
            self.observer(args[0] if args else kwargs.get("x"), step["losses"], sources)
            for layer in flatten_layers(self._observed):
                forget_own_losses(layer)
        return total


def observe_losses(model: keras.Model, observer: Observer) -> None:
    """Makes a function the observer of the losses of a model, in place of the one before."""
    observed = vars(model).get("compute_loss")
    if not isinstance(observed, ObservedLoss):
        observed = ObservedLoss(model)
        # Not as attributes that Keras, TensorFlow or PyTorch would track.
        vars(model).update(compute_loss=observed, _aggregate_additional_loss=observed.aggregate)
    observed.observer = observer


def observer_of(model: keras.Model) -> Observer | None:
    """Returns the observer of the losses of a model, or `None`."""
    observed = vars(model).get("compute_loss")
    return observed.observer if isinstance(observed, ObservedLoss) else None
