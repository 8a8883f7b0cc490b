"""Names of topologies."""

import pytest

from uae_jax.plan import topologies


@pytest.mark.parametrize(
    ("name", "chips", "chip"),
    [
        ("v5p:4x4x4", 64, "v5p"),
        ("v4:2x2x1", 4, "v4"),
        ("v5e:4x4", 16, "v5e"),
        ("v6e:2x4", 8, "v6e"),
        ("h100:8", 8, "h100"),
        ("h200:16", 16, "h200"),
    ],
)
def test_names(name, chips, chip):
    topology = topologies.parse(name)
    assert (topology.count, topology.chip.name, topology.name) == (chips, chip, name)


@pytest.mark.parametrize("name", ["v4:2x2x2", "v5p:2x4x4", "v5p:4x8x12", "v5p:8x16x16", "v5e:1x1", "v6e:16x16"])
def test_slices_of_the_vendors_lists(name):
    assert topologies.parse(name).name == name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v5q:4x4x4", "nearest chip is 'v5"),
        ("h100:0", "holds no chip, wanted numbers from 1"),
        ("v5p:4x0x4", "holds no chip, wanted numbers from 1"),
        ("v5p", "as in v5p:4x4x4"),
        ("v5p:4x4", "laid out like v5p:4x4x4"),
        ("v6e:2xfour", "as in v6e:4x4"),
        ("h100:12", "whole nodes of 8"),
        ("v6e:3x5", "nearest are v6e:2x4 and v6e:4x4"),  # 15 chips; 16 and 8 are nearest
        ("v5e:16x32", "nearest are v5e:8x16 and v5e:16x16"),
        ("v5p:2x4x8", "nearest are v5p:2x4x4 and v5p:4x4x4"),
        ("v5p:4x4x6", "nearest are v5p:4x4x4 and v5p:4x4x8"),
        ("v4:4x2x2", "nearest are v4:2x2x2 and v4:2x2x4"),  # the vendor lists the shortest side first
    ],
)
def test_what_there_is_none_of_is_refused_with_a_remedy(name, said):
    with pytest.raises(ValueError, match=said):
        topologies.parse(name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        # v4 and v5p: two cores a chip. cloud.google.com/tpu/docs: v5p-64 has 32 chips, 2x4x4.
        ("v5p-64", "64 cores, which are 32 chips; wanted v5p:2x4x4"),
        ("v5p-8", "wanted v5p:2x2x1"),
        ("v4-128", "64 chips; wanted v4:4x4x4"),
        ("v5p-1024", "wanted v5p:8x8x8"),
        ("v5litepod-16", "this one of 16 chips; wanted v5e:4x4"),
        ("V6e-8", "wanted v6e:2x4"),
        ("v5p-40", "no such slice; the nearest is v5p:2x2x4"),  # 20 chips; 16 are nearest
    ],
)
def test_names_of_gcloud_are_translated(name, said):
    with pytest.raises(ValueError, match=said):
        topologies.parse(name)


def test_ideal_times_of_chips():
    # SD3.5-Large, 512 pixels: 9.11 TFLOP; Qwen2.5-VL-3B, one token of one caption: 6.21 GB.
    wanted = {"v4": (33, 5.1), "v5e": (46, 7.6), "v5p": (20, 2.2), "v6e": (10, 3.8)}
    for name, (forward, token) in wanted.items():
        chip = topologies.CHIPS[name]
        assert 1e3 * 9.11e12 / chip.flops == pytest.approx(forward, abs=0.6)
        assert 1e3 * 6.21e9 / chip.bandwidth == pytest.approx(token, abs=0.06)


def test_gpus_of_several_nodes_meet_over_the_network():
    topology = topologies.parse("h100:16")
    assert topology.links_among(8) == 450e9 > topology.links_among(16) == 50e9
    assert topologies.parse("v5p:4x4x4").links_among(64) == 600e9
