"""The example scripts and the guides run end to end, and their output is consistent."""

import re
import runpy
from pathlib import Path

import keras
import numpy as np
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def row(lines, label):
    """Returns the numbers in the first row with this label; percentages as printed."""
    line = next(line for line in lines if line.startswith(f"{label}  "))
    return [float(cell.rstrip("%")) for cell in line[len(label) :].split()]


def numbers(lines, start):
    """Returns the decimal numbers of the lines that start like this, line by line."""
    found = [line for line in lines if line.startswith(start)]
    return [[float(x) for x in re.findall(r"-?\d+\.\d+", line[len(start) :])] for line in found]


def check_emoji(lines):
    """Checks the four tables: terms and retrieval, before and after loading."""
    # The weights of the categories have reached their end values, the others are constant.
    weights = {"image_text": 1.0, "design": 0.3, "image_category": 0.2, "text_category": 0.2}
    terms = {name: row(lines, name) for name in weights}
    _, train_shares, validation_total, validation_shares = row(lines, "total")
    assert train_shares == validation_shares == 100
    for raw, weight, weighted, share in (numbers[4:] for numbers in terms.values()):
        # Evaluation changes no weight, so the mean of weight times loss is their product.
        assert raw * weight == pytest.approx(weighted, abs=0.001)
        assert weighted / validation_total == pytest.approx(share / 100, abs=0.002)

    assert {name: (numbers[1], numbers[5]) for name, numbers in terms.items()} == {
        name: (weight, weight) for name, weight in weights.items()
    }

    chance = row(lines, "chance")
    assert chance == [0.3, 1.3, 2.6]
    for task in ("both -> text", "text -> both", "google -> twitter"):
        at_1, at_5, at_10 = row(lines, task)
        assert at_1 <= at_5 <= at_10
        assert at_10 > 2 * chance[-1]

    start = next(i for i, line in enumerate(lines) if line.startswith("Saved to models"))
    compared = [line for line in lines[start + 1 : -1] if line]
    for line in compared:
        trained, loaded = row([line], line[: line.index("  ")])
        assert loaded == pytest.approx(trained, abs=1e-3)
    assert sum("R@10" in line for line in compared) == 7
    assert any(line.startswith("loss  ") for line in compared)

    assert lines[-1].endswith("tensorboard --logdir logs")


def check_first_steps(lines):
    """Checks the tables, the schedule, and that the loaded model is the saved one."""
    raw, weight, weighted = np.transpose([x[:3] for x in numbers(lines, "image  ")])
    assert weight.tolist() == [1, 20, 20]
    assert raw * weight == pytest.approx(weighted, rel=0.05)  # As printed.
    assert raw[1] < raw[0]
    assert numbers(lines, "weight of the drawing: [ ") == [[6.67, 13.33]]
    saved, loaded = (numbers(lines, f"loss of the {kind} model")[0] for kind in ("saved", "loaded"))
    assert saved == pytest.approx(loaded, abs=1e-3)
    assert lines[-1] == "weight of the digit: 0.5"


def check_missing_targets_guide(lines):
    """Checks that Keras' mean divides by all items, and that the other two ways do not."""
    assert lines[0] == "items with a label and all rows: 7"
    (missing, _), (trap, _), (weighted, _), *_ = numbers(lines, "accuracy of the digit")
    assert trap < min(missing, weighted)
    assert numbers(lines, "digit_labelled  ") == [[pytest.approx(0.1, abs=0.01)]]
    (spoiled,), (right,) = numbers(lines, "loss of the digit at the end")
    assert spoiled < 0.2 * right
    (found, wrong), (weighted_found, weighted_wrong) = numbers(lines, "nines found")
    assert weighted_found > found
    assert weighted_wrong > wrong


def check_weighting_guide(lines):
    """Checks that one result rises as the other falls, and that rules lie between."""
    rows = dict(zip(("x1", "x10", "x100"), numbers(lines, "right x "), strict=True))
    shares, accuracies, explained = np.transpose([x[-3:] for x in rows.values()])
    assert np.all(np.diff(shares) > 0)
    assert np.all(np.diff(accuracies) < 0)
    assert np.all(np.diff(explained) > 0)
    ((untrained, _, trained, _),) = numbers(lines, "digit ~ right")
    assert trained < untrained - 0.2
    assert shares[0] < row(lines, "probe")[1] < shares[2]
    for rule in ("uncertainty", "geometric_mean"):
        _, share, accuracy, part = row(lines, rule)
        assert shares[0] < share < shares[2]
        assert accuracy > accuracies[2]
        assert part > explained[0]


def check_conflicts(lines):
    """Checks that the image's gradient dominates, and what that does to the digit."""
    (digit,), (image,) = (numbers(lines, f"{term}_norm ")[0] for term in ("digit", "image"))
    assert image > 50 * digit
    assert abs(numbers(lines, "digit~image_cosine ")[0][0]) < 0.1
    ways = ("plain sum", "sum, image x 0.01", "pcgrad", "imtl_g  ", "mgda")
    plain, weighted, pcgrad, imtl, mgda = (numbers(lines, way)[0][0] for way in ways)
    assert abs(pcgrad - plain) < 3
    assert min(weighted, imtl, mgda) > plain + 3
    assert numbers(lines, "gradient of image")[0][1] > plain + 3


def check_distillation(lines):
    """Checks that the student learns from the teacher, also after loading, and not in its file."""
    titles = ("student, 70 labels", "... and the teacher", "... and its features", "loaded")
    alone, *taught, loaded = (numbers(lines, title)[0][0] for title in titles)
    assert min(taught) > alone + 5
    assert loaded == taught[0]
    student, teacher = (
        int(next(x for x in lines if x.startswith(f"{name}.keras")).split()[1].replace(",", ""))
        for name in ("student", "teacher")
    )
    assert student < teacher / 3
    before, loaded = (numbers(lines, f"{name}: distill_loss")[0] for name in ("before", "loaded"))
    assert before == loaded


def check_domains(lines):
    """Checks that the reversed gradient helps with the other pen, whose head then fails more."""
    plain, adapted = (numbers(lines, x)[0] for x in ("not reversed", "reversed, to -0.1"))
    *_, thin, _, pens = adapted
    assert thin > plain[0] + 1
    assert pens < plain[2] - 3


def check_pitfalls(lines):
    """Checks the warnings and errors, and the weights with and without the mend."""
    assert sum(line.startswith("warning: ") for line in lines) == 6
    assert sum(line.startswith("error: ") for line in lines) == 2
    again = ("compiled again, from step 0", "compiled again, from old step")
    weights = ("without", "with", *again, "weight of the clone")
    assert [numbers(lines, f"{name}:")[0][0] for name in weights] == [0, 0.46, 0.46, 0.92, 0]
    plain, floored = numbers(lines, "{'digit_weight'")
    assert plain[1] > 1000 * plain[0]
    assert floored[1] < 100 * floored[0]
    assert numbers(lines, "mean of one item of loss 1") == [[0.25]]
    (small,), (large,) = numbers(lines, "InfoNCE of the same")
    assert small < large


def check_several_devices(lines):
    """Checks that chunks change nothing, and a row of the table against the figures by hand."""
    plain, chunked = (row(lines, way) for way in ("plain:", "in chunks:"))
    assert chunked == pytest.approx(plain, abs=2e-4)
    cells = next(line.split() for line in lines if line.split()[:2] == ["32768", "8"])
    # 32,768 pairs of 2 x 512 floats take 128 MiB, of which 7/8 are received once and then twice.
    # SigLIP holds those of an eighth of the pairs, with their gradient.
    assert cells[2:] == ["336M", "256M", "32M", "512M", "32M"]


def check_large_batch(lines):
    """Checks that chunks give the same losses as the plain tower in a fraction of its memory."""
    plain, chunked = (row(lines, way) for way in ("plain", "in chunks"))
    assert chunked[0] < plain[0] / 4
    assert chunked[2:4] == pytest.approx(plain[2:4], rel=1e-3)
    assert plain[3] < plain[2]


def check_distributed(lines):
    """Checks that two processes have the losses of one."""
    losses = [line.split() for line in lines if re.match(r" +\d", line)]
    assert [epoch for epoch, *_ in losses] == ["1", "2"]
    for _, alone, several in losses:
        assert float(several) == pytest.approx(float(alone), abs=1e-4)
    assert float(lines[-1].split()[-1]) < 1e-4


def check_momentum(lines):
    """Checks that retrieval beats chance with a memory of 64 emoji and without a memory."""
    retrieved = [line for line in lines if line.startswith("memory of")]
    assert [line.split()[2] for line in retrieved] == ["0", "64"]
    for line in retrieved:
        assert float(line.split()[-1].rstrip("%")) > 2 * 2.6


def check_weighting(lines):
    """Checks that each weighting has a row, with results that beat chance."""
    rows = [line for line in lines if "+-" in line]
    assert [line[:24].strip() for line in rows] == ["meaning x 1", "meaning x 30", "FAMO"]
    for line in rows:
        cells = line[24:].replace("+-", "").split()
        share, accuracy, deviation, explained, _ = (float(cell.rstrip("%")) for cell in cells)
        assert 0 < share < 100
        assert 0 < accuracy < 100
        assert deviation == 0  # There is only one seed.
        assert explained < 100
    assert Path("logs/weighting.png").stat().st_size > 10000
    assert len(list(Path("logs").glob("weight_*/hparams/events*"))) == 2


def check_multi_digit(lines):
    """Checks that the drawing's gradients dominate unless a weight or a rule prevents it."""
    rows = {line[:18].strip(): line[18:] for line in lines if "+-" in line}
    assert list(rows) == ["plain sum", "drawing x 0.001", "drawing x 0.1", "mgda"]
    ratios, digits = {}, {}
    for name, cells in rows.items():
        left, _, right, _, explained, _, ratio, *cosines, conflict = (
            float(cell.rstrip("%")) for cell in cells.replace("+-", "").split()
        )
        assert -20 < explained < 100
        assert np.all(np.abs(cosines) < 0.5)
        assert 0 < conflict <= 100
        ratios[name], digits[name] = ratio, left + right
    assert ratios["plain sum"] > 5 * ratios["drawing x 0.1"] > 50 * ratios["drawing x 0.001"]
    assert digits["mgda"] > 2 * digits["plain sum"]
    assert sum(line.startswith("Of the constant weights, 0.") for line in lines) == 1
    assert Path("logs/multi_digit.png").stat().st_size > 10000
    assert len(list(Path("logs").glob("*/train/events*"))) == 4


def check_vae(lines):
    """Checks the bound of each training, and that the constraint holds its divergence."""
    assert [line[:16].strip() for line in lines[1:]] == ["plain", "constraint"]
    for line in lines[1:]:
        training, validation, divergence, active = row([line], line[:16].strip())
        # A code without information gives -27.
        assert training > validation > -25
        assert 0 < divergence < -training
        assert 0 < active <= 16
    assert divergence == pytest.approx(10, rel=0.02)


def check_physics(lines):
    """Checks that weights of the edge, constant or found by a rule, make the error smaller."""
    errors = {line[:30].strip(): row([line], line[:30].strip())[0] for line in lines[1:]}
    assert list(errors) == ["equal weights", "edge x 100", "Uncertainty", "Constraint"]
    equal, tuned, *rules = errors.values()
    assert tuned < equal < 1
    assert min(rules) < 2 * tuned


def check_missing_targets(lines):
    """Checks that each way to train explains the target that is always there."""
    assert row(lines, "labelled") == [100, 17.9]
    for way in ("drop months", "fill, weight 0", "missing="):
        microsoft, dell = row(lines, way)
        assert 10 < microsoft < 100
        assert -50 < dell < 100


def check_classical(lines, *least):
    """Checks that the printed shares are above these.

    Without learning, the separation is 50 %, the accuracy at most 20 % (the share of the largest
    category), and the explained shares are at most 0.
    """
    found = [float(x) for x in re.findall(r"(-?[\d.]+)%", " ".join(lines))]
    assert all(low < x < 100 for low, x in zip(least, found, strict=True))


def check_printed(lines):
    """Checks that a guide shows an outcome."""
    assert any(lines)


def check_pairs(lines):
    """Checks that training improves the search, in the batch and in the whole set."""
    recalls = row(lines, "recall at 1 in the batch:")
    assert recalls[-1] > recalls[0]
    before = float(next(line for line in lines if line.startswith("before:")).split()[-1])
    assert row(lines, "pair_recall_at_1")[-1] > before
    temperatures = row(lines, "pair_temperature")
    assert len(set(temperatures)) > 1
    precisions = row(lines, "same category, MAP@R:")
    assert precisions[-1] > precisions[0]
    accuracies = row(lines, "proxies, accuracy:")
    assert accuracies[-1] > 2 * accuracies[0]
    hard = row(lines, "loss with two hard negatives:")
    assert hard[-1] < hard[0]
    cut, plain = (numbers(lines, f"{x:<11} R@10 with 16") for x in ("Matryoshka", "InfoNCE"))
    assert cut > plain


def check_vae_guide(lines):
    """Checks which codes collapse, and that target and constraint hold the divergence."""
    results = {line[:16].strip(): row([line], line[:16].strip()) for line in lines[1:]}
    ways = ["code alone", "plain", "annealed", "free bits", "capacity", "constraint"]
    assert list(results) == ways
    assert all(elbo > -25 for elbo, *_ in results.values())
    assert results["capacity"][1] == pytest.approx(10, rel=0.05)
    assert results["constraint"][1] == pytest.approx(10, rel=0.05)
    active = {name: active for name, (_, _, active, _) in results.items()}
    assert active["plain"] <= 8 < active["annealed"]
    assert active["code alone"] >= 12
    assert active["free bits"] == 16
    assert results["plain"][1] < 2.5 < 4.5 < min(results[x][1] for x in ("annealed", "free bits"))
    assert results["annealed"][0] > results["plain"][0]


def check_models_and_data(lines):
    """Checks that each kind of model and data has the same losses, and what weights achieve."""
    forms = ("Functional", "subclassed, a dict", "subclassed, a list", "a step of its own")
    kinds = (*forms, "tf.data", "PyDataset", "generator")
    first, *others = (row(lines, kind) for kind in kinds)
    assert all(values == pytest.approx(first, rel=1e-4) for values in others)
    assert first[-1] == 20
    assert row(lines, "other data in the step")[0] != first[0]
    assert "error: `class_weight` is only supported for Models with a single output." in lines
    (found, others), (weighted, others_weighted) = numbers(lines, "eights found")
    assert weighted > found + 30
    assert others_weighted > others - 3
    overlaps = [
        x[0] for x in (numbers(lines, f"{x} ")[0] for x in ("bce  ", "dice  ", "bce + dice"))
    ]
    assert overlaps[0] < 0.1 < 0.55 < min(overlaps[1:])


def check_save_and_resume(lines):
    """Checks the weights in each phase; that resumed trainings are equal, the guide itself does."""
    assert "epochs of the second run: 4" in lines
    whole, resumed = (numbers(lines, x)[0] for x in ("weight of the image: [", "after loading: ["))
    assert resumed == whole[3:]
    (best,) = numbers(lines, "in the file:")[0]
    assert best == pytest.approx(min(numbers(lines, "val_joint_loss")[0]), abs=2e-3)
    anew, same, goes_on = (
        numbers(lines, f"{x}  ")[0]
        for x in ("a new joint loss", "the same", "the same, with the old step")
    )
    assert anew[:2] == same[:2] == goes_on[:2] == pytest.approx(whole[:2], abs=2e-3)
    assert anew[2] < same[2] < goes_on[2]
    assert goes_on[2:] == pytest.approx(whole[2:4], rel=0.05)
    assert "predicts the same: True" in lines
    (loaded,), (moved,) = (
        numbers(lines, f"{x}: the product")[0] for x in ("as loaded", "new start")
    )
    assert 10 * loaded < moved


def check_physics_guide(lines):
    """Checks that equal weights have the largest error, of terms and of points."""
    errors = {line[:22].strip(): row([line], line[:22].strip())[0] for line in lines[1:6]}
    points = {line[:22].strip(): row([line], line[:22].strip())[0] for line in lines[-3:-1]}
    assert list(points) == ["equal weights", "causal"]
    assert 2 * points["causal"] < points["equal weights"]
    smallest = [float(x) for x in lines[-1].split()[2:]]
    assert smallest[0] < 0.01 < 0.1 < smallest[-1]
    assert list(errors) == ["equal weights", "edge x 100", "Uncertainty", "Constraint", "mgda"]
    assert max(errors, key=errors.get) == "equal weights"
    assert errors["Constraint"] < 0.05


def check_allen_cahn(lines):
    """Checks that each way has the errors of ten parts of the training."""
    assert [line[:16].strip() for line in lines] == ["equal", "causal"]
    for line in lines:
        errors = [float(cell) for cell in line[16:].split()[:10]]
        assert all(0 < error < 5 for error in errors)


def check_recommender(lines):
    """Checks that both tasks are learned, together as well."""
    alone = row(lines, "rating alone")
    retrieval = next(line for line in lines if line.startswith("retrieval alone")).split()[2]
    both = row(lines, "both")
    assert float(retrieval.rstrip("%")) > 10 * alone[0]
    assert both[0] > 10 * alone[0]
    assert both[2] > alone[2] > 0
    assert sum(line.startswith(("fruit", "music", "winter", "cat")) for line in lines) == 4


def check_detector(lines):
    """Checks that the digits are found, and that an override is equal."""
    precisions = [float(line.split()[-1]) for line in lines if "average precision" in line]
    assert len(precisions) == 2
    assert min(precisions) > 0.7
    (difference,) = row(lines, "largest difference of weights:")
    assert difference < 1e-5


def check_text_encoder(lines):
    """Checks that held-out words find their drawing, and that new words find a similar one."""
    recalls = row(lines, "words_recall_at_10")
    assert recalls[-1] > 8 * 0.025
    for query, word in (("sad face crying", "crying"), ("family two children", "family")):
        assert word in next(x for x in lines if x.startswith(query)).partition(":")[2]


def write_ratings(path):
    """Writes how early words stand in the descriptions of emoji, as MovieLens has ratings."""
    with np.load("examples/data/emoji_pairs.npz") as file:
        texts = [text.split() for text in file["text"][:400]]
    users = {word: user for user, word in enumerate(sorted({x for text in texts for x in text}))}
    lines = [
        f"{users[word]}\t{movie}\t{max(5 - position, 1)}\t0\n"
        for movie, text in enumerate(texts)
        for position, word in enumerate(text)
    ]
    path.write_text("".join(lines))


def check_movielens(lines):
    """Checks that the retrieval and the rating are learned where they have a weight."""
    table = {line[:24].strip(): line[24:] for line in lines if "+-" in line}
    accuracy, rmse = (
        {name: float(cells.split()[column]) for name, cells in table.items()} for column in (0, 3)
    )
    assert 3 * max(accuracy["rating alone"], accuracy["joint, a mean"]) < accuracy["joint"]
    assert accuracy["popular, mean rating"] < accuracy["joint"]
    assert rmse["joint"] < rmse["retrieval alone"]
    assert set(table) > {"uncertainty", "num_hard_negatives", "same_label"}
    assert accuracy["sampling_probability"] > accuracy["popular, mean rating"]


def check_dashboard(lines):
    """Checks that all logged points are read, and that another tracker receives the logs."""
    points = [line.split()[-5] for line in lines if " points, the last " in line]
    assert len(points) > 5
    assert set(points) == {"13"}  # 78 batches: every tenth, and the end of each epoch.
    assert lines[-1].startswith("received: [('train', ")


def check_extending(lines):
    """Checks that the loaded model is the trained one."""
    trained = next(line for line in lines if line.startswith("trained:")).split()
    assert trained[1] == trained[3]


def check_coming_from(lines):
    """Checks that the loop and `fit` reach the same losses."""
    loop, fit = (next(line for line in lines if line.startswith(x)) for x in ("train_", "joint_"))
    assert loop.partition(":")[2] == fit.partition(":")[2]


# The guides by name: arguments and check, as for the scripts below.
GUIDES = {
    f"guides/{path.stem}": ("", check_printed) for path in sorted(EXAMPLES.glob("guides/*.py"))
}

# The scripts by name: arguments that make them fast, and the check of their output.
SCRIPTS = {
    **GUIDES,
    "add_loss": ("--epochs 1", lambda lines: check_classical(lines, 10, 50)),
    "distributed": ("--epochs 2 --items 256", check_distributed),
    "emoji": ("--epochs 1 --log-dir logs --save models/emoji.keras", check_emoji),
    "allen_cahn": ("--steps 160 --rules equal causal", check_allen_cahn),
    "explicit_weights": ("--epochs 1", lambda lines: check_classical(lines, 10, 50)),
    "guides/coming_from": ("", check_coming_from),
    "guides/conflicts": ("", check_conflicts),
    "guides/dashboard": ("", check_dashboard),
    "guides/detector": ("", check_detector),
    "guides/distillation": ("", check_distillation),
    "guides/domains": ("", check_domains),
    "guides/extending": ("", check_extending),
    "guides/first_steps": ("", check_first_steps),
    "guides/missing_targets": ("", check_missing_targets_guide),
    "guides/models_and_data": ("", check_models_and_data),
    "guides/pairs": ("", check_pairs),
    "guides/physics": ("", check_physics_guide),
    "guides/pitfalls": ("", check_pitfalls),
    "guides/recommender": ("", check_recommender),
    "guides/save_and_resume": ("", check_save_and_resume),
    "guides/several_devices": ("", check_several_devices),
    "guides/text_encoder": ("", check_text_encoder),
    "guides/vae": ("", check_vae_guide),
    "guides/weighting": ("", check_weighting_guide),
    "large_batch": ("--steps 2", check_large_batch),
    "missing_targets": ("--epochs 10", check_missing_targets),
    "movielens": ("--data u.data --epochs 3 --seeds 1 --batch-size 512 --top 20", check_movielens),
    "momentum": ("--epochs 1 --batch-size 128 --memory-sizes 0 64", check_momentum),
    "multi_digit": (
        "--epochs 1 --log-dir logs --weights 0.001 0.1 --rules mgda",
        check_multi_digit,
    ),
    "physics": ("--epochs 30 --weights 100 --rules Uncertainty Constraint", check_physics),
    "vae": ("--epochs 20 --variants plain constraint", check_vae),
    "weighted_sum": ("--epochs 1", lambda lines: check_classical(lines, 60, 25)),
    "weighting": ("--epochs 1 --log-dir logs --weights 1 30 --rules FAMO", check_weighting),
}


# Scripts whose data are not in the repository: the file that they read, and what writes it.
FILES = {"movielens": ("u.data", write_ratings)}

# PyTorch starts fastest and runs the scripts of few steps, JAX those of many small ones.
BACKENDS = {
    "distributed": ("tensorflow",),
    "emoji": ("tensorflow", "torch"),
    "guides/coming_from": ("tensorflow",),
    "guides/detector": ("tensorflow",),
    "guides/models_and_data": ("tensorflow",),
    **dict.fromkeys(("allen_cahn", "missing_targets", "physics", "vae"), ("jax",)),
    **dict.fromkeys(("guides/distillation", "guides/domains"), ("jax",)),
    **dict.fromkeys(("guides/physics", "guides/vae"), ("jax",)),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_example(name, tmp_path, monkeypatch, capfd):
    if keras.backend.backend() not in BACKENDS.get(name, ("torch",)):
        pytest.skip("what it uses of the package is trained on this backend by other tests")
    arguments, check = SCRIPTS[name]
    script = str(EXAMPLES / f"{name}.py")
    # They find the files that they read, and write to the folder of the test.
    (tmp_path / "examples").symlink_to(EXAMPLES)
    monkeypatch.chdir(tmp_path)
    if name in FILES:
        file, write = FILES[name]
        write(tmp_path / file)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr("sys.argv", [script, *arguments.split()])
    runpy.run_path(script, run_name="__main__")
    check(capfd.readouterr().out.splitlines())
