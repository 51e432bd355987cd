"""Which picks are asked about, how answers come back, and what they become."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from dialect_contract import COPICK_PYTHON
from needed import absent
from tiny_project import VOXEL_SIZE, Project, make_project

from tomoline import cli
from tomoline.contracts import VolumeTransform
from tomoline.errors import InputError
from tomoline.evaluation.questions import PARTICLE, RANDOM, WHICH, Share, choose, cut_between
from tomoline.export.copick import REVIEW_USER
from tomoline.io.annotations import read_labels, read_truth
from tomoline.io.mrc import write_volume
from tomoline.io.reviews import read_review
from tomoline.io.tables import particle_table, write_particles
from tomoline.ops.votes import BACKGROUND_LIKE
from tomoline.stages.adopt import adopt
from tomoline.stages.review import review

SHAPE = (40, 48, 56)


def pool_of(number: int, seed: int = 0) -> pd.DataFrame:
    """Candidates of three classes, one of them rare; accepted from a probability of 0.6 on."""
    rng = np.random.default_rng(seed)
    p = rng.uniform(0, 1, number)
    return pd.DataFrame({
        "probability": p, "accepted": p >= 0.6, "sifted": p < 0.6,
        "margin": rng.uniform(0, 1, number),
        "proposed": rng.choice(["a", "b", "c"], number, p=[0.8, 0.17, 0.03]),
    })  # fmt: skip


def test_the_cut_is_found_between_what_was_accepted_and_what_was_not():
    pool = pool_of(500)
    p, accepted, sifted = (pool[k].to_numpy() for k in ("probability", "accepted", "sifted"))
    assert abs(cut_between(p, accepted, sifted, calibrated=True) - 0.6) < 0.01
    none = np.zeros(500, bool)
    assert cut_between(p, accepted, none, calibrated=True) == 0.5
    assert cut_between(p, accepted, none, calibrated=False) == p[accepted].min()


def test_doubtful_picks_are_chosen_balanced_and_some_at_random():
    pool = pool_of(2000)
    chosen = choose(pool, 100, cut=0.6, seed=1)
    assert len(chosen) == 100 and not chosen.duplicated("probability").any()
    assert dict(chosen["why"].value_counts()) == {PARTICLE: 54, WHICH: 26, RANDOM: 20}
    by_chance = chosen[chosen["why"] == RANDOM]
    assert by_chance["accepted"].sum() == 10
    # Drawn from all, not from the doubtful ones: far from the cut on both sides.
    assert by_chance["probability"].min() < 0.3 and by_chance["probability"].max() > 0.85
    asked = chosen[chosen["why"] == PARTICLE]
    assert asked["accepted"].sum() == 27
    # The rare class has as many places as it can fill in its turn.
    assert asked["proposed"].value_counts().min() >= 16
    near = (asked["probability"] - 0.6).abs()
    assert near[asked["proposed"] == "a"].max() < 0.03
    which = chosen[chosen["why"] == WHICH]
    assert which["accepted"].all()
    assert which.loc[which["proposed"] == "a", "margin"].max() < 0.05
    pd.testing.assert_frame_equal(chosen, choose(pool, 100, cut=0.6, seed=1))


def test_a_small_pool_is_asked_about_whole():
    for number in (1, 7):
        pool = pool_of(number)
        assert len(choose(pool, 100, cut=0.6, seed=1)) == number


def test_an_interval_holds_the_share():
    assert Share(right=9, count=10).interval == pytest.approx((0.596, 0.982), abs=1e-3)
    assert Share(right=0, count=0).interval == (0, 1)


# --- a data set that has been run -----------------------------------------------------------------


def finished(
    project: Project, tomogram: str, places: list, *, scores: list,
    classes: tuple[str, str] = ("ball", "cube"),
) -> None:  # fmt: skip
    """Results of a tomogram as the line leaves them: accepted from 0.6 on, all of one class."""
    first, second = classes
    folder = project.file(tomogram)
    folder.mkdir(parents=True)
    rng = np.random.default_rng(3)
    volume = rng.normal(0, 1, SHAPE).astype(np.float32)
    for z, y, x in places:
        volume[z - 3 : z + 4, y - 3 : y + 4, x - 3 : x + 4] -= 5
    write_volume(folder / "prepared.mrc", volume, VOXEL_SIZE)
    VolumeTransform(
        source="t.mrc", file_shape=SHAPE, given_shape_zyx=SHAPE, prepared_shape_zyx=SHAPE,
        given_voxel_size_angstrom=VOXEL_SIZE, prepared_voxel_size_angstrom=VOXEL_SIZE,
        scale_zyx=(1.0, 1.0, 1.0),
    ).save(folder / "prepared.json")  # fmt: skip
    good = [score >= 0.6 for score in scores]
    n = len(places)
    write_particles(folder / "particles.csv", particle_table({
        "tomogram": [tomogram] * n, "particle_id": range(1, n + 1),
        **{f"{axis}_vox": [p[k] + 0.25 for p in places] for k, axis in enumerate("zyx")},
        "voxel_size_angstrom": [VOXEL_SIZE] * n, "tomogram_nz": [40] * n, "tomogram_ny": [48] * n,
        "tomogram_nx": [56] * n, "binning": [1.0] * n,
        "status": ["accepted" if g else "rejected" for g in good],
        "reason": ["" if g else BACKGROUND_LIKE for g in good], "score": scores,
        "size_vox": [50] * n, "class": [first if g else "" for g in good],
        "vote_share": [1.0] * n, "margin": [0.9] * n, "expected_precision": scores,
        f"p_{first}": [0.9] * n, f"p_{second}": [0.1] * n,
    }, list(classes)))  # fmt: skip


PLACES = {"one": [(12, 12, 14), (28, 30, 40), (20, 40, 20)], "two": [(20, 20, 20), (8, 8, 40)]}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = make_project(tmp_path)
    finished(made, "one", PLACES["one"], scores=[0.99, 0.61, 0.55])
    finished(made, "two", PLACES["two"], scores=[0.7, 0.2])
    return made


def filled(project: Project, answers: dict[tuple[str, int], str]) -> Path:
    path = project.file("review", "review.csv")
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table["decision"] = [answers.get((t, int(p)), "") for t, p in
                         zip(table["tomogram"], table["particle_id"], strict=True)]  # fmt: skip
    out = project.folder / "answers.csv"
    table.to_csv(out, index=False)
    return out


ALL = {("one", 1): "yes", ("one", 2): "cube", ("one", 3): "no", ("two", 1): "unsure"}


def test_a_review_is_a_list_a_page_and_a_project(project: Project):
    done = review("tiny", project=project.folder)
    assert len(done.table) == 5 and done.unfinished == ("three",)
    names = {p.name for p in done.folder.iterdir()}
    assert {"review.csv", "review.html", "README.txt", "asked.csv", "copick"} <= names
    assert "yes" in (done.folder / "README.txt").read_text()
    page = (done.folder / "review.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 5
    assert "http://" not in page and "https://" not in page
    picks = [p.name for p in (done.folder / "copick").glob("ExperimentRuns/*/Picks/*.json")]
    assert picks and all(name.startswith(REVIEW_USER) for name in picks)
    table = read_review(done.folder / "review.csv")
    row = table[(table["tomogram"] == "one") & (table["particle_id"] == 2)].iloc[0]
    assert list(row[["z_vox", "y_vox", "x_vox"]]) == [28.25, 30.25, 40.25]
    assert row["class"] == "ball"
    rejected = table[(table["tomogram"] == "one") & (table["particle_id"] == 3)].iloc[0]
    assert rejected["status"] == "rejected" and rejected["class"] == "ball"  # the most probable
    before = {p: p.read_bytes() for p in done.folder.rglob("*") if p.is_file()}
    review("tiny", project=project.folder)
    assert before == {p: p.read_bytes() for p in done.folder.rglob("*") if p.is_file()}


def test_decisions_become_labels_and_a_second_time_changes_nothing(project: Project):
    review("tiny", project=project.folder)
    answers = filled(project, ALL)
    done = adopt("tiny", answers, project=project.folder)
    assert done.decisions == {"yes": 2, "no": 1, "unsure": 1} and done.empty == 1
    file = project.folder / "config" / "datasets" / "tiny_annotations" / "one.csv"
    labels = read_labels(file)
    assert list(labels["verdict"]) == ["yes", "yes", "no"]
    assert list(labels["class"]) == ["ball", "cube", ""]
    assert set(labels["source"]) == {"review"}
    assert len(read_truth(file)) == 2  # no negative counts as a particle
    before = file.read_bytes()
    again = adopt("tiny", answers, project=project.folder)
    assert file.read_bytes() == before
    assert all(not c.added and not c.replaced for c in again.changes.values())
    # What was decided is not asked again, and a filled-in review that was adopted may go.
    (project.file("review", "review.csv")).write_text(answers.read_text())
    assert len(review("tiny", project=project.folder).table) == 1


def test_a_later_decision_replaces_an_earlier_one_and_an_import(project: Project, capsys):
    picks = project.folder / "mine.csv"
    picks.write_text("id,class,z,y,x,radius\n1,cube,12,12,14,4.5\n2,cube,35,40,50,4.5\n")
    assert cli.main(["import", str(picks), "--dialect", "csv", "--dataset", "tiny", "--tomogram",
                     "one", "--project", str(project.folder)]) == 0  # fmt: skip
    review("tiny", project=project.folder, folder=project.file("review"))
    adopt("tiny", filled(project, {("one", 2): "yes"}), project=project.folder)
    table = read_review(project.file("review", "review.csv"))
    asked = set(zip(table["tomogram"], table["particle_id"], strict=True))
    assert ("one", 1) not in asked and ("one", 2) in asked  # the first lies at the import
    later = adopt("tiny", filled(project, {("one", 2): "no"}), project=project.folder)
    assert later.changes["one"].replaced == ("ball (review) is now no particle (review)",)
    file = project.folder / "config" / "datasets" / "tiny_annotations" / "one.csv"
    labels = read_labels(file)
    assert list(labels["verdict"]) == ["yes", "yes", "no"]
    assert list(labels["source"]) == ["csv mine.csv", "csv mine.csv", "review"]
    # The import again: its rows are replaced, what was decided stays.
    picks.write_text("id,class,z,y,x\n1,ball,12,12,14\n")
    cli.main(["import", str(picks), "--dialect", "csv", "--dataset", "tiny", "--tomogram", "one",
              "--project", str(project.folder)])  # fmt: skip
    labels = read_labels(file)
    assert sorted(zip(labels["class"], labels["verdict"], strict=True)) == [
        ("", "no"), ("ball", "yes")]  # fmt: skip


@pytest.mark.parametrize(("change", "said"), [
    ({("one", 1): "bal"}, "did you mean ball"),
    ({("one", 1): "perhaps"}, "line 2: decision 'perhaps'"),
])  # fmt: skip
def test_a_wrong_decision_names_its_row_and_nothing_is_taken(project: Project, change, said):
    review("tiny", project=project.folder)
    with pytest.raises(InputError, match=said):
        adopt("tiny", filled(project, {**ALL, **change}), project=project.folder)
    assert not (project.folder / "config" / "datasets" / "tiny_annotations").exists()


@pytest.mark.parametrize(("old", "new", "said"), [
    ("one,1,", "onee,1,", "no tomogram 'onee', did you mean one"),
    ("one,1,", "one,77,", "one has no particle 77"),
    ("14.250,12.250", "24.250,12.250", "particle 1 of one is not at"),
    ("14.250,12.250", "x,12.250", "a number in column x_vox"),
    ("particle_id", "number_of", "no column particle_id"),
])  # fmt: skip
def test_rows_of_no_pick_are_refused(project: Project, old, new, said):
    review("tiny", project=project.folder)
    answers = filled(project, ALL)
    text = answers.read_text()
    assert old in text
    answers.write_text(text.replace(old, new))
    with pytest.raises(InputError, match=said):
        adopt("tiny", answers, project=project.folder)


def test_one_pick_with_two_decisions_is_refused(project: Project):
    review("tiny", project=project.folder)
    answers = filled(project, ALL)
    lines = answers.read_text().splitlines()
    answers.write_text("\n".join([*lines, lines[1].rsplit(",", 1)[0] + ",no"]) + "\n")
    with pytest.raises(InputError, match="one pick, and yes, no"):
        adopt("tiny", answers, project=project.folder)


def test_a_spreadsheet_programs_file_is_read_alike(project: Project):
    review("tiny", project=project.folder)
    plain = filled(project, ALL)
    odd = project.folder / "odd.csv"
    lines = [line.replace(",", ";") for line in plain.read_text().splitlines()]
    lines = [line.replace(".250", ",250").replace("yes", " Yes") for line in lines]
    odd.write_text("\r\n".join([*lines, ";" * 11]) + "\r\n", encoding="utf-8-sig")
    columns = ["tomogram", "particle_id", "z_vox", "y_vox", "x_vox"]
    pd.testing.assert_frame_equal(read_review(plain)[columns], read_review(odd)[columns])
    adopt("tiny", odd, project=project.folder)
    assert (project.folder / "config" / "datasets" / "tiny_annotations" / "one.csv").is_file()


def test_a_new_class_has_to_be_announced(project: Project, capsys):
    review("tiny", project=project.folder)
    answers = filled(project, {("one", 1): "proteasome"})
    common = ["adopt", "tiny", str(answers), "--project", str(project.folder)]
    assert cli.main(common) == 2
    assert "--new-class" in capsys.readouterr().err
    assert cli.main([*common, "--new-class", "proteasome"]) == 0
    assert "1 particles" in capsys.readouterr().out


def test_a_review_that_was_filled_in_is_not_lost(project: Project):
    review("tiny", project=project.folder)
    project.file("review", "review.csv").write_text(filled(project, ALL).read_text())
    with pytest.raises(InputError, match="4 that were not"):
        review("tiny", project=project.folder)


def imported(project: Project, text: str, *more: str, name: str = "mine.csv") -> int:
    picks = project.folder / name
    picks.write_text(text)
    return cli.main(["import", str(picks), "--dialect", "csv", "--dataset", "tiny", "--tomogram",
                     "one", "--project", str(project.folder), *more])  # fmt: skip


def labels_of_one(project: Project) -> Path:
    return project.folder / "config" / "datasets" / "tiny_annotations" / "one.csv"


def test_picks_of_one_particle_by_two_files_or_a_review_are_one_label(project: Project, capsys):
    review("tiny", project=project.folder)
    adopt("tiny", filled(project, {("one", 1): "yes", ("one", 2): "no"}), project=project.folder)
    # Clicked by hand two voxels from the candidates' centres (a voxel is 10 angstrom).
    assert imported(project, "x,y,z,class\n14,14,12,ball\n41,30,28,cube\n9,30,20,cube\n") == 0
    assert "no particle (review) is now cube (csv mine.csv)" in capsys.readouterr().out
    labels = read_labels(labels_of_one(project))
    assert list(labels["class"]) == ["ball", "cube", "cube"]
    assert list(labels["verdict"]) == ["yes"] * 3
    assert list(labels["source"]) == ["review", "csv mine.csv", "csv mine.csv"]


def test_a_place_clicked_twice_is_one_label_and_two_classes_there_are_refused(
    project: Project, capsys
):
    assert imported(project, "x,y,z\n14,14,12\n14.2,14,12\n9,30,20\n", "--classes", "a") == 0
    assert "1 picks lie on others" in capsys.readouterr().out
    before = labels_of_one(project).read_bytes()
    assert len(read_labels(labels_of_one(project))) == 2
    assert imported(project, "x,y,z,class\n14,14,12,a\n14.2,14,12,b\n") == 2
    assert "picks 1 and 2, a and b" in capsys.readouterr().err
    assert labels_of_one(project).read_bytes() == before


def test_an_import_says_what_it_takes_away_and_keeps_what_came_from_elsewhere(
    project: Project, capsys
):
    file = labels_of_one(project)
    file.parent.mkdir(parents=True)
    file.write_text("x,y,z,class\n40,40,30,own\n")  # as any program may write it
    assert imported(project, "x,y,z,class\n14,14,12,a\n9,30,20,a\n") == 0
    capsys.readouterr()
    assert imported(project, "x,y,z,class\n9,30,20,a\n") == 0
    assert "1 labels that a file of this name brought before" in capsys.readouterr().out
    assert list(read_labels(file)["class"]) == ["own", "a"]


@pytest.mark.parametrize("name", ["no", "Background", "a\tb", " b"])
def test_a_class_cannot_be_called_like_an_answer(project: Project, name: str, capsys):
    review("tiny", project=project.folder)
    with pytest.raises(InputError, match="class names of at most 100 characters"):
        adopt("tiny", filled(project, ALL), project=project.folder, new_classes=[name])
    if name == name.strip():
        assert imported(project, "x,y,z\n14,14,12\n", "--classes", name) == 2
    assert not labels_of_one(project).exists()


def test_nothing_is_taken_when_one_tomograms_labels_are_damaged(project: Project):
    review("tiny", project=project.folder)
    answers = filled(project, ALL)  # of one and two
    two = labels_of_one(project).with_name("two.csv")
    two.parent.mkdir(parents=True)
    two.write_text("x,y,z,verdict\n1,2,3,perhaps\n")
    with pytest.raises(InputError, match="perhaps"):
        adopt("tiny", answers, project=project.folder)
    assert not labels_of_one(project).exists()


def test_a_review_is_known_again_wherever_it_was_written_and_whatever_ran_since(
    project: Project, tmp_path: Path
):
    review("tiny", project=project.folder, folder=tmp_path / "elsewhere")
    table = pd.read_csv(tmp_path / "elsewhere" / "review.csv", dtype=str, keep_default_na=False)
    downloads = tmp_path / "downloads" / "review (1).csv"
    downloads.parent.mkdir()
    table.assign(decision="yes").to_csv(downloads, index=False)
    for tomogram in PLACES:  # another run, that found nothing there
        particles = project.file(tomogram, "particles.csv")
        lines = particles.read_text().splitlines()
        particles.write_text(lines[0] + "\n")
    done = adopt("tiny", downloads, project=project.folder)
    assert sum(change.added for change in done.changes.values()) == 5


def test_names_are_shown_as_they_are_and_run_nothing(tmp_path: Path):
    odd = "</script><script>alert(1)</script>\"' {x} \u2028 & co"
    made = make_project(tmp_path)
    finished(made, "one", PLACES["one"], scores=[0.99, 0.61, 0.55], classes=(odd, "cube"))
    done = review("tiny", project=made.folder)
    page = (done.folder / "review.html").read_text()
    assert page.count("<script") == 2 and "<script>alert" not in page
    assert list(read_review(done.folder / "review.csv")["class"]) == [odd] * 3
    assert odd in (done.folder / "README.txt").read_text()


def test_thousands_of_decisions_are_checked_in_seconds(tmp_path: Path):
    made = make_project(tmp_path)
    rng = np.random.default_rng(1)
    places = [tuple(p) for p in rng.integers(4, 36, (2000, 3)).tolist()]
    finished(made, "one", places, scores=list(rng.uniform(0.5, 1, 2000).round(3)))
    review("tiny", project=made.folder, number=60)  # the pictures are not what is tried here
    table = pd.read_csv(made.file("one", "particles.csv"), dtype=str, keep_default_na=False)
    answers = tmp_path / "all.csv"
    columns = ["tomogram", "particle_id", "x_vox", "y_vox", "z_vox", "class"]
    table[columns].assign(decision="no").to_csv(answers, index=False)
    begun = time.process_time()
    done = adopt("tiny", answers, project=made.folder)
    assert done.decisions == {"no": 2000} and time.process_time() - begun < 8


def test_a_data_set_without_candidates_is_told_so(tmp_path: Path):
    made = make_project(tmp_path)
    finished(made, "one", [], scores=[])
    with pytest.raises(InputError, match="no candidates"):
        review("tiny", project=made.folder)


# In copick's own environment.
_IN_COPICK = """
import json, sys, warnings
warnings.simplefilter("ignore")
import copick
root = copick.from_file(sys.argv[1])
known = [o.name for o in root.pickable_objects]
json.dump([
    [run.name, known.index(picks.pickable_object_name), p.location.z, p.location.y, p.location.x]
    for run in root.runs for picks in run.get_picks(user_id="tomoline-review")
    for p in picks.points
], sys.stdout)
"""


def test_copick_opens_the_project_of_a_review(project: Project):
    if not COPICK_PYTHON.exists():
        absent("copick's own environment is not here (make readers)")
    done = review("tiny", project=project.folder)
    ran = subprocess.run(
        [str(COPICK_PYTHON), "-c", _IN_COPICK, str(done.folder / "copick" / "copick_config.json")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]
    places = [(name, 0, *(10 * (edge + 0.25) for edge in place))  # angstrom
              for name, own in PLACES.items() for place in own]  # fmt: skip
    assert sorted(map(tuple, json.loads(ran.stdout))) == sorted(places)
