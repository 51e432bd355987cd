"""Several classifiers that name particles together: by calculation."""

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from tomoline.errors import InputError
from tomoline.evaluation.ensemble import joint_vote, pooled, pooled_odds
from tomoline.networks.cards import ModelCard, Sift
from tomoline.ops.votes import Vote, vote_of_views
from tomoline.report.methods import citations_of, methods_text
from tomoline.settings import ModelsSettings
from tomoline.stages.members import check_members, numbered, of_members
from tomoline.stages.vote import has_balls, sift_together, together

CLASSES = ["background", "a", "b", "c"]


def card(name, network="densenet", **fields):
    return ModelCard(**{
        "name": name, "network": network, "parameters": {}, "role": "classifier",
        "classes": CLASSES, "voxel_size_angstrom": 10.0, "box_vox": 32,
        "voxel_size_range_angstrom": (9.0, 11.0), "receptive_field_vox": 32, "n_parameters": 1,
        **fields,
    })  # fmt: skip


LOCALIZER = ModelCard(
    name="l", network="msdnet", parameters={}, role="localizer", classes=["background", "p"],
    voxel_size_angstrom=10.0, voxel_size_range_angstrom=(9.0, 11.0), receptive_field_vox=9,
    n_parameters=1, threshold=0.5, bandwidth_vox=3.0, weights_sha256="x" * 64,
)  # fmt: skip


def test_logarithms_are_averaged():
    one, other = np.array([[0.8, 0.1, 0.1]]), np.array([[0.2, 0.7, 0.1]])
    root = np.sqrt(one * other)
    np.testing.assert_allclose(pooled([one, other]), root / root.sum())
    np.testing.assert_allclose(pooled([one, one]), one)
    np.testing.assert_array_equal(pooled([one, other]), pooled([other, one]))
    # What one holds for impossible is not named, but never a matter of dividing by nothing.
    sure = np.array([[1.0, 0.0, 0.0]])
    assert pooled([sure, other])[0].argmax() == 0 and np.isfinite(pooled([sure, 1 - sure])).all()


def test_odds_are_averaged():
    p = pooled_odds([np.array([0.9, 0.5]), np.array([0.1, 0.8])])
    np.testing.assert_allclose(p, [0.5, 2 / 3])


def views(*rows):
    return vote_of_views(np.array(rows, float))


def test_a_classifier_that_is_too_sure_is_held_back_by_its_temperature():
    sure, calm = views([0.0, 0.98, 0.01, 0.01]), views([0.0, 0.1, 0.8, 0.1])
    assert joint_vote([sure, calm], [1.0, 1.0]).label == 1
    held = joint_vote([sure, calm], [4.0, 1.0])
    assert held.label == 2 and held.share == 0.5
    tempered = np.array([0.98, 0.01, 0.01]) ** 0.25
    joint = np.sqrt(tempered / tempered.sum() * [0.1, 0.8, 0.1])
    joint /= joint.sum()
    np.testing.assert_allclose(held.probabilities, joint)
    assert held.margin == pytest.approx(joint[1] - joint[0])


def test_who_did_not_vote_has_no_say():
    vote = views([0.2, 0.5, 0.2, 0.1])
    alone = joint_vote([vote, None], [1.0, 1.0])
    np.testing.assert_allclose(alone.probabilities, vote.probabilities)
    assert alone.label == vote.label and alone.background == pytest.approx(0.2)
    assert joint_vote([None, None], [1.0, 1.0]) is None


def voxels(*probabilities):
    """A vote by voxels, which has no probability of background."""
    return Vote(
        label=int(np.argmax(probabilities)) + 1, share=1.0, margin=1.0,
        probabilities=np.array(probabilities), voxels=7, voters=np.ones((2, 2, 2), bool),
    )  # fmt: skip


def test_only_those_that_name_wholes_say_what_is_background():
    joint = joint_vote([views([0.3, 0.5, 0.1, 0.1]), voxels(0.7, 0.2, 0.1)], [1.0, 1.0])
    assert joint.background == pytest.approx(0.3)


def sift(least, background=1.0, sha="x" * 64):
    return Sift(localizer_sha256=sha, threshold=0.5, least=least, intercept=0.0, score=0.0,
                background=background)  # fmt: skip


def test_those_that_were_fitted_to_the_localizer_sift_together():
    score = contrast = np.ones(2)
    first = [views([0.1, 0.9, 0, 0]), views([0.5, 0.5, 0, 0])]
    second = [views([0.5, 0.5, 0, 0]), views([0.8, 0.2, 0, 0])]
    cards = [card("d", sift=sift(0.2)), card("e", "dsmnet", sift=sift(0.5))]
    found = sift_together([first, second], score, contrast, LOCALIZER, cards)
    np.testing.assert_allclose(found.probability, [0.75, 1 / 3], atol=1e-9)
    assert found.by_card and found.least == pytest.approx(1 / 3)
    # One that was not fitted does not judge beside one that was; nor do voxels.
    other = [cards[0], card("e", "dsmnet", sift=sift(0.5, sha="y" * 64))]
    alone = sift_together([first, second], score, contrast, LOCALIZER, other)
    np.testing.assert_allclose(alone.probability, [0.9, 0.5])
    mixed = [cards[0], card("m", "msdnet")]
    alone = sift_together([first, [None, voxels(1, 0, 0)]], score, contrast, LOCALIZER, mixed)
    np.testing.assert_allclose(alone.probability, [0.9, 0.5])
    assert alone.least == pytest.approx(0.2)
    # Voxels alone sift nothing.
    plain = [card("m", "msdnet"), card("n", "msdnet")]
    none = sift_together([[voxels(1, 0, 0)], [None]], score[:1], contrast[:1], LOCALIZER, plain)
    assert none.probability == [1.0] and none.least == 0.0


def test_one_classifier_is_no_ensemble():
    own = [views([0.1, 0.9, 0, 0]), None]
    votes, temperature = together([own], [card("d", temperature=0.8)])
    assert votes == own and temperature == 0.8
    assert together([own, own], [card("d"), card("e")])[1] is None
    assert has_balls([card("d")]) and not has_balls([card("m", "msdnet")])
    assert has_balls([card("m", "msdnet"), card("n", "msdnet")])


@pytest.mark.parametrize("field,value,said", [
    ("box_vox", 40, "a box of 32"), ("contrast", "bright", "dark particles"),
    ("classes", ["background", "a", "c", "b"], "the classes a, b, c"),
    ("voxel_size_angstrom", 9.5, "a voxel size of 10 angstrom"),
])  # fmt: skip
def test_those_that_cannot_name_the_same_boxes_are_refused(field, value, said):
    check_members([card("one"), card("two")])
    with pytest.raises(InputError, match=f"models.ensemble, two.*{said}, as one has"):
        check_members([card("one"), card("two", **{field: value})])


def test_an_ensemble_is_two_or_more():
    models = ModelsSettings(ensemble=["one", "results/models/two"])
    assert models.classifiers == [Path("resources/models/one"), Path("results/models/two")]
    assert ModelsSettings().classifiers == [Path("resources/models/dsmnet-classifier")]
    for wrong in (["one"], ["one", "one"]):
        with pytest.raises(ValidationError, match="two or more different classifiers"):
            ModelsSettings(ensemble=wrong)


def test_files_are_numbered():
    files = numbered("card", ["a", "b", "c"])
    assert files == {"card": "a", "card_2": "b", "card_3": "c"}
    assert of_members({"other": 1, **files}, "card") == ["a", "b", "c"]
    assert of_members({"card": "a"}, "card") == ["a"]


def test_the_methods_paragraph_names_every_network_and_cites_it():
    cards = [card("d").model_dump(), card("e", "dsmnet").model_dump()]
    text = methods_text(version="1", localizer={}, classifiers=cards, n_tomograms=1,
                        n_particles=2)  # fmt: skip
    assert "3 classes by 2 networks together" in text
    assert "Gao et al., 2020" in text and "Liu et al., 2018" in text
    assert "Genest and Zidek, 1986" in text
    cited = citations_of(cards)
    assert [w.split()[0] for w in cited] == ["Gao", "Liu", "Genest"]
    alone = methods_text(version="1", localizer={}, classifiers=cards[:1], n_tomograms=1,
                         n_particles=2)  # fmt: skip
    assert "Gao et al., 2020" in alone and "Liu" not in alone and "Genest" not in alone
    assert "that the same network took for background" in alone
