"""Several classifiers name a particle together, by their calibrated probabilities.

Each classifier's probabilities first follow its own temperature, as its own are not to be trusted
alike: one that is too sure would have the others overruled. Then their logarithms are averaged,

    p_c ~ (p_1c p_2c ... p_Mc)^(1/M),

the logarithmic opinion pool (Genest and Zidek 1986), in which a classifier that holds a class for
impossible counts for more than in a mean of probabilities. `benchmarks/name_true_centres.py`
measures either way.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tomoline.evaluation.calibration import LEAST_PROBABILITY, tempered
from tomoline.evaluation.sifting import logit
from tomoline.ops.votes import Vote

Floats = NDArray[np.float64]


def pooled(probabilities: Sequence[Floats]) -> Floats:
    """Mean of the logarithms of calibrated probabilities `(n, C)`, rows summing to 1 again."""
    kept = [np.maximum(np.asarray(p, float), LEAST_PROBABILITY) for p in probabilities]
    logs = np.mean([np.log(p / p.sum(axis=1, keepdims=True)) for p in kept], axis=0)
    raised = np.exp(logs - logs.max(axis=1, keepdims=True))
    result: Floats = raised / raised.sum(axis=1, keepdims=True)
    return result


def pooled_odds(probabilities: Sequence[Floats]) -> Floats:
    """Probabilities `(n,)` that there is a particle: mean of their log-odds."""
    result: Floats = 1 / (1 + np.exp(-np.mean([logit(p) for p in probabilities], axis=0)))
    return result


def joint_vote(votes: Sequence[Vote | None], temperatures: Sequence[float | None]) -> Vote | None:
    """Vote of several classifiers on one subtomogram; None where none of them voted.

    A classifier without a vote has no say. `share` is that of the classifiers which would have
    named the class alone, `margin` of the two largest joint probabilities, which are calibrated.
    """
    own = [(v, t or 1.0) for v, t in zip(votes, temperatures, strict=True) if v is not None]
    known = [(v, t) for v, t in own if np.isfinite(v.probabilities).all()]
    if not known:
        return own[0][0] if own else None
    (joint,) = pooled([tempered(v.probabilities[None], t) for v, t in known])
    label = int(joint.argmax())
    backgrounds = [v.background for v, _ in own if v.voxels == 0]  # of those that name wholes
    return Vote(
        label=label + 1,
        share=float(np.mean([v.label == label + 1 for v, _ in known])),
        margin=float(joint[label] - np.delete(joint, label).max(initial=0.0)),
        probabilities=joint,
        voxels=0,
        voters=np.zeros((0, 0, 0), bool),
        background=float(np.mean(backgrounds)) if backgrounds else 0.0,
    )
