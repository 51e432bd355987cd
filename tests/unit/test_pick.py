"""From a micrograph to picks in its own pixels, with a network whose answer is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from tomoline.cli import main
from tomoline.errors import InputError
from tomoline.io.picks import read_picks
from tomoline.networks.hydrapicker import GENERAL, HydraPicker
from tomoline.networks.pickers import (
    HeadCard,
    PickerCard,
    load_picker,
    save_picker,
    write_with_heads,
)
from tomoline.ops.micrographs import (
    AT_EDGE,
    EXTENT_PX,
    LOW,
    MASKED,
    TOO_CLOSE,
    PickRules,
    flattened,
    judged,
    prepare_micrograph,
)
from tomoline.settings import MicrographsSettings
from tomoline.stages import combine_picks, pick, report_micrographs


class Blobs(nn.Module):
    """Says of each cell where its brightest point is, and whether that is bright."""

    def forward(self, x: Tensor, head: str = GENERAL) -> Tensor:
        apart = torch.arange(-12, 13) ** 2
        kernel = torch.sigmoid(10.5 - (apart[:, None] + apart[None]) ** 0.5)[None, None]
        smooth = F.conv2d(x, kernel / kernel.sum(), padding=12)
        peak, index = F.max_pool2d(smooth, 16, return_indices=True)
        wide = x.shape[-1]
        y, x_at = index // wide % 16 - 7.5, index % wide % 16 - 7.5
        y, x_at = y + _parabola(smooth, index, wide), x_at + _parabola(smooth, index, 1)
        # A maximum on the cell's rim is the flank of a neighbour's.
        inner = F.max_pool2d(smooth, 5, stride=1, padding=2).flatten(-2)
        top = torch.gather(inner, -1, index.flatten(-2)).view_as(peak) == peak
        return torch.cat([y, x_at, torch.where(top, 8 * (peak - 0.8), -9.0)], 1)


def _parabola(smooth: Tensor, index: Tensor, step: int) -> Tensor:
    """Where between pixels the maximum at `index` is, `step` values apart."""
    flat, at = smooth.flatten(-2), index.flatten(-2)
    before, own, after = (
        torch.gather(flat, -1, (at + k * step).clamp(0, flat.shape[-1] - 1)) for k in (-1, 0, 1)
    )
    bend = (before - 2 * own + after).clamp(max=-1e-9)
    return (0.5 * (before - after) / bend).clamp(-0.5, 0.5).view(index.shape)


def micrograph(
    shape: tuple[int, int], diameter: float, *, seed: int = 1, dark: bool = True, noise: float = 0.3
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Discs with soft edges at places between pixels, on a slope, in some noise."""
    rng = np.random.default_rng(seed)
    y, x = np.indices(shape)
    image = np.zeros(shape)
    places: list[NDArray[np.float64]] = []
    for _ in range(400):
        place = rng.uniform(0.6 * diameter, np.asarray(shape) - 0.6 * diameter)
        if all(np.linalg.norm(place - p) > 1.4 * diameter for p in places):
            places.append(place)
            image += 1 / (1 + np.exp(np.hypot(y - place[0], x - place[1]) - diameter / 2))
    image = (-image if dark else image) + 0.002 * y + rng.normal(0, noise, shape)
    return (100 + 10 * image).astype(np.float32), np.asarray(places)


@pytest.fixture(autouse=True)
def known_network(monkeypatch: pytest.MonkeyPatch) -> None:
    card = PickerCard(name="blobs", parameters={}, heads={
        GENERAL: HeadCard(threshold=0.5, precision_curve=[(0.2, 0.4), (0.6, 0.9)])
    })  # fmt: skip
    monkeypatch.setattr(pick, "load_picker", lambda folder: (card, Blobs()))


def picked(tmp_path: Path, path: Path, settings: dict[str, Any], **dataset: Any) -> pd.DataFrame:
    own = tmp_path / "results" / path.stem
    own.mkdir(parents=True, exist_ok=True)
    outputs = {
        "picks": own / "picks.csv", "facts": own / "micrograph.json",
        "picture": own / "micrograph.png", "star": own / "picks.star", "box": own / "picks.box",
    }  # fmt: skip
    data = {"name": "d", "sheet": "d.tsv", "pixel_size_angstrom": 1.0, **dataset}
    mask = data.pop("mask", "")
    pick.run(
        {"card": tmp_path / "card.yaml"}, {k: str(v) for k, v in outputs.items()},
        settings=MicrographsSettings(device="cpu", precision_of_numbers="float32", **settings),
        micrograph=path.stem, path=str(path), dataset=data, mask=mask,
    )  # fmt: skip
    return read_picks(outputs["picks"])


def written(path: Path, image: NDArray[np.float32], pixel: float = 0.0) -> Path:
    with mrcfile.new(path) as file:
        file.set_data(image)
        file.voxel_size = pixel
    return path


def accepted(table: pd.DataFrame) -> NDArray[np.float64]:
    return table.loc[table["status"] == "accepted", ["y_px", "x_px"]].to_numpy(float)


@pytest.mark.parametrize(("shape", "diameter"), [
    ((300, 411), 38.0), ((517, 333), 63.7), ((200, 221), 21.0), ((160, 150), 14.0),
])  # fmt: skip
@pytest.mark.parametrize("dark", [True, False])
def test_picks_are_in_the_original_pixels_to_half_a_pixel(
    tmp_path: Path, shape: tuple[int, int], diameter: float, dark: bool
) -> None:
    """Rectangular sizes, none divisible by 16; binned, enlarged and left as they are."""
    image, places = micrograph(shape, diameter, dark=dark, noise=0.05)
    path = written(tmp_path / "one.mrc", image, pixel=2.0)
    table = picked(tmp_path, path, {}, particle_diameter_angstrom=2 * diameter,
                   contrast="dark" if dark else "bright", pixel_size_angstrom=None)  # fmt: skip
    apart = np.linalg.norm(places[:, None] - accepted(table)[None], axis=-1)
    assert len(places) > 8
    # Peaks scatter with the noise about the discs' centres; their mean is not off.
    hit = apart.min(1) < 0.25 * diameter
    assert hit.mean() > 0.9
    bias = (accepted(table)[apart.argmin(1)[hit]] - places[hit]).mean(0)
    assert np.abs(bias).max() < 0.5


def test_a_tiff_and_an_mrc_of_the_same_rows_give_the_same_picks(tmp_path: Path) -> None:
    image, _ = micrograph((240, 200), 30.0)
    whole = np.rint(10 * image).astype(np.uint16)
    Image.fromarray(whole).save(tmp_path / "one.tif")
    data = {"particle_diameter_angstrom": 45.0, "pixel_size_angstrom": 1.5}
    from_tiff = picked(tmp_path, tmp_path / "one.tif", {}, **data)
    from_mrc = picked(tmp_path, written(tmp_path / "one.mrc", whole), {}, **data)
    assert np.array_equal(accepted(from_tiff), accepted(from_mrc))
    assert len(accepted(from_mrc)) > 5


def test_without_a_pixel_size_nothing_is_guessed(tmp_path: Path) -> None:
    path = written(tmp_path / "one.mrc", micrograph((200, 200), 30.0)[0])
    with pytest.raises(InputError, match="pixel_size_angstrom"):
        picked(tmp_path, path, {}, particle_diameter_angstrom=45.0, pixel_size_angstrom=None)


@pytest.mark.parametrize("kind", ["zero", "constant", "nan"])
def test_an_empty_micrograph_has_no_picks_and_valid_files(tmp_path: Path, kind: str) -> None:
    image = np.full((150, 130), {"zero": 0.0, "constant": 7.5, "nan": np.nan}[kind], np.float32)
    path = written(tmp_path / "one.mrc", image)
    table = picked(tmp_path, path, {}, particle_diameter_angstrom=30.0)
    assert len(table) == 0
    own = tmp_path / "results" / "one"
    assert '"empty": true' in (own / "micrograph.json").read_text()
    assert (own / "picks.box").read_text() == ""


def test_noise_alone_is_not_empty(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).normal(0, 1, (150, 130)).astype(np.float32)
    values, empty = flattened(noise)
    assert not empty
    assert values.std() == pytest.approx(1, abs=0.1)


def test_a_hot_pixel_does_not_decide_the_scale() -> None:
    image, _ = micrograph((300, 300), 40.0)
    spoilt = image.copy()
    spoilt[150, 150] = 1e6
    plain, hot = (prepare_micrograph(i, 40.0).values for i in (image, spoilt))
    far = np.hypot(*(np.indices(plain.shape) - 78)) > 21
    assert np.abs(plain - hot)[far].max() < 0.1


def test_why_candidates_are_no_picks() -> None:
    yx = np.array([[50.0, 50], [58, 50], [50, 80], [4, 40], [70, 20], [-3, 10], [80, 80]])
    score = np.array([0.9, 0.8, 0.3, 0.95, 0.9, 0.9, 0.01])
    mask = np.zeros((100, 100), bool)
    mask[60:80, 10:30] = True
    found = judged(yx, score, PickRules(), diameter_px=20.0, shape=(100, 100), mask=mask)
    told = {tuple(p): r for p, r in zip(found["yx"].tolist(), found["reason"], strict=True)}
    assert told == {
        (4, 40): AT_EDGE, (50, 50): "", (70, 20): MASKED, (58, 50): TOO_CLOSE, (50, 80): LOW
    }  # fmt: skip
    assert list(found["score"]) == sorted(found["score"], reverse=True)


@pytest.mark.parametrize("name", ["mask.png", "small.png", "mask.mrc"])
def test_nothing_is_picked_in_the_mask(tmp_path: Path, name: str) -> None:
    image, places = micrograph((320, 256), 32.0)
    path = written(tmp_path / "one.mrc", image)
    part = np.zeros((320, 256), np.uint8)
    part[:160] = 255
    if name.endswith(".mrc"):
        written(tmp_path / name, part.astype(np.float32) / 255)
    else:
        small = part[::4, ::4] if name.startswith("small") else part
        Image.fromarray(small).save(tmp_path / name)
    table = picked(tmp_path, path, {}, particle_diameter_angstrom=32.0, mask=str(tmp_path / name))
    assert accepted(table)[:, 0].min() > 158
    assert (places[:, 0] < 150).any()
    assert (table["reason"] == MASKED).any()


def test_a_mask_of_another_micrograph_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "one.mrc", micrograph((200, 200), 30.0)[0])
    Image.fromarray(np.zeros((200, 300), np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(InputError, match="aspect"):
        picked(tmp_path, path, {}, particle_diameter_angstrom=30.0, mask=str(tmp_path / "mask.png"))


def test_the_threshold_is_the_settings_the_wanted_precisions_or_the_cards(tmp_path: Path) -> None:
    path = written(tmp_path / "one.mrc", micrograph((200, 200), 30.0)[0])

    def threshold(**settings: Any) -> str:
        picked(tmp_path, path, settings, particle_diameter_angstrom=30.0)
        text = (tmp_path / "results" / "one" / "micrograph.json").read_text()
        return text.split('"threshold": ')[1].split(",")[0]

    assert threshold() == "0.5"
    assert threshold(precision=0.8) == "0.6"
    assert threshold(precision=0.8, threshold=0.3) == "0.3"
    with pytest.raises(InputError, match=r"at most 0\.90"):
        threshold(precision=0.95)
    with pytest.raises(InputError, match="general"):
        threshold(head="unknown")


def test_same_input_gives_same_bytes(tmp_path: Path) -> None:
    path = written(tmp_path / "one.mrc", micrograph((200, 200), 30.0)[0])
    read = []
    for _ in range(2):
        picked(tmp_path, path, {}, particle_diameter_angstrom=30.0)
        own = tmp_path / "results" / "one"
        read.append({f.name: f.read_bytes() for f in sorted(own.iterdir())})
    assert read[0] == read[1]


def test_a_data_sets_files_and_page(tmp_path: Path) -> None:
    dataset = {"particle_diameter_angstrom": 34.0, "pixel_size_angstrom": 1.0}
    truths, folders = {}, []
    for k, name in enumerate(("first", "second")):
        image, places = micrograph((220, 260), 34.0, seed=k)
        picked(tmp_path, written(tmp_path / f"{name}.mrc", image), {}, **dataset)
        folders.append(tmp_path / "results" / name)
        if name == "first":
            truths[name] = str(tmp_path / "truth.csv")
            rows = "".join(f"{x},{y}\n" for y, x in places)
            Path(truths[name]).write_text("x_px,y_px\n" + rows)
    inputs = {
        key: [str(f / file) for f in folders]
        for key, file in (("picks", "picks.csv"), ("facts", "micrograph.json"),
                          ("stars", "picks.star"), ("pictures", "micrograph.png"))
    }  # fmt: skip
    data = {"name": "d", "sheet": "d.tsv", **dataset}
    out = {k: tmp_path / "out" / k for k in ("relion", "relion_list", "cryosparc", "csv", "eman")}
    combine_picks.run(inputs, out, settings=MicrographsSettings(), dataset=data)
    both = read_picks(out["csv"])
    assert set(both["micrograph"]) == {"first", "second"}
    assert sorted(p.name for p in out["eman"].iterdir()) == ["first.box", "second.box"]
    assert str(folders[1] / "picks.star") in out["relion_list"].read_text()
    pages = {k: tmp_path / "report" / k for k in ("page", "table", "evaluation")}
    failed = [{"micrograph": "third", "state": "failed", "reason": "<damaged>"}]
    report_micrographs.run(inputs, pages, settings=MicrographsSettings(), dataset=data,
                           truths=truths, failed=failed)  # fmt: skip
    page = pages["page"].read_text()
    assert page.count("<circle") >= len(both)
    assert "&lt;damaged&gt;" in page
    assert "<damaged>" not in page
    rows = pages["table"].read_text().splitlines()
    assert float(rows[1].split(",")[5]) > 0.8  # precision of the first; the second has no truth
    assert rows[2].endswith(",,,,")
    assert json.loads(pages["evaluation"].read_text())["ap"] > 0.9


def test_a_picker_on_disk_is_checked(tmp_path: Path) -> None:
    shape = {"body": 4, "width": 1 / 64}
    network = HydraPicker(heads=["mine"], **shape)
    card = PickerCard(name="p", parameters={"heads": ["mine"], **shape},
                      heads={GENERAL: HeadCard(), "mine": HeadCard(threshold=0.3)})  # fmt: skip
    save_picker(tmp_path / "p", card, network.state_dict())
    read, same = load_picker(tmp_path / "p")
    assert read.head("mine").threshold == 0.3
    assert all(torch.equal(v, same.state_dict()[k]) for k, v in network.state_dict().items())
    with pytest.raises(InputError, match="general, mine"):
        read.head("other")
    weights = tmp_path / "p" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\1\0")
    with pytest.raises(InputError, match="damaged"):
        load_picker(tmp_path / "p")
    (tmp_path / "p" / "card.yaml").write_text("role: localizer\n")
    with pytest.raises(InputError, match="a localizer"):
        load_picker(tmp_path / "p")


def test_a_picker_is_handed_out_with_chosen_heads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = {"body": 4, "width": 1 / 64}
    network = HydraPicker(heads=["mine", "done"], **shape)
    card = PickerCard(name="p", parameters={"heads": ["mine", "done"], **shape},
                      heads={k: HeadCard(source=k) for k in (GENERAL, "mine", "done")})  # fmt: skip
    for name in network.heads:
        torch.nn.init.normal_(network.head(name)[-1].weight)
    save_picker(tmp_path / "p", card, network.state_dict())
    given = ["model", str(tmp_path / "p"), "--heads", "mine", "--output", str(tmp_path / "few")]
    assert main(given) == 0
    assert "head mine" in capsys.readouterr().out
    fewer, same = load_picker(tmp_path / "few")
    assert list(fewer.heads) == [GENERAL, "mine"]
    assert same.specialised() == ["mine"]
    image = torch.rand(1, 1, 64, 64)
    for name in (GENERAL, "mine"):
        assert torch.equal(same(image, name), network.eval()(image, name))
    with pytest.raises(InputError, match="general, mine, done"):
        write_with_heads(tmp_path / "p", ["other"], tmp_path / "none")
    with pytest.raises(InputError, match="would be lost"):
        write_with_heads(tmp_path / "p", [], tmp_path / "p")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "card.yaml").write_text("role: localizer\n")
    with pytest.raises(InputError, match="of other work"):
        write_with_heads(tmp_path / "p", [], tmp_path / "other")
    assert main(given[:-2]) == 2
    assert load_picker(tmp_path / "p")[0] == save_picker(tmp_path / "q", card, network.state_dict())


def test_the_extent_is_that_of_the_authors_boxes() -> None:
    image, _ = micrograph((420, 420), 42.0)
    prepared = prepare_micrograph(image, 42.0)
    assert prepared.scale_yx == pytest.approx((42 / EXTENT_PX,) * 2, rel=1e-3)
    corner = prepared.to_given(np.array([[0.0, 0.0], [10.0, 20.0]]))
    assert np.allclose(prepared.to_prepared(corner), [[0, 0], [10, 20]])
    assert np.allclose(corner, [[0, 0], [20, 40]], rtol=1e-3)
