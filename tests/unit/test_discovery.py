"""Discovery: features, clusters, shells, stacks, names, and the two stages that make them."""

import json

import mrcfile
import numpy as np
import pandas as pd
import pytest
import torch
from planted_sets import density, write_set
from scipy import ndimage

from tomoline.errors import InputError
from tomoline.evaluation.discovery import (
    best_cluster,
    elbow,
    embedded,
    enrichment,
    find_clusters,
    main_directions,
)
from tomoline.evaluation.fsc import ShellCorrelation, shell_correlation
from tomoline.io.cluster_names import read_clusters, read_names
from tomoline.io.features import Features, read_features, write_features
from tomoline.io.stacks import open_stack, write_stack
from tomoline.io.subtomograms import open_simulated, write_subtomograms
from tomoline.io.tables import particle_table
from tomoline.networks.blocks import count_parameters
from tomoline.networks.cards import ModelCard, check_multitask, load_card
from tomoline.networks.dsmnet import DSMNet
from tomoline.networks.registry import build
from tomoline.networks.weights import save_model
from tomoline.report.isosurface import isosurface_png
from tomoline.settings import DiscoverSettings
from tomoline.stages import discover, multitask
from tomoline.stages.vote import with_named_clusters

ALL = ["classification", "segmentation", "recovery"]
TINY = {"classes": 3, "maps": [4, 6, 8], "features": 12, "stem": "strided", "dropout": 0.5}


def save_multitask(folder, subnets=ALL, box=12):
    torch.manual_seed(0)
    network = DSMNet(**TINY, subnets=subnets)
    card = ModelCard(
        name="multi", network="dsmnet", parameters={**TINY, "subnets": subnets}, role="classifier",
        classes=["background", "ball", "shell"], voxel_size_angstrom=10.0, box_vox=box,
        voxel_size_range_angstrom=(9.0, 11.0), receptive_field_vox=box, n_parameters=1,
    )  # fmt: skip
    save_model(folder, card, network.state_dict())
    return network.eval()


def test_all_three_subnets_have_the_layers_that_are_told():
    """Backbone and classification as in test_dsmnet; the decoder's by hand."""
    whole = build("dsmnet", {"classes": 22, "subnets": ALL})
    decoder = 27 * (128 * 64 + 64 * 32 + 32 * 16) + 2 * (64 + 32 + 16)  # convolutions, norms
    decoder += 2 * 27 * 32 * 32 + 2 * 2 * 32  # residual block
    ends = 16 * 2 + 2 + 16 + 1
    assert count_parameters(whole) == count_parameters(build("dsmnet", {"classes": 22})) + (
        decoder + ends
    )
    found = whole.eval().outputs(torch.zeros(2, 1, 40, 40, 40))
    assert found.classes.shape == (2, 22) and found.segmentation.shape == (2, 2, 40, 40, 40)
    assert found.recovery.shape == (2, 1, 40, 40, 40)
    for stem in ("pooled", "strided"):  # edges that are halved to odd numbers
        small = DSMNet(**{**TINY, "stem": stem}, subnets=ALL).eval()
        assert small.outputs(torch.zeros(1, 1, 18, 20, 22)).recovery.shape[2:] == (18, 20, 22)
        with pytest.raises(InputError, match="even edges"):
            small.outputs(torch.zeros(1, 1, 17, 20, 22))


def test_a_map_correlates_with_itself_and_not_with_noise():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 32, 32, 32))
    same = shell_correlation(one, one, voxel_size_angstrom=10.0)
    np.testing.assert_allclose(same.correlation, 1.0, atol=1e-6)
    assert same.resolution_angstrom() == pytest.approx(20.0)
    assert same.frequency[-1] == pytest.approx(1 / 20)
    apart = shell_correlation(one, other, voxel_size_angstrom=10.0)
    assert np.abs(apart.correlation[4:]).max() < 0.15
    pairs = shell_correlation(np.array([one, one]), np.array([one, other]), voxel_size_angstrom=1.0)
    np.testing.assert_allclose(pairs.correlation, (1 + apart.correlation) / 2, atol=1e-6)
    with pytest.raises(InputError, match="same size"):
        shell_correlation(one, other[:16, :16, :16], voxel_size_angstrom=10.0)


def test_resolution_is_where_the_noise_takes_over():
    rng = np.random.default_rng(1)
    signal = rng.normal(size=(48, 48, 48))
    radius = np.sqrt(sum(f**2 for f in np.meshgrid(*[np.fft.fftfreq(48)] * 3, indexing="ij")))
    low = np.fft.ifftn(np.fft.fftn(signal) * (radius < 0.2)).real
    high = np.fft.ifftn(np.fft.fftn(rng.normal(size=signal.shape)) * (radius >= 0.2)).real
    found = shell_correlation(signal, low + high, voxel_size_angstrom=10.0)
    assert found.resolution_angstrom() == pytest.approx(10 / 0.2, rel=0.05)
    half = ShellCorrelation(np.array([0, 0.01, 0.02, 0.03]), np.array([1, 0.9, 0.6, 0.2]))
    assert half.resolution_angstrom() == pytest.approx(1 / 0.0225)
    assert (
        ShellCorrelation(half.frequency, np.array([1, 0.3, 0.9, 0])).resolution_angstrom() is None
    )


def test_stacks_are_read_by_others_and_again(tmp_path):
    volumes = np.random.default_rng(0).normal(size=(3, 6, 6, 6)).astype(np.float32)
    path = tmp_path / "a.mrc"
    assert write_stack(path, volumes, box_vox=6, voxel_size_angstrom=10.0) == 3
    np.testing.assert_array_equal(open_stack(path), volumes)
    assert mrcfile.validate(str(path))
    with mrcfile.open(path) as file:
        assert file.is_volume_stack() and file.data.shape == (3, 6, 6, 6)
        assert file.voxel_size.z == pytest.approx(10.0)
    marks = (volumes > 0).astype(np.int8)
    write_stack(path, marks, box_vox=6, voxel_size_angstrom=10.0, kind=np.int8)
    np.testing.assert_array_equal(open_stack(path), marks)
    write_stack(tmp_path / "none.mrc", [], box_vox=6, voxel_size_angstrom=10.0)
    assert open_stack(tmp_path / "none.mrc").shape == (0, 6, 6, 6)
    path.write_bytes(path.read_bytes()[:-1])
    for wrong in (path, tmp_path / "nothing.mrc"):
        with pytest.raises(InputError, match="stack of volumes"):
            open_stack(wrong)


def blobs(sizes=(40, 25, 12), seed=0):
    rng = np.random.default_rng(seed)
    middles = 4 * np.abs(rng.normal(size=(len(sizes), 30)))
    labels = np.repeat(np.arange(1, len(sizes) + 1), sizes)
    order = rng.permutation(len(labels))
    points = np.abs(middles[labels - 1] + rng.normal(0, 0.3, (len(labels), 30)))
    return points[order], labels[order]


def test_clusters_are_found_numbered_by_size_and_always_the_same():
    features, labels = blobs()
    directions = main_directions(features)
    one = find_clusters(directions, clusters=0, most=8, seed=1)
    again = find_clusters(main_directions(features), clusters=0, most=8, seed=1)
    np.testing.assert_array_equal(one.cluster, labels)  # the largest is number 1
    np.testing.assert_array_equal(one.cluster, again.cluster)
    pd.testing.assert_frame_equal(one.curve, again.curve)
    assert one.curve["k"].tolist() == list(range(2, 9)) and elbow(one.curve) == 3
    assert (np.diff(one.curve["inertia"]) < 0).all()
    places = embedded(directions, perplexity=30, seed=1)
    np.testing.assert_array_equal(places, embedded(directions, perplexity=30, seed=1))
    middles = np.array([places[labels == k].mean(0) for k in (1, 2, 3)])
    nearest = np.linalg.norm(places[:, None] - middles, axis=-1).argmin(1) + 1
    assert (nearest == labels).mean() > 0.95


def test_clusters_do_not_depend_on_the_order_or_the_length_of_features():
    features, labels = blobs()
    turned = features[::-1] * np.linspace(1, 9, len(features))[:, None]
    found = find_clusters(main_directions(turned), clusters=3, most=4, seed=5)
    np.testing.assert_array_equal(found.cluster, labels[::-1])
    assert found.count == 3 and found.distance.shape == (len(labels),)
    with pytest.raises(InputError, match="at least 8"):
        main_directions(features[:5])


def test_enrichment_by_hand():
    table = enrichment(np.array([1, 1, 1, 2, 2]), ["a", "a", "b", "b", "b"])
    first = table.iloc[0]
    assert (first["cluster"], first["class"], first["n"]) == (1, "a", 2)
    assert first["share_of_cluster"] == pytest.approx(2 / 3) and first["share_of_class"] == 1.0
    assert first["fold"] == pytest.approx((2 / 3) / (2 / 5))
    assert first["p"] == pytest.approx(3 / 10)  # both of a among 3 of 5: C(3,1)/C(5,3)
    assert best_cluster(table, "b") == {"cluster": 2, "purity": 1.0, "recall": pytest.approx(2 / 3)}


def features_of(path):
    found = read_features(path)
    return found.features, found.probabilities


def test_what_the_network_makes_of_subtomograms(tmp_path):
    network = save_multitask(tmp_path / "model")
    given = write_set(tmp_path / "set.h5", each=3)
    outputs = {name: tmp_path / f"{name}.out" for name in ("features", "masks", "densities")}
    settings = DiscoverSettings(device="cpu", precision="float32", test_time_flips=2, batch_size=4)
    inputs = {"subtomograms": given, "card": tmp_path / "model" / "card.yaml"}
    multitask.run(inputs, outputs, settings=settings)
    with open_simulated(given) as boxes:
        values, true = boxes.values[()], np.array(boxes.classes)[boxes.label]
    found = read_features(outputs["features"])
    assert found.true == list(true) and found.box_vox == 12 and found.model == "multi"
    cut = slice(2, 14)  # voxel 8 of 16 comes to 6 of 12
    x = torch.from_numpy(values[:, None, cut, cut, cut])
    with torch.no_grad():
        plain, turned = network.outputs(x), network.outputs(x.flip(-3))
        both = (network.features(x) + network.features(x.flip(-3))) / 2
    density_of = (plain.recovery + turned.recovery.flip(-3))[:, 0] / 2
    mask = (plain.segmentation.softmax(1) + turned.segmentation.softmax(1).flip(-3))[:, 1] / 2
    np.testing.assert_allclose(found.features, both, atol=1e-5)
    np.testing.assert_allclose(open_stack(outputs["densities"]), density_of, atol=1e-5)
    np.testing.assert_array_equal(open_stack(outputs["masks"]), mask > 0.5)
    assert outputs["features"].read_bytes() == _again(inputs, outputs, settings, tmp_path)


def _again(inputs, outputs, settings, folder):
    others = {name: folder / f"{name}.again" for name in outputs}
    multitask.run(inputs, others, settings=settings)
    return others["features"].read_bytes()


def test_features_do_not_depend_on_the_others_of_a_batch(tmp_path):
    save_multitask(tmp_path / "model")
    boxes = np.random.default_rng(3).normal(size=(7, 12, 12, 12)).astype(np.float32)
    seen = []
    for number, (order, size) in enumerate([(np.arange(7), 7), (np.arange(7)[::-1], 2)]):
        path, outputs = tmp_path / f"{number}.h5", {}
        write_subtomograms(path, boxes[order], candidate_id=order + 1, box_vox=12,
                           centre_zyx=np.full((7, 3), 6.0), voxel_size_angstrom=10.0)  # fmt: skip
        for name in ("features", "masks", "densities"):
            outputs[name] = tmp_path / f"{number}.{name}"
        multitask.run(
            {"subtomograms": path, "card": tmp_path / "model" / "card.yaml"}, outputs,
            settings=DiscoverSettings(device="cpu", precision="float32", batch_size=size),
        )  # fmt: skip
        seen.append(read_features(outputs["features"]).features[order])
    np.testing.assert_allclose(seen[0], seen[1], atol=1e-5)


@pytest.mark.parametrize("subnets,box,words", [
    (ALL[::2], 12, "subnets"), (ALL, 18, "at least 18 voxels"),
])  # fmt: skip
def test_networks_and_boxes_that_do_not_fit_are_refused(tmp_path, subnets, box, words):
    save_multitask(tmp_path / "model", subnets, box)
    inputs = {"subtomograms": write_set(tmp_path / "set.h5", each=3),
              "card": tmp_path / "model" / "card.yaml"}  # fmt: skip
    with pytest.raises(InputError, match=words):
        multitask.run(inputs, {}, settings=DiscoverSettings(device="cpu"))


def test_a_network_that_only_names_gives_features_and_no_masks(tmp_path):
    network = save_multitask(tmp_path / "model", ["classification"])
    given = write_set(tmp_path / "set.h5", each=3)
    outputs = {name: tmp_path / f"{name}.out" for name in ("features", "densities")}
    settings = DiscoverSettings(device="cpu", precision="float32", test_time_flips=1, batch_size=4)
    card = tmp_path / "model" / "card.yaml"
    multitask.run({"subtomograms": given, "card": card}, outputs, settings=settings)
    with open_simulated(given) as boxes:
        values = boxes.values[:, 2:14, 2:14, 2:14]
    found = read_features(outputs["features"])
    with torch.no_grad():
        wanted = network.features(torch.from_numpy(values)[:, None])
    np.testing.assert_allclose(found.features, wanted, atol=1e-5)
    np.testing.assert_array_equal(open_stack(outputs["densities"]), -values)
    assert not found.recovered
    pages = {key: tmp_path / key for key in ("clusters", "curve", "enrichment", "means",
                                             "class_means", "figures", "page")}  # fmt: skip
    inputs = {"features": [outputs["features"]], "densities": [outputs["densities"]],
              "simulated": [given]}  # fmt: skip
    discover.run(inputs, pages, settings=DiscoverSettings(clusters=2, most_clusters=3),
                 title="t", tomograms=["set"])  # fmt: skip
    page = pages["page"].read_text()
    assert "recovers no densities" in page and "Recovered against true" not in page
    check_multitask(load_card(card), "x")
    with pytest.raises(InputError, match="recovery, segmentation"):
        check_multitask(load_card(card), "x", masks=True)


@pytest.fixture(scope="module")
def discovered(tmp_path_factory):
    """A set of balls, cubes and shells as a network sees it that tells all three apart and recovers
    what is true, but was not taught cubes."""
    folder = tmp_path_factory.mktemp("discovered")
    given = write_set(folder / "set.h5", each=9)
    rng = np.random.default_rng(0)
    with open_simulated(given) as boxes:
        true = [boxes.classes[k] for k in boxes.label]
        clean = boxes.clean[:, 2:14, 2:14, 2:14]
    middles = {name: np.eye(12)[4 * k] for k, name in enumerate(("ball", "cube", "shell"))}
    features = np.array([middles[name] for name in true]) + rng.normal(0, 0.05, (len(true), 12))
    known = np.array([[0, name != "shell", name == "shell"] for name in true], np.float32)
    write_features(folder / "features.h5", Features(
        features=features.astype(np.float32), probabilities=known, true=true, model="multi",
        candidate_id=np.arange(1, len(true) + 1), classes=["background", "ball", "shell"],
        weights_sha256="0" * 64, box_vox=12, voxel_size_angstrom=10.0,
    ))  # fmt: skip
    write_stack(folder / "densities.mrc", clean, box_vox=12, voxel_size_angstrom=10.0)
    names = {
        "clusters": "clusters.csv", "curve": "curve.csv", "enrichment": "enrichment.csv",
        "means": "means.mrc", "class_means": "class_means.mrc", "figures": "discovery.json",
        "page": "clusters.html",
    }  # fmt: skip
    outputs = {key: folder / name for key, name in names.items()}
    inputs = {"features": [folder / "features.h5"], "densities": [folder / "densities.mrc"],
              "simulated": [given]}  # fmt: skip
    discover.run(inputs, outputs, settings=DiscoverSettings(most_clusters=6), title="planted",
                 tomograms=["set"])  # fmt: skip
    return inputs, outputs


def test_an_unknown_class_has_its_own_cluster(discovered):
    _, outputs = discovered
    figures = json.loads(outputs["figures"].read_text())
    assert figures["clusters"] == 3 and set(figures["unseen"]) == {"cube"}
    cube = figures["unseen"]["cube"]
    assert cube["purity"] == cube["recall"] == 1.0
    assert cube["resolution_angstrom"] == pytest.approx(20.0)  # recovered as it is
    mark, table = read_clusters(outputs["clusters"])
    assert mark == figures["clustering"] and len(table) == 81
    means = open_stack(outputs["means"])
    wanted = density("cube")[2:14, 2:14, 2:14]
    np.testing.assert_allclose(means[cube["cluster"] - 1], wanted, atol=1e-6)
    assert figures["classes_of_means"] == ["ball", "shell"]
    page = outputs["page"].read_text()
    assert mark in page and "cube" in page and page.count("data:image/png") == 3 * 4
    assert "Classes that the network does not know" in page


def test_the_same_gives_the_same_bytes(discovered, tmp_path):
    inputs, outputs = discovered
    again = {key: tmp_path / path.name for key, path in outputs.items()}
    discover.run(inputs, again, settings=DiscoverSettings(most_clusters=6), title="planted",
                 tomograms=["set"])  # fmt: skip
    for key, path in outputs.items():
        assert path.read_bytes() == again[key].read_bytes(), key


def test_isosurfaces_show_something_and_nothing():
    solid, empty = isosurface_png(density("ball")), isosurface_png(np.zeros((8, 8, 8)))
    assert solid == isosurface_png(density("ball")) and len(solid) > 2 * len(empty)
    smooth = ndimage.gaussian_filter(density("shell"), 1)
    assert isosurface_png(smooth) != isosurface_png(-smooth)


def names_file(folder, **given):
    lines = {"clustering": "abcdefabcdef", "names": "{2: novel, 3: ball}", **given}
    path = folder / "names.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in lines.items()))
    return path


@pytest.mark.parametrize("given,words", [
    ({"clustering": "123412341234"}, "clusters have changed"), ({"names": "{9: a}"}, "1 to 4"),
    ({"names": "{1: ../a}"}, "letters"), ({"names": "{1: background}"}, "letters"),
    ({"names": "{}"}, "none"), ({"other": "1"}, "names"), ({"names": "{true: a}"}, "letters"),
])  # fmt: skip
def test_names_that_cannot_be_are_refused(tmp_path, given, words):
    with pytest.raises(InputError, match=words):
        read_names(names_file(tmp_path, **given), clustering="abcdefabcdef", clusters=4)


def test_named_clusters_are_classes_of_the_particle_table(tmp_path):
    columns = ["tomogram", "candidate_id", "cluster", "distance", "x", "y", "named", "true"]
    rows = [["t", 1, 1], ["t", 2, 2], ["t", 3, 2], ["t", 4, 3], ["u", 1, 2], ["t", 5, 2]]
    table = pd.DataFrame([[*r, 0.0, 0.0, 0.0, "ball", ""] for r in rows], columns=columns)
    (tmp_path / "clusters.csv").write_text(
        "# clustering abcdefabcdef\n" + table.to_csv(index=False)
    )
    n = 5
    status = ["accepted", "accepted", "rejected", "accepted", "rejected"]
    reason = ["", "", "background", "", "too small"]
    from tomoline.ops.votes import BACKGROUND_LIKE  # noqa: PLC0415

    reason[2] = BACKGROUND_LIKE
    particles = particle_table({
        "tomogram": ["t"] * n, "particle_id": range(1, n + 1), "z_vox": [1.0] * n,
        "y_vox": [1.0] * n, "x_vox": [1.0] * n, "voxel_size_angstrom": [10.0] * n,
        "tomogram_nz": [9] * n, "tomogram_ny": [9] * n, "tomogram_nx": [9] * n,
        "binning": [1.0] * n, "status": status, "reason": reason, "score": [0.5] * n,
        "size_vox": [5] * n, "class": ["ball", "ball", "", "shell", ""], "vote_share": [1.0] * n,
        "margin": [1.0] * n, "p_ball": [0.8, 0.7, 0.1, 0.2, 0.0], "p_shell": [0.2, 0.3, 0, 0.8, 0],
    }, ["ball", "shell"])  # fmt: skip
    found = with_named_clusters(particles, "t", tmp_path / "clusters.csv", names_file(tmp_path))
    assert found["class"].tolist() == ["ball", "novel", "novel", "ball", ""]
    assert found["status"].tolist() == ["accepted"] * 4 + ["rejected"]
    assert found["p_novel"].tolist() == [0, 1, 1, 0, 0] and found["p_ball"].iloc[3] == 1
    assert found["p_shell"].iloc[3] == 0 and found["p_ball"].iloc[0] == 0.8
