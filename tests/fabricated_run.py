"""A run as it lies on disk, made up in a second: for the tests of the reports.

The volume holds dark balls whose places, classes and sizes are known; everything else is derived
from them, so a test can say what a page must show.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from PIL import Image

from tomoline.contracts import PARTICLE_COLUMNS, VolumeTransform
from tomoline.evaluation.scores import evaluate_picks, with_picker
from tomoline.io.atomic import write_json
from tomoline.io.mrc import write_volume
from tomoline.io.sheet import SheetRow, write_dataset, write_sheet
from tomoline.io.tables import write_particles
from tomoline.ops.picking import Picks
from tomoline.settings import DatasetSettings, EvaluateSettings, ReportSettings
from tomoline.stages import report_tomogram

CLASSES = ("1bxn", "1qvr", "1s3x", "1u6g", "2cg9", "3cf3", "3d2f", "3gl1", "3h84", "3qm1", "4cr2",
           "4v94")  # fmt: skip
RADII = (5, 5, 3, 4, 4, 5, 4, 3, 4, 3, 9, 8)
TOO_SMALL = "smaller than min_size_vox = 3 voxels"
NO_CLASS = "no labelled voxels at the centre"


def volume(shape, balls, seed=0):
    """Noise with a dark ball at each (z, y, x, radius)."""
    rng = np.random.default_rng(seed)
    data = rng.normal(0, 1, shape).astype(np.float32)
    grid = np.indices(shape, dtype=np.float32)
    for z, y, x, r in balls:
        data[(grid[0] - z) ** 2 + (grid[1] - y) ** 2 + (grid[2] - x) ** 2 <= r * r] -= 2.0
    return data


def particle_table(tomogram, centres, labels, *, scale=1.0, shape=(1, 1, 1), n_rejected=0, seed=0):
    """A particles.csv with all columns; `centres` in prepared voxels, `scale` given/prepared."""
    rng = np.random.default_rng(seed)
    rows = []
    for n in range(len(centres) + n_rejected):
        kept = n < len(centres)
        zyx = np.array(centres[n]) if kept else rng.uniform(0, 1, 3) * (np.array(shape) - 1)
        label = labels[n] if kept else 0
        small = not kept and n % 3 > 0
        row = dict.fromkeys(PARTICLE_COLUMNS, "")
        row |= {"tomogram": tomogram, "particle_id": n + 1}
        row |= dict(zip(("z_vox", "y_vox", "x_vox"), np.round(zyx * scale, 3), strict=True))
        row |= {"voxel_size_angstrom": 10.0 / scale, "binning": 1.0}
        row |= dict(zip(("tomogram_nz", "tomogram_ny", "tomogram_nx"),
                        (round(n * scale) for n in shape), strict=True))  # fmt: skip
        row["status"] = "accepted" if kept else "rejected"
        row |= {"class": "", "vote_share": 0.0, "margin": 0.0}
        row["reason"] = "" if kept else (TOO_SMALL if small else NO_CLASS)
        row["score"] = round(float(rng.beta(8, 2) if kept else rng.beta(2, 4)), 4)
        core = 4 / 3 * np.pi * (RADII[label] / 2) ** 3
        row["size_vox"] = max(round(core * rng.uniform(0.7, 1.3)), 3) if kept else 2
        share = round(float(rng.beta(5, 2)), 4)
        for i, name in enumerate(CLASSES):
            row[f"p_{name}"] = 0.0 if not kept else (share if i == label else (1 - share) / 11)
        if kept:
            row |= {"class": CLASSES[label], "vote_share": share, "margin": round(share * 0.8, 4)}
        rows.append(row)
    columns = [*PARTICLE_COLUMNS, *(f"p_{name}" for name in CLASSES)]
    return pd.DataFrame(rows, columns=columns)


def make_tomogram(folder: Path, *, shape=(48, 96, 96), n=40, n_rejected=9, truth=True, seed=0,
                  warnings=(), scale=1.0):  # fmt: skip
    """Fill results/<dataset>/<tomogram> as the stages would; return the table of particles."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    labels = [int(i) for i in rng.integers(0, len(CLASSES), n)]
    centres = [rng.uniform(4, np.array(shape) - 4) for _ in range(n)]
    data = volume(shape, [(*c, RADII[k]) for c, k in zip(centres, labels, strict=True)], seed)
    write_volume(folder / "prepared.mrc", data, 10.0)
    transform = VolumeTransform(
        source=f"data/{folder.name}.mrc",
        file_shape=tuple(round(n * scale) for n in shape),
        given_shape_zyx=tuple(round(n * scale) for n in shape),
        prepared_shape_zyx=tuple(shape),
        given_voxel_size_angstrom=10.0 / scale,
        prepared_voxel_size_angstrom=10.0,
        scale_zyx=(scale, scale, scale),
        quality={"given_mean": 101.5, "given_sd": 12.0, "not_finite_share": 0.0, "thin": False},
        warnings=tuple(warnings),
    )
    transform.save(folder / "prepared.json")
    table = particle_table(folder.name, centres, labels, scale=scale, shape=shape,
                           n_rejected=n_rejected, seed=seed)  # fmt: skip
    write_particles(folder / "particles.csv", table)
    middle = data[shape[0] // 2]
    Image.fromarray(np.clip(127 + 40 * middle, 0, 255).astype(np.uint8)).save(folder / "middle.png")
    make_benchmarks(folder / "benchmarks", seed=seed)
    if truth and n:
        make_evaluation(folder, table)
    return table


def make_benchmarks(folder: Path, seed=0):
    """Snakemake's extended JSON lines; `segment` in two shards, `tile` too short to be measured."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = {"prepare": 3.2, "tile": 0.4, "segment_1-of-2": 61.0, "segment_2-of-2": 58.5,
            "merge": 4.0, "cluster": 2.5, "extract": 1.2, "classify": 33.0, "vote": 1.9,
            "export_relion5": 0.8, "evaluate": 5.0}  # fmt: skip
    for n, (name, seconds) in enumerate(jobs.items()):
        known = name != "tile"
        record = {
            "s": seconds + seed, "h:m:s": "0:00:00",
            "max_rss": 400.0 + 50 * n if known else "NA",
            "cpu_time": seconds * 0.9 if known else "NA",
            "rule_name": name.split("_")[0], "threads": 2,
        }  # fmt: skip
        (folder / f"{name}.jsonl").write_text(json.dumps(record) + "\n")


def make_evaluation(folder: Path, table: pd.DataFrame):
    """Score against a truth in which every tenth particle more was missed and one class differs."""
    kept = table[table["status"] == "accepted"].reset_index(drop=True)
    truth = kept[["class", "z_vox", "y_vox", "x_vox"]].copy()
    missed = truth.iloc[::10].assign(z_vox=lambda t: t["z_vox"] + 1000)
    truth.loc[truth.index[1::7], "class"] = CLASSES[0]
    truth = pd.concat([truth, missed], ignore_index=True)
    truth.insert(0, "id", range(1, len(truth) + 1))
    evaluation = evaluate_picks(kept, truth, settings=EvaluateSettings())
    picks = Picks(zyx_vox=truth[["z_vox", "y_vox", "x_vox"]].to_numpy()[::2],
                  score=np.ones((len(truth) + 1) // 2), scale_vox=3.0)  # fmt: skip
    evaluation = with_picker(evaluation, [picks], truth, settings=EvaluateSettings())
    write_json(folder / "evaluation.json", evaluation.to_json())
    evaluation.class_table().to_csv(folder / "evaluation_classes.csv", index=False)
    evaluation.confusion().to_csv(folder / "confusion.csv", index_label="true")


def add_curves(folder: Path):
    """Give evaluation.json what later releases add: a score curve and reliability."""
    path = folder / "evaluation.json"
    value = json.loads(path.read_text())
    value["score_curve"] = {
        "min_score": [0.5, 0.9], "predictions": [20, 10], "tp": [18, 10],
        "precision": [0.9, 1.0], "recall": [0.8, 0.4], "particles": 22,
    }  # fmt: skip
    bins = [[10, 0.7, 0.6], [10, 0.95, 1.0]]
    value["reliability"] = {
        "particle": {"of": "expected_precision", "ece": 0.075, "bins": bins},
        "class": {"of": "p_<class>", "ece": 0.075, "bins": bins},
    }
    write_json(path, value)


def make_models(folder: Path):
    """Two cards and the curves of one."""
    for role, classes in (("localizer", ["background", "particle"]),
                          ("classifier", ["background", *CLASSES])):  # fmt: skip
        place = folder / f"msdnet-{role}"
        place.mkdir(parents=True, exist_ok=True)
        card = {
            "name": f"msdnet-{role}", "role": role, "network": "msdnet", "classes": classes,
            "voxel_size_angstrom": 10.0, "voxel_size_range_angstrom": [8.0, 12.0],
            "n_parameters": 129952, "weights_sha256": "ab" * 32, "licence": "MIT",
            "receptive_field_vox": 393, "description": f"The {role} of the tests.",
            "training": {"tomograms": 20, "snr": [0.05, 0.5]}, "metrics": {"val_f1": 0.93},
        }  # fmt: skip
        (place / "card.yaml").write_text(yaml.safe_dump(card))
    rows = [
        {"epoch": e, "loss": 1 / (e + 1), "learning_rate": 1e-3}
        | ({"val_loss": 1.2 / (e + 1), "val_f1": 1 - 0.8 / (e + 1)} if e % 2 else {})
        for e in range(30)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "msdnet-localizer" / "curves.jsonl").write_text(text)


def report_tomogram_of(folder: Path, **settings):
    """Run the stage on a fabricated tomogram; return the path of its page."""
    optional = {
        key: folder / name
        for key, name in (("evaluation", "evaluation.json"), ("confusion", "confusion.csv"),
                          ("evaluation_classes", "evaluation_classes.csv"),
                          ("domain", "domain.json"))
        if (folder / name).exists()
    }  # fmt: skip
    page = folder / "report" / "tomogram.html"
    report_tomogram.run(
        {"particles": folder / "particles.csv", "transform": folder / "prepared.json",
         "volume": folder / "prepared.mrc", **optional},
        {"page": page, "slices": folder / "report" / "slices.png"},
        settings=ReportSettings(**settings),
        tomogram=folder.name,
        dataset={"name": folder.parent.name},
        benchmarks=folder / "benchmarks",
    )  # fmt: skip
    return page


def make_project(root: Path, *, truth=True):
    """A project with data set `demo`; returns the folder results/demo.

    Two tomograms finished, a third without a particle, one failed, one was refused.
    """
    results = root / "results" / "demo"
    make_models(root / "resources" / "models")
    for name, seed in (("tomo_01", 1), ("tomo_02", 2)):
        make_tomogram(results / name, seed=seed, truth=truth, shape=(32, 64, 64), n=24)
        report_tomogram_of(results / name, slices=2)
    make_tomogram(results / "empty_04", n=0, n_rejected=0, shape=(16, 32, 32), truth=False)
    report_tomogram_of(results / "empty_04", slices=1)
    logs = results / "bad_03" / "logs"
    logs.mkdir(parents=True)
    (logs / "prepare.log").write_text(
        "2026-01-01 00:00:00,000 INFO    tomoline: start\n"
        "2026-01-01 00:00:01,000 ERROR   tomoline: InputError: data/bad_03.mrc: expected 1048576 "
        "bytes of voxels; found 700000. Remedy: copy the file again, it is cut off\n"
    )
    for name in ("tomo_01", "tomo_02", "empty_04"):
        export = results / name / "export"
        export.mkdir()
        for dialect in ("relion5.star", "relion4.star", "particles.csv"):
            (export / dialect).write_text("x\n")
    combined = results / "export" / "relion5"
    combined.mkdir(parents=True)
    (combined / "particles.star").write_text("x\n")
    _write_sheet(root, truth=truth)
    return results


def make_many(root: Path, number: int) -> Path:
    """A data set `many` of so many tomograms, without volumes; returns its folder.

    Each has 150 particles and 60 rejects, and the page of the first, so that links lead somewhere.
    """
    results = root / "results" / "many"
    rng = np.random.default_rng(0)
    make_tomogram(results / "tomo_000", n=150, n_rejected=60, truth=False, seed=0)
    page = report_tomogram_of(results / "tomo_000", slices=1).read_text()
    table = pd.read_csv(results / "tomo_000" / "particles.csv", keep_default_na=False)
    for n in range(1, number):
        folder = results / f"tomo_{n:03d}"
        (folder / "report").mkdir(parents=True)
        (folder / "report" / "tomogram.html").write_text(page)
        kept = table.iloc[: int(rng.integers(60, 210))].assign(tomogram=folder.name)
        kept["score"] = (kept["score"].astype(float) * (1 - n / number / 3)).round(4)
        kept.to_csv(folder / "particles.csv", index=False)
        for name in ("prepared.json", "middle.png"):
            (folder / name).write_bytes((results / "tomo_000" / name).read_bytes())
        make_benchmarks(folder / "benchmarks", seed=n)
        flag = "doubtful" if n % 23 == 0 else "no" if n % 67 == 0 else "yes"
        write_json(folder / "domain.json", {"in_domain": flag, "reason": "The reason why."})
    return results


def _write_sheet(root: Path, *, truth):

    folder = root / "config" / "datasets"
    folder.mkdir(parents=True)
    write_dataset(folder / "demo.yaml", DatasetSettings(name="demo", sheet="demo.tsv"))
    fields = SheetRow.model_fields
    rows = []
    for name in ("tomo_01", "tomo_02", "bad_03", "empty_04", "flat_05"):
        refused = name == "flat_05"
        row = {
            "tomogram": name, "path": f"data/{name}.mrc", "use": "no" if refused else "yes",
            "verdict": "refused" if refused else "ok",
            "reason": "every voxel has the same value" if refused else "",
            "truth": "truth.txt" if truth and name.startswith("tomo") else "",
            "voxel_size_angstrom": 10.0, "nz": 32, "ny": 64, "nx": 64, "mode": 2,
            "axes": "xyz", "tilt_series": name,
        }  # fmt: skip
        rows.append(SheetRow(**{k: v for k, v in row.items() if k in fields}))
    write_sheet(folder / "demo.tsv", rows)
