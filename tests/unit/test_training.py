"""The training loop: exact resume, schedules, augmentation, splitting, several processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tomoline.errors import InputError
from tomoline.networks.msdnet import MSDNet
from tomoline.simulation.tomogram import random_conditions
from tomoline.training.augment import (
    random_crop,
    random_flip,
    random_intensity,
    random_spectrum,
)
from tomoline.training.data import SimulatedSource, core_mask, core_radius
from tomoline.training.loop import Trainer, learning_rate
from tomoline.training.msdnet import MSDNetRecipe, MSDNetRecipeOptions, split_joint
from tomoline.training.options import TrainOptions

DENSITIES = Path(__file__).parents[2] / "resources" / "densities"
CLASSES = ("1bxn", "3qm1")
OPTIONS = TrainOptions(max_epochs=3, learning_rate=5e-3, schedule="cosine", warmup_epochs=1.0)


def small_trainer(folder: Path, options: TrainOptions = OPTIONS, task: str = "joint") -> Trainer:
    torch.manual_seed(0)
    source = SimulatedSource(DENSITIES, CLASSES, shape_zyx=(24, 40, 40), seed=1)
    outputs = {"joint": 5, "localizer": 2, "classifier": 3}[task]
    network = MSDNet(classes=outputs, depth=2, width=4, max_dilation=2, dilation="per_layer")
    recipe = MSDNetRecipe(
        source, [d.effective_radius_vox for d in source.densities],
        MSDNetRecipeOptions(task=task, crop_vox=16, steps_per_epoch=3, volumes_per_epoch=1,
                            validation_volumes=1, batch_size=2, seed=1),
    )  # fmt: skip
    return Trainer(network, recipe, options, folder)


class KilledError(Exception):
    """Stands for a job that was killed."""


def test_resume_after_a_kill_is_bit_exact(tmp_path):
    whole = small_trainer(tmp_path / "whole")
    whole.run()
    broken = small_trainer(tmp_path / "broken")
    real = broken.recipe.loss
    calls = []

    def dies(network, batch):
        calls.append(1)
        if len(calls) == 5:  # in the second epoch
            raise KilledError
        return real(network, batch)

    broken.recipe.loss = dies
    with pytest.raises(KilledError):
        broken.run()
    again = small_trainer(tmp_path / "broken")
    torch.manual_seed(99)  # the resumed process may have drawn other numbers before
    again.run()
    for key, value in whole.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[key]), key
        assert torch.equal(whole.average[key], again.average[key]), key
    assert (tmp_path / "whole/curves.jsonl").read_text() == (
        tmp_path / "broken/curves.jsonl"
    ).read_text()


def test_training_lowers_the_loss_of_each_task(tmp_path):
    for task in ("joint", "localizer", "classifier"):
        options = TrainOptions(max_epochs=6, learning_rate=1e-2)
        trainer = small_trainer(tmp_path / task, options, task)
        trainer.run()
        rows = [json.loads(r) for r in (tmp_path / task / "curves.jsonl").read_text().splitlines()]
        assert rows[-1]["val_loss"] < 0.8 * rows[0]["val_loss"]
        assert ("val_core_dice" in rows[0]) == (task != "classifier")
        assert ("val_class_accuracy" in rows[0]) == (task != "localizer")


def test_stops_when_validation_no_longer_improves(tmp_path):
    trainer = small_trainer(tmp_path, TrainOptions(max_epochs=50, patience=2, learning_rate=1e-3))
    losses = iter([1.0, 0.5, 0.6, 0.7, 0.8, 0.9])
    trainer.recipe.validate = lambda network: {"loss": next(losses)}
    trainer.run()
    assert trainer.best_epoch == 1
    assert trainer.next_epoch == 4


def test_checkpoint_of_another_network_is_refused(tmp_path):
    small_trainer(tmp_path, TrainOptions(max_epochs=1)).run()
    with pytest.raises(InputError, match="checkpoint"):
        small_trainer(tmp_path, OPTIONS, "localizer").run()


def test_a_loss_that_is_no_number_ends_with_advice(tmp_path):
    trainer = small_trainer(tmp_path)
    trainer.recipe.loss = lambda network, batch: torch.tensor(float("nan"), requires_grad=True)
    with pytest.raises(InputError, match="learning_rate"):
        trainer.run()


def test_schedules():
    paper = TrainOptions(learning_rate=1e-3, schedule="paper", step_epochs=80)
    assert [learning_rate(paper, e) for e in (0, 79, 80, 160)] == pytest.approx(
        [1e-3, 1e-3, 1e-4, 1e-5]
    )
    cosine = TrainOptions(learning_rate=1.0, schedule="cosine", max_epochs=10, warmup_epochs=2)
    assert learning_rate(cosine, 1.0) < learning_rate(cosine, 2.0)
    assert learning_rate(cosine, 5.0) == pytest.approx(0.5)
    assert learning_rate(cosine, 10.0) == pytest.approx(0.0)


def test_flips_leave_the_missing_wedge_where_it_is():
    volume = np.random.default_rng(0).standard_normal((16, 16, 16))
    spectrum = np.fft.fftn(volume)
    fz, fx = np.fft.fftfreq(16)[:, None, None], np.fft.fftfreq(16)[None, None]
    wedge = np.broadcast_to(np.abs(fz) > np.tan(np.deg2rad(60)) * np.abs(fx), spectrum.shape)
    volume = np.fft.ifftn(np.where(wedge, 0, spectrum)).real
    for seed in range(16):
        (turned,) = random_flip(np.random.default_rng(seed), volume)
        assert np.abs(np.fft.fftn(turned)[wedge]).max() < 1e-9


def test_flips_move_all_arrays_alike_and_intensity_keeps_the_shape():
    rng = np.random.default_rng(4)
    a = rng.standard_normal((4, 5, 6)).astype(np.float32)
    for _ in range(8):
        x, y = random_flip(rng, a, a * 2)
        np.testing.assert_array_equal(2 * x, y)
    changed = random_intensity(rng, a)
    assert changed.dtype == np.float32
    assert np.corrcoef(changed.ravel(), a.ravel())[0, 1] > 0.95


def test_crops_stay_inside_also_where_the_volume_is_thin():
    rng = np.random.default_rng(0)
    for _ in range(20):
        cut = random_crop(rng, (8, 30, 20), 16)
        assert np.empty((8, 30, 20))[cut].shape == (8, 16, 16)


def test_core_is_a_ball_about_the_sub_voxel_centre():
    mask = core_mask((20, 20, 20), np.array([[9.5, 10.0, 10.25]]), [3.0])
    centre = np.argwhere(mask).mean(0)
    np.testing.assert_allclose(centre, [9.5, 10.0, 10.25], atol=0.25)
    assert mask.sum() == pytest.approx(4 / 3 * np.pi * 27, rel=0.1)
    assert core_radius(3.0) < core_radius(6.0) < core_radius(9.0) == core_radius(15.0)


def test_validation_tomograms_are_none_of_the_training_ones():
    source = SimulatedSource(DENSITIES, CLASSES, shape_zyx=(24, 32, 32), seed=1)
    held_out = source.validation(1)[0]
    for epoch in range(2):
        assert not np.array_equal(source.volumes(epoch, 1)[0].volume, held_out.volume)
    np.testing.assert_array_equal(source.validation(1)[0].volume, held_out.volume)


def test_conditions_stay_in_their_range():
    for seed in range(30):
        _, tilt, _ = random_conditions(seed, (64, 64, 64), snr_range=(0.1, 0.2))
        assert 0.1 <= tilt.snr <= 0.2
        assert 40 < tilt.tilt_max_deg < 67


def test_split_of_a_joint_network_gives_the_same_outputs():
    torch.manual_seed(0)
    shape = {"depth": 2, "width": 3, "max_dilation": 2}
    joint = MSDNet(classes=5, **shape)
    x = torch.randn(1, 1, 6, 6, 6)
    for part, rows, count in (("localizer", slice(0, 2), 2), ("classifier", slice(2, 5), 3)):
        own = MSDNet(classes=count, **shape)
        own.load_state_dict(split_joint(joint.state_dict(), part))
        torch.testing.assert_close(own(x), joint(x)[:, rows])


def test_two_processes_train_one_network(tmp_path):
    """`torchrun` with two processes: weights stay equal, only the first writes."""
    script = tmp_path / "job.py"
    script.write_text(
        "import sys; from pathlib import Path; import torch\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_training import small_trainer\n"
        "from tomoline.training import distributed\n"
        "from tomoline.training.options import TrainOptions\n"
        "rank, world = distributed.begin('cpu')\n"
        "folder = Path(sys.argv[1]); trainer = small_trainer(folder / 'out', "
        "TrainOptions(max_epochs=2))\n"
        "import dataclasses\n"
        "trainer.recipe.options = dataclasses.replace(trainer.recipe.options, rank=rank, "
        "processes=world)\n"
        "trainer.run(); torch.save(trainer.network.state_dict(), folder / f'{rank}.pt')\n"
    )
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         str(script), str(tmp_path)],
        check=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True,
    )  # fmt: skip
    first, second = (torch.load(tmp_path / f"{k}.pt", weights_only=True) for k in (0, 1))
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert len((tmp_path / "out/curves.jsonl").read_text().splitlines()) == 2


def test_a_random_spectrum_changes_shells_and_not_directions():
    rng = np.random.default_rng(0)
    volume = rng.standard_normal((24, 32, 40)).astype(np.float32)
    changed = random_spectrum(np.random.default_rng(1), volume, 0.5)
    assert changed.shape == volume.shape and changed.dtype == np.float32
    ratio = np.fft.rfftn(changed) / np.fft.rfftn(volume)
    np.testing.assert_allclose(ratio.imag, 0, atol=1e-3)
    z, y, x = np.meshgrid(
        np.fft.fftfreq(24), np.fft.fftfreq(32), np.fft.rfftfreq(40), indexing="ij"
    )
    shell = np.round(np.sqrt(z**2 + y**2 + x**2), 4)
    for radius in np.unique(shell)[::40]:  # one gain a frequency, whatever the direction
        assert np.ptp(ratio.real[shell == radius]) < 2e-2
    assert ratio.real.min() > 0.1 and ratio.real.max() / ratio.real.min() > 1.2
    assert (random_spectrum(np.random.default_rng(1), volume, 0.5) == changed).all()
    np.testing.assert_allclose(random_spectrum(rng, volume, 0.0), volume, atol=1e-5)


def test_spectra_are_varied_where_asked_and_truth_stays():
    def made(**given):
        return SimulatedSource(
            DENSITIES, CLASSES, shape_zyx=(24, 40, 40), seed=1, **given
        ).tomogram(5)

    plain, varied = made(), made(spectrum_jitter=0.5)
    assert not np.allclose(plain.volume, varied.volume)
    assert (plain.centres_zyx == varied.centres_zyx).all()
    assert (made(spectrum_jitter=0.5).volume == varied.volume).all()
    wide, _, _ = random_conditions(3, (24, 40, 40), misalignment_vox=2.4)
    usual, _, _ = random_conditions(3, (24, 40, 40))
    assert wide == usual  # the specimen's
    shifts = [
        random_conditions(3, (24, 40, 40), misalignment_vox=m)[1].shift_sd_vox for m in (1, 2)
    ]
    assert shifts[1] == pytest.approx(2 * shifts[0])
