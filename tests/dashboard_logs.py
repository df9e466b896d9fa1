"""Logs of three runs with all that the dashboard shows, written by hand, without a training.

In `base`, two terms have the same weight, a schedule ends, and a term is switched off. In `light`
all weights are 50 times smaller, and a term stands still. In `short`, there are two terms and no
validation.
"""

import contextlib

import numpy as np

from keras_jointloss.tensorboard import SummaryWriter
from keras_jointloss.tensorboard.runs import share

EPOCHS, STEPS = 24, 10
ENDS = [STEPS * (epoch + 1) for epoch in range(EPOCHS)]
#: The schedule of `pair` ends after this epoch, and `mood` is switched off after that one.
SCHEDULE_ENDS, SWITCHED_OFF = 8, 18


def curve(name, run, split, epoch):
    """Returns the loss of a term in an epoch, counted from 0."""
    size, floor, speed = {"label": (1.6, 0.4, 6), "mood": (0.8, 0.2, 4), "pair": (2.4, 1.1, 9)}[
        name
    ]
    noise = np.random.default_rng([len(name), len(run), len(split), epoch]).normal()
    if (run, name) == ("light", "mood"):
        return 1.0
    gap = 0.15 * max(0, epoch - 12) / 12 if split == "validation" else 0.0
    return (size * np.exp(-epoch / speed) + floor) * (1 + 0.02 * noise) + gap


def weight(name, run, epoch):
    """Returns the weight of a term at the end of an epoch."""
    value = 0.5 * min(1, (epoch + 1) / SCHEDULE_ENDS) if name == "pair" else 1.0
    if (run, name) == ("base", "mood") and epoch >= SWITCHED_OFF:
        value = 0.0
    return value * (0.02 if run == "light" else 1.0)


def values(run, terms, split, epoch):
    """Returns the values of the terms in an epoch by tag."""
    tags = {}
    for name in terms:
        raw, now = curve(name, run, split, epoch), weight(name, run, epoch)
        tags |= {f"joint_loss/{name}/{key}": x for key, x in (("raw", raw), ("weight", now))}
        tags[f"joint_loss/{name}/weighted"] = raw * now
    other = (0.02 if run == "light" else 1.0) * 0.1
    total = sum(x for tag, x in tags.items() if tag.endswith("/weighted")) + other
    tags |= {f"joint_loss/{x}/share": share(tags[f"joint_loss/{x}/weighted"], total) for x in terms}
    tags |= {"joint_loss/other": other, "joint_loss/other/share": share(other, total)}
    return {**tags, "joint_loss/total": total}


def gradients(terms, run, epoch):
    """Returns the statistics of gradients in an epoch by tag, and the learned temperature."""
    draw = np.random.default_rng([len(run), epoch])
    tags = {"gradients/conflict": 0.7 - 0.01 * epoch}
    if "pair" in terms:
        tags["joint_loss/pair/temperature"] = 0.2 * np.exp(-epoch / 15)
    for name in terms:
        tags[f"gradients/{name}/norm"] = (2 + len(name)) * np.exp(-epoch / 12) + 0.1
        tags[f"gradients/{name}/coefficient"] = 1 + 0.05 * draw.normal()
    for i, a in enumerate(terms):
        for b in terms[i + 1 :]:
            cosine = 0.3 * np.sin(epoch / 5 + len(a) + 2 * len(b)) + 0.1 * draw.normal()
            tags[f"gradients/{a}~{b}/cosine"] = cosine
            tags[f"gradients/{a}~{b}/conflict"] = float(cosine < 0)
    return tags


def recalls(run, epoch):
    """Returns the figures of retrieval in an epoch by tag."""
    tags = {}
    for k in (1, 5):
        for way, lead in (("a_to_b", 0.05), ("b_to_a", 0.0)):
            level = 1 - np.exp(-(epoch + 1) * k / (30 if run == "base" else 45))
            tags[f"retrieval/pair/{way}_recall_at_{k}"] = 0.9 * level + lead
    return tags


def write_run(log_dir, run, terms, splits=("train", "validation"), epochs=EPOCHS):
    """Writes the logs of one run, and returns its folder."""
    for split in splits:
        with contextlib.closing(SummaryWriter(log_dir / run / split)) as writer:
            if split == "train":
                steps = [0, *ENDS]
                levels = [0.0, *(weight("pair", run, epoch) for epoch in range(EPOCHS))]
                plan = {"pair": (steps, levels)} if "pair" in terms else {}
                writer.training(plan, 0, ENDS[-1])
                writer.epochs(0, 0)
            for epoch in range(epochs):
                tags = values(run, terms, split, epoch)
                if split == "train":
                    tags |= gradients(terms, run, epoch)
                elif "pair" in terms:
                    tags |= recalls(run, epoch)
                writer.scalars(tags, ENDS[epoch])
                if split == "train":
                    writer.epochs(epoch + 1, ENDS[epoch])
    return log_dir / run


def write_runs(log_dir):
    """Writes the logs of all runs."""
    write_run(log_dir, "base", ["label", "mood", "pair"])
    write_run(log_dir, "light", ["label", "mood", "pair"])
    write_run(log_dir, "short", ["label", "mood"], splits=("train",), epochs=12)
