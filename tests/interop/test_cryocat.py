"""cryoCAT, another group's reader of RELION's and Dynamo's files, finds the planted places.

It knows the sizes of the unbinned tomograms and nothing of ours; RELION-5's centre it takes as the
C++ does, half the size (`relion_centre: cpp`).
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import dialect_contract as contract
import numpy as np
import starfile
from needed import absent

from tomoline.export.dialect import selected
from tomoline.export.registry import DIALECTS
from tomoline.settings import ExportSettings

PYTHON = contract.ROOT / ".venv-cryocat" / "bin" / "python"
CASES = [
    contract.Case("even", 1, centre="cpp"),
    contract.Case("odd", 2, origin=True, centre="cpp"),
    contract.Case("even", 4, turned=True, centre="cpp"),
    contract.Case("odd", 8, origin=True, turned=True, centre="cpp"),
]
READ = """
import json, sys, warnings
warnings.simplefilter("ignore")
import pandas as pd
from cryocat import cryomotl
answer = []
for name, path, size, pixel, binning in json.load(sys.stdin):
    if name == "relion5":
        names = ["rlnTomoName", "rlnTomoSizeX", "rlnTomoSizeY", "rlnTomoSizeZ"]
        tomograms = pd.DataFrame([["TS_1", *size]], columns=names)
        motl = cryomotl.RelionMotlv5(path, tomograms, pixel_size=pixel, binning=binning)
    elif name == "relion4":
        motl = cryomotl.RelionMotl(path, version=4.0, pixel_size=pixel, binning=binning)
    else:
        motl = cryomotl.DynamoMotl(path)
    places = motl.df[["x", "y", "z"]].to_numpy() + motl.df[["shift_x", "shift_y", "shift_z"]]
    answer.append([places.to_numpy().tolist(), motl.df["class"].astype(int).tolist()])
print(json.dumps(answer))
"""


def with_angles(path: Path) -> None:
    """cryoCAT refuses a table without angles and origins; RELION takes them for 0, so they are."""
    blocks = starfile.read(path, always_dict=True, parse_as_string=["tomolineClassName"])
    for axis, turn in zip("XYZ", ("Rot", "Tilt", "Psi"), strict=True):
        blocks["particles"][f"rlnAngle{turn}"] = 0.0
        blocks["particles"][f"rlnOrigin{axis}Angst"] = 0.0
    starfile.write(blocks, path)


def test_cryocat_finds_the_planted_places(tmp_path: Path) -> None:
    if not PYTHON.exists():
        absent("cryoCAT's own environment is not here (make readers)")
    asked, wanted = [], []
    for number, case in enumerate(CASES):
        settings = ExportSettings(relion_centre="cpp")
        given = selected(contract.planted(case, tmp_path / str(number)), settings)
        for name in ("relion5", "relion4", "dynamo"):
            path = tmp_path / str(number) / DIALECTS[name].file_name
            DIALECTS[name].write(given, path, settings)
            if name != "dynamo":
                with_angles(path)
            size = [n * case.binning for n in case.shape[::-1]]
            asked.append((name, str(path), size, contract.PIXEL, float(case.binning)))
            # Dynamo counts from 1, in voxels; RELION's are unbinned pixels.
            scale, first = (1, 1) if name == "dynamo" else (case.binning, 0)
            numbers = [contract.CLASSES.index(own) + 1 for own in given.class_names()]
            wanted.append((given.zyx_vox()[:, ::-1] * scale + first, numbers))
        found = contract.in_order(contract.Found(given.zyx_vox(), None, None)).zyx
        truth = contract.in_order(contract.Found(contract.truth(case), None, None)).zyx
        np.testing.assert_allclose(found, truth, atol=0.01)
    done = subprocess.run(
        [str(PYTHON), "-c", READ], input=json.dumps(asked), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert len(answer) == 12
    for ask, (places, classes), (truth, numbers) in zip(asked, answer, wanted, strict=True):
        limit = 0.01 * (1 if ask[0] == "dynamo" else ask[4])
        np.testing.assert_allclose(places, truth, atol=limit, err_msg=str(ask))
        assert classes == numbers
