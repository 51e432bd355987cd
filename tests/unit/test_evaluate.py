"""The evaluation as a whole, through its library entry and its stage."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny_project import save_whole_network

from tomoline.contracts import PARTICLE_COLUMNS, VolumeTransform
from tomoline.errors import InputError
from tomoline.evaluation.scores import evaluate_picks, with_picker
from tomoline.io.annotations import read_occupancy, read_truth
from tomoline.io.mrc import open_volume, write_volume
from tomoline.io.tables import read_particles, write_particles
from tomoline.ops.picking import dog_picks_at_scales
from tomoline.settings import EvaluateSettings
from tomoline.stages import evaluate

SETTINGS = EvaluateSettings()
SHAPE = (40, 40, 40)
CENTRES = np.array([(10, 10, 10), (10, 28, 10), (28, 10, 28), (28, 28, 28)], float)
NAMES = ["1BXN", "1BXN", "4V94", "4V94"]


def truth(**columns: object) -> pd.DataFrame:
    table = pd.DataFrame(CENTRES, columns=["z_vox", "y_vox", "x_vox"])
    return table.assign(**{"id": [1, 2, 3, 4], "class": NAMES} | columns)


def picks(zyx: np.ndarray, names: list[str]) -> pd.DataFrame:
    table = pd.DataFrame(zyx, columns=["z_vox", "y_vox", "x_vox"])
    return table.assign(**{"class": names, "status": "accepted"})


def balls(radius: float = 3.0) -> np.ndarray:
    grid = np.stack(np.mgrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]], axis=-1)
    volume = np.zeros(SHAPE, np.uint16)
    for n, centre in enumerate(CENTRES, 1):
        volume[((grid - centre) ** 2).sum(-1) <= radius**2] = n
    return volume


def test_all_measures_of_a_small_case_by_hand() -> None:
    """Three of four found, one of them called wrong, one pick in the void."""
    zyx = np.vstack([CENTRES[:3] + np.eye(3)[0], [[20, 20, 20]]])
    result = evaluate_picks(
        picks(zyx, ["1bxn", "4v94", "4v94", "1bxn"]), truth(), occupancy=balls(), settings=SETTINGS
    )
    for score in (result.one_to_one, result.shrec):
        assert (score.tp, score.fp, score.fn) == (3, 1, 1)
        assert score.f1 == pytest.approx(0.75)
        assert score.ad_vox == pytest.approx(1)
    assert result.shrec_ceiling.recall == 1
    # 1bxn: 1 of 2 right; 4v94: 1 of 2 right. Names compare whatever their case.
    assert result.one_to_one_classes.mean_accuracy == pytest.approx(0.5)
    assert result.shrec_classes.table["right"].tolist() == [1, 1]
    # Within half the radius (about 1.5 voxels) all three count too; F-beta of P = R = 0.75.
    assert result.czii.f_beta == pytest.approx(0.75)
    # By class: 1bxn 1 of 2 picks, 1 of 2 particles; 4v94 1 of 2 and 1 of 2.
    assert result.czii.mean_class_f_beta == pytest.approx(0.5)


def test_rejected_particles_do_not_count() -> None:
    table = picks(CENTRES, NAMES)
    table.loc[3, "status"] = "rejected"
    result = evaluate_picks(table, truth(), settings=SETTINGS)
    assert result.one_to_one.predictions == 3


def test_radii_of_the_truth_decide_the_czii_distance() -> None:
    near = evaluate_picks(
        picks(CENTRES + 1.9 * np.eye(3)[0], NAMES), truth(radius_vox=4.0), settings=SETTINGS
    )
    far = evaluate_picks(
        picks(CENTRES + 2.1 * np.eye(3)[0], NAMES), truth(radius_vox=4.0), settings=SETTINGS
    )
    assert (near.czii.f_beta, far.czii.f_beta) == (1, 0)
    assert near.czii.radius_from == "truth file"


def test_without_occupancy_radius_or_classes_the_rest_remains() -> None:
    table = picks(CENTRES, NAMES).drop(columns="class")
    result = evaluate_picks(table, truth(**{"class": ""}), settings=SETTINGS)
    assert result.one_to_one.f1 == 1
    assert result.shrec is None and result.czii is None and result.one_to_one_classes is None
    assert json.dumps(result.to_json(), allow_nan=False)
    assert result.class_table().empty and result.confusion().empty


def test_hollow_particles_lower_the_ceiling() -> None:
    """A shell of radius 3 does not hold its own centre, even dilated; one-to-one does not mind."""
    shells = balls(4.0)
    shells[balls(2.5) > 0] = 0
    result = evaluate_picks(picks(CENTRES, NAMES), truth(), occupancy=shells, settings=SETTINGS)
    assert result.shrec_ceiling.recall == 0
    assert result.one_to_one.recall == 1


@pytest.mark.parametrize("which", ["picks", "truth", "both"])
def test_nothing_is_legal(which: str) -> None:
    table, true = picks(CENTRES, NAMES), truth()
    if which != "truth":
        table = table[:0]
    if which != "picks":
        true = true[:0]
    result = evaluate_picks(table, true, occupancy=balls(), settings=SETTINGS)
    assert result.one_to_one.f1 == 0
    assert json.dumps(result.to_json(), allow_nan=False)


def test_the_best_scale_stands_beside() -> None:
    volume = np.zeros(SHAPE, np.float32)
    volume[balls() > 0] = -1
    candidates = dog_picks_at_scales(volume, number=4)
    result = evaluate_picks(picks(CENTRES, NAMES), truth(), occupancy=balls(), settings=SETTINGS)
    assert result.dog is None
    result = with_picker(result, candidates, truth(), occupancy=balls(), settings=SETTINGS)
    assert result.dog.one_to_one.f1 == 1
    assert result.dog.shrec.f1 == 1


def stage_inputs(folder: Path, scale: float = 1.0) -> dict[str, str]:
    """A prepared volume, its transform, particles.csv, truth in SHREC's layout and occupancy."""
    prepared = np.zeros(SHAPE, np.float32)
    prepared[balls() > 0] = -1
    write_volume(folder / "prepared.mrc", prepared, 10.0)
    occupancy = np.kron(balls(), np.ones((int(scale),) * 3, np.uint16))
    write_volume(folder / "occupancy_mask.mrc", occupancy, 10.0 / scale)
    shape = occupancy.shape
    VolumeTransform(
        source="t.mrc", file_shape=shape, given_shape_zyx=shape, prepared_shape_zyx=SHAPE,
        given_voxel_size_angstrom=10.0 / scale, prepared_voxel_size_angstrom=10.0,
        scale_zyx=(scale,) * 3,
    ).save(folder / "prepared.json")  # fmt: skip
    given = CENTRES * scale
    lines = [f"{n} {x} {y} {z} 0 0 0\n" for n, (z, y, x) in zip(NAMES, given, strict=True)]
    (folder / "particle_locations.txt").write_text("".join(lines))
    table = pd.DataFrame(given, columns=["z_vox", "y_vox", "x_vox"]).assign(
        tomogram="t", particle_id=[1, 2, 3, 4], voxel_size_angstrom=10.0 / scale,
        tomogram_nz=shape[0], tomogram_ny=shape[1], tomogram_nx=shape[2], binning=1.0,
        status="accepted", reason="", score=0.9, size_vox=5, vote_share=1.0, margin=1.0,
    )  # fmt: skip
    table["class"] = ["1bxn", "1bxn", "1bxn", "4v94"]
    table = table[list(PARTICLE_COLUMNS)].assign(p_1bxn=0.5, p_4v94=0.5)
    write_particles(folder / "particles.csv", table)
    return {
        "particles": f"{folder}/particles.csv",
        "transform": f"{folder}/prepared.json",
        "truth": f"{folder}/particle_locations.txt",
        "occupancy": f"{folder}/occupancy_mask.mrc",
        "volume": f"{folder}/prepared.mrc",
    }


def outputs(folder: Path) -> dict[str, Path]:
    names = {"evaluation": "evaluation.json", "classes": "c.csv", "confusion": "confusion.csv"}
    return {key: folder / name for key, name in names.items()}


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_stage_writes_its_three_files(scale: float, tmp_path: Path) -> None:
    """In voxels of the given tomogram, also where the prepared volume is a coarser one."""
    wanted = outputs(tmp_path)
    evaluate.run(stage_inputs(tmp_path, scale), wanted, settings=SETTINGS)
    result = json.loads(wanted["evaluation"].read_text())
    assert result["one_to_one"]["f1"] == 1
    assert result["shrec"]["f1"] == 1
    assert result["one_to_one"]["mean_class_accuracy"] == 0.75
    assert result["dog"]["one_to_one"]["f1"] == 1
    classes = pd.read_csv(wanted["classes"])
    assert classes[["class", "true", "right", "right_shrec"]].to_numpy().tolist() == [
        ["1BXN", 2, 2, 2],
        ["4V94", 2, 1, 1],
    ]
    confusion = pd.read_csv(wanted["confusion"], index_col="true")
    assert confusion.loc["4V94"].tolist() == [1, 1, 0]
    assert confusion.columns[-1] == "not found"


def test_stage_repeats_itself_byte_by_byte_and_can_do_without_the_picker(tmp_path: Path) -> None:
    inputs, texts = stage_inputs(tmp_path), []
    for name in ("a", "b"):
        evaluate.run(inputs, outputs(tmp_path / name), settings=EvaluateSettings(dog_picker=False))
        texts.append([path.read_bytes() for path in outputs(tmp_path / name).values()])
    assert texts[0] == texts[1]
    assert json.loads(texts[0][0])["dog"] is None


def test_stage_refuses_a_truth_of_elsewhere(tmp_path: Path) -> None:
    inputs = stage_inputs(tmp_path)
    settings = EvaluateSettings(truth_format="shrec20")
    with pytest.raises(InputError, match="4 of 4 outside"):
        evaluate.run(inputs, outputs(tmp_path), settings=settings)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "ceiling", "dog"), [("pn_a_01", 0.949, 0.901), ("pn_b_03_bytes", 0.952, 0.866)]
)
def test_figures_on_the_evaluation_data(
    name: str, ceiling: float, dog: float, shared_data: Path
) -> None:
    """True centres as predictions, and the picker; the figures that stand in the reports."""
    folder = shared_data / "tomograms"
    stem = name.removesuffix("_bytes")
    true = read_truth(folder / f"{stem}_particles.csv")
    occupancy = read_occupancy(folder / f"{stem}_truth.npz", (128, 256, 256))
    result = evaluate_picks(true, true, occupancy=occupancy, settings=SETTINGS)
    assert result.one_to_one.f1 == 1
    assert result.one_to_one_classes.mean_accuracy == 1
    assert result.shrec.recall == pytest.approx(ceiling, abs=0.001)
    hollow = result.shrec_classes.table.set_index("class")["recall"]
    assert hollow.drop("4v94").min() == 1
    volume = np.asarray(open_volume(folder / f"{name}.mrc"), np.float32)
    candidates = dog_picks_at_scales(volume, number=len(true))
    result = with_picker(result, candidates, true, occupancy=occupancy, settings=SETTINGS)
    assert result.dog.one_to_one.f1 == pytest.approx(dog, abs=0.005)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_map_of_voxel_classes_is_scored_on_the_prepared_grid(scale: float, tmp_path: Path) -> None:
    inputs = stage_inputs(tmp_path, scale)
    ids = balls()
    labels = np.array([0, 1, 1, 2, 1], np.int8)[ids]  # the fourth particle named wrongly
    write_volume(tmp_path / "segmentation.mrc", labels, 10.0)
    wanted = outputs(tmp_path)
    evaluate.run(
        inputs | {"segmentation": f"{tmp_path}/segmentation.mrc"}, wanted,
        settings=EvaluateSettings(dog_picker=False),
    )  # fmt: skip
    found = json.loads(wanted["evaluation"].read_text())["segmentation"]
    ball, everything = int((ids == 1).sum()), ids.size
    assert found["va"] == pytest.approx(1 - ball / everything, abs=1e-6)
    assert found["mva"] == pytest.approx((1 + 1 + 0.5) / 3, abs=1e-6)
    assert found["miou"] == pytest.approx((1 + 2 / 3 + 1 / 2) / 3, abs=1e-6)
    assert found["of"] == "the voxels that voted"
    save_whole_network(tmp_path / "whole", ["background", "1bxn", "4v94"])
    more = {"segmentation": f"{tmp_path}/segmentation.mrc", "classifier": f"{tmp_path}/whole"}
    evaluate.run(inputs | more, wanted, settings=EvaluateSettings(dog_picker=False))
    found = json.loads(wanted["evaluation"].read_text())["segmentation"]
    assert found["of"] == "balls about the centres"


def test_stage_says_what_scores_and_probabilities_were_worth(tmp_path: Path) -> None:
    inputs = stage_inputs(tmp_path)
    table = read_particles(inputs["particles"]).assign(score=[0.9, 0.8, 0.7, 0.6])
    table.loc[3, "z_vox"] += 30  # the last hits nothing
    table = table.assign(p_1bxn=[0.9, 0.9, 0.9, 0.2], p_4v94=[0.1, 0.1, 0.1, 0.8])
    write_particles(inputs["particles"], table)
    wanted = outputs(tmp_path)
    evaluate.run(inputs, wanted, settings=EvaluateSettings(dog_picker=False))
    found = json.loads(wanted["evaluation"].read_text())
    assert found["score_curve"]["precision"] == [0.75, 1, 1, 1]
    assert found["score_curve"]["recall"] == [0.75, 0.75, 0.5, 0.25]
    assert found["reliability"]["particle"]["of"] == "score"
    # Two of the three found are 1bxn as said with 0.9: |2/3 - 0.9|.
    assert found["reliability"]["class"]["ece"] == pytest.approx(0.9 - 2 / 3, abs=1e-4)
    table.insert(table.columns.get_loc("margin") + 1, "expected_precision", [1.0, 1.0, 1.0, 0.0])
    write_particles(inputs["particles"], table)
    evaluate.run(inputs, wanted, settings=EvaluateSettings(dog_picker=False))
    found = json.loads(wanted["evaluation"].read_text())["reliability"]["particle"]
    assert found["of"] == "expected_precision" and found["ece"] == 0
