"""Isosurfaces of small density maps as pictures."""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

mpl.use("Agg")
from matplotlib.colors import LightSource
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d.art3d import Poly3DCollection
from skimage.measure import marching_cubes

LEVEL = 0.35  # of the map's largest value
COLOUR = "#56B4E9"


def isosurface_png(
    density: NDArray[np.floating], *, level: float = LEVEL, inches: float = 2.0
) -> bytes:
    """Draw the surface at `level` times the maximum of a map `(z, y, x)`, seen from the side.

    A map without such a surface, as one that is the same everywhere, gives an empty frame. Equal
    maps give equal bytes.
    """
    figure = Figure(figsize=(inches, inches), dpi=100)
    axis: Any = figure.add_axes((0, 0, 1, 1), projection="3d")
    values = np.pad(np.asarray(density, np.float32), 1)
    at = level * float(values.max())
    if 0 < at < float(values.max()) and float(values.min()) < at:
        corners, faces, _, _ = marching_cubes(values, at)  # type: ignore[no-untyped-call]
        surface = Poly3DCollection(
            corners[:, ::-1][faces], facecolors=COLOUR, shade=True, linewidths=0,
            lightsource=LightSource(315, 45),
        )  # fmt: skip
        axis.add_collection3d(surface)
    nz, ny, nx = values.shape
    axis.set(xlim=(0, nx), ylim=(0, ny), zlim=(0, nz))
    axis.set_box_aspect((nx, ny, nz), zoom=1.5)
    axis.view_init(elev=20, azim=-60)
    axis.set_axis_off()
    target = io.BytesIO()
    figure.savefig(target, format="png", metadata={"Software": None})
    return target.getvalue()
