"""Devices, precision, memory, batches: and tiled prediction equals untiled."""

import numpy as np
import pytest
import torch

from tomoline.contracts import TilePlan
from tomoline.errors import DeviceError, InputError
from tomoline.infer import (
    FLIP_AXES,
    Runner,
    batched,
    choose_device,
    choose_precision,
    is_out_of_memory,
    make_runner,
    split_on_memory,
    window_bytes,
)
from tomoline.io.mrc import write_volume
from tomoline.networks.cards import ModelCard
from tomoline.networks.msdnet import MSDNet
from tomoline.networks.weights import load_network, save_model
from tomoline.ops.tiles import plan_tiles
from tomoline.processor import cpu_has_bfloat16
from tomoline.settings import ClassifySettings, SegmentSettings
from tomoline.stages import segment

SHAPE = {"depth": 3, "width": 4, "max_dilation": 3, "dilation": "per_layer"}
PLAIN = SegmentSettings(device="cpu", precision="float32", test_time_flips=1)


def model(folder, role="localizer", classes=("background", "particle")):
    torch.manual_seed(3)
    network = MSDNet(classes=len(classes), **SHAPE)
    own = {"threshold": 0.5, "bandwidth_vox": 3.0} if role == "localizer" else {"box_vox": 16}
    card = ModelCard(
        name=f"tiny-{role}", network="msdnet", parameters={"classes": len(classes), **SHAPE},
        role=role, classes=list(classes), voxel_size_angstrom=10.0,
        voxel_size_range_angstrom=(8, 12), receptive_field_vox=network.receptive_field_vox,
        n_parameters=1, **own,
    )  # fmt: skip
    return save_model(folder, card, network.state_dict())


def test_gpu_that_is_not_there_is_an_error_never_a_fallback(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="cuda was asked for"):
        choose_device("cuda")
    assert choose_device("auto").type == "cpu"


def test_precision_follows_the_processor(tmp_path, monkeypatch):
    info = tmp_path / "cpuinfo"
    info.write_text("processor : 0\nflags\t\t: fpu avx512f avx512_bf16\n")
    assert cpu_has_bfloat16(info)
    info.write_text("flags\t\t: fpu avx2\n")
    assert not cpu_has_bfloat16(info)
    assert not cpu_has_bfloat16(tmp_path / "none")
    assert choose_precision("float32", torch.device("cpu")) == torch.float32
    assert choose_precision("bfloat16", torch.device("cpu")) == torch.bfloat16


def test_tiled_equals_untiled_wherever_the_halo_covers_the_field(tmp_path):
    model(tmp_path / "m")
    volume = np.random.default_rng(0).standard_normal((21, 34, 45)).astype(np.float32)
    write_volume(tmp_path / "v.mrc", volume, 10.0)
    untiled = make_runner(tmp_path / "m", PLAIN).probabilities(volume[None])[0, 1]
    plan_tiles(volume.shape, size_vox=24, halo_vox=6).save(tmp_path / "plan.json")
    plan = TilePlan.load(tmp_path / "plan.json")
    assert len(plan.tiles) > 4
    import h5py  # noqa: PLC0415

    seen = np.zeros(volume.shape, np.float32)
    for shard in ("1-of-2", "2-of-2"):
        segment.run(
            {"volume": tmp_path / "v.mrc", "plan": tmp_path / "plan.json", "card": tmp_path / "m"},
            {"probability": tmp_path / f"{shard}.h5"}, settings=PLAIN, shard=shard,
        )  # fmt: skip
        with h5py.File(tmp_path / f"{shard}.h5") as file:
            for tile in plan.shard(*segment.parse_shard(shard)):
                low = np.array(tile.keep_start) - tile.read_start
                high = low + np.array(tile.keep_stop) - tile.keep_start
                inner = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
                outer = tuple(
                    slice(a, b) for a, b in zip(tile.keep_start, tile.keep_stop, strict=True)
                )
                seen[outer] = file[f"tile_{tile.index}"][inner]
    assert np.abs(seen / 255 - untiled).max() < 0.51 / 255


def test_out_of_memory_halves_the_window_and_gives_the_same(tmp_path):
    model(tmp_path / "m")
    runner = make_runner(tmp_path / "m", PLAIN)
    volume = np.random.default_rng(1).standard_normal((70, 40, 40)).astype(np.float32)
    whole = runner.probabilities(volume[None])[0, 1]
    refused = []

    def predict(part):
        if part.size > 80_000:
            refused.append(part.shape)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return runner.probabilities(part[None])[0, 1]

    halves = split_on_memory(predict, volume, halo=6, device=runner.device)
    assert refused
    np.testing.assert_allclose(halves, whole, atol=1e-5)


def test_no_memory_at_all_is_a_clear_error():
    def predict(part):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(DeviceError, match="out of memory"):
        split_on_memory(
            predict, np.zeros((64, 64, 64), np.float32), halo=4, device=torch.device("cpu")
        )


def test_other_errors_are_not_taken_for_memory():
    def predict(part):
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        split_on_memory(
            predict, np.zeros((64, 64, 64), np.float32), halo=4, device=torch.device("cpu")
        )
    for words in ("DefaultCPUAllocator: can't allocate memory", "CUDA error: out of memory",
                  "Triton Error [CUDA]: out of memory"):  # fmt: skip
        assert is_out_of_memory(RuntimeError(words))


class Frugal(Runner):
    """A runner whose memory holds two windows."""

    def class_bytes(self, x):
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().class_bytes(x)


def test_batches_are_halved_on_no_memory_and_keep_their_order(tmp_path):
    model(tmp_path / "m")
    runner = make_runner(tmp_path / "m", PLAIN)
    frugal = Frugal(**runner.__dict__)
    boxes = np.random.default_rng(2).standard_normal((7, 8, 8, 8)).astype(np.float32)
    found = np.stack([r.copy() for r in batched(frugal, boxes, batch_size=5)])
    p = runner.probabilities(boxes)
    np.testing.assert_array_equal(found[:, 0], p.argmax(1))
    np.testing.assert_allclose(found[:, 1:] / 255, p, atol=0.51 / 255)
    assert list(batched(frugal, boxes[:0], batch_size=5)) == []


class Small(Runner):
    """A runner whose memory holds 80,000 voxels."""

    def particle_bytes(self, x):
        if x.numel() > 80_000:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().particle_bytes(x)


def test_windows_for_which_memory_does_not_suffice_go_in_halves_and_none_is_lost(tmp_path):
    model(tmp_path / "m")
    runner = make_runner(tmp_path / "m", PLAIN)
    small = Small(**runner.__dict__)
    volume = np.random.default_rng(5).standard_normal((70, 40, 40)).astype(np.float32)
    boxes = [
        (slice(a, b), slice(0, 40), slice(0, 40)) for a, b in ((0, 30), (20, 60), (0, 70), (60, 70))
    ]
    found = [p.copy() for p in window_bytes(small, volume, boxes, halo=6)]
    assert len(found) == len(boxes)
    for p, box in zip(found, boxes, strict=True):
        wanted = 255 * runner.probabilities(volume[box][None])[0, 1]
        assert p.shape == wanted.shape
        assert np.abs(p - wanted).max() < 0.52


def test_windows_beyond_what_there_is_memory_for_are_not_tried(tmp_path):
    model(tmp_path / "m")
    runner = make_runner(tmp_path / "m", PLAIN)
    tried = []

    class Watched(Runner):
        def particle_bytes(self, x):
            tried.append(x.numel())
            return super().particle_bytes(x)

    volume = np.random.default_rng(7).standard_normal((70, 40, 40)).astype(np.float32)
    whole = (slice(0, 70), slice(0, 40), slice(0, 40))
    watched = Watched(**runner.__dict__)
    (p,) = [r.copy() for r in window_bytes(watched, volume, [whole], halo=6, most_vox=80_000)]
    assert len(tried) > 1
    assert max(tried) <= 80_000
    assert np.abs(p - 255 * runner.probabilities(volume[None])[0, 1]).max() < 0.52


def test_a_halo_without_room_is_shortened_with_a_warning(tmp_path, caplog):
    model(tmp_path / "m")
    small = Small(**make_runner(tmp_path / "m", PLAIN).__dict__)
    volume = np.random.default_rng(6).standard_normal((60, 40, 40)).astype(np.float32)
    whole = (slice(0, 60), slice(0, 40), slice(0, 40))
    (p,) = window_bytes(small, volume, [whole], halo=200)
    assert p.shape == volume.shape
    assert "leaves no room to halve it: 15 are taken" in caplog.text


def test_averaging_over_flips_makes_the_result_even(tmp_path):
    model(tmp_path / "m", "classifier", ("background", "a", "b"))
    runner = make_runner(tmp_path / "m", ClassifySettings(device="cpu", precision="float32"))
    box = np.random.default_rng(3).standard_normal((1, 9, 9, 9)).astype(np.float32)
    p = runner.probabilities(box)
    assert runner.flips == len(FLIP_AXES) == 8
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)
    for axes in FLIP_AXES:
        flipped = np.flip(box, axes) if axes else box
        back = runner.probabilities(np.ascontiguousarray(flipped))
        np.testing.assert_allclose(np.flip(back, axes) if axes else back, p, atol=1e-5)


def test_fast_and_plain_kernels_agree_and_low_precision_is_near(tmp_path):
    model(tmp_path / "m")
    volume = np.random.default_rng(4).standard_normal((1, 20, 21, 22)).astype(np.float32)
    reference = SegmentSettings(
        device="cpu", precision="float32", kernel="plain", test_time_flips=1
    )
    plain = make_runner(tmp_path / "m", reference)
    fast = make_runner(tmp_path / "m", PLAIN)
    low = make_runner(
        tmp_path / "m", SegmentSettings(device="cpu", precision="bfloat16", test_time_flips=1)
    )
    assert (plain.kernel, fast.kernel) == ("plain", "cpu")
    reference = plain.probabilities(volume)
    np.testing.assert_allclose(fast.probabilities(volume), reference, atol=1e-5)
    assert np.abs(low.probabilities(volume) - reference).max() < 0.03


def test_damaged_weights_and_wrong_cards_are_refused(tmp_path):
    card = model(tmp_path / "m")
    weights = tmp_path / "m/weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + b"x")
    with pytest.raises(InputError, match="SHA-256"):
        load_network(tmp_path / "m")
    weights.write_bytes(whole)
    text = (tmp_path / "m/card.yaml").read_text()
    (tmp_path / "m/card.yaml").write_text(text.replace("depth: 3", "depth: 4"))
    with pytest.raises(InputError, match="do not belong together"):
        load_network(tmp_path / "m")
    weights.unlink()
    with pytest.raises(InputError, match="no such file"):
        load_network(tmp_path / "m")
    with pytest.raises(InputError, match="card"):
        load_network(tmp_path / "nothing")
    assert card.n_parameters == sum(p.numel() for p in MSDNet(classes=2, **SHAPE).parameters())


def test_a_classifier_cannot_segment(tmp_path):
    model(tmp_path / "m", "classifier", ("background", "a"))
    write_volume(tmp_path / "v.mrc", np.zeros((16, 16, 16), np.float32), 10.0)
    plan_tiles((16, 16, 16), size_vox=16, halo_vox=4).save(tmp_path / "plan.json")
    with pytest.raises(InputError, match="localizer"):
        segment.run(
            {"volume": tmp_path / "v.mrc", "plan": tmp_path / "plan.json", "card": tmp_path / "m"},
            {"probability": tmp_path / "p.h5"}, settings=PLAIN,
        )  # fmt: skip
    assert not (tmp_path / "p.h5").exists()
