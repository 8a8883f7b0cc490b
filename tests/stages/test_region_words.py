"""Words of regions: their cross-entropy, what is trained and what is not."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.stages import meshes, running
from uae_jax.data.records import Sample
from uae_jax.parallel.mesh import make_mesh
from uae_jax.stages import questions
from uae_jax.stages.region_words import RegionWords, RegionWordsSettings, bag_of_words
from uae_jax.weights import uae

pytestmark = pytest.mark.slow

# The tiny encoder sees 64x64 pixels, whatever it is given: 16 tokens.
LABELS = ";".join(["red star", "white", "a long label of many words", "blue circle"] * 4)


def samples(count=8, labels=LABELS):
    rng = np.random.default_rng(0)
    return [Sample(f"image {i}", rng.integers(0, 256, (32, 32, 3), np.uint8), labels) for i in range(count)]


def stage(read_by="vision"):
    return RegionWords(RegionWordsSettings(read_by=read_by, max_words=4, max_pixels=32 * 32))


@pytest.fixture(scope="module")
def run():
    return running.start(stage())


@pytest.fixture(scope="module")
def reading():
    return running.start(stage("language"))


def test_the_loss_is_the_mean_surprise_over_words():
    logits = np.log(np.array([[[0.5, 0.25, 0.125, 0.125], [0.1, 0.2, 0.3, 0.4]]], np.float32))
    words = np.array([[[1, 0], [2, -1]]])
    loss, right = bag_of_words(logits, words)
    np.testing.assert_allclose(loss, [-np.log([0.5, 0.25, 0.3]).mean()], rtol=1e-6)
    np.testing.assert_allclose(right, [2 / 3])  # the last label's word ranks below another


def test_a_label_is_its_words_cut_at_the_limit(run):
    words = run.stage.collate(samples(1))["words"]
    tokenizer = run.stage.prompts.tokenizer
    read = [tokenizer.decode(row[row >= 0]) for row in words[0]]
    assert read[:2] == [" red star", " white"] and read[3] == " blue circle"
    assert (words[0, 2] >= 0).all()


def test_the_vision_tower_alone_learns(run):
    loss, aux, gradient = run(samples())
    assert loss == pytest.approx(float(np.mean(np.asarray(aux.per_example))), rel=1e-6)
    flat = running.flat(gradient)
    assert all(path.startswith("params/vision/") for path in flat)
    assert all(np.abs(leaf).max() > 0 for leaf in flat.values())


def test_read_by_the_language_model_its_lower_half_learns(reading):
    loss, aux, gradient = reading(samples())
    assert loss == pytest.approx(float(np.mean(np.asarray(aux.per_example))), rel=1e-6)
    flat = running.flat(gradient)
    assert {path.split("/")[1] for path in flat} == {"vision", "language"}
    half = reading.stage.tower.config.text.depth // 2
    layers = [x for path, x in flat.items() if path.startswith("params/language/layers/")]
    assert all(np.abs(x[:half]).max() > 0 and np.abs(x[half:]).max() == 0 for x in layers)


def test_the_language_model_is_asked_at_the_tokens_of_the_image(reading):
    batch = reading.place(samples(1))
    module, parts = reading.stage.tower.module, reading.parts
    variables = reading.stage.tower.variables(parts.params, parts.frozen)
    prompts = questions.prompts_of(batch, reading.stage.prompts)
    count = int((prompts.image_index[0] >= 0).sum())
    _, sown = module.apply(
        variables,
        prompts.tokens,
        prompts.positions,
        images=prompts.images,
        image_index=prompts.image_index,
        mutable=["intermediates"],
    )
    half = sown["intermediates"]["language"]["layers"]["hidden"][0][1]  # behind the second of five layers
    tokens = np.asarray(prompts.tokens)[0]
    first = int(np.argmax(tokens == reading.stage.tower.config.image_token_id))
    logits = module.apply(variables, half[:, first : first + count], method="finish")
    wanted, _ = bag_of_words(logits, batch["words"])
    assert reading.on(batch)[0] == pytest.approx(float(wanted[0]), rel=1e-5)


@pytest.mark.parametrize("read_by", ["vision", "language"])
@pytest.mark.parametrize("axes", meshes.MESHES, ids=str)
def test_meshes_agree(run, reading, read_by, axes):
    loss, _, gradient = (run if read_by == "vision" else reading)(samples())
    other, _, same = running.start(stage(read_by), make_mesh(**axes))(samples())
    assert other == pytest.approx(loss, rel=1e-6)
    assert running.difference(same, gradient) < 1e-6


def test_the_result_has_another_vision_tower(run, tmp_path):
    trained = jax.tree.map(lambda leaf: leaf + 1, run.parts.params)
    run.stage.save(trained, {}, run.parts.frozen, tmp_path / "model")
    after = uae.load(tmp_path / "model")
    before = run.stage.tower.variables(run.parts.params, run.parts.frozen)["params"]
    assert running.difference(after.encoder.params["language"], before["language"]) == 0
    assert running.difference(after.encoder.params["vision"], jax.tree.map(lambda x: x + 1, before["vision"])) < 1e-7


def test_labels_that_are_not_one_for_each_token_are_refused(run):
    with pytest.raises(ValueError, match="image 0: 2 labels, wanted 16, one for each token"):
        run.stage.collate(samples(1, "red star;white"))


def test_settings_that_cannot_be_are_refused():
    settings = RegionWordsSettings()
    with pytest.raises(ValueError, match="max_words is 0"):
        RegionWords(dataclasses.replace(settings, max_words=0))
    with pytest.raises(ValueError, match="the nearest there is 'new:tiny'"):
        RegionWords(dataclasses.replace(settings, model="new:tinny"))
