"""The small file in which a user names clusters, and the table of a data set's clusters.

    clustering: 3f9c1a20b7d4   # from the page of the discovery
    names:
      4: proteasome
      7: 5mrc

The line `clustering` ties it to one clustering: cluster numbers mean nothing in another.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pandas as pd
import yaml

from tomoline.contracts import BACKGROUND
from tomoline.errors import InputError
from tomoline.settings import SAFE_NAME

CLUSTER_COLUMNS = (
    "tomogram", "candidate_id", "cluster", "distance", "x", "y", "named", "true",
)  # fmt: skip


def read_clusters(path: str | os.PathLike[str]) -> tuple[str, pd.DataFrame]:
    """The clustering's mark and its table, a row a subtomogram; InputError if it is none."""
    file = Path(path)
    first, _, rest = (
        file.read_text(encoding="utf-8").partition("\n") if file.is_file() else ("",) * 3
    )
    match = re.fullmatch(r"# clustering ([0-9a-f]{12})", first)
    columns = rest.partition("\n")[0].split(",")
    if match is None or tuple(columns) != CLUSTER_COLUMNS:
        raise InputError(
            file, expected=f"a table of clusters ({', '.join(CLUSTER_COLUMNS)})",
            found="no such file" if not file.is_file() else "something else",
            remedy="delete the file and run again",
        )  # fmt: skip
    table = pd.read_csv(file, skiprows=1, dtype={"tomogram": str, "named": str, "true": str},
                        keep_default_na=False)  # fmt: skip
    return match[1], table


def read_names(path: str | os.PathLike[str], *, clustering: str, clusters: int) -> dict[int, str]:
    """The names that a user's file gives to clusters 1 to `clusters`.

    Raises
    ------
    InputError
        No such file, no YAML of this form, names that are none, numbers of no cluster, or a file
        that was written for another clustering.
    """
    file = Path(path)
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raw = "no such file"
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raw = str(error)
    if not isinstance(raw, dict) or set(raw) != {"clustering", "names"}:
        raise InputError(
            file, expected="YAML with `clustering` and `names`", found=str(raw),
            remedy="start from the lines on the page of the discovery",
        )  # fmt: skip
    if str(raw["clustering"]) != clustering:
        raise InputError(
            file, expected=f"names for the clustering {clustering}", found=str(raw["clustering"]),
            remedy="the clusters have changed (other subtomograms, model or settings): look at the "
            "page again and correct numbers and `clustering`",
        )  # fmt: skip
    names = raw["names"] if isinstance(raw["names"], dict) else {}
    wrong = [
        f"{number!r}: {name!r}" for number, name in names.items()
        if type(number) is not int or not 1 <= number <= clusters
        or not isinstance(name, str) or not re.fullmatch(SAFE_NAME, name) or name == BACKGROUND
    ]  # fmt: skip
    if wrong or not names:
        raise InputError(
            file, expected=f"names (letters, digits, . _ -) for clusters 1 to {clusters}",
            found=", ".join(wrong) or "none", remedy="correct `names`",
        )  # fmt: skip
    return dict(names)
