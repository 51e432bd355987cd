"""Stage pick: one micrograph from the file as it was given to its picks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoline.errors import InputError
from tomoline.infer import choose_device, choose_precision
from tomoline.io.atomic import write_json
from tomoline.io.micrographs import read_micrograph
from tomoline.io.picks import Exposure, pick_table, write_box, write_picks, write_relion
from tomoline.io.png import write_grey
from tomoline.log import get_logger
from tomoline.networks.pickers import HeadCard, PickerCard, load_picker
from tomoline.ops.micrographs import CLIP_SD, PickRules, Prepared, prepare_micrograph
from tomoline.settings import MicrographDatasetSettings, MicrographsSettings, validated
from tomoline.stages.picking import Picking, picks_in

SETTINGS = MicrographsSettings
log = get_logger(__name__)

DIFFERENT_ASPECT = 0.02


def run(
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    *,
    settings: MicrographsSettings,
    micrograph: str,
    path: str,
    dataset: Mapping[str, Any],
    mask: str = "",
) -> None:
    """Pick particles in one micrograph.

    Input `card` (of the picker). Outputs `picks` (picks.csv: every candidate, the rejected ones
    with their reason, in pixels of the given file), `facts` (JSON), `picture` (PNG of what the
    network saw), `star` (RELION, this micrograph alone) and `box` (EMAN). `path` is the micrograph,
    `dataset` its data set's settings, `mask` a picture or MRC file of where not to pick.

    Raises
    ------
    InputError
        A file that cannot be read, no pixel size, a head that the picker does not have, a wanted
        precision that the head never reached, or a mask of another shape.
    """
    data = validated(MicrographDatasetSettings, dataset, source=f"data set of {micrograph}")
    pixels, facts = read_micrograph(path)
    pixel = data.pixel_size_angstrom or facts.pixel_size_angstrom
    if not pixel:
        raise InputError(
            path, expected="a pixel size", found="none in its header",
            remedy="give pixel_size_angstrom in the data set's file",
        )  # fmt: skip
    exposure = Exposure(
        micrograph=micrograph, path=path, shape_yx=facts.shape_yx, pixel_size_angstrom=pixel
    )
    diameter = data.particle_diameter_angstrom / pixel
    card, network = load_picker(Path(inputs["card"]).parent)
    device = choose_device(settings.device)
    how = Picking(
        head=settings.head, shifts=settings.shifts, device=device,
        dtype=choose_precision(settings.precision_of_numbers, device),
    )  # fmt: skip
    rules = rules_of(settings, card)
    prepared = prepare_micrograph(
        pixels, diameter, contrast=data.contrast, extent_px=card.extent_px
    )
    if prepared.empty:
        log.warning("%s: all its pixels are equal; there is nothing to pick", path)
    found = picks_in(
        network.to(device), prepared, how, rules, extent_px=card.extent_px,
        mask=read_mask(mask, facts.shape_yx, settings.mask_threshold) if mask else None,
    )  # fmt: skip
    table = table_of(found, micrograph, diameter)
    write_picks(outputs["picks"], table)
    write_relion(outputs["star"], table, [exposure])
    write_box(outputs["box"], table, exposure)
    _write_picture(outputs["picture"], prepared)
    write_json(outputs["facts"], {
        "micrograph": micrograph, "path": path, "shape_yx": list(facts.shape_yx),
        "pixel_size_angstrom": pixel, "diameter_px": round(diameter, 4),
        "scale_yx": [round(s, 8) for s in prepared.scale_yx], "empty": prepared.empty,
        "model": card.name, "weights_sha256": card.weights_sha256, "head": settings.head,
        "threshold": rules.threshold, "warnings": list(facts.warnings),
    })  # fmt: skip
    log.info("%s: %d picks of %d candidates, threshold %.3f", micrograph,
             int((table["status"] == "accepted").sum()), len(table), rules.threshold)  # fmt: skip


def rules_of(settings: MicrographsSettings, card: PickerCard) -> PickRules:
    """The rules of picking: the settings', and the head's threshold where they leave it open."""
    head = card.head(settings.head)
    return PickRules(
        threshold=_threshold(settings, head), min_distance=settings.min_distance,
        edge=settings.edge, floor=settings.floor,
    )  # fmt: skip


def _threshold(settings: MicrographsSettings, head: HeadCard) -> float:
    if settings.threshold is not None:
        return settings.threshold
    if settings.precision is None:
        return head.threshold
    least = head.threshold_for(settings.precision)
    if least is None:
        best = max((value for _, value in head.precision_curve), default=0.0)
        raise InputError(
            "micrographs.precision",
            expected=f"at most {best:.2f}, the best the head {settings.head} reached",
            found=f"{settings.precision:g}", remedy="ask for less, or set micrographs.threshold",
        )  # fmt: skip
    return least


def read_mask(path: str | Path, shape: tuple[int, int], threshold: float) -> NDArray[np.bool_]:
    """Where nothing is to be picked, in the micrograph's pixels.

    Whole numbers above 1 count as grey values of 255; a mask of another size but the same aspect is
    enlarged. InputError for another aspect.
    """
    values, _ = read_micrograph(path)
    whole: NDArray[Any] = np.asarray(values, np.float32)
    if np.issubdtype(values.dtype, np.integer) and whole.max(initial=0) > 1:
        whole = whole / 255
    aspect = (whole.shape[0] / whole.shape[1]) / (shape[0] / shape[1])
    if abs(aspect - 1) > DIFFERENT_ASPECT:
        raise InputError(
            path, expected=f"a mask of {shape[1]} x {shape[0]} pixels, or of that aspect",
            found=f"{whole.shape[1]} x {whole.shape[0]}", remedy="name the micrograph's own mask",
        )  # fmt: skip
    rows, columns = (
        ((np.arange(n) + 0.5) * m / n).astype(int).clip(0, m - 1)
        for n, m in zip(shape, whole.shape, strict=True)
    )
    masked: NDArray[np.bool_] = whole[np.ix_(rows, columns)] >= threshold
    return masked


def table_of(found: Mapping[str, NDArray[Any]], micrograph: str, diameter_px: float) -> Any:
    """The candidates as a table of picks, best first."""
    count = len(found["score"])
    return pick_table({
        "micrograph": [micrograph] * count, "pick_id": range(1, count + 1),
        "x_px": found["yx"][:, 1], "y_px": found["yx"][:, 0], "score": found["score"],
        "diameter_px": [diameter_px] * count,
        "status": ["rejected" if reason else "accepted" for reason in found["reason"]],
        "reason": found["reason"],
    })  # fmt: skip


def _write_picture(path: str | Path, prepared: Prepared) -> None:
    """What the network saw, particles dark as they are looked at."""
    grey = 128 - prepared.values * (127 / (0.7 * CLIP_SD))
    write_grey(path, np.clip(grey, 0, 255).astype(np.uint8))
