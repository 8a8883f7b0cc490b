"""Closed forms of memory against what the TPU compiler was seen to need."""

import jax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from uae_jax.parallel.mesh import abstract_mesh
from uae_jax.plan import memory, staged
from uae_jax.plan.compiling import GIB
from uae_jax.plan.memory import Memory
from uae_jax.plan.stand_ins import StandIns
from uae_jax.training import configure

BLOCKS = 37 * 36 * 2432**2  # parameters of SD3.5-Large's 37 equal layers: 7.88 B
WIDTH, LAYERS = 2432, 37
# Parts of weights, side in pixels, samples on a chip, peak in GiB: these layers alone, splash attention, remat.
FULL = [(4, 512, 4, 35.1), (4, 1024, 2, 36.0), (8, 1024, 2, 19.6), (64, 1024, 2, 5.3), (8, 512, 2, 17.7)]
LORA = [(4, 512, 4, 5.9), (16, 512, 2, 2.0)]


def activations(side: int) -> float:
    return memory.transformer((side // 16) ** 2 + 512, WIDTH, LAYERS, "full", 2)


@pytest.mark.parametrize(("parts", "side", "samples", "wanted"), FULL)
def test_full_training_of_the_decoder(parts, side, samples, wanted):
    own = 4 * BLOCKS // parts
    estimated = Memory(own, 2 * own, 0, 0, 0, 0, own, own / 2, activations(side), samples, 0)
    assert estimated.peak / GIB == pytest.approx(wanted, rel=0.1)


@pytest.mark.parametrize(("parts", "side", "samples", "wanted"), LORA)
def test_adapters_of_the_decoder(parts, side, samples, wanted):
    adapter = 4 * 47e6 / parts
    frozen = 2 * BLOCKS // parts
    estimated = Memory(adapter, 2 * adapter, 0, 0, frozen, 0, adapter, 0, activations(side), samples, 0)
    assert estimated.peak / GIB == pytest.approx(wanted, rel=0.1)


def test_activations_kept_and_recomputed():
    # performance of one sample at 512 pixels: some 6.2 GB without remat, 0.3 GB and what is at work with it.
    tokens = 1536
    at_work = memory.AT_WORK * tokens * WIDTH * 2
    assert memory.transformer(tokens, WIDTH, 38, "none", 2) - at_work == pytest.approx(6.2e9, rel=0.02)
    assert memory.transformer(tokens, WIDTH, 38, "full", 2) - at_work == pytest.approx(0.3e9, rel=0.06)


def test_largest_micro_batch():
    given = Memory(10, 20, 0, 0, 0, 0, 10, 5, 7, 2, 0)
    assert given.arguments == 30 and given.peak == 30 + 10 + 5 + 14
    assert given.largest(100) == 7  # 100 - 30 - 15 = 55 hold seven of 7
    assert given.largest(100, correction=7) == 6 and given.largest(40) == 0
    rollout = Memory(10, 20, 0, 0, 0, 0, 10, 5, 7, 2, 80)
    assert rollout.peak == 110 and rollout.largest(100) == 0  # gradients never begin


@pytest.mark.parametrize(("axis", "images", "sharing"), [("sequence", 64, 2), ("tensor", 64, 2), ("sequence", 4, 1)])
def test_images_of_the_vae_are_split_over_all_axes(axis, images, sharing):
    """Eight chips, four places of the batch: with 64 images each chip has 8, as `fsdp` alone would give it; 4 images
    go one to a place, and what shares that place does the same work again."""
    overrides = ("--config.mesh.data=4", f"--config.mesh.{axis}=2", f"--config.batch_size={images}")
    ((_, experiment),) = configure.load_config("configs/tiny/autoencoder.py", overrides)
    need = memory.estimate(staged.load(experiment, 8, StandIns("tiny")))
    ((_, alone),) = configure.load_config("configs/tiny/autoencoder.py", ("--config.batch_size=4", overrides[0]))
    whole = memory.estimate(staged.load(alone, 4, StandIns("tiny")))
    assert need.samples == images // 4 and need.per_sample == whole.per_sample / sharing


def test_gathered_copies_are_whole_but_for_tensor():
    mesh = abstract_mesh(8, fsdp=4, tensor=2)

    def leaf(*spec):
        return jax.ShapeDtypeStruct((16, 8), "bfloat16", sharding=NamedSharding(mesh, PartitionSpec(*spec)))

    assert memory.gathered_bytes([leaf("fsdp", None)]) == 16 * 8 * 2
    assert memory.gathered_bytes([leaf(("tensor", "fsdp"), None), leaf("fsdp", "tensor")]) == 2 * 16 * 8 * 2 / 2
    assert memory.gathered_bytes([leaf(None, "tensor"), leaf()]) == 0  # no copy is made of these
