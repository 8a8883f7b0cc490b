"""CLIP's stage: its loss is transformers', LongCLIP's second one has a closed form, kept positions stay."""

import math

import pytest

torch = pytest.importorskip("torch")

import jax
import jax.numpy as jnp
import numpy as np
import transformers

from tests.stages import meshes, running
from uae_jax.data.records import Sample
from uae_jax.stages import clip_text, contrastive
from uae_jax.stages.contrastive import Contrastive, ContrastiveSettings

CAPTIONS = [
    "a red circle. it lies at the top.",
    "a small blue star on white",
    "two green hearts",
    "a large striped square on navy over black",
    "a moon",
    "an orange cross on the left. the background is sand.",
    "a brown diamond in the center",
    "three dotted triangles",
]


def samples(captions=CAPTIONS, side=64):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (len(captions), side, side, 3), np.uint8)
    return [
        Sample(f"image {i}", image, text, "text") for i, (image, text) in enumerate(zip(images, captions, strict=True))
    ]


def started(mesh=None, **settings):
    return running.start(Contrastive(ContrastiveSettings(**settings), seed=3), mesh)


@pytest.fixture(scope="module")
def plain():
    return started()


def nats(logits):
    """CLIP's loss of float64 logits, in which rows and columns are to be told apart by their places."""
    rows = np.log(np.exp(logits).sum(1)) - np.diag(logits)
    columns = np.log(np.exp(logits).sum(0)) - np.diag(logits)
    return (rows + columns) / 2


@pytest.mark.slow
def test_loss_is_that_of_transformers(plain, tmp_path):
    loss, aux, _ = plain(samples())
    plain.stage.save(plain.parts.params, {}, {}, tmp_path / "model")
    theirs = transformers.CLIPModel.from_pretrained(tmp_path / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "model")
    pixels = processor([sample.image for sample in samples()], return_tensors="pt")["pixel_values"]
    tokens = tokenizer(CAPTIONS, padding=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        out = theirs(input_ids=tokens, pixel_values=pixels, return_loss=True)
    assert loss == pytest.approx(out.loss.item(), rel=2e-5)
    assert aux.per_example.mean() == pytest.approx(loss, rel=1e-6)
    right = (out.logits_per_image.argmax(1) == torch.arange(len(CAPTIONS))).float().mean()
    assert float(aux.metrics["accuracy_image_to_text"]) == pytest.approx(right.item())


def test_gradient_of_logits_is_that_of_cross_entropy():
    logits = np.random.default_rng(1).normal(0, 3, (6, 6)).astype(np.float32)
    text = clip_text.fingerprints([str(i) for i in range(6)])
    ours = jax.grad(lambda x: contrastive.pair_losses(x, text)[0].mean())(jnp.asarray(logits))
    x, own = torch.tensor(logits, requires_grad=True), torch.arange(6)
    ((torch.nn.functional.cross_entropy(x, own) + torch.nn.functional.cross_entropy(x.T, own)) / 2).backward()
    np.testing.assert_allclose(ours, x.grad.numpy(), atol=1e-7)


def test_equal_captions_are_no_negatives_of_each_other():
    logits = np.random.default_rng(2).normal(0, 2, (4, 4))
    text = clip_text.fingerprints(["a", "b", "a", "c"])
    losses, right = contrastive.pair_losses(jnp.asarray(logits, jnp.float32), text)
    without = logits.copy()
    without[0, 2] = without[2, 0] = -np.inf
    np.testing.assert_allclose(losses, nats(without), rtol=1e-5)
    np.testing.assert_array_equal(right["image_to_text"], without.argmax(1) == np.arange(4))
    np.testing.assert_array_equal(right["text_to_image"], without.argmax(0) == np.arange(4))


def test_fingerprints_are_equal_where_texts_are():
    one, other, again = clip_text.fingerprints(["a star", "a stan", "a star"])
    assert (one == again).all() and (one != other).any()


@pytest.mark.parametrize("components", [1, 3, 5, 99])
def test_principal_part_is_what_the_largest_singular_values_leave(components):
    features = np.random.default_rng(3).normal(size=(12, 5))
    mean = features.mean(0)
    u, s, vt = np.linalg.svd(features - mean, full_matrices=False)
    s[components:] = 0
    got = contrastive.principal_part(jnp.asarray(features, jnp.float32), components)
    np.testing.assert_allclose(got, mean + (u * s) @ vt, atol=2e-6)


def test_principal_part_has_a_gradient_where_eigenvalues_are_equal():
    """Three rows span two directions at most: of five eigenvalues three are zero."""
    features = jnp.asarray(np.random.default_rng(4).normal(size=(3, 5)), jnp.float32)
    gradient = jax.grad(lambda x: (contrastive.principal_part(x, 2) ** 2).sum())(features)
    np.testing.assert_allclose(gradient, 2 * features, atol=1e-5)  # both directions are kept: it is the identity


@pytest.mark.slow
def test_short_loss_is_of_first_sentences_and_coarse_images():
    weight, components = 0.3, 2
    both = started(short_weight=weight, principal_components=components)
    loss, aux, _ = both(samples())
    batch = both.stage.collate(samples())
    module = both.stage.model.architecture.module(both.stage.model.config, both.stage.runtime)
    settings = both.stage.image_settings
    pixels = (batch["images"] / 255 - settings["image_mean"]) / settings["image_std"]
    short, _ = both.stage.tokens([caption.split(". ")[0] for caption in CAPTIONS])
    variables = {"params": both.parts.params}
    _, long_features = module.apply(variables, pixels.astype(np.float32), batch["tokens"])
    _, short_features = module.apply(variables, pixels.astype(np.float32), short)
    image = np.asarray(long_features["image"], np.float64)
    u, s, vt = np.linalg.svd(image - image.mean(0), full_matrices=False)
    s[components:] = 0
    scale = math.exp(float(both.parts.params["logit_scale"]))
    coarse = scale * (image.mean(0) + (u * s) @ vt) @ np.asarray(short_features["text"], np.float64).T
    assert float(aux.metrics["loss_short"]) == pytest.approx(nats(coarse).mean(), rel=1e-5)
    assert loss == pytest.approx(float(aux.metrics["loss_long"]) + weight * nats(coarse).mean(), rel=1e-5)


def test_temperature_has_a_bound_from_which_it_can_come_back():
    def slope(x, up):
        return float(jax.grad(lambda x: up * contrastive.at_most(x, 1.0))(x))

    assert contrastive.at_most(3.0, 1.0) == 1.0 and contrastive.at_most(0.5, 1.0) == 0.5
    assert slope(0.5, 1.0) == 1.0 and slope(0.5, -1.0) == -1.0
    assert slope(3.0, 1.0) == 1.0  # descent lowers it
    assert slope(3.0, -1.0) == 0.0  # descent would raise it further


def test_the_saved_temperature_is_within_its_bound(plain, tmp_path):
    hot = plain.parts.params | {"logit_scale": jnp.float32(6.0)}
    plain.stage.save(hot, {}, {}, tmp_path / "model")
    saved = transformers.CLIPModel.from_pretrained(tmp_path / "model").logit_scale.item()
    assert saved == pytest.approx(math.log(100))


@pytest.mark.slow
def test_stretching_keeps_and_freezes_the_first_positions(plain):
    long = started(stretch_positions=True)
    before = np.asarray(plain.parts.params["text"]["positions"])
    after = np.asarray(long.parts.params["text"]["positions"])
    kept = contrastive.KEPT_POSITIONS
    assert before.shape[0] == 77 and after.shape[0] == 248
    np.testing.assert_array_equal(after[:kept], before[:kept])
    _, _, gradient = long(samples([("a red circle and " * 12) + text for text in CAPTIONS]))
    moved = np.abs(np.asarray(gradient["text"]["positions"])).sum(1)
    assert not moved[:kept].any() and moved[kept : kept + 10].all()


@pytest.mark.slow
def test_long_captions_are_cut_with_their_end_kept_and_counted(plain):
    endless = ["a red circle and " * 40 + "a star", *CAPTIONS[1:]]
    batch = plain.stage.collate(samples(endless))
    end = plain.stage.tokens.tokenizer.eos_token_id
    assert batch["tokens"].shape[1] == 77 and batch["tokens"][0, -1] == end
    np.testing.assert_array_equal(batch["cut"], [True] + [False] * 7)
    _, aux, _ = plain(samples(endless))
    assert float(aux.metrics["cut_captions"]) == 1 / 8


def test_evaluation_counts_the_right_ones_of_whole_groups(plain, monkeypatch):
    """Of eight pairs two groups of three: the last two are in none."""
    monkeypatch.setattr(contrastive, "_GROUP", 3)
    batch = plain.place(samples())
    with jax.set_mesh(plain.mesh):
        found = jax.jit(plain.stage.evaluate)(plain.parts.params, {}, {}, batch, jax.random.key(0))
        logits = np.asarray(plain.stage._logits(plain.parts.params, batch))
    for way, axis in (("image_to_text", 1), ("text_to_image", 0)):
        right = [logits[s : s + 3, s : s + 3].argmax(axis) == np.arange(3) for s in (0, 3)]
        assert float(found[f"{way}_1_of_3"]) == pytest.approx(np.mean(right))


@pytest.mark.slow
@pytest.mark.parametrize("axes", meshes.MESHES, ids=str)
def test_meshes_agree(axes):
    settings = {"short_weight": 0.3, "principal_components": 4}
    one, other = started(**settings), started(meshes.make_mesh(**axes), **settings)
    (loss, _, gradient), (got, _, same) = one(samples()), other(samples())
    assert got == pytest.approx(loss, rel=1e-6)
    assert running.difference(same, gradient) < 2e-6  # 1.3e-6 where widths are cut in eight: sums in another order


def test_images_of_another_size_are_named(plain):
    with pytest.raises(ValueError, match="images are 32x32 pixels, wanted 64x64; set the data's resolution to 64"):
        plain.stage.collate(samples(side=32))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"short_weight": -1.0}, "short_weight is -1.0"),
        ({"principal_components": 0}, "at least 1 component"),
        ({"model": "new:clip-tyni"}, "the nearest there is 'new:clip-tiny'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Contrastive(ContrastiveSettings(**settings))
