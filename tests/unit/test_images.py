"""Segmenters of images: reading, pixels, the recipe, training to masks and table, main line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from tomoline.errors import InputError
from tomoline.evaluation.segmentation import scores_of_confusion, segmentation_scores
from tomoline.infer import Runner, make_runner
from tomoline.io.mrc import write_volume
from tomoline.kernels.memory import bytes_per_voxel
from tomoline.networks.cards import ModelCard, load_card
from tomoline.networks.pyconv_unet import PyConvUNet
from tomoline.networks.weights import load_network, save_model
from tomoline.ops.images import label_image, labels_for, prepare_image, to_given
from tomoline.settings import (
    Config,
    SegmentImagesSettings,
    SegmentSettings,
    TrainImagesSettings,
    TrainSettings,
    validated,
)
from tomoline.stages import compare_images, segment_images, train, train_images
from tomoline.stages.image_sets import divide, expand, images_by_name, load_pair, pairs_of
from tomoline.stages.segment_images import image_probabilities
from tomoline.training.images import (
    ImageOptions,
    ImageRecipe,
    LabelledImage,
    random_turn,
    window,
)

SMALL = {"filters": [8, 8, 16], "pyramid": [3, 2, 1]}


def spots(shape=(72, 90), seed=0, noise=0.3):
    """An image of dark discs in noise, and where they are."""
    rng = np.random.default_rng(seed)
    y, x = np.ogrid[: shape[0], : shape[1]]
    inside = np.zeros(shape, bool)
    for _ in range(9):
        cy, cx = rng.uniform(0, 1, 2) * shape
        inside |= np.hypot(y - cy, x - cx) < rng.uniform(5, 9)
    image = np.where(inside, -1.0, 1.0) + noise * rng.standard_normal(shape)
    return image.astype(np.float32), inside


def write_set(folder: Path, count: int) -> TrainImagesSettings:
    for name in ("image", "label"):
        (folder / name).mkdir(parents=True)
    for k in range(count):
        image, inside = spots(seed=k)
        grey = np.clip(128 + 40 * image, 0, 255).astype(np.uint8)
        Image.fromarray(grey).save(folder / "image" / f"{k}.png")
        Image.fromarray(np.where(inside, 255, 0).astype(np.uint8)).save(
            folder / "label" / f"{k}.png"
        )
    return TrainImagesSettings(
        name="spots", networks=["pyconv_unet", "unet2d"], images=[f"{folder}/image/*.png"],
        labels=[f"{folder}/label/*.png"], classes={"spot": [255]}, test_images=2,
        validation_images=2, pixel_size_angstrom=10.0, crop_px=48, steps_per_epoch=12,
        batch_size=4, max_epochs=6, validate_every=2, learning_rate=5e-3, warmup_epochs=0.0,
        average_decay=0.8, precision="float32", **SMALL,
    )  # fmt: skip


def test_miou_and_dice_by_hand():
    # True:      0 0 1 1      Predicted: 0 1 1 1
    true, predicted = np.array([[0, 0, 1, 1]]), np.array([[0, 1, 1, 1]])
    scores = segmentation_scores(predicted, true, 2)
    # Background: TP 1, FP 0, FN 1. Foreground: TP 2, FP 1, FN 0.
    np.testing.assert_allclose(scores.class_iou, [1 / 2, 2 / 3])
    np.testing.assert_allclose(scores.class_dice, [2 / 3, 4 / 5])
    assert scores.miou == pytest.approx((1 / 2 + 2 / 3) / 2)
    # Dice = 2 IoU / (1 + IoU), whatever the counts.
    counts = np.random.default_rng(1).integers(1, 50, (3, 3))
    both = scores_of_confusion(counts)
    np.testing.assert_allclose(both.class_dice, 2 * both.class_iou / (1 + both.class_iou))


def test_a_pattern_without_files_is_refused(tmp_path):
    with pytest.raises(InputError, match="none"):
        expand([f"{tmp_path}/*.jpg"], key="images")


@pytest.mark.parametrize("scale", [1.0, 2.0, 2.5, 0.5])
def test_a_place_comes_back_to_the_given_pixels(scale):
    y, x = np.ogrid[:96, :133]
    spot = np.exp(-((y - 40.3) ** 2 + (x - 71.8) ** 2) / (2 * 8.0**2)).astype(np.float32)
    prepared = prepare_image(spot, scale)
    p = prepared.values - prepared.values.min()
    given = to_given(np.stack([1 - p, p]), prepared)
    assert given.shape == (2, 96, 133)
    middle = ndimage.center_of_mass(np.maximum(given[1] - 0.3 * given[1].max(), 0))
    np.testing.assert_allclose(middle, (40.3, 71.8), atol=0.25)
    labels = labels_for((spot > 0.3).astype(np.uint8), prepared)
    found = np.asarray(ndimage.center_of_mass(labels)) * prepared.scale_yx
    np.testing.assert_allclose(found, (40.3, 71.8), atol=0.6)


def test_a_label_image_takes_the_likeliest_class_and_leaves_small_patches_out():
    p = np.zeros((3, 6, 8), np.float32)
    p[0] = 1
    p[:, 1:3, 1:4] = np.array([0.2, 0.5, 0.3])[:, None, None]
    p[:, 4, 6] = [0.1, 0.1, 0.8]
    labels = label_image(p, 0.5)
    assert (labels[1:3, 1:4] == 1).all()
    assert labels[4, 6] == 2
    assert (labels > 0).sum() == 7
    assert (label_image(p, 0.5, least_area_px=4) > 0).sum() == 6
    assert (label_image(p, 0.85) > 0).sum() == 1


def test_turns_and_flips_are_the_same_for_image_and_labels_and_all_eight_come():
    image = np.arange(16.0).reshape(4, 4)
    seen = set()
    for seed in range(60):
        a, b = random_turn(np.random.default_rng(seed), image, image + 100)
        np.testing.assert_array_equal(a + 100, b)
        seen.add(a.tobytes())
    assert len(seen) == 8


def test_windows_of_small_images_are_filled_with_their_mirror():
    image, inside = spots((20, 30))
    small = LabelledImage(name="a", values=image, labels=inside.astype(np.uint8))
    options = ImageOptions(crop_px=32, intensity=0.0)
    values, labels = window(small, options, np.random.default_rng(1))
    assert values.shape == labels.shape == (32, 32)
    assert set(np.unique(values)) <= set(np.unique(image))


def test_the_loss_is_cross_entropy_and_the_wanted_part_of_dice():
    image = LabelledImage(name="a", values=np.zeros((4, 4), np.float32),
                          labels=np.eye(4, dtype=np.uint8))  # fmt: skip
    z = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(2))
    logits = torch.stack([torch.zeros_like(z), z], 1)
    batch = {"volume": torch.zeros(1, 1, 4, 4), "labels": torch.eye(4, dtype=torch.uint8)[None]}
    target = torch.eye(4)[None]
    plain = torch.nn.functional.binary_cross_entropy_with_logits(z, target)
    recipe = ImageRecipe([image], [image], 2, ImageOptions(dice_weight=0.0))
    torch.testing.assert_close(recipe.loss(lambda x: logits, batch), plain)
    recipe = ImageRecipe([image], [image], 2, ImageOptions(dice_weight=0.5))
    p = torch.sigmoid(z)
    overlap = [
        (2 * (q * t).sum() + 2) / (q.sum() + t.sum() + 2)
        for q, t in ((p, target), (1 - p, 1 - target))
    ]
    expected = plain + 0.5 * (1 - sum(overlap) / 2)
    torch.testing.assert_close(recipe.loss(lambda x: logits, batch), expected)


def test_the_division_is_fixed_by_the_seed_and_shares_no_image(tmp_path):
    settings = write_set(tmp_path, 7)
    one, two = divide(settings), divide(settings)
    assert one == two
    parts = [one.training, one.validation, one.test]
    assert [len(p) for p in parts] == [3, 2, 2]
    assert len({image for part in parts for image, _ in part}) == 7
    other = settings.model_copy(update={"seed": 5})
    assert divide(other) != one
    with pytest.raises(InputError, match="more than 7"):
        divide(settings.model_copy(update={"test_images": 5}))
    (tmp_path / "label" / "6.png").rename(tmp_path / "label" / "9.png")
    with pytest.raises(InputError, match="the labels of"):
        pairs_of(settings)


def test_labels_of_another_size_are_refused(tmp_path):
    settings = write_set(tmp_path, 5)
    pair = pairs_of(settings)[0]
    Image.fromarray(np.zeros((10, 10), np.uint8)).save(pair[1])
    with pytest.raises(InputError, match="labels of"):
        load_pair(pair, settings, 10.0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Both networks, trained on images of discs; the settings, and the folder of models."""
    folder = tmp_path_factory.mktemp("spots")
    settings = write_set(folder, 9)
    for network in settings.networks:
        own = folder / "models" / network
        train_images.run(
            {}, {"card": own / "card.yaml", "curves": own / "curves.jsonl",
                 "picture": own / "curves.png"},
            settings=settings, network=network, work=str(own / "checkpoints"),
        )  # fmt: skip
    return settings, folder


def test_training_learns_and_the_table_says_how_well_on_images_not_seen(trained, tmp_path):
    settings, folder = trained
    cards = [folder / "models" / n / "card.yaml" for n in settings.networks]
    compare_images.run({"cards": cards}, {"table": tmp_path / "t.tsv", "page": tmp_path / "p.md"},
                       settings=settings)  # fmt: skip
    lines = [line.split("\t") for line in (tmp_path / "t.tsv").read_text().splitlines()]
    whole = [dict(zip(lines[0], line, strict=True)) for line in lines[1:] if line[2] == "all"]
    assert [row["network"] for row in whole] == ["pyconv_unet", "unet2d"]
    for row in whole:
        assert float(row["dice"]) > 0.85
        assert float(row["miou"]) > 0.8
    text = (tmp_path / "p.md").read_text()
    assert "| pyconv_unet |" in text
    assert "ISBI" not in text  # the paper's figures belong to its own images


def test_a_training_goes_on_where_it_stopped(tmp_path):
    settings = write_set(tmp_path, 5).model_copy(
        update={"max_epochs": 2, "steps_per_epoch": 2, "test_images": 1, "validation_images": 1,
                "validate_every": 1}
    )  # fmt: skip

    def train(own: Path, **changes):
        outputs = {"card": own / "card.yaml", "curves": own / "curves.jsonl",
                   "picture": own / "curves.png"}  # fmt: skip
        train_images.run({}, outputs, settings=settings.model_copy(update=changes),
                         network="pyconv_unet", work=str(own / "checkpoints"))  # fmt: skip
        return (own / "weights.safetensors").read_bytes()

    whole = train(tmp_path / "whole")
    again = train(tmp_path / "again")
    assert whole == again
    # Killed after the first epoch: what it had written is all that is left.
    broken = tmp_path / "broken"
    original = train_images.Trainer._record

    def killed(self, row):
        original(self, row)
        if row["epoch"] == 1:
            raise KeyboardInterrupt

    train_images.Trainer._record = killed
    try:
        with pytest.raises(KeyboardInterrupt):
            train(broken)
    finally:
        train_images.Trainer._record = original
    assert train(broken) == whole


def segmented(folder: Path, image: Path, card: Path, **changes):
    outputs = {"mask": folder / "mask.png", "probability": folder / "p.png",
               "summary": folder / "mask.json"}  # fmt: skip
    settings = SegmentImagesSettings(**{"precision": "float32", **changes})
    segment_images.run({"image": image, "card": card}, outputs, settings=settings)
    return {k: np.asarray(Image.open(v)) for k, v in outputs.items() if v.suffix == ".png"} | {
        "summary": json.loads(outputs["summary"].read_text())
    }


@pytest.mark.parametrize("pixel", [10.0, 5.0])
def test_masks_lie_in_the_images_own_pixels(trained, tmp_path, pixel):
    _, folder = trained
    image, inside = spots(shape=(85, 101), seed=77)
    times = round(10.0 / pixel)
    image, inside = (np.kron(a, np.ones((times, times))) for a in (image, inside))
    write_volume(tmp_path / "m.mrc", image[None].astype(np.float32), pixel)
    card = folder / "models" / "pyconv_unet" / "card.yaml"
    found = segmented(tmp_path, tmp_path / "m.mrc", card)
    assert found["mask"].shape == found["probability"].shape == image.shape
    scores = segmentation_scores((found["mask"] > 0).astype(int), (inside > 0).astype(int), 2)
    assert scores.class_dice[1] > 0.85
    share = found["summary"]["shares"]["spot"]
    assert share == pytest.approx(float((found["mask"] == 1).mean()), abs=1e-5)
    threshold = found["summary"]["threshold"]
    assert ((found["probability"] / 255 >= threshold + 0.01) <= (found["mask"] > 0)).all()
    # The first row of the picture is the first of the array.
    dark = ndimage.gaussian_filter(image, 2 * times)
    assert dark[found["mask"] > 0].mean() < dark[found["mask"] == 0].mean() - 1


def test_what_cannot_be_segmented_is_refused(trained, tmp_path):
    _, folder = trained
    card = folder / "models" / "pyconv_unet" / "card.yaml"
    write_volume(tmp_path / "m.mrc", np.zeros((1, 40, 40), np.float32), 0.0)
    with pytest.raises(InputError, match="pixel_size_angstrom"):
        segmented(tmp_path, tmp_path / "m.mrc", card)
    localizer = Path(__file__).parents[2] / "resources" / "models" / "msdnet-localizer"
    with pytest.raises(InputError, match="a segmenter"):
        segmented(tmp_path, tmp_path / "m.mrc", localizer / "card.yaml", pixel_size_angstrom=10)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "same.png").write_bytes(b"")
    with pytest.raises(InputError, match="different names"):
        images_by_name(SegmentImagesSettings(images=[f"{tmp_path}/*/same.png"]))
    with pytest.raises(InputError, match="at least one"):
        images_by_name(SegmentImagesSettings())


def test_a_name_of_an_image_writes_nowhere_else(tmp_path):
    (tmp_path / "..a b;c.png").write_bytes(b"")
    (tmp_path / "-x.png").write_bytes(b"")
    names = images_by_name(SegmentImagesSettings(images=[f"{tmp_path}/*.png"]))
    assert set(names) == {"a_b_c", "x"}


def test_a_constant_image_is_all_background_or_all_not_but_never_fails(trained, tmp_path):
    _, folder = trained
    write_volume(tmp_path / "m.mrc", np.full((1, 33, 47), 7, np.float32), 10.0)
    card = folder / "models" / "pyconv_unet" / "card.yaml"
    assert segmented(tmp_path, tmp_path / "m.mrc", card)["mask"].shape == (33, 47)


def test_large_images_go_in_parts_that_fit_together(trained, monkeypatch):
    _, folder = trained
    card, network = load_network(folder / "models" / "pyconv_unet")
    runner = Runner(card, network, torch.device("cpu"), torch.float32, "plain", 1)
    image = spots((160, 400))[0]
    whole = image_probabilities(runner, image)
    monkeypatch.setattr(segment_images, "MOST_PIXELS", 160 * 300)
    parts = image_probabilities(runner, image)
    assert np.abs(parts - whole).max() < 1e-4


# --- the main line ---------------------------------------------------------------------------


def localizer(folder: Path, **parameters) -> Path:
    torch.manual_seed(3)
    given = {"in_channels": 3, "filters": [8, 8], "pyramid": [2, 1], **parameters}
    network = PyConvUNet(**given)
    card = ModelCard(
        name="sliced", network="pyconv_unet", parameters=given, role="localizer",
        classes=["background", "particle"], voxel_size_angstrom=10.0,
        voxel_size_range_angstrom=(9.0, 11.0), threshold=0.5, bandwidth_vox=3.0,
        receptive_field_vox=network.receptive_field_vox, n_parameters=1,
    )  # fmt: skip
    save_model(folder, card, network.state_dict())
    return folder


def test_a_cards_network_of_images_gives_the_volume_that_a_localizer_gives(tmp_path):
    folder = localizer(tmp_path / "model")
    x = np.random.default_rng(1).standard_normal((12, 20, 24)).astype(np.float32)
    runner = make_runner(folder, SegmentSettings(precision="float32", test_time_flips=1))
    found = runner.probabilities(x[None])
    assert found.shape == (1, 2, 12, 20, 24)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    _, network = load_network(folder)
    index = np.clip(np.arange(12)[:, None] + np.array([-1, 0, 1]), 0, 11)
    with torch.no_grad():
        by_slice = network(torch.from_numpy(x[index])).softmax(1)[:, 1].numpy()
    np.testing.assert_allclose(found[0, 1], by_slice, atol=1e-5)
    volume = torch.from_numpy(x)[None, None]
    assert runner.particle_bytes(volume).dtype == torch.uint8
    everywhere = make_runner(
        folder, SegmentSettings(precision="float32", test_time_flips=1, slice_axes="all")
    )
    turned = make_runner(folder, SegmentSettings(precision="float32", test_time_flips=1))
    across = [np.moveaxis(turned.probabilities(np.moveaxis(x, k, 0)[None])[0, 1], 0, k)
              for k in range(3)]  # fmt: skip
    # Cut across y the slices' axes are (z, x), across x (z, y): as moveaxis leaves them.
    np.testing.assert_allclose(everywhere.probabilities(x[None])[0, 1], np.mean(across, 0),
                               atol=1e-5)  # fmt: skip


def test_memory_for_slices_does_not_grow_with_the_networks_maps(tmp_path):
    small = bytes_per_voxel(load_card(localizer(tmp_path / "a")))
    large = bytes_per_voxel(load_card(localizer(tmp_path / "b", filters=[64, 64])))
    assert small == large < 200


def test_only_a_localizer_can_be_trained_of_slices():
    with pytest.raises(InputError, match="localizer"):
        validated(Config, {"train": {"network": "pyconv_unet"}}, source="config")
    shape = {"network": "pyconv_unet", "task": "localizer"}
    assert validated(Config, {"train": shape}, source="config").train.pyconv.slices == 5


def test_a_localizer_of_slices_is_trained_as_the_others_and_found_ready(tmp_path):
    settings = TrainSettings(
        name="s", network="pyconv_unet", task="localizer", classes=["1bxn", "3qm1"],
        pyconv={"filters": [4, 8], "pyramid": [2, 1], "slices": 3}, shape_zyx=(24, 40, 40),
        crop_vox=16, batch_size=1, steps_per_epoch=4, volumes_per_epoch=1, validation_volumes=1,
        max_epochs=4, learning_rate=1e-2, precision="float32", average_decay=0.5,
    )  # fmt: skip
    outputs = train.output_paths(settings, tmp_path)
    densities = Path(__file__).parents[2] / "resources" / "densities"
    train.run({"densities": densities}, outputs, settings=settings, work=str(tmp_path / "work"))
    rows = [json.loads(r) for r in outputs["curves"].read_text().splitlines()]
    assert rows[-1]["val_loss"] < rows[0]["val_loss"]
    card, network = load_network(tmp_path / "s-localizer")
    assert card.role == "localizer"
    assert card.of_images
    assert network.in_channels == 3
    assert card.receptive_field_vox == network.receptive_field_vox
