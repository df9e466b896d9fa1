"""All that depends on the backend, for all other modules.

Each backend has a package that defines the same functions. The one that Keras uses is imported,
once. What the functions promise on every backend:

- `trains_functionally()`: whether a training step is a function of the variables. A layer then
  cannot change a variable that a metric reads in the same step, Keras calls the layers before it
  computes the losses of outputs, and only gradients leave the backward pass.
- `runs_in_python()`: whether the backend executes each operation immediately, so that a loop over
  Python integers is as fast as one of the backend and, unlike a condition on a tensor, waits for no
  device.
- `is_immediate()`: whether operations run one by one and change variables in place. False on
  TensorFlow and JAX, in a trace of PyTorch, and where a scope receives the values of variables.
- `Number(variable)`: reads and assigns a scalar variable, as a number if operations run one by one.
- `FirstRow(variable)`: reads the elements of the first row of a variable, which it copies only once
  for each value of the variable if operations run one by one.
- `current_replicas()`: who computes the step that this code runs in. Several replicas only in their
  step: `OneDevice` while Keras builds a model symbolically.
- `quick_ops()`: `keras.ops`, where operations run one by one without Keras' overhead.
- `vector(numbers)`: a vector of scalar tensors of one dtype, in one function of a compiled step.
- `batch_shards()`: over how many devices a batch is split, for a program of the global batch.
- `is_chief(model)`: whether this process writes the logs of all that train a model together.
- `predict(model, x, batch_size)`: what `model.predict` returns, on each of several processes.
- `variable_scope(model)`: the context in which to create variables for a model.
- `is_on_accelerator(x)`: whether a tensor is on a GPU or TPU, or will be when a compiled function
  runs.
- `decided(condition)`: a scalar condition, as a bool if operations run one by one.
- `is_traced(tensors)`: whether a computation with a structure of tensors and `None` is traced, so
  that they have no values.
- `is_readable(x)`: whether the host can read the values of an array without waiting. It cannot
  within a compiled function, and should not if training runs operation by operation on an
  accelerator.
- `all_finite(x)`: whether all numbers of a tensor are finite, as a bool tensor; `True` where
  operations run one by one and the host knows it without waiting.
- `current_trace()`: an object that equals another one if both are of the same traced function. A
  tensor of a function must not be used in one that encloses it.
- `custom_gradient(compute, *inputs)`: the tensor that `compute` returns for the inputs, next to a
  function from the gradient with respect to this tensor to the gradient with respect to the input,
  or to a tuple with one for each of several inputs. Unlike with `keras.ops.custom_gradient`, that
  function has the same arguments on all backends, and TensorFlow keeps no graph alive for it.
- `checked(compute, inputs, judge, check)`: what `compute` returns for a list of inputs, a value and
  others, with what `judge` returns for the others. The gradients of the value, a scalar, with
  respect to the inputs are those that `check` returns for the judgement and a list of gradients.
  `compute` has no side effects. On JAX, `check` runs in the forward pass, since nothing but
  gradients leaves the backward pass, and receives the gradients before they are multiplied by that
  of the value.
- `replica_values(variable)`: the values of a variable on the replicas of this process.
- `differentiated(x)`: a tensor that PyTorch differentiates with respect to. JAX does so with the
  arguments of a function, and TensorFlow with trainable variables.
- `has_own_gradient(outermost)`: whether a function runs that leaves out the gradients of the
  tensors it captures. The code `outermost` of a running function is where the search ends.
- `native_state(layer)`: the names of the attributes of a layer that are variables, but not of
  Keras.
- `for_chunks(run, parameters, state, inputs, size)`: calls `run` for one chunk of `size` rows of
  the `inputs` after another, and again in the backward pass, which sums the gradients of the chunks
  with respect to `parameters`. Only the inputs, the outputs and one chunk's activations are in
  memory at the same time. `run` receives the parameters, the state, which passes from chunk to
  chunk without a gradient, and the rows of a chunk, and depends on nothing that changes. Like
  `for_chunks`, which does so for all rows, it returns a list of outputs and the last state.
- `gradient_step(model, variables, collect, reduce)`: a function of a state, a batch `(x, y,
  sample_weight)` and a scale, compiled if the model is. It passes the forward pass of a training
  step, a function, to `collect`, which returns the losses of the terms or `None`, and
  differentiates each loss times the scale. It returns what `reduce` does for the state, the losses,
  the gradients and the scale. The gradients of a variable are those of the terms, `None` for one
  that is known not to exist; one tensor on JAX, which does not tell such a gradient from zeros.
  Variables of the model and its metrics change as in a training step.
- `native_values(layers)`: a function that puts back what Keras does not know: the variables of
  layers that are not of Keras, and the global random numbers of the backend.
"""

import keras
import numpy as np
from keras import ops


def name() -> str:
    """Returns the name of the backend, as Keras calls it."""
    return keras.backend.backend()


if name() == "tensorflow":
    from keras_jointloss._core.backend.tensorflow import *  # noqa: F403
    from keras_jointloss._core.backend.tensorflow.chunks import for_chunks as for_chunks
    from keras_jointloss._core.backend.tensorflow.gradients import gradient_step as gradient_step
    from keras_jointloss._core.backend.tensorflow.gradients import native_values as native_values
elif name() == "jax":
    from keras_jointloss._core.backend.jax import *  # noqa: F403
    from keras_jointloss._core.backend.jax.chunks import for_chunks as for_chunks
    from keras_jointloss._core.backend.jax.gradients import gradient_step as gradient_step
    from keras_jointloss._core.backend.jax.gradients import native_values as native_values
elif name() == "torch":
    from keras_jointloss._core.backend.torch import *  # noqa: F403
    from keras_jointloss._core.backend.torch.chunks import for_chunks as for_chunks
    from keras_jointloss._core.backend.torch.gradients import gradient_step as gradient_step
    from keras_jointloss._core.backend.torch.gradients import native_values as native_values
else:
    raise ImportError(f"Expected the backend tensorflow, jax or torch. Received: {name()}")


def host_values(x) -> np.ndarray | None:
    """Returns the values of an array, or `None` if the host cannot read them without waiting."""
    if not is_readable(x):  # noqa: F405
        return None
    return ops.convert_to_numpy(x) if ops.is_tensor(x) else np.asarray(x)
