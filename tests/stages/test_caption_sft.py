"""Caption fine-tuning against transformers' own loss, and what it leaves alone."""

import dataclasses

import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import jax

from tests.parity import relative_error
from tests.stages import meshes, running
from uae_jax.data.records import Sample
from uae_jax.parallel.mesh import make_mesh
from uae_jax.stages.caption_sft import CaptionSFT, CaptionSFTSettings
from uae_jax.stages.towers import TowerConfig
from uae_jax.weights import uae
from uae_jax.weights.new import new_model

pytestmark = pytest.mark.slow

CAPTIONS = ("a red circle", "two blue squares", "a cat", "snow", "green", "a small pink star", "night", "<|image_pad|>")


def samples(captions=CAPTIONS, side=56, seed=0):
    rng = np.random.default_rng(seed)
    shape = (side, side, 3)
    return [Sample(str(i), rng.integers(0, 256, shape, np.uint8), text) for i, text in enumerate(captions)]


@pytest.fixture(scope="module")
def settings(uae_checkpoint):
    return CaptionSFTSettings(
        model=str(uae_checkpoint[0]),
        encoder=TowerConfig(mode="lora"),  # the checkpoint brings an adapter, which is trained on
        question="what?",
        max_tokens=16,
        text_only=0.25,
        token_bucket=32,
        pictures=2,
    )


@pytest.fixture(scope="module")
def run(settings):
    return running.start(CaptionSFT(settings))


def test_loss_is_that_of_transformers(run, uae_checkpoint):
    loss, aux, _ = run(samples())
    batch = run.stage.collate(samples())
    with_image = batch["segment"][:, 0] > 0
    assert with_image.tolist() == [True, True, True, False] * 2  # a quarter goes without, evenly spread
    patches = run.stage.prompts.ask(
        [[image(sample)] for sample in samples()], ["what?"] * len(CAPTIONS)
    ).images.patches  # 4x4 patches of 14 pixels each
    tokens = torch.tensor(batch["tokens"]).long()
    labels = torch.where(torch.tensor(batch["scored"]), tokens, -100)
    with torch.no_grad():
        wanted = uae_checkpoint[1].encoder(
            input_ids=tokens,
            attention_mask=torch.tensor(batch["valid"]).long(),
            labels=labels,
            pixel_values=torch.tensor(patches[with_image].reshape(-1, patches.shape[-1])),
            image_grid_thw=torch.tensor([[1, 4, 4]] * int(with_image.sum())),
            mm_token_type_ids=(tokens == run.stage.prompts.config.image_token_id).int(),
        )
    # Float32 both, summed in other orders. Counting the question too, or shifting by one, gives 1e-2 and more.
    assert loss == pytest.approx(wanted.loss.item(), rel=1e-5)
    logits, labels = wanted.logits[:, :-1], labels[:, 1:]
    each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    rows = each.sum(1) / (labels >= 0).sum(1)
    assert relative_error(aux.per_example, rows) < 1e-5
    right = (logits.argmax(-1) == labels)[labels >= 0].float().mean().item()
    assert float(aux.metrics["accuracy"].value) == pytest.approx(right)


def test_kept_words_are_read_from_the_reversed_state(run, settings, uae_checkpoint):
    batch = run.stage.collate(samples())
    tokens, scored = torch.tensor(batch["tokens"]).long(), torch.tensor(batch["scored"])
    alone = [i for i, segment in enumerate(batch["segment"][:, 0]) if segment == 0]  # rows without an image
    with torch.no_grad():
        original = uae_checkpoint[1].encoder
        states = original(
            input_ids=tokens[alone],
            attention_mask=torch.tensor(batch["valid"]).long()[alone],
            output_hidden_states=True,
        ).hidden_states[-1]
        logits = original.get_output_embeddings()(states.flip(-1))
    tokens, there = tokens[alone], scored[alone]
    own = torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")[there].mean().item()
    right = (logits.argmax(-1) == tokens)[there].float().mean().item()

    keeping = CaptionSFT(dataclasses.replace(settings, keep_words=0.5))
    keeping.load(make_mesh(devices=jax.devices()[:1]))
    part = {name: np.asarray(x)[alone * 2] for name, x in batch.items()}  # of two rows a quarter would be none
    losses = []
    for stage in (keeping, run.stage):
        value, aux = running.jit(
            lambda b, stage=stage: stage.loss(
                run.parts.params, {}, run.parts.frozen, stage.prepare({}, {}, {}, b, None)[0], None
            )
        )(part)
        losses.append(float(value))
        if stage is keeping:
            assert float(aux.metrics["words_kept"].value) == pytest.approx(right)
    assert losses[0] - losses[1] == pytest.approx(0.5 * own, rel=1e-5)


def image(sample):
    from PIL import Image

    return Image.fromarray(sample.image)


def test_only_answers_count(run):
    batch = run.stage.collate(samples())
    tokenizer = run.stage.prompts.tokenizer
    read = [tokenizer.decode(row[scored]) for row, scored in zip(batch["tokens"], batch["scored"], strict=True)]
    # What a caption spells out is no special token: the last one is text, written back the same.
    assert read == [f"{text[:16]}<|im_end|>" if len(text) <= 16 else text[:16] for text in CAPTIONS]
    assert batch["cut"].tolist() == [len(text) > 16 for text in CAPTIONS]
    assert (batch["image_index"] >= 0).sum(axis=1).tolist() == [4, 4, 4, 0] * 2


def test_a_share_of_text_alone_that_would_be_none_is_refused(run):
    with pytest.raises(ValueError, match=r"text_only is 0.25 of 3 rows, which is none; wanted at least 4 rows"):
        run.stage.prepare({}, {}, {}, run.stage.collate(samples()[:3]), None)


def test_padding_changes_nothing(run):
    batch = run.stage.collate(samples())
    loss, _, gradient = run.on(batch)
    assert not batch["valid"].all()
    noise = np.random.default_rng(0).integers(0, 200, batch["tokens"].shape).astype(np.int32)
    other = {**batch, "tokens": np.where(batch["valid"], batch["tokens"], noise)}
    other["images"] = batch["images"].copy()
    other["images"][3::4] = 255  # of the rows without image
    again, _, same = run.on(other)
    assert again == pytest.approx(loss, rel=1e-6)
    assert running.difference(same, gradient) < 1e-6


def test_only_the_adapter_learns(run):
    _, _, gradient = run(samples())
    flat = running.flat(gradient)
    assert {path.rsplit("/", 1)[1] for path in flat} == {"a", "b"}
    assert {path.split("/")[0] for path in flat} == {"lora"}
    assert all(np.abs(leaf).max() > 0 for leaf in flat.values())


def test_micro_batches_add_up_to_the_whole(run):
    # Weighed by the whole batch's tokens: rows are of unequal length, so means of means would be off by 1e-2.
    whole = run.stage.collate(samples())
    prepared, counts = run.stage.prepare({}, {}, {}, whole, None)
    assert int(counts["tokens"]) == whole["scored"].sum()
    halves = [{k: np.asarray(v)[i::2] for k, v in prepared.items()} for i in range(2)]
    loss, _, _ = run.on(whole)
    step = running.jit(lambda batch: run.stage.loss(run.parts.params, {}, run.parts.frozen, batch, None)[0])
    assert np.mean([float(step(half)) for half in halves]) == pytest.approx(loss, rel=1e-6)


@pytest.fixture(scope="module")
def fresh(settings, uae_checkpoint, tmp_path_factory):
    """All of a new encoder is trained, and what it gives on one device.

    The shared checkpoint's weights are so large that rounding grows tenfold on its way through its layers.
    """
    weights = uae.load(uae_checkpoint[0])
    encoder = new_model(weights.encoder.architecture, weights.encoder.config, seed=1)
    folder = tmp_path_factory.mktemp("fresh") / "model"
    uae.save_published(dataclasses.replace(weights, encoder=encoder, encoder_lora=None), folder)
    settings = dataclasses.replace(settings, model=str(folder), encoder=TowerConfig())
    return settings, running.start(CaptionSFT(settings))(samples())


@pytest.mark.parametrize("axes", meshes.MESHES, ids=str)
def test_meshes_agree(fresh, axes):
    settings, (loss, _, gradient) = fresh
    other, _, same = running.start(CaptionSFT(settings), make_mesh(**axes))(samples())
    assert other == pytest.approx(loss, rel=1e-6)
    assert running.difference(same, gradient) < 1e-6


def test_a_few_steps_learn_a_batch_by_heart(run):
    optimiser = optax.adam(0.02)
    params = run.parts.params
    moments = optimiser.init(params)
    batch = run.place(samples())
    first, _, _ = run.on(batch)
    for _ in range(30):
        _, _, gradient = run.on(batch, params=params)
        updates, moments = optimiser.update(gradient, moments, params)
        params = optax.apply_updates(params, updates)
    last, _, _ = run.on(batch, params=params)
    assert last < first / 3


def test_logits_in_chunks_are_the_same(run, settings):
    loss, _, gradient = run(samples())
    chunked = CaptionSFT(dataclasses.replace(settings, logit_chunk=32))
    other, _, same = running.start(chunked)(samples())
    assert run.stage.collate(samples())["tokens"].shape[1] > 32
    assert other == pytest.approx(loss, rel=1e-6)
    assert running.difference(same, gradient) < 1e-6


def test_pictures_show_what_is_written(run):
    picture = run.stage.pictures(run.parts.params, {}, run.parts.frozen, None, samples())[0]
    assert len(picture.rows) == len(picture.texts) == 2
    np.testing.assert_array_equal(picture.rows[0][0], samples()[0].image)
    assert picture.texts[1].endswith(f"wanted: {CAPTIONS[1]}")


def test_the_result_is_the_checkpoint_with_another_encoder(run, uae_checkpoint, tmp_path):
    trained = jax.tree.map(lambda leaf: leaf + 1, run.parts.params)
    run.stage.save(trained, {}, run.parts.frozen, tmp_path / "model")
    before, after = uae.load(uae_checkpoint[0]), uae.load(tmp_path / "model")
    assert running.difference(after.encoder_lora.params, trained["lora"]) == 0
    assert after.encoder_lora.config.scale == before.encoder_lora.config.scale
    for part in ("encoder", "projector", "decoder", "vae"):
        assert running.difference(getattr(after, part).params, getattr(before, part).params) == 0
    assert after.files == before.files


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"text_only": 1.0}, "text_only is 1.0"),
        ({"encoder": TowerConfig(mode="frozen")}, "leaves nothing to train"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
        ({"model": "new:tinny"}, "the nearest there is 'new:tiny'"),
        ({"model": ""}, "model is empty"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, change, message):
    with pytest.raises(ValueError, match=message):
        CaptionSFT(dataclasses.replace(settings, **change))
