"""Where a training is."""

import keras
from keras import ops


def optimizer_step(model: keras.Model) -> int:
    """Returns the number of batches that the optimizer has used: under loss scaling not all."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    accumulated = optimizer.gradient_accumulation_steps or 1
    iterations = ops.convert_to_tensor(optimizer.iterations)
    return int(ops.convert_to_numpy(iterations)) * accumulated
