"""A user's own subtomograms: taken over, named by classifiers, and written for other programs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tomoline.errors import InputError
from tomoline.io.atomic import write_text
from tomoline.io.subtomogram_folders import (
    Listed,
    list_subtomograms,
    read_cube,
    voxel_size_of,
    write_folder,
)
from tomoline.io.subtomograms import (
    NamedBoxes,
    open_classes,
    open_subtomograms,
    write_subtomograms,
)
from tomoline.io.tables import probability_columns
from tomoline.log import get_logger
from tomoline.networks.cards import ModelCard, load_card
from tomoline.ops.normalise import CLIP_SD
from tomoline.ops.patches import cut_patches
from tomoline.ops.rescale import rescale
from tomoline.ops.votes import Vote, vote, vote_of_views
from tomoline.settings import ClassifySettings, VoteSettings
from tomoline.stages import classify
from tomoline.stages.members import check_members, numbered
from tomoline.stages.vote import together

log = get_logger(__name__)
SAME = 0.03  # relative difference of voxel size that is left, as prepare.rescale_tolerance


@dataclass(frozen=True, kw_only=True)
class Taken:
    """How subtomograms are taken over: `box_vox` voxels of `voxel_size_angstrom` after it.

    `given_voxel_size_angstrom` overrides the files'; `bright` where particles are brighter than
    their surroundings, as in RELION's own subtomograms.
    """

    box_vox: int
    voxel_size_angstrom: float
    given_voxel_size_angstrom: float | None = None
    bright: bool = False


def take_subtomograms(source: str | Path, output: str | Path, taken: Taken) -> pd.DataFrame:
    """Write the subtomograms of another program as the main line's HDF5; returns their table.

    They are rescaled, cut or filled up to the box about their middle voxel, and normalised: all of
    one tomogram with one mean and standard deviation, as the main line does with a tomogram, so
    that grey values keep their meaning between them. The table, which is also written beside the
    file (`.csv`), has the columns `subtomogram` (its number in the file), `image`, `tomogram` and
    `class`, as the STAR file has them.

    Raises
    ------
    InputError
        See `list_subtomograms`; for a voxel size that nothing says, or cubes of several edges.
    """
    listed = list_subtomograms(source)
    size = taken.given_voxel_size_angstrom or listed.voxel_size_angstrom
    size = size or voxel_size_of(listed.places[0].path)
    if size is None:
        raise InputError(
            source, expected="a voxel size in the STAR file or the headers", found="none",
            remedy="give it with --voxel-size",
        )  # fmt: skip
    scales = _grey_scales(listed)
    boxes = _boxes(listed, scales, size, taken)
    count = len(listed)
    middle = np.full((count, 3), taken.box_vox // 2, float)
    write_subtomograms(
        output, boxes, candidate_id=np.arange(1, count + 1), centre_zyx=middle,
        box_vox=taken.box_vox, voxel_size_angstrom=taken.voxel_size_angstrom,
    )  # fmt: skip
    table = pd.DataFrame({
        "subtomogram": np.arange(1, count + 1), "image": [p.name for p in listed.places],
        "tomogram": listed.tomogram, "class": listed.cls,
    })  # fmt: skip
    write_text(_table_of(output), table.to_csv(index=False, lineterminator="\n"))
    log.info("%d subtomograms of %g angstrom taken over", count, size)
    return table


def _table_of(subtomograms: str | Path) -> Path:
    return Path(subtomograms).with_suffix(".csv")


def _grey_scales(listed: Listed) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of all voxels of a tomogram's subtomograms."""
    sums: dict[str, NDArray[np.float64]] = {}
    edges: set[int] = set()
    for place, tomogram in zip(listed.places, listed.tomogram, strict=True):
        cube = read_cube(place)
        edges.add(cube.shape[0])
        if not np.isfinite(cube).all():
            raise InputError(
                place.path, expected="finite grey values", found=f"others in {place.name}",
                remedy="extract it again, or take it out of the STAR file",
            )  # fmt: skip
        own = np.array([cube.size, cube.sum(dtype=np.float64), np.square(cube, dtype=float).sum()])
        sums[tomogram] = sums.get(tomogram, np.zeros(3)) + own
    if len(edges) > 1:
        raise InputError(
            listed.places[0].path.parent, expected="cubes of one edge", found=f"{sorted(edges)}",
            remedy="extract them alike",
        )  # fmt: skip
    found = {}
    for name, (count, total, squares) in sums.items():
        mean = total / count
        found[name] = (float(mean), float(np.sqrt(max(squares / count - mean**2, 0.0))))
    return found


def _boxes(
    listed: Listed, scales: dict[str, tuple[float, float]], size: float, taken: Taken
) -> Iterator[NDArray[np.float32]]:
    ratio = taken.voxel_size_angstrom / size
    for place, tomogram in zip(listed.places, listed.tomogram, strict=True):
        mean, deviation = scales[tomogram]
        cube = (read_cube(place) - np.float32(mean)) / np.float32(deviation or 1.0)
        cube = np.clip(-cube if taken.bright else cube, -CLIP_SD, CLIP_SD)
        middle = np.full((1, 3), cube.shape[0] // 2, float)
        if abs(ratio - 1) > SAME:
            cube, exact = rescale(cube, ratio)
            middle = middle / np.array(exact)
        (patch,) = cut_patches(cube, middle, box_vox=taken.box_vox, fill=0.0)
        yield patch.values


def name_subtomograms(
    subtomograms: str | Path, folders: Sequence[Path], output: str | Path,
    settings: ClassifySettings | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Name each subtomogram of an HDF5 file by one classifier or several together.

    Writes and returns a table (CSV): `subtomogram`, what the table beside the file says of it
    (`image`, `tomogram`, `class` as `given_class`), the `class` named, `p_background` by those that
    name wholes, `vote_share`, `margin` and `p_<class>`, as in particles.csv. Nothing is sifted:
    there is no localizer whose candidates they are.

    Raises
    ------
    InputError
        For classifiers that do not fit each other, or the subtomograms' box or voxel size.
    """
    cards = [load_card(folder) for folder in folders]
    check_members(cards)
    with open_subtomograms(subtomograms) as boxes:
        _check_fit(subtomograms, boxes.box_vox, boxes.voxel_size_angstrom, cards)
        numbers = boxes.candidate_id
    with tempfile.TemporaryDirectory(dir=Path(output).parent, prefix=".naming-") as work:
        results = numbered("classes", [f"{work}/{k}.h5" for k in range(len(cards))])
        given = {"subtomograms": str(subtomograms),
                 **numbered("card", [str(folder) for folder in folders])}  # fmt: skip
        classify.run(given, results, settings=settings or ClassifySettings())
        members = [_votes(path) for path in results.values()]
    joint, temperature = together(members, cards)
    table = _named_table(numbers, joint, cards[0].classes[1:], temperature)
    beside = _table_of(subtomograms)
    if beside.is_file():
        known = pd.read_csv(beside, dtype=str, keep_default_na=False)
        known["subtomogram"] = known["subtomogram"].astype(int)
        table = known.rename(columns={"class": "given_class"}).merge(table, on="subtomogram")
    text = table.to_csv(index=False, float_format="%.6f", lineterminator="\n")
    write_text(output, text)
    return table


def _check_fit(
    source: str | Path, box_vox: int, voxel_size: float, cards: Sequence[ModelCard]
) -> None:
    low, high = cards[0].voxel_size_range_angstrom
    if box_vox != cards[0].box_vox or not low <= voxel_size <= high:
        raise InputError(
            source, expected=f"boxes of {cards[0].box_vox} voxels of {low:g} to {high:g} angstrom, "
            f"as {cards[0].name} takes them", found=f"{box_vox} of {voxel_size:g}",
            remedy="take them over again with `tomoline subtomograms take --model`",
        )  # fmt: skip


def _votes(path: str) -> list[Vote | None]:
    """Votes on the boxes of a file of the classify stage, each about its middle."""
    with open_classes(path) as boxes:
        if isinstance(boxes, NamedBoxes):
            return [vote_of_views(views) for views in boxes.views]
        radius = VoteSettings().centre_radius_vox
        return [
            vote(boxes.labels[k], boxes.probabilities[k], boxes.centre_zyx[k],
                 centre_radius_vox=radius, radius_vox=boxes.labels.shape[1] / 4)
            for k in range(len(boxes))
        ]  # fmt: skip


def _named_table(
    numbers: NDArray[np.int64], votes: Sequence[Vote | None], classes: Sequence[str],
    temperature: float | None,
) -> pd.DataFrame:  # fmt: skip
    from tomoline.evaluation.calibration import tempered  # noqa: PLC0415

    rows = []
    for number, found in zip(numbers.tolist(), votes, strict=True):
        row = {"subtomogram": number, "class": "", "p_background": 0.0, "vote_share": 0.0,
               "margin": 0.0, **dict.fromkeys(probability_columns(classes), 0.0)}  # fmt: skip
        if found is not None:
            p = tempered(found.probabilities[None], temperature or 1.0)[0]
            row |= {"class": classes[found.label - 1], "p_background": found.background,
                    "vote_share": found.share, "margin": found.margin,
                    **dict(zip(probability_columns(classes), p, strict=True))}  # fmt: skip
        rows.append(row)
    return pd.DataFrame(rows)


def give_subtomograms(
    subtomograms: str | Path, folder: str | Path, *, table: str | Path | None = None
) -> Path:
    """Write the boxes of an HDF5 file as a folder of MRC files with a STAR file, for RELION and
    Warp; returns the STAR file.

    `table` (CSV) has further columns: that of `name_subtomograms`, or the main line's
    particles.csv, of which only the accepted particles are written.

    Raises
    ------
    InputError
        For a table without a row for what it lists.
    """
    with open_subtomograms(subtomograms) as boxes:
        numbers = boxes.candidate_id.tolist()
        rows = pd.DataFrame({"subtomogram": numbers})
        if table is not None:
            rows = _merged(rows, Path(table))
        place = {number: k for k, number in enumerate(numbers)}
        cubes = (np.asarray(boxes.boxes[place[n]], np.float32) for n in rows["subtomogram"])
        return write_folder(folder, cubes, rows, voxel_size_angstrom=boxes.voxel_size_angstrom)


def _merged(rows: pd.DataFrame, path: Path) -> pd.DataFrame:
    more = pd.read_csv(path, keep_default_na=False)
    if "status" in more:
        more = more[more["status"] == "accepted"]
    key = next((name for name in ("subtomogram", "particle_id") if name in more), None)
    if key is None:
        raise InputError(
            path, expected="a column subtomogram or particle_id", found=", ".join(more.columns),
            remedy="give particles.csv, or what `tomoline subtomograms name` wrote",
        )  # fmt: skip
    columns = {
        "tomogram": "rlnMicrographName", "class": "tomolineClassName",
        "score": "rlnAutopickFigureOfMerit", "vote_share": "tomolineVoteShare",
        "margin": "tomolineMargin",
    }  # fmt: skip
    kept = {key: "subtomogram"} | {a: b for a, b in columns.items() if a in more}
    chosen = more[list(kept)].rename(columns=kept)
    missing = set(chosen["subtomogram"]) - set(rows["subtomogram"])
    if missing:
        raise InputError(
            path, expected="rows of subtomograms that are in the HDF5 file",
            found=f"{len(missing)} others, such as {min(missing)}",
            remedy="the table and the subtomograms are of different runs",
        )  # fmt: skip
    return rows.merge(chosen, on="subtomogram")
