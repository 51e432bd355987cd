"""Where a voxel lies for other programs: the one place that knows, and the user's page repeats it
(docs/coordinates.md).

Ours. A coordinate is 0-based and sub-voxel, an integer is the centre of that voxel, in the voxels
of the tomogram as it was given: `v = 0` is the centre of the first voxel, not its corner.

Binning. A tomogram binned `b` times against the unbinned pixels of its tilt series:

- `fourier` (default): `u = b v`. RELION's reconstruction back-projects voxel `v` at unbinned
  position `origin + spacing v` with origin 0 (reconstruct_tomogram.cpp: x0 = y0 = z0 = 0 since
  4.1) and its picker multiplies voxel indices by the binning; Warp does the same; Fourier
  cropping, ours too, leaves the centre of voxel 0 where it was.
- `average`: `u = b v + (b - 1) / 2`. Averaging `b` voxels (IMOD's `binvol`, `newstack -bin`) puts
  the centre of the new voxel in the middle of its block. Without this the error is (b - 1) / 2
  unbinned pixels, almost half a voxel of the binned tomogram.

`u` is 0-based and an integer is a pixel's centre, as RELION's C++ has it.

RELION-5's centre, in unbinned pixels of the tomogram's size N: `cpp` = N / 2 (tomogram_set.cpp,
`centre`; real division, so an odd N gives a half); `picker` = N / 2 - 1 (RELION's own
get_particle_poses/particles.py). They differ by one unbinned pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tomoline.contracts import VolumeTransform
from tomoline.errors import InputError
from tomoline.settings import DatasetSettings

RelionCentre = Literal["picker", "cpp"]


@dataclass(frozen=True, kw_only=True)
class TomogramGeometry:
    """Size and sampling of one given tomogram and of the tilt series it comes from.

    All coordinate arrays are (n, 3), zyx. `unbinned_shape_zyx` is RELION's rlnTomoSizeZ, Y, X
    where it is known; the tomogram's own size times the binning is up to half a voxel off where
    the binning does not divide the size.
    """

    shape_zyx: tuple[int, int, int]
    voxel_size_angstrom: float
    pixel_size_angstrom: float
    binned_by: Literal["fourier", "average"] = "fourier"
    unbinned_shape_zyx: tuple[float, float, float]

    @classmethod
    def of(cls, transform: VolumeTransform, dataset: DatasetSettings) -> TomogramGeometry:
        """Join what `prepare` found with what the dataset's settings say; as `of_given`."""
        voxel = transform.given_voxel_size_angstrom
        return cls.of_given(transform.given_shape_zyx, voxel, dataset)

    @classmethod
    def of_given(
        cls, shape_zyx: tuple[int, int, int], voxel: float, dataset: DatasetSettings
    ) -> TomogramGeometry:
        """Geometry of a tomogram of this size and voxel size (angstrom), turned if it had to be.

        Raises InputError where the tilt series' pixel is larger than the tomogram's voxel.
        """
        pixel = dataset.tilt_series_pixel_size_angstrom or voxel
        if pixel > voxel * 1.001:
            raise InputError(
                f"dataset {dataset.name}",
                expected="tilt_series_pixel_size_angstrom at most the tomogram's voxel size "
                f"of {voxel:g} A",
                found=f"{pixel:g} A",
                remedy="give the unbinned pixel size of the tilt series",
            )
        binning = voxel / pixel
        given = shape_zyx
        unbinned = (given[0] * binning, given[1] * binning, given[2] * binning)
        if dataset.unbinned_size_xyz is not None:
            x, y, z = dataset.unbinned_size_xyz
            _check_unbinned((z, y, x), given, binning, source=f"dataset {dataset.name}")
            unbinned = (float(z), float(y), float(x))
        return cls(
            shape_zyx=given,
            voxel_size_angstrom=voxel,
            pixel_size_angstrom=pixel,
            binned_by=dataset.binned_by,
            unbinned_shape_zyx=unbinned,
        )

    @property
    def binning(self) -> float:
        """Voxel size over pixel size; need not be whole."""
        return self.voxel_size_angstrom / self.pixel_size_angstrom

    def to_unbinned(self, zyx_vox: NDArray[np.float64]) -> NDArray[np.float64]:
        """Voxels of the tomogram to unbinned pixels, both 0-based at the first one's centre."""
        return np.asarray(zyx_vox, float) * self.binning + self._shift

    def from_unbinned(self, zyx_pixel: NDArray[np.float64]) -> NDArray[np.float64]:
        """Undo `to_unbinned`."""
        return (np.asarray(zyx_pixel, float) - self._shift) / self.binning

    def to_centred_angstrom(
        self, zyx_vox: NDArray[np.float64], *, centre: RelionCentre
    ) -> NDArray[np.float64]:
        """Voxels of the tomogram to RELION-5's angstrom from the tomogram's centre."""
        return (self.to_unbinned(zyx_vox) - self._centre(centre)) * self.pixel_size_angstrom

    def from_centred_angstrom(
        self, zyx_angstrom: NDArray[np.float64], *, centre: RelionCentre
    ) -> NDArray[np.float64]:
        """Undo `to_centred_angstrom`."""
        pixels = np.asarray(zyx_angstrom, float) / self.pixel_size_angstrom
        return self.from_unbinned(pixels + self._centre(centre))

    @property
    def _shift(self) -> float:
        return (self.binning - 1) / 2 if self.binned_by == "average" else 0.0

    def _centre(self, centre: RelionCentre) -> NDArray[np.float64]:
        half = np.asarray(self.unbinned_shape_zyx, float) / 2
        return half - 1 if centre == "picker" else half


def _check_unbinned(
    unbinned: tuple[int, int, int], given: tuple[int, int, int], binning: float, *, source: str
) -> None:
    """The unbinned size must be what binning makes the given size of, to a voxel."""
    for size, own in zip(unbinned, given, strict=True):
        if abs(size / binning - own) > 1:
            raise InputError(
                source,
                expected=f"unbinned_size_xyz that binning by {binning:g} turns into "
                f"{given[::-1]} voxels (x, y, z)",
                found=f"{unbinned[::-1]}",
                remedy="copy rlnTomoSizeX, Y, Z from tomograms.star, or leave it out",
            )
