"""The DINO family's stage: losses by loops in float64, crops by Pillow, the teacher by its closed form."""

import pytest

torch = pytest.importorskip("torch")

import jax
import jax.numpy as jnp
import numpy as np
import transformers
from PIL import Image

from tests.stages import meshes, running
from uae_jax.data.records import Sample
from uae_jax.stages import crops, distillation, self_distillation
from uae_jax.stages.crops import Augmentation
from uae_jax.stages.self_distillation import SelfDistillation, SelfDistillationSettings

HEAD = {"hidden": 32, "bottleneck": 16, "prototypes": 24}


def settings(**changes):
    head = distillation.HeadConfig(**HEAD)
    return SelfDistillationSettings(head=head, **{"local_crops": 2, "temperature_warmup": 4, **changes})


def samples(count=8, side=64):
    images = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
    return [Sample(f"image {i}", image) for i, image in enumerate(images)]


def normal(*shape, seed=0, scale=1.0):
    return np.random.default_rng(seed).normal(0, scale, shape)


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def run():
    stage = SelfDistillation(settings(), seed=1)
    mesh = running.one_device()
    with jax.set_mesh(mesh):
        parts = stage.load(mesh)
    return stage, parts, jax.jit(jax.value_and_grad(stage.loss, has_aux=True))


def test_sinkhorn_is_three_rounds_of_knopps_alternation():
    logits, temperature = normal(10, 6), 0.5
    q = np.exp(logits / temperature)
    for _ in range(3):
        q /= q.sum(0) * 6  # every prototype has a sixth
        q /= q.sum(1, keepdims=True) * 10  # every image has a tenth
    np.testing.assert_allclose(distillation.sinkhorn(jnp.float32(logits), temperature), 10 * q, rtol=1e-5)


def test_sinkhorn_does_not_see_rows_that_do_not_count():
    logits = normal(10, 6)
    weights = jnp.float32([1, 0, 1, 1, 0, 1, 1, 1, 0, 1])
    some = np.asarray(weights) > 0
    got = distillation.sinkhorn(jnp.float32(logits), 0.5, weights)
    np.testing.assert_allclose(got[some], distillation.sinkhorn(jnp.float32(logits[some]), 0.5), rtol=1e-5)
    assert not np.asarray(got)[~some].any()
    assert np.isfinite(distillation.sinkhorn(jnp.float32(logits), 0.5, jnp.zeros(10))).all()


def test_sinkhorn_of_sharp_logits_is_finite():
    got = distillation.sinkhorn(jnp.float32([[1.0, -1.0], [-1.0, 1.0]]), 0.001)
    np.testing.assert_allclose(got, np.eye(2), atol=1e-6)


def test_centred_targets_and_their_cross_entropy():
    teacher, student, centre = normal(5, 7), normal(5, 7, seed=1), normal(7, seed=2)
    targets = distillation.centred(jnp.float32(teacher), 0.3, jnp.float32(centre))
    np.testing.assert_allclose(targets, softmax((teacher - centre) / 0.3), rtol=1e-5, atol=1e-7)
    got = distillation.cross_entropy(targets, jnp.float32(student), 0.2)
    theirs = torch.nn.functional.cross_entropy(
        torch.tensor(student / 0.2), torch.tensor(softmax((teacher - centre) / 0.3)), reduction="none"
    )
    np.testing.assert_allclose(got, theirs.numpy(), rtol=1e-5)


def test_every_crop_is_told_what_the_other_global_crops_are():
    targets, logits, temperature = softmax(normal(3, 2, 5)), normal(3, 4, 5, seed=1), 0.1
    wanted = []
    for image in range(3):
        pairs = [
            -(targets[image, g] * np.log(softmax(logits[image, v] / temperature))).sum()
            for g in range(2)
            for v in range(4)
            if g != v
        ]
        assert len(pairs) == 6
        wanted.append(np.mean(pairs))
    got = self_distillation.crop_losses(jnp.float32(targets), jnp.float32(logits), temperature)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_koleo_is_minus_the_logarithm_of_the_nearest_distance():
    features = normal(9, 4)
    x = unit(features)
    distances = np.linalg.norm(x[:, None] - x[None], axis=-1) + 9 * np.eye(9)
    np.testing.assert_allclose(distillation.koleo(jnp.float32(features)), -np.log(distances.min(1)), atol=1e-5)
    assert np.isfinite(jax.grad(lambda x: distillation.koleo(x).sum())(jnp.ones((3, 4)))).all()  # all in one place


def test_head_compares_unit_vectors():
    head = distillation.Head(distillation.HeadConfig(**HEAD))
    x = jnp.float32(normal(5, 12))
    params = head.init(jax.random.key(0), x)["params"]
    assert params["prototypes"].shape == (16, 24)
    got = head.apply({"params": params}, x)
    y = jax.nn.gelu(x @ params["up"]["kernel"] + params["up"]["bias"])
    y = jax.nn.gelu(y @ params["across"]["kernel"] + params["across"]["bias"])
    y = np.float64(y @ params["down"]["kernel"] + params["down"]["bias"])
    np.testing.assert_allclose(got, unit(y) @ unit(np.float64(params["prototypes"]).T).T, atol=1e-5)


def test_masks_hide_a_share_within_the_ratio():
    mask = np.asarray(distillation.random_mask(jax.random.key(0), 400, 20, (0.1, 0.5), 0.5))
    parts = mask.mean(1)
    assert 0.4 < (parts > 0).mean() < 0.6
    assert parts[parts > 0].min() >= 0.1 and parts.max() <= 0.5
    assert (mask.sum(0) > 30).all()  # no place is left out


def test_cuts_are_those_of_pillow():
    """Box resampling with a triangle, wider where it shrinks; Pillow rounds to 8 bits in between."""
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    for top, left, height, width in ((0, 0, 40, 56), (3.5, 7.25, 30, 40), (10, 20, 12, 9)):
        got = crops.cut(jnp.float32(image / 255), jnp.float32([top, left, height, width]), 16)
        box = (left, top, left + width, top + height)
        theirs = Image.fromarray(image).resize((16, 16), Image.Resampling.BILINEAR, box=box)
        inside = np.abs(np.asarray(got) * 255 - np.asarray(theirs))[1:-1, 1:-1]
        assert inside.max() < 1.5  # at edges of a box Pillow looks at nothing beyond it


def test_boxes_are_inside_and_of_the_share_that_was_asked_for():
    boxes = np.asarray(jax.vmap(lambda k: crops.box(k, (40, 60), (0.2, 0.4)))(jax.random.split(jax.random.key(0), 500)))
    top, left, height, width = boxes.T
    assert top.min() >= 0 and left.min() >= 0 and (top + height).max() <= 40.001 and (left + width).max() <= 60.001
    shares = height * width / 2400
    assert shares.min() > 0.199 and shares.max() < 0.401 and shares.std() > 0.03


def test_a_cut_of_everything_is_the_image():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    got = crops.cut(jnp.float32(image / 255), jnp.float32([0, 0, 32, 32]), 32)
    np.testing.assert_allclose(got * 255, image, atol=1e-3)


@pytest.mark.slow
def test_a_view_depends_on_its_own_key_alone():
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    augmentation = Augmentation(scale=(0.3, 0.9), flip=0.5)
    key = jax.random.key(4)
    several = crops.views(images, key, 16, augmentation)
    again = crops.views(images, key, 16, augmentation)
    other = crops.views(images, jax.random.key(5), 16, augmentation)
    np.testing.assert_array_equal(several, again)
    assert np.abs(several - other).max() > 0.1 and several.min() >= 0 and several.max() <= 1


def test_teachers_momentum_rises_to_one():
    stage = SelfDistillation(settings(momentum=0.9, momentum_steps=100))
    for step, wanted in ((0, 0.9), (50, 0.95), (100, 1.0), (500, 1.0)):
        assert float(stage.momentum_at(jnp.int32(step))) == pytest.approx(wanted, abs=1e-6)


def test_a_run_that_goes_on_behind_its_teacher_is_refused():
    stage = SelfDistillation(settings(momentum_steps=100))
    stage.check_steps(100)
    with pytest.raises(ValueError, match="momentum_steps is 100, wanted at least steps, 101"):
        stage.check_steps(101)


def test_teacher_follows_the_student(run):
    stage, parts, _ = run
    params = jax.tree.map(lambda x: x + 1, parts.params)
    after = stage.after_update(params, parts.state, jnp.int32(0))
    moved = running.flat(after["teacher"])
    before = running.flat(parts.state["teacher"])
    for path, value in moved.items():
        np.testing.assert_allclose(value, before[path] + (1 - stage.settings.momentum), atol=1e-5)
    assert int(after["updates"]) == 1


def test_teachers_temperature_warms_up():
    """Targets are of the temperature at this update: 0.04 at first, 0.07 from the fourth on, linear between."""
    stage = SelfDistillation(settings(centring="mean"))
    logits, centre = normal(4, 5, scale=0.1), np.zeros(5)
    for updates, temperature in ((0, 0.04), (2, 0.055), (4, 0.07), (9, 0.07)):
        state = {"updates": jnp.int32(updates), "centre": jnp.float32(centre)}
        targets, after = stage._targets(jnp.float32(logits), state, "centre")
        np.testing.assert_allclose(targets, softmax(logits / temperature), rtol=2e-5)
        np.testing.assert_allclose(after, 0.1 * logits.mean(0), atol=1e-7)


@pytest.mark.slow
def test_loss_is_the_weighted_sum_of_its_parts(run):
    stage, parts, step = run
    batch, s = stage.collate(samples()), stage.settings
    (loss, aux), gradient = step(parts.params, parts.state, {}, batch, jax.random.key(0))
    m = {name: float(value) for name, value in aux.metrics.items()}
    assert float(loss) == pytest.approx(s.dino * m["dino"] + s.ibot * m["ibot"] + s.koleo * m["koleo"], rel=1e-5)
    assert aux.per_example.shape == (8,) and float(aux.per_example.mean()) == pytest.approx(float(loss), rel=1e-6)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))
    assert np.abs(aux.state["centre"]).max() > 0 and np.abs(aux.state["patch_centre"]).max() > 0
    # The head's cosines are in [-1, 1], so no loss can be above log K + 2 / temperature.
    assert m["dino"] < np.log(24) + 2 / s.temperature


def test_no_gradient_goes_to_the_teacher(run):
    stage, parts, _ = run
    batch = stage.collate(samples(2))

    def loss(teacher):
        return stage.loss(parts.params, parts.state | {"teacher": teacher}, {}, batch, jax.random.key(0))[0]

    gradient = jax.jit(jax.grad(loss))(parts.state["teacher"])
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))


@pytest.mark.slow
def test_without_patches_there_is_no_head_for_them():
    stage = SelfDistillation(settings(ibot=0.0, koleo=0.0))
    mesh = running.one_device()
    with jax.set_mesh(mesh):
        parts = stage.load(mesh)
    assert parts.params.keys() == {"backbone", "head"}
    loss, aux = jax.jit(stage.loss)(parts.params, parts.state, {}, stage.collate(samples(2)), jax.random.key(0))
    assert float(loss) == pytest.approx(float(aux.metrics["dino"]), rel=1e-6) and "ibot" not in aux.metrics


def test_the_teacher_is_saved_as_transformers_has_it(run, tmp_path):
    stage, parts, _ = run
    state = parts.state | {"teacher": jax.tree.map(lambda x: x * 1.5, parts.state["teacher"])}
    stage.save(parts.params, state, {}, tmp_path / "model")
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "model").eval()
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "model")
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    pixels = processor([image], return_tensors="pt", do_resize=False, do_center_crop=False)["pixel_values"]
    with torch.no_grad():
        wanted = theirs(pixel_values=pixels).last_hidden_state[:, 0].numpy()
    module = stage.model.architecture.module(stage.model.config, stage.runtime)
    got, _ = module.apply({"params": state["teacher"]["backbone"]}, pixels.numpy().transpose(0, 2, 3, 1), None)
    np.testing.assert_allclose(got, wanted, atol=3e-5 * np.abs(wanted).max())


@pytest.fixture(scope="module")
def alone():
    """A batch, what one device makes of it, and how much of its gradient is rounding.

    What a new head puts out is next to nothing before it is scaled to unit length, and the bias there has nearly all of
    the gradient's size: a sum that has fewer digits than float32 stores. How many is measured, as for the loop's
    stages, by moving every weight by one unit in its last place.
    """
    batch = {"images": np.stack([sample.image for sample in samples()])}
    got, nudged = (
        meshes.gradients(SelfDistillation(settings(), seed=1), meshes.one_device(), batch, nudge=nudge)
        for nudge in (False, True)
    )
    return batch, got, meshes.relative(nudged[2], got[2])


@pytest.mark.slow
@pytest.mark.parametrize("axes", meshes.MESHES, ids=str)
def test_meshes_agree(alone, axes):
    batch, (loss, aux, gradient), rounding = alone
    got_loss, got_aux, got = meshes.gradients(SelfDistillation(settings(), seed=1), meshes.make_mesh(**axes), batch)
    assert meshes.relative(got_loss, loss) < 1e-6
    assert meshes.relative(got_aux.state["centre"], aux.state["centre"]) < 1e-6
    assert rounding < 1e-5  # a fault would be seen beside it
    assert meshes.relative(got, gradient) < max(1e-6, 3 * rounding)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dino": 0.0, "ibot": 0.0}, "wanted none below 0, dino or ibot above"),
        ({"centring": "mode"}, "centring is 'mode', wanted 'sinkhorn' or 'mean'"),
        ({"momentum": 1.5}, "momentum is 1.5 over"),
        ({"temperature": 0.0}, "temperatures are 0.0"),
        ({"mask_ratio": (0.5, 0.1)}, "wanted parts of 1, low before high"),
        ({"model": "new:dinov2-tyni"}, "the nearest there is 'new:dinov2-tiny'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        SelfDistillation(settings(**changes))


def test_crops_that_are_no_whole_patches_are_refused():
    stage = SelfDistillation(settings(local_size=30))
    with pytest.raises(ValueError, match="local_size is 30, wanted a multiple of the patch side"):
        stage.load(running.one_device())
