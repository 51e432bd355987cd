"""`tomoline calibrate` on tomograms whose answer can be calculated."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_project import save_threshold_network, save_whole_network, write_tomogram

from tomoline import cli
from tomoline.errors import InputError
from tomoline.evaluation.calibration import expected_precision
from tomoline.evaluation.domain import judge
from tomoline.evaluation.sifting import Evidence, particle_probability
from tomoline.networks.cards import load_card, verify_weights
from tomoline.ops.statistics import grey_statistics
from tomoline.ops.votes import Vote, vote_of_views
from tomoline.stages import confidence
from tomoline.stages.confidence import from_folders, simulated
from tomoline.training.data import VALIDATION_SEED

DENSITIES = Path(__file__).parents[2] / "resources" / "densities"
SHAPE = (28, 56, 56)
PLACES = [(z, y, x) for z in (7, 20) for y in (8, 28, 48) for x in (8, 28, 48)]
RADIUS = 3.0


def write_folder(
    folder: Path, seed: int, *, listed: int = 16, first: int = 12, small: int = 0
) -> None:
    """18 dark balls, of which `listed` are particles, `first` of them of the first class; the
    last `small` have half the radius."""
    rng = np.random.default_rng(seed)
    volume, grid = rng.normal(0, 0.1, SHAPE), np.indices(SHAPE)
    centres = np.array(PLACES) + rng.uniform(-1, 1, (len(PLACES), 3))
    for k, centre in enumerate(centres):
        square = sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True))
        radius = RADIUS if k < len(centres) - small else RADIUS / 2
        volume[square <= radius**2] -= 3.0
    folder.mkdir(parents=True)
    write_tomogram(folder / "reconstruction.mrc", volume.astype(np.float32))
    lines = [
        f"{'dark' if k < first else 'light' if k < listed else 'vesicle'} {x} {y} {z} 0 0 0\n"
        for k, (z, y, x) in enumerate(centres)
    ]
    (folder / "particle_locations.txt").write_text("".join(lines))


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "resources" / "models"
    torch.manual_seed(0)
    save_threshold_network(folder / "loc", "localizer", ["background", "particle"])
    save_threshold_network(folder / "cls", "classifier", ["background", "dark", "light"])
    return folder


def test_calibrate_fills_the_cards_and_leaves_the_weights(models, tmp_path, capsys) -> None:
    for k in range(6):
        write_folder(tmp_path / f"model_{k}", k)
    before = {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in models.rglob("*.safetensors")}
    old = {name: load_card(models / name) for name in ("loc", "cls")}
    folders = [str(tmp_path / f"model_{k}") for k in range(6)]
    arguments = ["calibrate", "loc", "cls", "--project", str(tmp_path), "--folders", *folders]
    assert cli.main(arguments) == 0
    assert {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in before} == before
    localizer, classifier = (verify_weights(models / name) for name in ("loc", "cls"))
    kept = {"temperature", "precision_curve", "domain", "metrics"}
    for name, card in (("loc", localizer), ("cls", classifier)):
        assert card.model_dump(exclude=kept) == old[name].model_dump(exclude=kept)
    # 16 of 18 candidates are particles, whatever their score: a vesicle is none.
    figures = localizer.metrics["calibration"]
    assert figures["candidates"] == 6 * 18
    assert figures["precision"] == pytest.approx(16 / 18, abs=1e-4)
    assert figures["ece_expected_precision"] < figures["ece_score"] + 0.02
    assert expected_precision(np.array([0.97]), localizer.precision_curve) == pytest.approx(
        16 / 18, abs=0.03
    )
    # The classifier says "dark" for certain and is right in 12 of 16.
    figures = classifier.metrics["calibration"]
    assert figures["particles"] == 6 * 16 and figures["accuracy"] == 0.75
    assert figures["ece_before"] == pytest.approx(0.25, abs=0.01)
    assert figures["ece_after"] < 0.02
    assert classifier.temperature > 2
    assert localizer.domain.tomograms == 6
    assert localizer.domain.statistics["skewness"].high < 0
    assert "model_5" in localizer.domain.source
    text = capsys.readouterr().out
    assert "ece before: 0.25" in text and "expected precision" in text
    assert cli.main(["model", "cls", "--project", str(tmp_path)]) == 0
    assert "temperature" in capsys.readouterr().out


def test_too_little_gives_no_curve_and_no_domain_but_says_so(models, tmp_path, capsys) -> None:
    write_folder(tmp_path / "one", 1)
    arguments = ["calibrate", "loc", "cls", "--project", str(tmp_path)]
    assert cli.main([*arguments, "--folders", str(tmp_path / "one")]) == 0
    said = capsys.readouterr().err
    assert "no precision curve" in said and "no domain" in said and "no temperature" in said
    card = load_card(models / "loc")
    assert card.precision_curve is None and card.domain is None


def test_grey_values_alone_make_a_domain_and_no_network_runs(models, tmp_path, monkeypatch):
    monkeypatch.setattr(confidence, "SHAPE_ZYX", (40, 48, 48))
    (tmp_path / "resources" / "densities").symlink_to(DENSITIES)
    arguments = ["calibrate", "loc", "--project", str(tmp_path), "--grey", "6"]
    assert cli.main(arguments) == 0
    card = load_card(models / "loc")
    assert card.precision_curve is None
    assert card.domain.tomograms == 6 and len(card.domain.spectra) == 6
    assert "9000001 to 9000006; none was trained on" in card.domain.source
    assert "score_50" not in card.domain.statistics
    # Those of the following seeds are such tomograms; the other way round they are not.
    (known,) = simulated(card, DENSITIES, count=1, seed=9_000_020)
    assert judge(grey_statistics(-known.volume), card).in_domain == "no"


@pytest.mark.parametrize(
    ("names", "words"),
    [(["cls"], "a localizer and, if wanted"), (["loc", "loc"], "a localizer and, if wanted")],
)
def test_models_that_cannot_be_calibrated_are_refused(names, words, models, tmp_path, capsys):
    write_folder(tmp_path / "one", 1)
    folders = ["--folders", str(tmp_path / "one"), "--project", str(tmp_path)]
    assert cli.main(["calibrate", *names, *folders]) == 2
    assert words in capsys.readouterr().err
    assert cli.main(["calibrate", *names, "--project", str(tmp_path)]) == 2
    assert "either --folders" in capsys.readouterr().err


def test_seeds_of_the_training_and_other_voxel_sizes_are_refused(models, tmp_path) -> None:
    card = load_card(models / "loc").model_copy(update={"training": {"seed": 9}})
    with pytest.raises(InputError, match="none of 9,000,000 to 9,999,999"):
        next(simulated(card, DENSITIES, count=1, seed=9_000_001))
    confidence.check_seeds([card], 10_000_000, 50)
    confidence.check_seeds([card], 8_999_950, 50)
    with pytest.raises(InputError, match="9,000,000"):
        confidence.check_seeds([card], 8_999_951, 50)
    assert VALIDATION_SEED > 10_000_000
    write_folder(tmp_path / "one", 1)
    narrow = card.model_copy(update={"voxel_size_range_angstrom": (12.0, 14.0)})
    with pytest.raises(InputError, match="12 to 14 angstrom"):
        next(from_folders(narrow, [tmp_path / "one"]))


def opinions(seed: int, *, informed: bool) -> tuple[confidence.Found, list[Vote]]:
    """60 candidates at places of their own, half of them particles; 40 particles in all."""
    rng = np.random.default_rng(seed)
    hit = np.arange(60) % 2 == 0
    known = confidence.Known(
        name=str(seed), volume=np.empty((0, 0, 0), np.float32), centres_zyx=np.zeros((40, 3)),
        classes=["dark"] * 40,
    )  # fmt: skip
    found = confidence.Found(
        known=known, statistics={}, centres=np.zeros((60, 3)), score=rng.uniform(0.6, 0.9, 60),
        size_vox=np.full(60, 30), contrast=np.full(60, 9.0),
        true=np.where(hit, np.arange(60) // 2, -1),
    )  # fmt: skip
    background = np.where(hit, 0.02, 0.4) if informed else np.full(60, 0.2)
    background = background * rng.uniform(0.3, 2, 60)
    return found, [vote_of_views(np.array([[b, 1 - b]])) for b in background]


def test_candidates_are_sifted_where_it_gives_the_best_f1(models: Path) -> None:
    localizer, classifier = load_card(models / "loc"), load_card(models / "cls")
    tried = {
        0.5: [opinions(k, informed=True) for k in range(3)],
        0.7: [opinions(k, informed=False) for k in range(3)],
    }
    sift = confidence.with_sift(classifier, localizer, tried).sift
    assert sift is not None and sift.localizer_sha256 == localizer.weights_sha256
    assert sift.threshold == 0.5 and sift.background > 0.5
    found, votes = opinions(9, informed=True)
    background = np.array([vote.background for vote in votes])
    evidence = Evidence(found.score, background, found.contrast)
    kept = particle_probability(evidence, sift) >= sift.least
    # 30 of 40 particles are among the candidates: 2 * 30 / 70 where all are told right.
    assert 2 * (kept & (found.true >= 0)).sum() / (kept.sum() + 40) > 0.8
    assert (
        confidence.with_sift(classifier, localizer, tried).metrics["calibration"]["sifts"] == "loc"
    )


def test_too_few_candidates_sift_nothing(models: Path) -> None:
    localizer, classifier = load_card(models / "loc"), load_card(models / "cls")
    one = {0.5: [opinions(0, informed=True)]}  # a single tomogram
    assert confidence.with_sift(classifier, localizer, one) == classifier


def test_of_thresholds_that_are_as_good_the_highest_is_taken(models: Path) -> None:
    localizer, classifier = load_card(models / "loc"), load_card(models / "cls")
    same = [opinions(k, informed=True) for k in range(3)]
    sift = confidence.with_sift(classifier, localizer, {0.5: same, 0.6: same}).sift
    assert sift is not None and sift.threshold == 0.6
    # One particle more in the truth of 120: F1 falls by 0.004, more than the choice overlooks.
    found, votes = same[0]
    more = replace(found.known, centres_zyx=np.zeros((42, 3)), classes=["dark"] * 42)
    worse = [(replace(found, known=more), votes), *same[1:]]
    sift = confidence.with_sift(classifier, localizer, {0.5: same, 0.6: worse}).sift
    assert sift is not None and sift.threshold == 0.5


def test_a_classifier_of_wholes_is_fitted_to_what_the_localizer_finds(models, tmp_path, capsys):
    """5 of 18 dark spots a tomogram are specks: the localizer takes them, the classifier not."""
    save_whole_network(models / "whole", ["background", "dark", "light"])
    for k in range(5):
        write_folder(tmp_path / f"model_{k}", k, listed=13, first=13, small=5)
    folders = [str(tmp_path / f"model_{k}") for k in range(5)]
    arguments = ["calibrate", "loc", "whole", "--project", str(tmp_path), "--folders", *folders]
    assert cli.main(arguments) == 0
    localizer, whole = load_card(models / "loc"), load_card(models / "whole")
    assert localizer.metrics["calibration"]["precision"] == pytest.approx(13 / 18, abs=1e-4)
    sift = whole.sift_for(localizer)
    assert sift is not None and sift.threshold == 0.4 and sift.background > 0
    assert whole.metrics["calibration"]["f1_sifted"] == 1.0
    assert not whole.not_fitted(localizer)
    said = capsys.readouterr().out
    assert "particles from a probability of" in said
