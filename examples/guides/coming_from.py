# %% [markdown]
"""
# Coming from another library or a loop of your own

What you have, and what takes its place here: first a training loop, then tables for libraries.
*Equal* means that a test compares values (`tests/test_peer_parity.py`, with gradients, and
`tests/test_aggregators.py`); the rest has the same formula or purpose. The loop is one of
TensorFlow, so this guide runs on TensorFlow, in the root of the repository.
"""

# %%
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


# %% [markdown]
"""
## A custom `train_step`

Two losses, the second faded in over 30 steps:
"""

# %%
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

# %% [markdown]
"""
With `joint_loss`, the losses are a dict, the fade is a schedule, and the model is any Keras model:
"""

# %%
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

# %% [markdown]
"""
Both models have the same losses after 40 steps. A `train_step` that has to stay works with
`joint_loss`, too, if it calls `self.compute_loss` and `self.compute_metrics`.

| your own code | here |
|---|---|
| `loss = a * loss_a + b * loss_b` | `kj.joint_loss({"a": ..., "b": ...}, weights={"a": a, "b": b})` |
| `self.add_loss(w * value)` in a layer | `kj.layers.LossTerm(weight=w)(x, value)`; or leave it: `other/<layer>_loss` in the logs, as for regularizers and routers |
| a callback that swaps `loss_weights` each epoch; `if epoch < warmup` | a schedule as weight, such as `kj.schedules.Sequential`; between two calls of `fit`, `model.loss["a"].weight.assign(value)`. (Plain variables as `loss_weights` do not move on JAX.) |
| `compute_loss(x, y, y_pred, ...)` of a model, for a loss of several outputs; targets that are packed into one tensor for it | `kj.joint_loss({...}, across={"iou": (loss, ["box", "score"])})`, where `loss` takes dicts of targets and predictions: see [A detector](detector.py) |
| a callback that logs each loss | `JointLossCallback("logs")` |
| a gradient reversal layer, `tf.custom_gradient` that returns `-scale * upstream` | `kj.layers.GradientScale(-scale)`, also with a schedule |

## LibMTL, TorchJD, softadapt

| LibMTL | TorchJD | here |
|---|---|---|
| `Trainer`; architectures (`HPS`, `MMoE`, ...) | a loop | `compile(**kj.joint_loss(...))` and `fit`; a Keras model |
| `IMTL` (the part of losses) | `IMTLL` | `IMTLL()`, with the aggregator `IMTLG` for both parts; there `s` is trained at the learning rate of the network |
| `UW`, `DWA`, `GLS`, `RLW`, `STCH`, `FAMO` (`EW`: no rule) | `UW`, `DWA`, `GeometricMean`, `Random`, `STCH`, `FAMO` | `Uncertainty`, `DynamicWeightAverage`, `GeometricMean`, `RandomWeighting`, `SmoothTchebycheff`, `FAMO` |
| `GradNorm` | | `kj.weighting.GradNorm`, with a `GradientBalancer` or `SharedTrunk` |
| `PCGrad`, `MGDA`, `CAGrad`, `UPGrad`, `Aligned_MTL`, `Nash_MTL`, `IMTL` (the part of gradients) | `PCGrad`, `MGDA`, `CAGrad`, `UPGrad`, `AlignedMTL`, `NashMTL`, `IMTLG`, `Sum`, `Mean`: equal; `Constant(w)`; `CRMOGMWeighting` | aggregators `PCGrad`, `MGDA`, `CAGrad`, `UPGrad`, `AlignedMTL`, `NashMTL(rescale=False)`, `IMTLG(rescale=False)`, `Sum`, `Mean`; `Mean(preference=w)`, scaled; `ema=` |
| the improvement over `base_result`, by task | | `JointLossCallback(score={"val_a_accuracy": 0.91, "val_b_mae": 0.3})`: `joint_score` in the logs, a fraction too; divided by the size of a baseline below 0 |
| `rep_grad=True`; `rep_grad=False` | `autogram.Engine` and a weighting; `mtl_backward` and `jac_to_grad` | `GradientBalancer(terms, aggregator)`: from the gradients of the features, one backward pass; `SharedTrunk(trunk, terms, aggregator)` around the shared layers |
| `FairGrad`, `GradVac` | `FairGrad(alpha)`, `ConFIG`, `DualProj`, `PCD`, `GradVac`: equal | aggregators `FairGrad(alpha, rescale=False)`, `ConFIG`, `DualProj`, `PCD(main="a")`, `GradVac`, whose orders follow from `seed` |
| `DB_MTL` with `DB_beta=0` | | aggregator `DBMTL`: without the moving average of the gradients (0.9 there), which is `k` times the gradients in memory; with weights by `GeometricMean` for the logarithms of the losses |

A term whose gradient is 0 is absent here: a mean is that of the others. TorchJD's `FairGrad` does not
converge where one gradient is a million times as long as another; here it solves `G w = w^(-1/alpha)`.

What is left out, and why:

| LibMTL, TorchJD | why |
|---|---|
| `GradDrop` | it keeps or drops each entry of a gradient by its sign; aggregators here see the inner products of gradients, so that they cost the same for a trunk of any size |
| `MoCo`, `ExcessMTL` | they keep the gradients, or their squares, of each term: k times the parameters of the trunk as state |
| `MoDo`, `SDMGrad` | they take the gradients of two or three batches in each step |
| `Krum`, `TrimmedMean` | they defend against workers that send wrong gradients |
| `RGW` | random coefficients of gradients; for random weights of losses, `RandomWeighting` |
| `COSMOS`, `PBI` | they approximate a whole front by a model that reads another preference in each step |

What sees inner products only is one method: [write one](extending.py).

| softadapt 0.2 | here |
|---|---|
| `AdaptiveLossCallback(components, frequency=n, beta=0.1)` with `algorithm="base"`, `"normalized"`, `"loss-weighted"` | `SoftAdapt("original")`, `"normalized"`, `"loss_weighted"`, with `frequency=n, points=n` (2 for each epoch): the same weights from the same losses, for all terms of the model |
| `calculate_on_validation=True` | none: rules see the losses of training |
| `backup_dir` | the file of the model has the state |

Its callback writes into a list that a compiled step has read before: with Keras 3.15, the weights act on
PyTorch and with `run_eagerly=True`, and not in a compiled step of TensorFlow or JAX.

## PhysicsNeMo, PINA, DeepXDE, neuraloperator

A condition of these libraries (an equation, a boundary, data) is a term here: a `LossTerm` of the
residual, in plain `fit`, as in [A differential equation](physics.py). Geometries, samplers and neural
operators remain theirs.

| PhysicsNeMo Sym, `loss.aggregator` | PINA 0.3, `weighting` | here |
|---|---|---|
| `Sum(weights={...})` | `ScalarWeighting` | `joint_loss(weights={...})` |
| | `LinearWeighting(initial_weights, final_weights, target_epoch)` | a schedule for each, `kj.schedules.Linear(initial, final, steps)` |
| `Relobralo(alpha, beta, tau)` | | `ReLoBRaLo(alpha, beta, temperature=tau)` |
| `SoftAdapt()`, a softmax of ratios of losses | | `ReLoBRaLo(alpha=0.0)`; of slopes, as in its paper, `SoftAdapt` |
| `HomoscedasticUncertainty`, half of the sum; `GradNorm(alpha)`, of one layer | | `Uncertainty()`; `GradNorm(alpha)` at a layer that reports gradients |
| `NTK(run_per_step=n)` | | `NeuralTangentKernel(power=0.5, update_every=n)`, at the layers of a `SharedTrunk` |
| | `SelfAdaptiveWeighting(update_every_n_epochs)` | `InverseGradientNorm(alpha=0.0, update_every=n)`, of n steps |
| `LRAnnealing`: mean entries of gradients | `NeuralTangentKernelWeighting`: the share of a length, so that longer gradients weigh *more* | none; `InverseGradientNorm` is the next |
| `ResNorm`: GradNorm with losses in place of gradients | | none: there is no paper |
| `CausalLossNorm(eps=1, n_chunks=10)`, of sums over a chunk of a sorted batch | `CausalPhysicsInformedSingleModelSolver(eps=100, n_steps=10)`, of each place alone; its own loss counts too | `PointWeights(points, kj.points.Causal(epsilon=1.0, chunks=32))`, of means over chunks, as in the paper |
| | `RBAPhysicsInformedSingleModelSolver(eta=0.001, gamma=0.999)`: the multiplier of the squared residual | `PointWeights(points, kj.points.Residual(gamma=0.999, eta=0.01))`: of the residual, as in the paper |
| | `SelfAdaptivePhysicsInformedSolver(weight_function=Sigmoid())` | `PointWeights(points, "self_adaptive")`: the square of the multiplier |
| `lambda_weighting`, `area` | | `sample_weight` in the call of the term |
| | `R3Refinement` | points that a `keras.utils.PyDataset` draws anew in `on_epoch_end` |

The weights of points go by the index of the point, an input of the model: batches may be shuffled. In
jaxpi, `weighting.use_causal` with `causal_tol=1` and `num_chunks=32` weighs chunks of points that are
drawn anew in each step: here `PointWeights(32, kj.points.Causal(1.0))`, with the index of the chunk as
that of the point. DeepXDE has no weights of points that follow a residual.

| DeepXDE 1.15 | neuraloperator 2.0, `losses` | here |
|---|---|---|
| `compile(loss_weights=[...])` | `WeightedSumLoss(losses, weights)`, by default 1/k each | `joint_loss(weights={...})` |
| `PDEPointResampler(period)` | | a `keras.utils.PyDataset` |
| `EarlyStopping(monitor="test loss")`, of the sum | | `JointLossCallback(validation_weights="equal")` and `val_joint_loss` |
| | `FieldwiseAggregatorLoss(losses, mappings)`, a mean over parts of one output | one output for each part, with weights 1/k |
| | `SoftAdapt`, `Relobralo`: those of PhysicsNeMo | as above |
| | `LpLoss`, `H1Loss`, `PoissonEqnLoss`, ... | a function for `LossTerm` |

## pytorch-metric-learning

A loss there takes `(embeddings, labels)`; here the embeddings are views, `(batch, dim)` or
`(batch, views, dim)`. Means run over all items, as with its `MeanReducer`.

| pytorch-metric-learning | here |
|---|---|
| `SupConLoss`, `CircleLoss`, `VICRegLoss`, `MultiSimilarityLoss`, also with `MultiSimilarityMiner(epsilon)` | `SupCon`, `Circle`, `VICReg`, `MultiSimilarity`, also with `mining_margin=epsilon`: equal |
| `NTXentLoss` of two views an item; `SelfSupervisedLoss(NTXentLoss())`, `NPairsLoss` | `NTXent`: equal; `NTXent`, `NPairs` |
| `TripletMarginLoss`; with `BatchHardMiner` | `Triplet(margin, mining="all")`; `mining="hard"`: equal with `LpDistance(normalize_embeddings=False)` or `CosineSimilarity` |
| `CrossBatchMemory(loss, memory_size=n)`; `MultipleLosses` | `ContrastiveTerm(loss, memory_size=n)`; several terms |
| `MPerClassSampler(labels, m, batch_size)` | `kj.data.ClassBatches(x, labels, batch_size // m, per_class=m)`; there items repeat, and an epoch has any length |
| `AccuracyCalculator`: `precision_at_1`, `mean_average_precision_at_r` | `RecallAtK(1, same_label="positive")` of two views, `MeanAveragePrecisionAtR` |
| `ArcFaceLoss(n, dim, margin=28.6)`, in degrees; `CosFaceLoss`, `NormalizedSoftmaxLoss`, `ProxyNCALoss(softmax_scale=1)`, `ProxyAnchorLoss` | `ProxyTerm(ArcFace(margin=0.5), classes=n)`, in radians; `CosFace`, `NormSoftmax`, `ProxyNCA(scale=1)`, `ProxyAnchor`: equal, other initial proxies |
| `loss.get_logits(embeddings)`; `loss.W`, `loss.proxies` and an optimizer for it | `term.logits(embedding)`, for `ProxyAnchor` times `alpha`; `term.proxies`, `(classes, dim)`, a weight of the model |

Defaults that differ: the temperature of `SupConLoss` is 0.1 (here 0.07), that of `NTXentLoss` 0.07
(here 0.1); the margin of `TripletMarginLoss` is 0.05, of unit vectors (here 1, of the embeddings as
they are).

## sentence-transformers

| sentence-transformers | here |
|---|---|
| `MultipleNegativesRankingLoss(scale=20)`; with `directions=("query_to_doc", "doc_to_query")` and `partition_mode="per_direction"`, earlier `MultipleNegativesSymmetricRankingLoss` | `InfoNCE(0.05, symmetric=False)`, each further view a hard negative; `InfoNCE(0.05)`: equal |
| the same with all four `directions` and `partition_mode="joint"` | `InfoNCE(0.05, directions="within", partition="joint")`: equal for pairs; hard negatives are candidates of the first views, there of both |
| `hardness_mode="all_negatives"`, `hardness_strength` | `InfoNCE(hardness=beta)`: the same weights with a mean of 1 for each anchor, there without |
| `GISTEmbedLoss(model, guide, temperature=0.01, margin_strategy, margin)` | `InfoNCE(0.01, symmetric=False, false_negative_margin=m, false_negative_margin_strategy=...)` called with `guide=(a', b')`: equal with `contrast_anchors=False, contrast_positives=False`; without a guide, by the model itself |
| `CachedMultipleNegativesRankingLoss(mini_batch_size=n)`; `gather_across_devices=True` | the same loss behind `ChunkedTower(tower, n)`; the default of `ContrastiveTerm` |
| `TripletLoss`; `BatchAllTripletLoss`, `BatchSemiHardTripletLoss`, `BatchHardTripletLoss`, `BatchHardSoftMarginTripletLoss` | `TripletMargin`; `Triplet(mining="all")`, `"semi_hard"`, `"hard"`, `Triplet("soft", mining="hard")` |
| `ContrastiveLoss`; `CosineSimilarityLoss` | `Contrastive` (Euclidean distance; there 1 - cosine by default); `LossTerm("mse")(cosine, score)` |
| `MatryoshkaLoss(model, loss, dims, weights)`; `truncate_dim=d` | `Matryoshka(loss, dims, weights)`: equal, also a sum with weights 1 by default; `dim=d` of the metrics |
| `CoSENTLoss(scale=20)`, `AnglELoss(scale=20)`; `MarginMSELoss()` | `CoSENT(scale=20)`, `AnglE(scale=20)`; `MarginMSE()`, with margins or scores of one negative or more: equal |
| `GlobalOrthogonalRegularizationLoss(mean_weight, second_moment_weight)` | `SpreadOut(mean_weight, second_moment_weight)`: equal, the mean over the views |
| `DistillKLDivLoss(temperature=t)` | `LossTerm("kl_divergence")(softmax(scores / t), softmax(teacher / t))`, there times `t^2`; over all items of the batch, from embeddings, `SimilarityDistillation` |
| `EmbedDistillLoss(distance_metric="cosine")`, or `"mse"` | `LossTerm("cosine_similarity")(embedding, teacher)`, there plus 1, or `LossTerm("mse")`; a `Dense` layer in place of `projection_dim` |
| `BatchSamplers.NO_DUPLICATES`; `GROUP_BY_LABEL` | `kj.data.UniqueBatches(x, y, ids)`, of one array of ids, there of all texts of a row; `ClassBatches` |
| a dict of data sets with `MultiDatasetBatchSamplers.PROPORTIONAL` or `ROUND_ROBIN`, and a dict of losses | `kj.data.TaskBatches(sources, strategy="proportional")` or `"round_robin"`, and `joint_loss(..., missing=...)` |
| `mine_hard_negatives(num_negatives=3, absolute_margin=m)` (or `relative_margin`) | `kj.data.hard_negatives(queries, candidates, 3, m)` (or `margin_strategy="relative"`); of several right candidates the least similar counts, there each has negatives of its own |
| `InformationRetrievalEvaluator` | `RetrievalEvaluation(queries=..., candidates=..., relevant=...)` |

Defaults that differ: `scale=20` is a temperature of 0.05 (`InfoNCE` has 0.07); the margin of the
triplet losses is 5 (here 1), that of `ContrastiveLoss` 0.5 (here 1).

## TensorFlow Recommenders

| TensorFlow Recommenders | here (see [A recommender](recommender.py)) |
|---|---|
| `tfrs.Model` with `compute_loss`; `tasks.Ranking(loss)` | a Keras model with `joint_loss`; the loss of an output |
| `tasks.Retrieval(temperature=t)`; with `remove_accidental_hits=True`, `candidate_ids` | `ContrastiveTerm(InfoNCE(t, similarity="dot", symmetric=False), weight=batch_size)`: the loss is a mean over the batch, there a sum, and of a mean alone `Adagrad(0.1)` learns nothing in batches of 8,192 ([movielens.py](../movielens.py)); `same_label="ignore"`, ids as labels |
| `metrics.FactorizedTopK`; `layers.factorized_top_k.BruteForce` | `RetrievalEvaluation`; `keras_rs.layers.BruteForceRetrieval` |
| `num_hard_negatives=k` | `InfoNCE(num_hard_negatives=k, ...)` |
| `candidate_sampling_probability=q` in the call of the task | `sampling_probability=q` in the call of the term |

## KerasRS

| KerasRS | here |
|---|---|
| `HardNegativeMining(k)(logits, labels)` | `InfoNCE(num_hard_negatives=k)`: equal |
| `SamplingProbabilityCorrection()(logits, q)`, one probability for each logit | `ContrastiveTerm(loss)((query, item), sampling_probability=q)`, one for each item: equal |
| `RemoveAccidentalHits()` | `InfoNCE(same_label="ignore")`, ids as labels. The layer of KerasRS 0.4 adds 1e-40 to the logit of an accidental hit, so that it remains |
| `ListMLELoss`, `PairwiseHingeLoss`, ...; `metrics.NDCG`, `metrics.MeanAveragePrecision`, ... | Keras losses and metrics: `joint_loss({"score": keras_rs.losses.ListMLELoss()}, metrics={"score": keras_rs.metrics.NDCG(k=10)})`. Over a whole set: `RetrievalEvaluation` |
| `FeatureCross`, `DotInteraction`, `BruteForceRetrieval` | layers of your model: see [A recommender](recommender.py) |

## open_clip

| open_clip | here |
|---|---|
| `ClipLoss()(a, b, logit_scale)`; `SigLipLoss()(a, b, logit_scale, logit_bias)`, of normalized features | `InfoNCE(0.07)`; `SigLIP(0.1, bias=-10.0)`: equal; they normalize themselves |
| `logit_scale`, `logit_bias`, parameters of the model | `ContrastiveTerm(loss, learn_temperature=True)` |
| `local_loss=True, gather_with_grad=True`; without them (the default there) each device computes all of the loss, and with `ClipLoss` without a gradient for the features of the others | the default of `ContrastiveTerm`, `SigLIP` as with `dist_impl="shift"` |
| `--accum-freq n` | `ChunkedTower(tower, chunk_size)`: the same losses as in one batch |
| `CoCaLoss(caption_loss_weight=2, clip_loss_weight=1)` | `ContrastiveTerm("InfoNCE")` beside `joint_loss({"caption": SparseCategoricalCrossentropy(from_logits=True, ignore_class=0)}, weights={"caption": 2})` |
| `DistillClipLoss()`, of the features and `logit_scale` of both models | `SimilarityDistillation(temperature, teacher_temperature)` of `(a, b, u, v)` beside `InfoNCE`: equal but for the entropy of the teacher, which has no gradient |

## KerasHub

| KerasHub | here |
|---|---|
| `TextEmbedder`, whose `compile` has no loss by default | `ContrastiveTerm("InfoNCE")((embedder(question), embedder(answer)))`: see [A text encoder](text_encoder.py) |
| `embedder.encode_text`, `encode_documents`, `similarity` | the same, after training |
| `RetinaNetObjectDetector`, `DFineObjectDetector`, whose `compute_loss` assigns the boxes of an image to anchors or queries | none for these models; with heads of your own `across={"boxes": (loss, ["boxes", "classes"])}`, where targets are assigned in the data or in `loss`: see [A detector](detector.py) |

## keras.distillation

| `keras.distillation` (Keras 3.15) | here (see [Distillation](distillation.py), which compares the two) |
|---|---|
| `Distiller(teacher, student, losses, weights, student_loss_weight=a)` | the student, with `Teacher(teacher)` and a `LossTerm` for each loss, of weight `(1 - a) * w`, beside `joint_loss(..., weights={"label": a})`: equal |
| `LogitsDistillation(t, keras.losses.KLDivergence())`; `LogitsDistillation(t)`, which compares the logits without softmax | `LossTerm(soft_targets)`, a function of three lines: equal; none |
| `FeatureDistillation(loss, teacher_layer_name=x, student_layer_name=y)` | `LossTerm(loss)(feature, Teacher(teacher, outputs=x)(inputs))` |

## TensorFlow Similarity, lightly

| TensorFlow Similarity | lightly | here |
|---|---|---|
| `SimilarityModel`, `ContrastiveModel`; `EvalCallback` | a loop | any Keras model; `RetrievalEvaluation` |
| `SimCLRLoss`, `Barlow`, `VicReg` | `NTXentLoss(temperature)`, `BarlowTwinsLoss(lambda_param)`, `VICRegLoss(lambda_param, mu_param, nu_param)` | `NTXent(temperature)`, `BarlowTwins(off_diagonal_weight)`, `VICReg(invariance_weight, variance_weight, covariance_weight)` |
| `TripletLoss`, `MultiSimilarityLoss`, `CircleLoss` | `DCLLoss`, `SupConLoss` | `Triplet`, `MultiSimilarity`, `Circle`; `DecoupledContrastive`, `SupCon` (there times the temperature, unless `rescale=False`) |
| `MultiNegativesRankLoss(scale=20)` | | `InfoNCE(0.05, similarity="dot", symmetric=False)` |
| `SimSiamLoss` (half of it) | `NegativeCosineSimilarity` | `NegativeCosineSimilarity`, of a prediction and a target: equal, stops the gradient of the target itself |
| | `KoLeoLoss(eps)`; `HypersphereLoss(t=1, lam, alpha)`; `SIGReg(num_vectors=1024)`, in `LeJEPALoss` with weight 0.05 | `KoLeo(epsilon)`; `AlignmentUniformity(lam, alpha, t=2)`; `SIGReg(num_slices=256)`, its own term: equal |
| `XBM(loss, memory_size=n)` | `memory_bank_size=n`; `gather_distributed=True` | `ContrastiveTerm(loss, memory_size=n)`, [momentum.py](../momentum.py); the default of `ContrastiveTerm` |
| | `deactivate_requires_grad(momentum_model)`, `update_momentum(model, momentum_model, m)` in each step; `cosine_schedule(step, steps, 0.996, 1)` | `MomentumTower(tower, momentum=m)`; `momentum=keras.optimizers.schedules.CosineDecay(0.996, steps, alpha=1 / 0.996)` |
| `MultiShotMemorySampler(x, y, classes_per_batch, examples_per_class_per_batch)` | `KNNClassifier(knn_k=200, knn_t=0.1)` | `ClassBatches`, where no item repeats; `KNNEvaluation(bank, bank_labels, data, labels, k=200, temperature=0.1)`, by default 0.07 |
| `PNLoss`, `SoftNearestNeighborLoss`, `LiftedStructLoss`; indexing | `DINOLoss`, `SwaVLoss`, `MSNLoss`; transforms | none |

Defaults of lightly that differ: the temperature of `NTXentLoss` is 0.5 (here 0.1), `lambda_param` of
`BarlowTwinsLoss` 0.005 (here 0.0051, as in the paper).
"""
