"""Planted particles go through tile, merge, cluster, extract and vote, and come back in place.

The networks are played by the truth: the segment shards hold a core for each particle, the
classes file its labels.
"""

import json
import math

import h5py
import numpy as np
import pytest
import yaml

from tomoline.contracts import PARTICLE_COLUMNS, TilePlan, VolumeTransform
from tomoline.errors import InputError
from tomoline.io.mrc import open_volume, read_header, write_volume
from tomoline.io.stacks import write_stack
from tomoline.io.subtomograms import open_subtomograms, write_classes, write_views
from tomoline.io.tables import read_candidates, read_particles
from tomoline.kernels.memory import bytes_per_voxel
from tomoline.networks.cards import Domain, ModelCard, Range, Sift, load_card, write_card
from tomoline.ops.patches import box_starts
from tomoline.settings import (
    ClusterSettings,
    ExtractSettings,
    MergeSettings,
    SegmentSettings,
    TilingSettings,
    VoteSettings,
)
from tomoline.stages import cluster, extract, merge, tile, vote
from tomoline.stages.memory import Available

SHAPE = (24, 50, 61)
SCALE, OFFSET = 10.0 / 13.5, 0.25
CLASSES = ["background", "small", "large"]
# Centre zyx in prepared voxels, radius, class; some across seams, one at the border, two touching.
PARTICLES = [
    ((6.0, 8.0, 9.0), 3, 1),
    ((10.3, 25.4, 30.2), 6, 2),
    ((12.0, 40.0, 30.0), 3, 1),
    ((12.0, 40.0, 36.0), 3, 1),
    ((18.7, 12.2, 48.1), 6, 2),
    ((21.0, 46.0, 57.0), 3, 1),
]
DATASET = {"name": "set", "sheet": "set.tsv", "tilt_series_pixel_size_angstrom": 3.375}


def _distance(centre, shape=SHAPE):
    grid = np.indices(shape)
    return np.sqrt(sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)))


def _card(folder, role, **fields):
    folder.mkdir(parents=True)
    card = ModelCard(
        name=folder.name, network="msdnet", parameters={"depth": 3, "width": 2}, role=role,
        classes=CLASSES if role == "classifier" else ["background", "particle"],
        voxel_size_angstrom=10.0, voxel_size_range_angstrom=(9.0, 11.0), n_parameters=1, **fields,
    )  # fmt: skip
    (folder / "card.yaml").write_text(yaml.safe_dump(card.model_dump(mode="json")))
    return folder / "card.yaml"


@pytest.fixture
def line(tmp_path):
    """Cards, transform and prepared volume, and where everything else is going to lie."""
    files = {
        "localizer": _card(tmp_path / "loc", "localizer", threshold=0.5, bandwidth_vox=3.0,
                           receptive_field_vox=13),
        "classifier": _card(tmp_path / "cls", "classifier", box_vox=20, receptive_field_vox=13),
    }  # fmt: skip
    for name in ("prepared.json", "prepared.mrc", "plan.json", "probability.mrc", "mask.mrc",
                 "candidates.csv", "subtomograms.h5", "classes.h5", "particles.csv",
                 "segmentation.mrc.gz", "domain.json"):  # fmt: skip
        files[name] = tmp_path / "r" / name
    files["prepared.mrc"].parent.mkdir()
    VolumeTransform(
        source="t.mrc", file_shape=(20, 40, 48), given_shape_zyx=(20, 40, 48),
        prepared_shape_zyx=SHAPE, given_voxel_size_angstrom=13.5,
        prepared_voxel_size_angstrom=10.0, scale_zyx=(SCALE,) * 3, offset_zyx=(OFFSET,) * 3,
    ).save(files["prepared.json"])  # fmt: skip
    volume = np.random.default_rng(0).normal(0, 1, SHAPE).astype(np.float32)
    write_volume(files["prepared.mrc"], volume, 10.0)
    return files


def _tile(line, **settings):
    tile.run(
        {"transform": line["prepared.json"], "card": line["localizer"]},
        {"plan": line["plan.json"]}, settings=TilingSettings(**settings),
    )  # fmt: skip
    return TilePlan.load(line["plan.json"])


def _segment(line, plan, particles, shards=2):
    """Cores of half the radius, soft at the edge, as the localizer marks them."""
    probability = np.full(SHAPE, 0.02, np.float32)
    for centre, radius, _ in particles:
        core = 0.95 / (1 + np.exp(3 * (_distance(centre) - radius / 2 - 0.5)))
        probability = np.maximum(probability, core)
    paths = []
    for k in range(1, shards + 1):
        paths.append(line["plan.json"].parent / f"{k}-of-{shards}.h5")
        with h5py.File(paths[-1], "w") as file:
            for t in plan.shard(k, shards):
                box = tuple(slice(a, b) for a, b in zip(t.read_start, t.read_stop, strict=True))
                file[f"tile_{t.index}"] = np.rint(255 * probability[box]).astype(np.uint8)
    return paths, (np.rint(255 * probability) / 255).astype(np.float32)


def _merge(line, shards, *, sifted_from=None, **settings):
    merge.run(
        {"transform": line["prepared.json"], "plan": line["plan.json"],
         "volume": line["prepared.mrc"], "card": line["localizer"], "shards": shards},
        {"probability": line["probability.mrc"], "mask": line["mask.mrc"]},
        settings=MergeSettings(**settings), sifted_from=sifted_from,
    )  # fmt: skip


def _cluster_and_extract(line, **settings):
    cluster.run(
        {"probability": line["probability.mrc"], "mask": line["mask.mrc"],
         "volume": line["prepared.mrc"], "transform": line["prepared.json"],
         "card": line["localizer"]},
        {"candidates": line["candidates.csv"], "domain": line["domain.json"]},
        settings=ClusterSettings(**settings),
    )  # fmt: skip
    extract.run(
        {"candidates": line["candidates.csv"], "volume": line["prepared.mrc"],
         "card": line["classifier"]},
        {"subtomograms": line["subtomograms.h5"]}, settings=ExtractSettings(),
    )  # fmt: skip


def _classify(line, particles):
    """Label every particle in every box, neighbours too, as the classifier does."""
    labels = np.zeros([n + 40 for n in SHAPE], np.uint8)
    for centre, radius, label in particles:
        labels[_distance(np.array(centre) + 20, labels.shape) <= radius] = label
    soft = (np.arange(3)[:, None, None, None, None] == labels).astype(np.uint8)[:, 0] * 255
    with open_subtomograms(line["subtomograms.h5"]) as boxes:
        table = read_candidates(line["candidates.csv"])
        table = table[table["status"] == "accepted"]
        centres = table[extract.CENTRE_COLUMNS].to_numpy()
        starts = np.rint(centres - boxes.centre_zyx).astype(int) + 20
        cuts = [tuple(slice(a, a + boxes.box_vox) for a in start) for start in starts]
        write_classes(
            line["classes.h5"], ((labels[c], soft[(slice(None), *c)]) for c in cuts),
            candidate_id=boxes.candidate_id, centre_zyx=boxes.centre_zyx, box_vox=boxes.box_vox,
            classes=CLASSES,
        )  # fmt: skip


def _vote(line, dataset=DATASET, more=None, **settings):
    vote.run(
        {"candidates": line["candidates.csv"], "classes": line["classes.h5"],
         "transform": line["prepared.json"], "localizer": line["localizer"],
         "classifier": line["classifier"], **(more or {})},
        {"particles": line["particles.csv"], "segmentation": line["segmentation.mrc.gz"]},
        settings=VoteSettings(**settings), tomogram="t1", dataset=dataset,
    )  # fmt: skip
    return read_particles(line["particles.csv"])


def _whole_line(line, particles, *, tiling=None, **settings):
    plan = _tile(line, **(tiling or {"size_vox": 32, "halo_vox": 6}))
    shards, _ = _segment(line, plan, particles)
    _merge(line, shards)
    _cluster_and_extract(line, **settings)
    _classify(line, particles)
    return _vote(line)


@pytest.mark.parametrize(
    "tiling",
    [{"size_vox": 32, "halo_vox": 6}, {"size_vox": 20, "halo_vox": 5}, {"size_vox": 128}],
)
def test_planted_particles_come_back_where_they_were(line, tiling):
    table = _whole_line(line, PARTICLES, tiling=tiling)
    truth = np.array([np.array(c) * SCALE + OFFSET for c, _, _ in PARTICLES])
    found = table[["z_vox", "y_vox", "x_vox"]].to_numpy()
    assert found.shape == truth.shape
    distance = np.linalg.norm(found[:, None] - truth[None], axis=2)
    nearest = distance.argmin(axis=0)
    assert sorted(nearest) == list(range(len(truth)))
    # A core is some voxels wide: its centroid is the centre to a tenth of a voxel, or so.
    assert distance.min(axis=0).max() < 0.2
    names = [CLASSES[label] for _, _, label in PARTICLES]
    assert list(table["class"].iloc[nearest]) == names
    assert (table["status"] == "accepted").all()
    assert (table["vote_share"] == 1).all() and (table["margin"] == 1).all()
    np.testing.assert_allclose(table["p_small"] + table["p_large"], 1)
    assert (table["tomogram"] == "t1").all()
    assert (table["binning"] == 4).all()
    assert (table[["tomogram_nz", "tomogram_ny", "tomogram_nx"]] == [20, 40, 48]).all(axis=None)
    assert (table["voxel_size_angstrom"] == 13.5).all()
    labels = np.asarray(open_volume(line["segmentation.mrc.gz"]))
    true = np.zeros(SHAPE, np.uint8)
    for centre, radius, label in PARTICLES:
        true[_distance(centre) <= radius] = label
    assert (labels == true)[labels > 0].mean() > 0.99
    assert (labels > 0).sum() > 0.9 * (true > 0).sum()


def test_seams_do_not_show_and_outputs_are_volumes_with_a_voxel_size(line):
    plan = _tile(line, size_vox=20, halo_vox=5)
    assert len(plan.tiles) > 20
    shards, probability = _segment(line, plan, PARTICLES)
    _merge(line, shards)
    np.testing.assert_array_equal(open_volume(line["probability.mrc"]), probability)
    np.testing.assert_array_equal(open_volume(line["mask.mrc"]), probability >= 0.5)
    assert read_header(line["mask.mrc"]).mode == 0
    assert read_header(line["probability.mrc"]).voxel_size_angstrom == pytest.approx(10.0)
    assert not [p.name for p in line["mask.mrc"].parent.iterdir() if p.name.startswith(".")]


def test_equal_inputs_give_equal_bytes(line):
    names = ["plan.json", "probability.mrc", "mask.mrc", "candidates.csv", "subtomograms.h5",
             "particles.csv"]  # fmt: skip
    _whole_line(line, PARTICLES)
    first = {name: line[name].read_bytes() for name in names}
    _whole_line(line, PARTICLES)
    assert {name: line[name].read_bytes() for name in names} == first


def test_an_empty_tomogram_gives_valid_empty_files(line):
    table = _whole_line(line, [])
    assert len(table) == 0
    assert list(table.columns)[-2:] == ["p_small", "p_large"]
    assert line["candidates.csv"].read_text().count("\n") == 1
    with open_subtomograms(line["subtomograms.h5"]) as boxes:
        assert boxes.boxes.shape == (0, 20, 20, 20)


def test_rejects_pass_through_with_their_reasons(line):
    table = _whole_line(line, PARTICLES, min_size_vox=60)
    small = table[table["reason"] == "smaller than 60 voxels"]
    assert 0 < len(small) < len(table) == len(PARTICLES)
    assert (small["status"] == "rejected").all() and (small["class"] == "").all()
    assert (small["size_vox"] < 60).all()
    assert list(table["particle_id"]) == list(range(1, len(table) + 1))
    everything = _whole_line(line, PARTICLES, min_score=1.0)
    assert (everything["reason"] == "score below 1").all()


def test_a_centre_without_labels_and_a_small_share_are_rejects(line):
    _whole_line(line, PARTICLES)
    _classify(line, PARTICLES[1:])
    table = _vote(line)
    assert list(table["reason"]).count("no labelled voxels at the centre") == 1
    assert table.loc[table["reason"] != "", "p_small"].sum() == 0
    mixed = [(c, r, 1) for c, r, _ in PARTICLES]
    mixed.append((PARTICLES[1][0], 3.5, 2))  # an inner ball of another class
    _classify(line, mixed)
    share = _vote(line).loc[lambda t: t["margin"] < 1]
    assert len(share) == 1
    rejected = _vote(line, min_vote_share=float(share["vote_share"].iloc[0]) + 0.01)
    assert next(r for r in rejected["reason"] if r).startswith("vote share below 0.")
    # Its votes stay on record.
    assert rejected.loc[rejected["reason"] != "", "vote_share"].iloc[0] > 0.5


def _masks_of(line, radius, edge=12):
    """A stack of masks, balls of a radius about each candidate, but nothing for the first."""
    table = read_candidates(line["candidates.csv"])
    centres = table[extract.CENTRE_COLUMNS].to_numpy()[table["status"] == "accepted"]
    balls = [_distance(c - box_starts(c[None], edge)[0], (edge,) * 3) <= radius for c in centres]
    balls[0][:] = False
    path = line["classes.h5"].parent / "masks.mrc"
    write_stack(path, balls, box_vox=edge, voxel_size_angstrom=10.0, kind=np.int8)
    return path, balls, centres


@pytest.mark.parametrize("whole", [False, True])
def test_where_masks_are_given_their_voxels_alone_are_the_particles(line, whole):
    before = _whole_line(line, PARTICLES)
    if whole:
        _recard(line["classifier"], network="dsmnet")
        _named(line, lambda c: [[0.1, 0.8, 0.1]] * 2)
        before = _vote(line)
    plain = np.asarray(open_volume(line["segmentation.mrc.gz"])) > 0
    path, balls, centres = _masks_of(line, 2.0)
    table = _vote(line, more={"masks": path})
    assert table["class"].tolist() == before["class"].tolist()
    found = np.asarray(open_volume(line["segmentation.mrc.gz"])) > 0
    wanted = np.zeros(SHAPE, bool)
    for ball, centre in zip(balls, centres, strict=True):
        places = np.argwhere(ball) + box_starts(centre[None], 12)[0]
        wanted[tuple(places[((places >= 0) & (places < SHAPE)).all(1)].T)] = True
    assert wanted[tuple(np.rint(centres[1]).astype(int))]
    apart = _distance(centres[0]) > 8  # the first has no mask, and keeps what it had
    np.testing.assert_array_equal(found & apart, wanted & apart)
    np.testing.assert_array_equal(found & ~apart, plain & ~apart)
    write_stack(path, balls[1:], box_vox=12, voxel_size_angstrom=10.0, kind=np.int8)
    with pytest.raises(InputError, match="accepted candidates"):
        _vote(line, more={"masks": path})


def _recard(path, **fields):
    """Write other fields into a card."""
    write_card(path, load_card(path).model_copy(update=fields))


def test_a_calibrated_model_adds_the_expected_precision_and_softens_probabilities(line):
    plain = _whole_line(line, PARTICLES)
    assert "expected_precision" not in plain  # a card of an older release
    _recard(line["localizer"], precision_curve=[(0.0, 0.1), (1.0, 0.9)])
    _recard(line["classifier"], temperature=4.0)
    table = _vote(line)
    np.testing.assert_allclose(table["expected_precision"], 0.1 + 0.8 * table["score"], atol=1e-5)
    assert list(table["class"]) == list(plain["class"])
    np.testing.assert_allclose(table["p_small"] + table["p_large"], 1, atol=1e-5)
    named = table.apply(lambda row: row[f"p_{row['class']}"], axis=1)
    # All of 1 and nothing known below half a byte: 1 : (1/510) ** (1/4).
    np.testing.assert_allclose(named, 1 / (1 + (1 / 510) ** 0.25), atol=1e-5)
    assert list(table.columns) == [*PARTICLE_COLUMNS, "expected_precision", "p_small", "p_large"]


def _named(line, views):
    """What a network of whole subtomograms says: `views` (V, C) of each by its place."""
    with open_subtomograms(line["subtomograms.h5"]) as boxes:
        table = read_candidates(line["candidates.csv"])
        centres = table.loc[table["status"] == "accepted", extract.CENTRE_COLUMNS].to_numpy()
        write_views(
            line["classes.h5"], [np.asarray(views(c), np.float32) for c in centres],
            candidate_id=boxes.candidate_id, centre_zyx=boxes.centre_zyx, box_vox=boxes.box_vox,
            views=2, classes=CLASSES,
        )  # fmt: skip


def test_a_classifier_of_whole_subtomograms_names_and_sifts(line):
    plain = _whole_line(line, PARTICLES)
    sifted = np.array(PARTICLES[0][0])

    def views(centre):
        if np.linalg.norm(centre - sifted) < 2:
            return [[0.7, 0.2, 0.1], [0.5, 0.2, 0.3]]
        return [[0.1, 0.6, 0.3], [0.1, 0.7, 0.2]]

    _recard(line["classifier"], network="dsmnet")
    _named(line, views)
    table = _vote(line)
    assert len(table) == len(plain) and (table["status"] == "rejected").sum() == 1
    (rejected,) = table[table["status"] == "rejected"].to_dict("records")
    assert rejected["reason"] == "background to the classifier" and not rejected["class"]
    # What it might have been stays on record.
    assert rejected["p_small"] == pytest.approx(0.5) and rejected["vote_share"] == 0.5
    kept = table[table["status"] == "accepted"]
    assert set(kept["class"]) == {"small"} and (kept["vote_share"] == 1).all()
    np.testing.assert_allclose(kept["p_small"], 0.65 / 0.9, atol=1e-5)
    np.testing.assert_allclose(kept["margin"], 0.4 / 0.9, atol=1e-5)
    labels = np.asarray(open_volume(line["segmentation.mrc.gz"]))
    for centre, _, _ in PARTICLES:
        here = labels[tuple(np.rint(centre).astype(int))]
        assert here == (0 if np.linalg.norm(np.array(centre) - sifted) < 2 else 1)
    every = _vote(line, min_probability=0.0)
    assert (every["status"] == "accepted").all()
    few = _vote(line, min_probability=0.0, min_vote_share=0.6)
    assert (few["reason"] == "vote share below 0.6").sum() == 1


def test_a_classifier_fitted_to_the_localizer_gives_the_score(line):
    plain = _whole_line(line, PARTICLES)
    odd = np.array(PARTICLES[0][0])
    _named(line, lambda c: [[0.6 if np.linalg.norm(c - odd) < 2 else 0.1, 0.3, 0.1]] * 2)
    sift = Sift(localizer_sha256="x" * 64, threshold=0.6, least=0.5, intercept=0.0, score=0.0,
                background=1.0)  # fmt: skip
    _recard(line["localizer"], weights_sha256="x" * 64)
    _recard(line["classifier"], network="dsmnet", sift=sift)
    table = _vote(line)
    # Without the score's weight the odds are those against background.
    found = table.set_index("particle_id")["score"].to_numpy()
    assert sorted(set(np.round(found, 4))) == [0.4, 0.9]
    np.testing.assert_allclose(table["expected_precision"], table["score"], atol=1e-5)
    assert (table["status"] == "rejected").sum() == 1 and len(table) == len(plain)
    assert (_vote(line, min_probability=0.3)["status"] == "accepted").all()
    assert (_vote(line, min_probability=0.95)["status"] == "rejected").all()
    # It asks for more candidates than the localizer alone would give.
    assert merge.sifting_threshold(line["localizer"], line["classifier"]) == 0.6
    _recard(line["localizer"], weights_sha256="y" * 64)
    assert merge.sifting_threshold(line["localizer"], line["classifier"]) is None


def test_the_classifiers_threshold_marks_more_voxels(line):
    plan = _tile(line, size_vox=128)
    shards, probability = _segment(line, plan, PARTICLES)
    marked = {}
    for name, given in {"own": {}, "sifted": {"sifted_from": 0.2}}.items():
        _merge(line, shards, **given)
        marked[name] = int(np.asarray(open_volume(line["mask.mrc"])).sum())
    assert marked == {"own": (probability >= 0.5).sum(), "sifted": (probability >= 0.2).sum()}
    merged = {"threshold": 0.9, "sifted_from": 0.2}
    _merge(line, shards, **merged)
    assert np.asarray(open_volume(line["mask.mrc"])).sum() == (probability >= 0.9).sum()


def test_candidates_of_a_lower_threshold_are_not_what_the_domain_is_judged_by(line):
    plan = _tile(line, size_vox=128)
    shards, _ = _segment(line, plan, PARTICLES)
    told = []
    for given in ({}, {"sifted_from": 0.2}):
        _merge(line, shards, **given)
        _cluster_and_extract(line)
        told.append(json.loads(line["domain.json"].read_text())["statistics"])
    assert told[0] == told[1]


def test_what_was_sifted_out_takes_no_voxels_from_its_neighbours(line):
    _whole_line(line, PARTICLES)
    _recard(line["classifier"], network="dsmnet")
    touching = np.array([12.0, 40.0, 30.0]), np.array([12.0, 40.0, 36.0])
    maps = []
    for background in (0.1, 0.9):
        _named(line, lambda c, b=background: [
            [b if np.linalg.norm(c - touching[1]) < 2 else 0.1, 0.05, 0.05]] * 2)  # fmt: skip
        _vote(line)
        maps.append(np.asarray(open_volume(line["segmentation.mrc.gz"])) > 0)
    beyond = (12, 40, 34)  # nearer to the second
    assert maps[0][beyond] and maps[1][beyond]
    assert maps[1][12, 40, 30] and maps[1].sum() < maps[0].sum()


def test_views_that_are_not_what_they_should_be_are_refused(line):
    _whole_line(line, PARTICLES)
    _named(line, lambda centre: [[0.1, 0.6, 0.3]] * 2)
    with h5py.File(line["classes.h5"], "a") as file:
        file.attrs["classes"] = ["background", "small"]
    with pytest.raises(InputError, match=r"views of \(particles, views, classes\)"):
        _vote(line)
    with h5py.File(line["classes.h5"], "a") as file:
        del file["views"]
    with pytest.raises(
        InputError, match="the data sets labels, probabilities, or views; found no labels, prob"
    ):
        _vote(line)


def test_the_domain_is_judged_where_the_probabilities_are(line, caplog):
    _whole_line(line, PARTICLES)
    told = json.loads(line["domain.json"].read_text())
    assert told["in_domain"] == "doubtful"  # 13.5 A, and a card that says nothing else
    assert told["reason"].startswith("Pixel size differs: 13.5 A")
    assert told["statistics"]["candidates"] == len(PARTICLES)
    assert 0 < told["statistics"]["marked_share"] < 0.05
    assert "Pixel size differs" in caplog.text
    names = {"marked_share": Range(low=0.2, median=0.3, high=0.4)}
    _recard(line["localizer"], voxel_size_range_angstrom=(9.0, 14.0),
            domain=Domain(source="x", tomograms=5, statistics=names))  # fmt: skip
    _cluster_and_extract(line)
    assert json.loads(line["domain.json"].read_text())["in_domain"] == "yes"


def test_without_a_tilt_series_the_tomogram_is_taken_as_unbinned(line):
    _whole_line(line, PARTICLES)
    table = _vote(line, dataset={"name": "set", "sheet": "set.tsv"})
    assert (table["binning"] == 1).all()


def test_boxes_hold_the_volume_about_the_centre_and_its_mean_outside(line):
    _whole_line(line, PARTICLES)
    volume = open_volume(line["prepared.mrc"])
    table = read_candidates(line["candidates.csv"])
    with open_subtomograms(line["subtomograms.h5"]) as boxes:
        assert boxes.voxel_size_angstrom == pytest.approx(10.0)
        for k, centre in enumerate(table[extract.CENTRE_COLUMNS].to_numpy()):
            voxel = np.floor(centre + 0.5).astype(int)
            assert boxes.boxes[k][10, 10, 10] == volume[tuple(voxel)]
            np.testing.assert_allclose(boxes.centre_zyx[k], 10 + centre - voxel, atol=1e-6)
        corner = boxes.boxes[len(table) - 1][-1, -1, -1]
        assert corner == pytest.approx(volume.mean(dtype=np.float64), abs=1e-6)


def test_a_halo_that_does_not_fit_is_shortened_with_a_warning_but_not_if_it_was_asked_for(
    line, caplog
):
    plan = _tile(line, size_vox=12)  # the card's network looks 6 voxels far
    assert plan.halo_vox == 3
    assert "the halo is shortened to 3" in caplog.text
    with pytest.raises(InputError, match="halo_vox"):
        _tile(line, size_vox=12, halo_vox=6)


def plan_of_card(memory, *, shape=(200, 512, 512), modest_bytes=math.inf, **fields):
    """Windows of a localizer that takes 1,000 bytes a voxel, by its card."""
    card = ModelCard(
        name="x", network="msdnet", parameters={"depth": 8, "width": 16}, role="localizer",
        classes=["background", "particle"], voxel_size_angstrom=10.0, threshold=0.5,
        voxel_size_range_angstrom=(9.0, 11.0), bandwidth_vox=3.0, n_parameters=1,
        **({"receptive_field_vox": 41} | fields),
    )  # fmt: skip
    return tile.make_plan(
        shape, card, TilingSettings(), memory_bytes=memory, per_voxel=1000.0,
        modest_bytes=modest_bytes,
    )  # fmt: skip


def test_little_memory_gives_small_windows():
    plan = plan_of_card(8e9)
    assert plan.halo_vox == 20
    for t in plan.tiles:
        assert math.prod(b - a for a, b in zip(t.read_start, t.read_stop, strict=True)) <= 8e6
    assert len(plan_of_card(8e9, shape=(20, 60, 60)).tiles) == 1
    tiny = plan_of_card(20e6)
    assert tiny.halo_vox < 20  # shortened
    with pytest.raises(InputError, match="memory for windows of at least"):
        plan_of_card(1e6)


@pytest.mark.parametrize(
    ("memory", "precision", "like"),
    [
        (Available(8e10, on_gpu=True, capability=9.0), "auto", {"code": "triton", "itemsize": 2}),
        (Available(8e10, on_gpu=True, capability=9.0), "float32", {"code": "triton"}),
        # Older GPUs, and processors without bfloat16 that are told to use it, run plain layers.
        (Available(1e10, on_gpu=True, capability=7.5), "auto", {"code": "plain", "itemsize": 2}),
        (Available(1e10, on_gpu=False), "auto", {"code": "cpu"}),
        (Available(1e10, on_gpu=False), "bfloat16", {"code": "plain", "itemsize": 2}),
    ],
)
def test_a_window_is_counted_with_the_code_that_will_run_it(line, monkeypatch, memory, precision,
                                                            like):  # fmt: skip
    monkeypatch.setattr(tile, "cpu_has_bfloat16", lambda: False)
    card = load_card(line["localizer"])
    runs = SegmentSettings(precision=precision, test_time_flips=4)
    assert tile.window_bytes(card, runs, memory) == bytes_per_voxel(card, flips=4, **like)


def test_maps_lie_in_pairs_and_thin_volumes_have_wide_margins(line):
    card = load_card(line["localizer"])
    narrow = card.model_copy(update={"parameters": {"depth": 49, "width": 1}})
    even = card.model_copy(update={"parameters": {"depth": 49, "width": 2}})
    assert bytes_per_voxel(narrow, code="cpu", itemsize=2) == bytes_per_voxel(
        even, code="cpu", itemsize=2
    )
    thin = bytes_per_voxel(even, code="cpu", itemsize=2, shape=(1, 2048, 2048))
    assert thin > 6 * bytes_per_voxel(even, code="cpu", itemsize=2, shape=(300, 300, 300))


def test_windows_are_modest_where_that_costs_little():
    def largest(**fields):
        plan = plan_of_card(40e9, modest_bytes=5e9, **fields)
        return max(np.subtract(t.read_stop, t.read_start).prod() for t in plan.tiles)

    assert largest(receptive_field_vox=21) <= 5e6
    assert largest(receptive_field_vox=121) > 5e6  # a halo of 60 in windows of 170


def test_a_measured_halo_is_taken_where_the_exact_one_costs_too_much_or_does_not_fit(caplog):
    fields = {"receptive_field_vox": 477, "halo_vox": 30}
    assert plan_of_card(1e12, **fields).halo_vox == 238  # one window: costs nothing
    assert "a halo of" not in caplog.text
    assert plan_of_card(20e9, **fields).halo_vox == 30
    assert "a halo of 30 is taken" in caplog.text
    assert plan_of_card(20e9, receptive_field_vox=477).halo_vox not in (238, 30)  # shortened
    assert plan_of_card(20e9, receptive_field_vox=31, halo_vox=12).halo_vox == 15  # cheap


def test_shards_that_do_not_make_up_the_plan_are_refused(line):
    plan = _tile(line, size_vox=32, halo_vox=6)
    shards, _ = _segment(line, plan, PARTICLES)
    with pytest.raises(InputError, match="missing, such as tile_1"):
        _merge(line, shards[:1])
    with pytest.raises(InputError, match="again"):
        _merge(line, [*shards, shards[0]])
    assert not line["mask.mrc"].exists()
    raw = json.loads(line["plan.json"].read_text())
    raw["shape_zyx"][0] += 1
    line["plan.json"].write_text(json.dumps(raw))
    with pytest.raises(InputError, match="a plan of"):
        _merge(line, shards)


def test_classes_of_other_candidates_are_refused(line):
    _whole_line(line, PARTICLES)
    _cluster_and_extract(line, min_size_vox=60)
    with pytest.raises(InputError, match="accepted candidates"):
        _vote(line)


def test_opening_takes_thin_things_out(line):
    plan = _tile(line, size_vox=32, halo_vox=6)
    shards, _ = _segment(line, plan, PARTICLES)
    _merge(line, shards, opening_radius_vox=2)
    _cluster_and_extract(line)
    table = read_candidates(line["candidates.csv"])
    assert len(table) == 2  # the cores of the two large ones


def test_settings_take_the_place_of_the_cards(line):
    plan = _tile(line, size_vox=32, halo_vox=6)
    shards, probability = _segment(line, plan, PARTICLES)
    _merge(line, shards, threshold=0.9)
    assert open_volume(line["mask.mrc"]).sum() == (probability >= 0.9).sum()
    _merge(line, shards)
    _cluster_and_extract(line, merge_distance_vox=8)
    assert len(read_candidates(line["candidates.csv"])) == len(PARTICLES) - 1
    with pytest.raises(InputError, match="threshold"):
        merge.run(
            {"transform": line["prepared.json"], "plan": line["plan.json"],
             "volume": line["prepared.mrc"], "card": line["classifier"], "shards": shards},
            {"probability": line["probability.mrc"], "mask": line["mask.mrc"]},
            settings=MergeSettings(),
        )  # fmt: skip
