"""The layer that runs an encoder over large batches in little memory."""

from typing import Any, Unpack

import keras
from keras import ops

from keras_jointloss._core import keras as _keras
from keras_jointloss._core.backend import for_chunks
from keras_jointloss._core.batch import validate_batch_axis
from keras_jointloss._core.keras_calls import is_training
from keras_jointloss._core.registry import deserialized
from keras_jointloss._core.types import Config, LayerOptions, Nested
from keras_jointloss._core.validation import invalid, validate_count
from keras_jointloss.layers._layer_term import LayerTerm
from keras_jointloss.layers.gradients._combination import GradientCombination


@keras.saving.register_keras_serializable(package="keras_jointloss")
class ChunkedTower(keras.layers.Layer):
    """Runs an encoder over the batch in chunks, and once more in the backward pass.

    A contrastive loss compares each item with the whole batch, whose size is limited by the
    activations of the encoder. This layer encodes `chunk_size` items at a time,

        z = concatenate([tower(x[:c]), tower(x[c:2c]), ...])

    and stores no activations. The loss sees the embeddings `z` of the whole batch. The backward
    pass encodes each chunk again, and sums the gradients of the parameters over the chunks:

        d L / d theta = sum_j (d z_j / d theta)^T d L / d z_j

    Values and gradients equal those of the plain tower. The activation memory is that of one
    chunk; only the inputs, the outputs and one gradient of the parameters are stored in full. A
    training step costs one more forward pass of the tower.

    Both passes use the same random numbers; each chunk draws its own. The batch size can be
    anything: it need not be a multiple of `chunk_size`. Unless the enclosing model trains, as in
    `fit`, the layer is the plain tower.

    The tower must encode each item independently of the other items in the batch. Batch
    normalization does not. The layer refuses a tower that adds to the loss, or that changes
    variables in training; it cannot detect any other dependence between items. Frozen batch
    normalization, layer normalization and group normalization are independent of the batch.

    Args:
        tower: A layer or model. Its input is a tensor or a structure of tensors.
        chunk_size: The number of items to encode at a time.
        name: Name of the layer.
        **kwargs: `dtype`, as in `keras.layers.Layer`.

    Input shape:
        The input shape of the tower.

    Output shape:
        The output shape of the tower. Each output has one row per item.

    Raises:
        ValueError: If an argument is invalid, or the tower cannot run in chunks. The latter is
            partly known only in training.

    References:
        - Gao et al., 2021, Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup
        - Chen et al., 2016, Training Deep Nets with Sublinear Memory Cost

    Example:

    >>> import keras
    >>> import keras_jointloss as kj
    >>> image = keras.Input((32, 32, 3))
    >>> text = keras.Input((64,))
    >>> encoder = keras.Sequential(
    ...     [
    ...         keras.layers.Conv2D(8, 3, activation="relu"),
    ...         keras.layers.GlobalAveragePooling2D(),
    ...         keras.layers.Dense(16),
    ...     ]
    ... )
    >>> a = ChunkedTower(encoder, chunk_size=256)(image)
    >>> b = keras.layers.Dense(16)(text)
    >>> a, b = kj.layers.ContrastiveTerm("InfoNCE")((a, b))
    >>> model = keras.Model([image, text], [a, b])
    """

    def __init__(
        self,
        tower: keras.layers.Layer,
        chunk_size: int,
        name: str | None = None,
        **kwargs: Unpack[LayerOptions],
    ):
        # Without autocasting the tower gets its inputs and parameters unchanged.
        super().__init__(name=name, autocast=False, **kwargs)
        if not isinstance(tower, keras.layers.Layer):
            raise invalid("tower", "a layer or a model", tower)
        for layer in _keras.flatten_layers(tower):
            adds_losses = isinstance(layer, LayerTerm | GradientCombination)
            if adds_losses or layer.activity_regularizer is not None:
                raise _adds_losses(layer)
        self.tower = tower
        self.chunk_size = validate_count(chunk_size, "chunk_size")
        self.supports_masking = True

    def build(self, input_shape: Nested = None) -> None:
        validate_batch_axis(input_shape, self.name)
        if not self.tower.built:
            self.tower.build(input_shape)

    def call(self, inputs: Nested, mask: Nested = None, training: bool | None = None) -> Nested:
        if not is_training(training):
            return self.tower(inputs, training=training)
        chunks = _Chunks(self.tower, inputs, mask, training)
        outputs, seeds = for_chunks(
            chunks.run,
            [ops.convert_to_tensor(variable) for variable in chunks.parameters],
            [ops.copy(variable) for variable in chunks.seeds],
            chunks.tensors,
            self.chunk_size,
        )
        for variable, value in zip(chunks.seeds, seeds, strict=True):
            variable.assign(value)
        return chunks.structured(outputs)

    def compute_output_spec(
        self, inputs: Nested, mask: Nested = None, training: bool | None = None
    ) -> Nested:
        spec = self.tower.compute_output_spec(inputs)
        return keras.tree.map_structure(lambda x: keras.KerasTensor(x.shape, dtype=x.dtype), spec)

    def compute_mask(self, inputs: Nested, previous_mask: Nested = None) -> None:
        # The tower attaches the masks to its outputs.
        return None

    def get_config(self) -> Config:
        return {
            **super().get_config(),
            "tower": keras.saving.serialize_keras_object(self.tower),
            "chunk_size": self.chunk_size,
        }

    @classmethod
    def from_config(cls, config: Config) -> "ChunkedTower":
        return cls(**{**config, "tower": deserialized(config.get("tower"), "tower")})


class _Chunks:
    """A tower as a function of tensors only."""

    def __init__(self, tower: keras.layers.Layer, inputs: Any, mask: Any, training: bool | None):
        self.tower, self.inputs, self.training = tower, inputs, training
        tensors = keras.tree.flatten(inputs)
        masks = [None] * len(tensors) if mask is None else keras.tree.flatten(mask)
        self.count = len(tensors)
        self.masked = [i for i, mask in enumerate(masks) if mask is not None]
        self.tensors = [*tensors, *(masks[i] for i in self.masked)]
        self.parameters = tower.trainable_variables
        others = [variable for variable in tower.variables if not variable.trainable]
        self.seeds = [variable for variable in others if _keras.is_seed(variable)]
        constants = [variable for variable in others if not _keras.is_seed(variable)]
        self.constants = [(variable, ops.stop_gradient(variable)) for variable in constants]
        if any(map(_keras.is_overwritten_with_gradient, self.parameters)):
            raise self._changes_variables("scales of 8-bit floats")

    def run(self, parameters: list, seeds: list, tensors: list) -> tuple[list, list]:
        """Returns the outputs and their masks for a chunk, and the next states of the generators.

        From the values of the parameters, the states of the random generators, and the inputs and
        their masks.
        """
        inputs = list(tensors[: self.count])
        for i, mask in zip(self.masked, tensors[self.count :], strict=True):
            inputs[i] = _WITH_MASK(inputs[i], mask=mask)
        values = [*zip(self.parameters, parameters, strict=True)]
        values += [*zip(self.seeds, seeds, strict=True), *self.constants]
        with _keras.Scope(values) as scope:
            inputs_of_tower = keras.tree.pack_sequence_as(self.inputs, inputs)
            outputs = self.tower(inputs_of_tower, training=self.training)
            if scope.losses:
                raise _adds_losses(_keras.layer_that_adds_losses(self.tower))
        self._validate(outputs, inputs, scope)
        self.outputs = keras.tree.map_structure(lambda _: None, outputs)
        outputs = keras.tree.flatten(outputs)
        masks = [_MASK_OF(x) for x in outputs]
        self.output_masks = [i for i, mask in enumerate(masks) if mask is not None]
        seeds = [scope.get_current_value(variable) for variable in self.seeds]
        return [*outputs, *(masks[i] for i in self.output_masks)], seeds

    def structured(self, tensors: list) -> Any:
        """Returns the tensors of `run` in the structure of the tower's output, with their masks."""
        count = len(tensors) - len(self.output_masks)
        outputs = tensors[:count]
        for i, mask in zip(self.output_masks, tensors[count:], strict=True):
            outputs[i] = _WITH_MASK(outputs[i], mask=mask)
        return keras.tree.pack_sequence_as(self.outputs, outputs)

    def _validate(self, outputs, inputs, scope):
        changed = scope.assigned.keys() - map(id, self.seeds)
        if changed:
            paths = [variable.path for variable in self.tower.variables if id(variable) in changed]
            raise self._changes_variables(paths or "variables outside of the tower")
        rows = inputs[0].shape[0]
        for x in keras.tree.flatten(outputs):
            if not len(x.shape) or (None not in (rows, x.shape[0]) and x.shape[0] != rows):
                received = f"{self.tower!r} that returns the shape {tuple(x.shape)} for {rows} rows"
                raise _invalid("with one output row for each input row", received)

    def _changes_variables(self, changed) -> ValueError:
        return _invalid(
            "that encodes each item independently of the batch and changes no variables in "
            "training. Batch normalization would use the statistics of a chunk: freeze it with "
            "`trainable = False`, or use layer or group normalization",
            f"{self.tower!r} that changes {changed}",
        )


def _adds_losses(layer) -> ValueError:
    return _invalid(
        "in which no layer adds to the loss or combines gradients. Regularize weights in place of "
        "activities, and apply terms to the output of the tower",
        f"with {layer!r}",
    )


def _invalid(expected: str, received: str) -> ValueError:
    return invalid("tower", f"a tower {expected}", received=f"a tower {received}")


class _WithMask(keras.layers.Layer):
    """Attaches a mask to a tensor."""

    def __init__(self, name):
        super().__init__(name=name, autocast=False)
        self.supports_masking = True

    def call(self, inputs, mask=None):
        return inputs


class _MaskOf(_WithMask):
    """Returns the mask of a tensor, or `None`."""

    def call(self, inputs, mask=None):
        return mask

    def compute_mask(self, inputs, previous_mask=None):
        return None


_WITH_MASK, _MASK_OF = _WithMask("with_mask"), _MaskOf("mask_of")
