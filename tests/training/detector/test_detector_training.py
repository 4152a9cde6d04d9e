"""Training a detector: closed forms of Gaussian classes, calibration, parts, and the file that is written."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import expit
from scipy.stats import norm

from dalle_ppo.models.heads.nsfw import check_clip, load_detector
from dalle_ppo.training.detector.calibration import Calibration, fit_calibration, log_loss
from dalle_ppo.training.detector.data import Examples, Parts, read_examples, split
from dalle_ppo.training.detector.network import FitSettings, Network, fit
from dalle_ppo.training.detector.quality import (
    THRESHOLDS,
    area_under_curve,
    at_threshold,
    suggested_threshold,
)
from dalle_ppo.training.detector.report import calibrate_and_measure
from dalle_ppo.training.detector.saving import save_detector

DISTANCE = 1.6  # between the classes' means, in standard deviations along the line through them
WIDTH = 8
LOGISTIC = FitSettings(hidden=(), dropout=0, weight_decay=0, learning_rate=0.01, patience=5)
MLP = FitSettings(hidden=(32,), epochs=15, patience=5)


def gaussian_classes(num: int, seed: int = 0, distance: float = DISTANCE) -> Examples:
    """Two classes with the same correlated Gaussian, a third of the images unsafe."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(5).normal(size=(WIDTH, WIDTH))
    direction = np.random.default_rng(6).normal(size=WIDTH)
    direction /= np.linalg.norm(direction)
    unsafe = rng.random(num) < 1 / 3
    x = rng.normal(size=(num, WIDTH)) + distance * unsafe[:, None] * direction
    return Examples((x @ mix + 3).astype(np.float32), unsafe.astype(np.float32))


def posterior(examples: Examples, distance: float = DISTANCE) -> np.ndarray:
    """Bayes' probability of unsafe."""
    mix = np.random.default_rng(5).normal(size=(WIDTH, WIDTH))
    direction = np.random.default_rng(6).normal(size=WIDTH)
    direction /= np.linalg.norm(direction)
    z = (examples.embeddings.astype(np.float64) - 3) @ np.linalg.inv(mix) @ direction
    return expit(distance * z - distance**2 / 2 + np.log(0.5))


def fitted(parts: Parts, settings: FitSettings) -> Network:
    return list(fit(parts, settings))[-1][1]


# --- the whole


@pytest.fixture(scope="module")
def trained():
    parts = split(gaussian_classes(6000), 0)
    network = fitted(parts, LOGISTIC)
    return parts, network, calibrate_and_measure(network, parts)


def test_the_area_is_that_of_gaussian_classes(trained):
    """The best detector of two classes DISTANCE apart has the area Phi(DISTANCE / sqrt 2)."""
    auc = trained[2].auc
    assert auc.lower < norm.cdf(DISTANCE / 2**0.5) < auc.upper
    assert auc.upper - auc.lower < 0.05


def test_the_probabilities_are_those_of_bayes(trained):
    parts, network, report = trained
    found = report.calibration.probability(network.logits(parts.test))
    wanted = posterior(parts.test)
    assert np.abs(found - wanted).mean() < 0.03
    assert report.loss == pytest.approx(log_loss(wanted, parts.test.labels), abs=0.01)


def test_a_hidden_layer_finds_what_a_line_cannot():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 4)).astype(np.float32)
    parts = split(Examples(x, (x[:, 0] * x[:, 1] > 0).astype(np.float32)), 0)
    line, curve = (fitted(parts, s) for s in (LOGISTIC, FitSettings(hidden=(32,), learning_rate=0.01)))
    assert area_under_curve(line.logits(parts.test), parts.test.unsafe).value < 0.65
    assert area_under_curve(curve.logits(parts.test), parts.test.unsafe).value > 0.95


def test_probabilities_as_labels_are_learned():
    examples = gaussian_classes(4000)
    soft = Examples(examples.embeddings, posterior(examples).astype(np.float32))
    parts = split(soft, 0)
    report = calibrate_and_measure(network := fitted(parts, LOGISTIC), parts)
    found = report.calibration.probability(network.logits(parts.test))
    assert np.abs(found - parts.test.labels).mean() < 0.01


def test_the_same_seed_gives_the_same_network_and_leaves_other_draws_alone():
    parts = split(gaussian_classes(300), 0)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    logits = [
        fitted(parts, s).logits(parts.test) for s in (MLP, MLP, FitSettings(hidden=(32,), epochs=15, seed=1))
    ]
    assert torch.equal(torch.rand(3), expected)
    assert np.array_equal(logits[0], logits[1]) and not np.allclose(logits[0], logits[2])


def test_it_stops_and_keeps_the_best():
    """Labels that nothing explains: the validation loss only rises."""
    rng = np.random.default_rng(0)
    noise = Examples(
        rng.normal(size=(300, 20)).astype(np.float32), rng.integers(0, 2, 300).astype(np.float32)
    )
    parts = split(noise, 0)
    steps = list(fit(parts, FitSettings(hidden=(64,), learning_rate=0.01, patience=4)))
    losses = [progress.validation_loss for progress, _ in steps]
    best = steps[-1][0].best_epoch
    assert len(steps) == best + 4 < 200 and np.argmin(losses) == best - 1
    kept = log_loss(expit(steps[-1][1].logits(parts.validation)), parts.validation.labels)
    assert kept == pytest.approx(min(losses), rel=1e-4)


def test_a_column_that_never_changes_is_harmless():
    examples = gaussian_classes(300)
    examples.embeddings[:, 2] = 0.25
    network = fitted(split(examples, 0), MLP)
    changed = examples.embeddings.copy()
    changed[:, 2] += 1e-4
    moved = network.logits(Examples(changed, examples.labels)) - network.logits(examples)
    assert np.abs(moved).max() < 0.01


# --- the file

PROBES = torch.eye(8, WIDTH)


def test_the_file_gives_the_same_probabilities(tmp_path):
    parts = split(gaussian_classes(400), 0)
    network = fitted(parts, MLP)
    calibration = Calibration(0.7, -0.4)
    np.save(tmp_path / "E.npy", parts.fit.embeddings)
    out = tmp_path / "mine.safetensors"
    clip, layers = ("ViT-B-32", "openai"), network.layers(calibration)
    info = save_detector(out, layers, clip, PROBES, tmp_path / "E.npy", "mine")
    detector = load_detector(out)
    assert detector.probes.equal(PROBES)
    found = detector(torch.from_numpy(parts.test.embeddings)).numpy()
    assert np.abs(found - calibration.probability(network.logits(parts.test))).max() < 1e-6
    assert detector.info == info and info.licence == "mine" and not info.round_to_float16
    check_clip(info, "ViT-B-32", "openai", WIDTH)
    with pytest.raises(ValueError, match="reads embeddings of CLIP ViT-B-32"):
        check_clip(info, "ViT-L-14", "openai", WIDTH)


def test_float16_embeddings_are_noted(tmp_path):
    parts = split(gaussian_classes(200), 0)
    np.save(tmp_path / "E.npy", parts.fit.embeddings.astype(np.float16))
    layers = Network(torch.from_numpy(parts.fit.embeddings), MLP).layers(Calibration())
    out = tmp_path / "a.safetensors"
    assert save_detector(out, layers, ("a", "b"), PROBES, tmp_path / "E.npy").round_to_float16


# --- calibration


@pytest.mark.parametrize("slope, offset", [(5.0, 0.0), (0.2, 1.0), (1.0, -2.0)])
def test_calibration_finds_what_was_wrong(slope, offset):
    """True log-odds, stretched and shifted; measured on other draws than it was fitted on."""
    rng = np.random.default_rng(0)
    truth = rng.normal(0, 2, size=20_000)
    labels = (rng.random(20_000) < expit(truth)).astype(float)
    wrong = slope * truth + offset
    calibration = fit_calibration(wrong[:10_000], labels[:10_000])
    assert calibration.slope == pytest.approx(1 / slope, rel=0.1)
    assert calibration.offset == pytest.approx(-offset / slope, abs=0.1)
    before = log_loss(expit(wrong[10_000:]), labels[10_000:])
    after = log_loss(calibration.probability(wrong[10_000:]), labels[10_000:])
    best = log_loss(expit(truth[10_000:]), labels[10_000:])
    assert best - 0.002 < after < best + 0.002 < before


def test_separated_and_reversed_classes_keep_a_finite_positive_slope():
    labels = np.repeat([0.0, 1.0], 30)
    separated = fit_calibration(np.where(labels > 0, 3.0, -3.0), labels)
    # With one example more of each class the least loss is at (30 + 1) / (30 + 2).
    assert separated.probability(np.array([3.0]))[0] == pytest.approx(31 / 32, abs=1e-3)
    assert fit_calibration(np.where(labels > 0, -3.0, 3.0), labels).slope > 0


def test_log_loss():
    assert log_loss(np.array([0.5, 0.25]), np.array([1, 0])) == pytest.approx((np.log(2) - np.log(0.75)) / 2)
    assert np.isfinite(log_loss(np.array([0.0]), np.array([1])))


# --- quality


def test_the_area_counts_pairs():
    rng = np.random.default_rng(0)
    scores, unsafe = rng.integers(0, 6, 60).astype(float), rng.random(60) < 0.4  # many ties
    pairs = [(a > b) + 0.5 * (a == b) for a, b in product(scores[unsafe], scores[~unsafe])]
    assert area_under_curve(scores, unsafe).value == pytest.approx(np.mean(pairs))


def test_the_interval_holds_the_true_area_as_often_as_it_says():
    rng = np.random.default_rng(0)
    unsafe = np.repeat([True, False], [40, 70])
    intervals = [area_under_curve(rng.normal(size=110) + DISTANCE * unsafe, unsafe) for _ in range(1000)]
    truth = norm.cdf(DISTANCE / 2**0.5)
    assert 0.93 < np.mean([auc.lower < truth < auc.upper for auc in intervals]) < 0.97


def test_a_perfect_order_is_not_certain():
    unsafe = np.repeat([True, False], [20, 50])
    perfect = area_under_curve(unsafe.astype(float), unsafe)
    assert (perfect.value, perfect.upper) == (1, 1) and perfect.lower == pytest.approx(0.025 ** (1 / 20))
    reversed_ = area_under_curve(-unsafe.astype(float), unsafe)
    assert (reversed_.value, reversed_.lower) == (0, 0) and reversed_.upper < 0.2


def test_a_row_of_the_table_by_hand():
    probability = np.array([0.9, 0.7, 0.2, 0.6, 0.5, 0.1, 0.1, 0.1])
    unsafe = np.array([True, True, True, False, False, False, False, False])
    row = at_threshold(probability, unsafe, 0.5)  # 0.5 itself is not above
    assert (row.precision, row.recall, row.false_positive_rate) == pytest.approx((2 / 3, 2 / 3, 1 / 5))
    assert np.isnan(at_threshold(probability, unsafe, 0.95).precision)


def test_the_suggestion_separates_the_classes():
    unsafe = np.repeat([True, False], 50)
    assert suggested_threshold(np.where(unsafe, 0.25, 0.15), unsafe) == 0.2
    middle = suggested_threshold(np.where(unsafe, 0.99, 0.01), unsafe)
    assert middle == THRESHOLDS[len(THRESHOLDS) // 2]


# --- parts


def test_parts_hold_every_image_once_and_both_classes():
    examples = gaussian_classes(500)
    parts = split(examples, 3)
    everything = [part.embeddings for part in (parts.fit, parts.validation, parts.test)]
    assert np.array_equal(
        np.unique(np.concatenate(everything), axis=0), np.unique(examples.embeddings, axis=0)
    )
    assert [len(part) for part in everything] == pytest.approx([300, 100, 100], abs=2)
    shares = [part.labels.mean() for part in (parts.fit, parts.validation, parts.test)]
    assert np.ptp(shares) < 0.01
    assert not np.array_equal(split(examples, 4).test.embeddings, parts.test.embeddings)


def test_copies_of_an_image_stay_together():
    examples = gaussian_classes(200)
    copied = examples.rows(np.repeat(np.arange(200), 3))
    parts = split(copied, 0)
    rows = [set(map(bytes, part.embeddings)) for part in (parts.fit, parts.validation, parts.test)]
    assert sum(map(len, rows)) == len(set.union(*rows)) == 200
    assert sum(map(len, (parts.fit, parts.validation, parts.test))) == 600


def test_too_few_different_images_are_refused():
    with pytest.raises(ValueError, match="only 2 differ"):
        split(gaussian_classes(2).rows(np.repeat([0, 1], 40)), 0)
    few = gaussian_classes(60)
    one_each = np.flatnonzero(few.unsafe)[:5]  # 3 to fit, 1 to stop by, 1 to test with
    with pytest.raises(ValueError, match="too few to hold some of both classes back"):
        split(few.rows(np.concatenate([one_each, np.flatnonzero(~few.unsafe)])), 0)


# --- what is refused


def saved(folder: Path, embeddings: np.ndarray, labels: np.ndarray) -> tuple[Path, Path]:
    for name, array in (("E.npy", embeddings), ("L.npy", labels)):
        np.save(folder / name, array)
    return folder / "E.npy", folder / "L.npy"


UNIT = np.eye(4, dtype=np.float32)[np.arange(60) % 4]
HALF = np.arange(60) % 2


def test_good_files_are_read(tmp_path, recwarn):
    for labels in (HALF, HALF.astype(bool), HALF[:, None], HALF.astype(np.float16) * 0.75):
        examples = read_examples(*saved(tmp_path, UNIT, labels))
        assert examples.labels.shape == (60,) and examples.labels.dtype == np.float32
        assert np.array_equal(examples.unsafe, HALF == 1)
    assert not recwarn


@pytest.mark.parametrize(
    "embeddings, labels, message",
    [
        (UNIT[:, 0], HALF, r"E.npy has shape \[60\]; it must be"),
        (UNIT, HALF[:59], r"shape \[59\], but --embeddings .* \[60, 4\]"),
        (UNIT, np.stack([HALF, HALF], 1), r"shape \[60, 2\]"),
        (
            np.where(np.arange(60)[:, None] == 7, np.nan, UNIT),
            HALF,
            "1 rows hold NaN or infinity, row 7 is the first",
        ),
        (UNIT, np.where(np.arange(60) == 5, 2, HALF), "label 5 is 2; labels must be 0"),
        (UNIT, np.where(np.arange(60) == 5, np.nan, HALF), "label 5 is nan"),
        (UNIT, np.arange(60) < 19, "19 of 60 images are unsafe; each class needs at least 20"),
        (UNIT, np.arange(60) > 18, "19 of 60 images are safe"),
        (UNIT, np.array(["safe", "nsfw"] * 30), "must be a .npy file of numbers"),
    ],
)
def test_bad_files_are_one_line(embeddings, labels, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        read_examples(*saved(tmp_path, embeddings, labels))
    assert "\n" not in str(error.value)


def test_files_that_are_no_arrays(tmp_path):
    (tmp_path / "text.npy").write_text("hello")
    np.savez(tmp_path / "many.npz", a=HALF)
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    for name in ("missing.npy", "text.npy", "many.npz", "objects.npy"):
        with pytest.raises(ValueError, match=name) as error:
            read_examples(tmp_path / name, tmp_path / name)
        assert "\n" not in str(error.value)


def test_embeddings_of_another_length_are_warned_about(tmp_path):
    with pytest.warns(UserWarning, match="lengths are 2 to 2, but the reward gives"):
        read_examples(*saved(tmp_path, 2 * UNIT, HALF))


@pytest.mark.parametrize(
    "values", [{"hidden": (0,)}, {"epochs": 0}, {"dropout": 1.0}, {"learning_rate": 0}, {"weight_decay": -1}]
)
def test_settings_are_checked(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        FitSettings(**values)
