"""
# Coming from another library or a loop of your own

What you have, and its name here. First a training loop that becomes `compile` and `fit`, then tables
for other libraries. "Equal" means that a test compares values with that library:
`tests/test_peer_parity.py` (losses, values and gradients) and `tests/test_aggregators.py`
(aggregators). The others compute the same formula or serve the same purpose, as the table says.

The loop is one of TensorFlow, so this guide runs on TensorFlow, in the root of the repository.
"""

import keras
import numpy as np
import tensorflow as tf

import keras_jointloss as kj

with np.load("examples/data/emoji_pairs.npz") as file:
    google, twitter, category = (file[key][:960] for key in ("google", "twitter", "category"))


def build(model_class):
    """Returns a model of pairs of drawings and their category."""
    keras.utils.set_random_seed(0)
    images = [keras.Input((32, 32, 3), dtype="uint8") for _ in range(2)]
    tower = keras.Sequential([keras.layers.Rescaling(1 / 255), keras.layers.Flatten()])
    tower.add(keras.layers.Dense(32))
    pair = keras.ops.stack([tower(image) for image in images], axis=1)
    label = keras.layers.Dense(9, activation="softmax", name="label")(pair[:, 0])
    return model_class(images, {"pair": pair, "label": label})


"""
## A custom `train_step`

Two losses, the second faded in over 30 steps: without a line that logs them, only their sum would be
seen.
"""

to_label = keras.losses.SparseCategoricalCrossentropy()


class Custom(keras.Model):
    """A model with a loop of its own."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            outputs = self(x, training=True)
            a, b = tf.unstack(tf.math.l2_normalize(outputs["pair"], axis=-1), axis=1)
            logits, diagonal = a @ tf.transpose(b) / 0.1, tf.range(tf.shape(a)[0])
            both = [to_label(diagonal, tf.nn.softmax(s)) for s in (logits, tf.transpose(logits))]
            pair_loss, label_loss = sum(both) / 2, to_label(y["label"], outputs["label"])
            fade = tf.minimum(tf.cast(self.optimizer.iterations, tf.float32) / 30, 1)
            loss = label_loss + fade * pair_loss
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": loss, "pair_loss": pair_loss, "label_loss": label_loss}


options = {"batch_size": 96, "epochs": 4, "shuffle": False, "verbose": 0}
y = {"pair": category, "label": category}
before = build(Custom)
before.compile(keras.optimizers.Adam(0.001))
before.fit([google, twitter], y, **options)

"""
With `joint_loss`, the losses are a dict, the fade is a schedule, and the model is any Keras model.
`evaluate`, mixed precision, gradient accumulation, callbacks and saving work as in any `fit`.
"""

after = build(keras.Model)
losses = {"pair": kj.losses.InfoNCE(temperature=0.1), "label": to_label}
joint = kj.joint_loss(losses, weights={"pair": kj.schedules.Linear(0.0, 1.0, steps=30)})
after.compile(keras.optimizers.Adam(0.001), **joint)
history = after.fit([google, twitter], y, callbacks=[kj.callbacks.JointLossCallback()], **options)

for name, model in (("train_step", before), ("joint_loss", after)):
    views, label = (model.predict([google, twitter], verbose=0)[key] for key in ("pair", "label"))
    pair_loss = float(kj.losses.InfoNCE(temperature=0.1)(np.zeros(960), views))
    print(f"{name}: pair {pair_loss:.4f}, label {float(to_label(category, label)):.4f}")
print(kj.report(history))

"""
Both models have the same losses after 40 steps. A model with a `train_step` that must stay has to call
`self.compute_loss` and `self.compute_metrics`; then `joint_loss` works with it as well.
[weighted_sum.py](../weighted_sum.py), [explicit_weights.py](../explicit_weights.py) and
[add_loss.py](../add_loss.py) replace three more loops.

| your own code | here |
|---|---|
| `loss = a * loss_a + b * loss_b` | `kj.joint_loss({"a": ..., "b": ...}, weights={"a": a, "b": b})` |
| `self.add_loss(w * value)` in a layer | `kj.layers.LossTerm(weight=w)(x, value)` |
| a callback that assigns `alpha` and `beta` of `loss_weights` each epoch | a schedule as weight; for steps of your own `model.loss["a"].weight.assign(value)` between two calls of `fit`. (Plain variables as `loss_weights` do not move on JAX.) |
| a callback that logs each loss | `JointLossCallback("logs")` |
| `if epoch < warmup` | `kj.schedules.Sequential`, or `warmup_steps=` of a rule |

## LibMTL

| LibMTL | here |
|---|---|
| `Trainer(task_dict, ...)` | `compile(**kj.joint_loss(...))` and `fit` |
| `EW`; `UW`; `DWA`; `GLS`; `RLW`; `STCH`; `FAMO` | no `weighting`; `Uncertainty`; `DynamicWeightAverage`; `GeometricMean`; `RandomWeighting`; `SmoothTchebycheff`; `FAMO` |
| `GradNorm` | `kj.weighting.GradNorm`, with a `GradientBalancer` or `SharedTrunk` |
| `PCGrad`, `MGDA`, `CAGrad`, `Nash_MTL`, `Aligned_MTL`, `UPGrad` | aggregators `pcgrad`, `mgda`, `cagrad`, `nash_mtl`, `aligned_mtl`, `upgrad` |
| `IMTL` | `imtl_g` (the part of gradients; not that of losses) |
| `rep_grad=True`; `False` | `GradientBalancer(terms, aggregator)`; `SharedTrunk(trunk, terms, aggregator)` |
| `GradVac`, `GradDrop`, `MoCo`, `MoDo`, `SDMGrad`, `FairGrad`, `DB_MTL`, `ExcessMTL` | none; see [Extending](extending.py) |
| architectures (`HPS`, `MMoE`, ...) | a Keras model |

## TorchJD

| TorchJD | here |
|---|---|
| `mtl_backward(losses, features)` and `jac_to_grad` | `SharedTrunk(trunk, terms, aggregator)` around the shared layers |
| `autogram.Engine` and a weighting | `GradientBalancer(terms, aggregator)`: from the gradients of the features, one backward pass |
| `Sum`, `Mean`, `Constant`, `PCGrad`, `MGDA`, `CAGrad`, `AlignedMTL`, `IMTLG`, `NashMTL`, `UPGrad` | equal; `Constant(w)` is `Mean(preference=w)` scaled; `IMTLG(rescale=False)`, `NashMTL(rescale=False)` |
| `CRMOGMWeighting` | `ema=` of an aggregator |
| scalarizers `UW`, `DWA`, `FAMO`, `GeometricMean`, `STCH`, `Random` | rules as for LibMTL |
| `GradVac`, `GradDrop`, `DualProj`, `ConFIG`, `FairGrad`, `Krum`, `TrimmedMean` | none |

## pytorch-metric-learning

A loss there takes `(embeddings, labels)`; here the embeddings of an item are its views, `(batch, dim)` or
`(batch, views, dim)`. Means run over all items, as with its `MeanReducer`.

| pytorch-metric-learning | here |
|---|---|
| `SupConLoss`, `MultiSimilarityLoss`, `CircleLoss`, `VICRegLoss` | `SupCon`, `MultiSimilarity`, `Circle`, `VICReg`: equal |
| `NTXentLoss` of two views an item | `NTXent`: equal; `SelfSupervisedLoss(NTXentLoss())` computes the same |
| `TripletMarginLoss` | `Triplet(margin, mining="all")`: equal with `LpDistance(normalize_embeddings=False)` or `CosineSimilarity` |
| the same with `BatchHardMiner` | `Triplet(mining="hard")`: equal |
| `MultiSimilarityMiner(epsilon)` | `MultiSimilarity(mining_margin=epsilon)`: equal |
| `NPairsLoss` | `NPairs` |
| `CrossBatchMemory(loss, memory_size=n)` | `ContrastiveTerm(loss, memory_size=n)` |
| `MultipleLosses` | several terms |
| `AccuracyCalculator`: `precision_at_1`, `mean_average_precision_at_r` | `RecallAtK(1, same_label="positive")` of two views, `MeanAveragePrecisionAtR` |
| `ArcFaceLoss`, `CosFaceLoss`, `ProxyAnchorLoss`, other proxies | none |

## sentence-transformers

| sentence-transformers | here |
|---|---|
| `MultipleNegativesRankingLoss(scale=20)` | `InfoNCE(temperature=0.05, symmetric=False)`; a third view for hard negatives |
| `MultipleNegativesSymmetricRankingLoss` | `InfoNCE(temperature=0.05)` |
| `CachedMultipleNegativesRankingLoss(mini_batch_size=n)` | the same loss behind `ChunkedTower(tower, n)` |
| `TripletLoss` | `TripletMargin` |
| `BatchAllTripletLoss`, `BatchSemiHardTripletLoss`, `BatchHardTripletLoss` | `Triplet(mining="all")`, `"semi_hard"`, `"hard"` |
| `BatchHardSoftMarginTripletLoss` | `Triplet("soft", mining="hard")` |
| `ContrastiveLoss` | `Contrastive` (Euclidean distance; there 1 - cosine by default) |
| `CosineSimilarityLoss` | `LossTerm("mse")(cosine, score)` |
| `MatryoshkaLoss` | a `ContrastiveTerm` for each size, of `a[:, :size]` and `b[:, :size]` |
| `InformationRetrievalEvaluator` | `RetrievalEvaluation(queries=..., candidates=..., relevant=...)` |
| `gather_across_devices=True` | what `ContrastiveTerm` does by default |

## TensorFlow Recommenders

| TensorFlow Recommenders | here |
|---|---|
| `tfrs.Model` with `compute_loss` | a Keras model with `joint_loss` |
| `tasks.Retrieval(temperature=t)` | `ContrastiveTerm(InfoNCE(t, similarity="dot", symmetric=False))`; a mean over the batch, there a sum |
| `remove_accidental_hits=True`, `candidate_ids` | `InfoNCE(same_label="ignore")`, ids as labels |
| `tasks.Ranking(loss)` | the loss of an output |
| `metrics.FactorizedTopK` | `RetrievalEvaluation` |
| `num_hard_negatives`, `candidate_sampling_probability` | none |
| `layers.factorized_top_k.BruteForce` | `keras_rs.layers.BruteForceRetrieval`: see [A recommender](recommender.py) |

## TensorFlow Similarity

| TensorFlow Similarity | here |
|---|---|
| `TripletLoss`, `MultiSimilarityLoss`, `CircleLoss` | `Triplet`, `MultiSimilarity`, `Circle` |
| `SimCLRLoss`, `Barlow`, `VicReg`, `MultiNegativesRankLoss(scale=20)` | `NTXent`, `BarlowTwins`, `VICReg`, `InfoNCE(0.05, similarity="dot", symmetric=False)` |
| `XBM(loss, memory_size=n)` | `ContrastiveTerm(loss, memory_size=n)` |
| `ContrastiveModel`, `SimilarityModel` | any Keras model |
| `EvalCallback` | `RetrievalEvaluation` |
| `PNLoss`, `SoftNearestNeighborLoss`, `LiftedStructLoss`; samplers; indexing | none |

## lightly

| lightly | here |
|---|---|
| `NTXentLoss(temperature, memory_bank_size=n)` | `NTXent(temperature)`; MoCo: `ContrastiveTerm("InfoNCE", memory_size=n)`, [momentum.py](../momentum.py) |
| `BarlowTwinsLoss(lambda_param)`, `VICRegLoss(lambda_param, mu_param, nu_param)` | `BarlowTwins(off_diagonal_weight)`, `VICReg(invariance_weight, variance_weight, covariance_weight)` |
| `DCLLoss`, `SupConLoss` | `DecoupledContrastive`, `SupCon` (there times the temperature, unless `rescale=False`) |
| `NegativeCosineSimilarity` | `LossTerm("cosine_similarity")(prediction, keras.ops.stop_gradient(target))` |
| `gather_distributed=True` | what `ContrastiveTerm` does by default |
| `DINOLoss`, `SwaVLoss`, `MSNLoss`; transforms | none |

## softadapt

`SoftAdapt(beta).get_component_weights(...)` turns the slopes of the losses into weights by a softmax, from
lists that the loop keeps. The nearest rule is `DynamicWeightAverage(temperature)`, a softmax of the ratios
of the last two epochs' losses, which keeps them itself. A rule with its exact formula is one method: see
[Extending](extending.py).
"""
