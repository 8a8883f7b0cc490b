"""`UAE` against a composition of transformers, PEFT and diffusers on one published folder; batches, seeds, programs."""

import itertools
import shutil

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("skimage")

from PIL import Image

from tests import published
from tests.compiling import compilations
from tests.parity import assert_close
from tests.photos import photographs
from uae_jax import UAE, batching
from uae_jax.data.images import ImageError
from uae_jax.data.vision_inputs import image_patches
from uae_jax.engine import NEGATIVE_PROMPT, CaptionSettings, PaintSettings
from uae_jax.parallel.mesh import make_mesh
from uae_jax.weights import checkpoint, convert

QUESTION = "What is here?"
MAX_PIXELS = 20_000  # as `small_uae`
NEW = 12
PAINT = {"steps": 3, "size": 64}


@pytest.fixture
def uae(small_uae) -> UAE:
    return small_uae


@pytest.fixture(scope="module")
def theirs(uae_checkpoint) -> "Composition":
    return Composition(uae_checkpoint[1])


class Composition:
    """The loop in PyTorch, of the published parts and nothing of ours but the image patches."""

    def __init__(self, originals: published.Originals):
        self.originals = originals
        self.tokenizer = originals.tokenizer
        self.painter = diffusers.StableDiffusion3Pipeline(
            transformer=originals.decoder,
            vae=originals.vae,
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
            **dict.fromkeys(
                ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")
            ),
        )
        self.painter.set_progress_bar_config(disable=True)

    def ask(self, uae, image, question):
        """Inputs of the encoder. The patches are equal to the published processor's, see test_vision_inputs."""
        patches, grid = image_patches(image, uae.prompts.vision_inputs)
        message = [{"role": "user", "content": [{"type": "text", "text": question}, {"type": "image"}]}]
        text = self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        text = text.replace("<|image_pad|>", "<|image_pad|>" * (grid[1] * grid[2] // 4))
        ids = torch.tensor([self.tokenizer(text, add_special_tokens=False)["input_ids"]])
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": (ids == 261).int(),
            "pixel_values": torch.tensor(patches),
            "image_grid_thw": torch.tensor([grid]),
        }

    @torch.inference_mode()
    def caption(self, uae, image, question=QUESTION, new=NEW):
        """Greedy: (tokens, text)."""
        inputs = self.ask(uae, image, question)
        out = self.originals.encoder.generate(**inputs, max_new_tokens=new, do_sample=False)
        tokens = out[0, inputs["input_ids"].shape[1] :].tolist()
        return tokens, self.tokenizer.decode(tokens, skip_special_tokens=True).strip()

    @torch.inference_mode()
    def answer_hidden(self, uae, image, question, answer):
        """Projected final states at the answer's tokens, the image in context."""
        inputs = self.ask(uae, image, question)
        told = torch.tensor([answer])
        count = inputs["input_ids"].shape[1]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], told], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == 261).int()
        states = self.originals.encoder(**inputs, output_hidden_states=True).hidden_states[-1]
        return self.originals.projector(states[:, count:])

    @torch.inference_mode()
    def condition(self, prompts):
        """Projected final states of texts, padded to the longest; padding masked, at position 1."""
        rows = []
        for prompt in prompts:
            message = [{"role": "generate", "content": [{"type": "text", "text": prompt}]}]
            text = self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
            rows.append(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        length = max(map(len, rows))
        ids = torch.tensor([row + [256] * (length - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
        positions = torch.where(mask.bool(), mask.cumsum(1) - 1, 1).expand(3, -1, -1)
        out = self.originals.encoder(
            input_ids=ids, attention_mask=mask, position_ids=positions, output_hidden_states=True
        )
        return self.originals.projector(out.hidden_states[-1])

    @torch.inference_mode()
    def pooled(self):
        empty = torch.tensor([[97, 98]])  # start and end of text
        return torch.cat([encoder(empty).text_embeds for encoder in self.originals.text_encoders], dim=-1)

    @torch.inference_mode()
    def paint(self, prompt, latents, *, guidance, negative=NEGATIVE_PROMPT, steps=3):
        """u8[H, W, 3] of one prompt, f32[1, Z, h, w] noise."""
        conditions = self.condition([prompt, negative] if guidance > 1 else [prompt])
        pooled = self.pooled()
        images = self.painter(
            prompt_embeds=conditions[:1],
            negative_prompt_embeds=conditions[1:] if guidance > 1 else None,
            pooled_prompt_embeds=pooled,
            negative_pooled_prompt_embeds=pooled if guidance > 1 else None,
            latents=torch.tensor(latents),
            num_inference_steps=steps,
            guidance_scale=guidance,
            height=latents.shape[2] * 8,
            width=latents.shape[3] * 8,
            output_type="np",
        ).images
        return (images[0] * 255).round().astype(np.uint8)


def noise(seed, rows=1, height=64, width=64):
    return np.random.default_rng(seed).normal(size=(rows, 16, height // 8, width // 8)).astype(np.float32)


def difference(one, other) -> int:
    """Largest, of 255."""
    return int(np.abs(np.asarray(one, int) - np.asarray(other, int)).max())


# -- the same results as PyTorch


def test_greedy_captions_are_those_of_transformers_and_peft(uae, theirs):
    wanted = [theirs.caption(uae, image) for image in photographs()]
    got = uae.caption(list(photographs()), QUESTION, max_new_tokens=NEW, temperature=0)
    assert got == [text for _, text in wanted]
    assert len(set(got)) > 1  # captions of unlike images that are all the same would prove little
    settings = CaptionSettings(QUESTION, NEW, temperature=0)
    answers = uae.engine.write([photographs()[0]], settings, jax.random.split(jax.random.key(0), 1), 1)
    tokens = wanted[0][0]
    assert answers.generation.tokens[0, : len(tokens)].tolist() == tokens


# Between the negative's 75 letters and the end of its bucket, so that one program paints short prompts and this one.
LONG = "a red cup on a brown wooden table beside a spoon, seen from above in the morning's light"


@pytest.mark.parametrize(
    ("prompt", "guidance", "size"),
    [("a cup", 5.0, (64, 64)), (LONG, 5.0, (64, 96)), (LONG, 1.0, (64, 64))],
    ids=["negative longer", "prompt longer", "no guidance"],
)
def test_images_are_those_of_transformers_peft_and_diffusers(uae, theirs, prompt, guidance, size):
    latents = noise(1, 1, *size)
    wanted = theirs.paint(prompt, latents, guidance=guidance)
    [got] = uae.generate(prompt, latents=latents, steps=3, guidance=guidance, size=size)
    assert got.size == (size[1], size[0])
    assert wanted.std() > 10  # a picture, not a flat field that anything would match
    assert difference(got, wanted) <= 2
    # Negative control: another prompt shows.
    [other] = uae.generate(prompt[::-1], latents=latents, steps=3, guidance=guidance, size=size)
    assert difference(other, wanted) > 2


@pytest.mark.parametrize("prompt", ["a cup", LONG], ids=["negative longer", "prompt longer"])
def test_conditioning_is_that_of_transformers_and_peft_padding_included(uae, theirs, prompt):
    wanted = theirs.condition([prompt, NEGATIVE_PROMPT])
    for got, expected in zip(uae.engine.read([prompt], PaintSettings()), wanted, strict=True):
        assert got.lengths.tolist() == [len(expected)]  # the decoder sees the padding up to the longer of the two
        assert_close(got.context[0, : len(expected)], expected)


def test_base_conditioning_is_peft_with_its_adapter_disabled(uae, theirs):
    latents = noise(2)
    with theirs.originals.encoder.disable_adapter():
        wanted = theirs.paint("a cup", latents, guidance=5.0)
    [base] = uae.generate("a cup", conditioning="base", latents=latents, **PAINT)
    [current] = uae.generate("a cup", latents=latents, **PAINT)
    assert difference(base, wanted) <= 2
    assert difference(current, wanted) > 2


def test_the_pooled_vector_is_that_of_the_empty_text(uae, theirs):
    assert_close(uae.engine.pooled[None], theirs.pooled())


def test_answer_states_are_those_of_a_teacher_forced_pass(uae, theirs):
    images, settings = list(photographs()), CaptionSettings(QUESTION, NEW, temperature=0)
    answers = uae.engine.write(images, settings, jax.random.split(jax.random.key(0), 3), 3)
    told, negative = uae.engine.reread(answers, PaintSettings())
    for row, image in enumerate(images):
        length = int(told.lengths[row])
        answer = answers.generation.tokens[row, :length].tolist()
        assert_close(told.context[row, :length], theirs.answer_hidden(uae, image, QUESTION, answer)[0])
        assert_close(negative.context[row, : int(negative.lengths[row])], theirs.condition([NEGATIVE_PROMPT])[0])


# -- one result, whatever the way


@pytest.mark.slow
def test_results_survive_conversion_to_native_and_saving(uae, uae_checkpoint, tmp_path):
    convert.convert(str(uae_checkpoint[0]), tmp_path / "native")
    native = UAE.from_pretrained(tmp_path / "native", dtype="float32", max_pixels=MAX_PIXELS)
    native.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / checkpoint.UAE_NATIVE).exists()  # it is the published layout
    saved = UAE.from_pretrained(tmp_path / "saved", dtype="float32", max_pixels=MAX_PIXELS)
    for part in ("encoder", "projector", "decoder", "vae", "text_encoder", "text_encoder_2"):
        assert getattr(saved.weights, part).config == getattr(uae.weights, part).config
    for program in ("_write", "_read", "_paint"):  # compiled for these sizes; they take the weights as arguments
        setattr(saved.engine, program, getattr(uae.engine, program))
    image, latents = photographs()[0], noise(3)
    asked = {"max_new_tokens": NEW, "temperature": 0}
    assert saved.caption(image, QUESTION, **asked) == uae.caption(image, QUESTION, **asked)
    paintings = [each.generate("a cup", latents=latents, **PAINT)[0] for each in (uae, saved)]
    assert difference(*paintings) == 0


@pytest.mark.slow
def test_a_seed_is_a_result_and_the_batch_does_not_matter(uae):
    images = [photographs()[i] for i in (2, 0, 1, 0, 2)]
    settings = {"max_new_tokens": NEW, "temperature": 1.0, "seed": 7}
    five = uae.caption(images, QUESTION, **settings)
    assert uae.caption(images, QUESTION, **settings) == five
    assert uae.caption(images, QUESTION, **(settings | {"seed": 8})) != five
    assert five[1] != five[3]  # the same image, but another item
    assert uae.caption(images[3], QUESTION, first=3, **settings) == five[3:4]


@pytest.mark.slow
def test_paintings_do_not_depend_on_their_batch(uae, monkeypatch):
    prompts = ["a cup", "a cat", "a cup", "two red cubes on a table", "x"]
    whole = uae.generate(prompts, seed=3, guidance=3.0, **PAINT)
    assert difference(whole[0], whole[2]) > 2  # other noise
    for i, alone in enumerate(whole[3:5], start=3):
        assert difference(uae.generate(prompts[i], seed=3, first=i, guidance=3.0, **PAINT)[0], alone) <= 1
    monkeypatch.setattr(uae, "memory", 1.0)  # a byte: one at a time
    for got, wanted in zip(uae.generate(prompts, seed=3, guidance=3.0, **PAINT), whole, strict=True):
        assert difference(got, wanted) <= 1


@pytest.mark.parametrize("interface", ["text", "answer_hidden"])
def test_reconstruction_is_caption_then_paint_and_compiles_once(uae, interface):
    images = list(photographs())
    asked = {"max_new_tokens": NEW, "temperature": 0, "seed": 5}
    results = uae.reconstruct(images, QUESTION, interface=interface, **asked, **PAINT)
    assert [result.caption for result in results] == uae.caption(images, QUESTION, **asked)
    assert all(result.image.size == (64, 64) and result.scores == {} for result in results)
    painted = uae.generate([result.caption for result in results], seed=5, **PAINT)
    differences = [difference(result.image, image) for result, image in zip(results, painted, strict=True)]
    assert max(differences) <= 1 if interface == "text" else min(differences) > 2  # told by states, not by words
    with compilations() as programs:
        again = uae.reconstruct(images, QUESTION, interface=interface, **asked, **PAINT)
        uae.reconstruct(images[::-1], "What is that?", interface=interface, **(asked | {"seed": 6}), **PAINT)
    assert programs == []
    assert all(difference(one.image, two.image) == 0 for one, two in zip(results, again, strict=True))


@pytest.mark.slow  # eight devices compile it all again
def test_a_mesh_changes_nothing(uae, uae_checkpoint):
    spread = UAE.from_pretrained(uae_checkpoint[0], dtype="float32", max_pixels=MAX_PIXELS, mesh=make_mesh(2, 2, 2))
    images = [photographs()[i] for i in (0, 1, 2, 0)]
    asked = {"max_new_tokens": NEW, "temperature": 0}
    assert spread.caption(images, QUESTION, **asked) == uae.caption(images, QUESTION, **asked)
    latents = noise(4, 4)
    pairs = zip(
        spread.generate(["a", "b", "c", "d"], latents=latents, **PAINT),
        uae.generate(["a", "b", "c", "d"], latents=latents, **PAINT),
        strict=True,
    )
    assert all(difference(*pair) <= 1 for pair in pairs)


@pytest.mark.slow
def test_staged_weights_stay_on_the_host_and_change_nothing(uae, uae_checkpoint, tmp_path):
    convert.convert(str(uae_checkpoint[0]), tmp_path / "native")
    for folder in (uae_checkpoint[0], tmp_path / "native"):
        staged = UAE.from_pretrained(folder, dtype="float32", max_pixels=MAX_PIXELS, staged=True)
        parts = [part for part in vars(staged.weights).values() if hasattr(part, "params")]
        assert len(parts) == 8  # six models and two adapters
        assert all(isinstance(leaf, np.ndarray) for part in parts for leaf in jax.tree.leaves(part.params))
    (theirs,), (ours,) = (
        model.reconstruct(photographs()[0], QUESTION, max_new_tokens=NEW, temperature=0, **PAINT)
        for model in (uae, staged)
    )
    assert ours.caption == theirs.caption and difference(ours.image, theirs.image) == 0
    with pytest.raises(ValueError, match="wanted no mesh"):
        UAE.from_pretrained(uae_checkpoint[0], staged=True, mesh=make_mesh(2, 2, 2))


# -- what goes in


def test_images_come_as_paths_pictures_and_arrays(uae, tmp_path):
    image = photographs()[0]
    image.save(tmp_path / "a.png")
    asked = {"prompt": QUESTION, "max_new_tokens": NEW, "temperature": 0}
    wanted = uae.caption(image, **asked)
    assert len(wanted) == 1
    given = [str(tmp_path / "a.png"), tmp_path / "a.png", image, np.asarray(image)]
    for one in given:
        assert uae.caption(one, **asked) == wanted
    assert uae.caption(given[1:], **asked) == wanted * 3
    assert uae.caption(np.stack([np.asarray(image)] * 3), **asked) == wanted * 3
    assert uae.caption([], **asked) == uae.generate([], **PAINT) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda u: u.generate("x", size=40), "size is 40x40, wanted sides in multiples of 16 up to 384"),
        (lambda u: u.generate("x", size=(64, 400)), "size is 64x400"),
        (lambda u: u.generate("x", size=0), "size is 0x0"),
        (lambda u: u.generate("x", steps=0), "steps is 0"),
        (
            lambda u: u.generate("x", size=64, latents=noise(0, 2)),
            r"latents are \(2, 16, 8, 8\), wanted \(1, 16, 8, 8\)",
        ),
        (lambda u: u.generate(["x", "a" * 200_000]), r"prompt 2 has \d+ tokens, wanted at most the encoder's \d+"),
        (lambda u: u.generate("x", conditioning="bse"), "conditioning is 'bse', wanted one of current, base"),
        (lambda u: u.generate("x", sigma_compat="no"), "sigma_compat is 'no'"),
        (lambda u: u.reconstruct(photographs()[0], interface="hidden"), "interface is 'hidden', wanted one of text"),
        (lambda u: u.reconstruct(photographs()[0], size=40), "size is 40x40"),
        (lambda u: u.caption(photographs()[0], max_new_tokens=0), "max_new_tokens is 0, wanted 1 to 32768"),
        (lambda u: u.caption(photographs()[0], temperature=-1), "temperature is -1"),
        (lambda u: u.caption([photographs()[0], "none.png"]), "none.png: no such file"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_runs(uae, monkeypatch, call, message):
    for name in ("write", "read", "paint"):
        monkeypatch.setattr(uae.engine, name, lambda *_, name=name, **__: pytest.fail(f"{name} was called"))
    with pytest.raises(ValueError, match=message):
        call(uae)
    assert issubclass(ImageError, ValueError)


# -- compiled programs


def picture(rng, shortest=16, longest=400):
    """A smooth picture of a random size and shape."""
    height = int(rng.integers(shortest, longest))
    width = int(np.clip(height * rng.uniform(0.3, 3.0), shortest, longest))
    y, x = np.mgrid[0:height, 0:width]
    waves = np.stack([np.sin(x / 9 + y / 31), np.cos(x / 23), np.sin(y / 5)], -1)
    return Image.fromarray((127 + 120 * waves).astype(np.uint8))


@pytest.mark.slow
def test_after_warm_up_50_captions_of_mixed_sizes_compile_nothing(uae, monkeypatch):
    # At most two images at a time, of 4 to 25 tokens: prompts of 59 + 40 + 4 to 59 + 90 + 25 tokens with the template,
    # in buckets of 128 and 192. So four programs serve all, and four calls warm up.
    engine, rng = uae.engine, np.random.default_rng(0)
    need = batching.caption_bytes(engine.encoder.config, uae.prompts.vision_inputs, 64, 4)
    copy = batching.decoding_copy_bytes(engine.weights.encoder.params)
    monkeypatch.setattr(uae, "memory", 2 * need + copy)
    for count, question in itertools.product((1, 2), ("?" * 40, "?" * 90)):
        uae.caption([picture(rng)] * count, question, max_new_tokens=3)
    with compilations() as programs:
        jax.jit(lambda x: x + 1)(np.float32(1))
    assert len(programs) == 1  # the count counts
    lengths = set()
    with compilations() as programs:
        for call in range(50):
            images = [picture(rng) for _ in range(rng.integers(1, 6))]
            question = "?" * int(rng.integers(40, 91))
            settings = {"max_new_tokens": int(rng.integers(1, 5)), "temperature": float(rng.uniform(0.5, 1.5))}
            assert len(uae.caption(images, question, seed=call, **settings)) == len(images)
            lengths.add(uae.prompts.ask([[images[0]]], [question]).tokens.shape[1])
    assert programs == []
    assert lengths == {128, 192}


@pytest.mark.slow
def test_after_warm_up_prompts_of_mixed_lengths_compile_nothing(uae):
    # Texts of 75 (the negative) to 170 letters, with the template in buckets of 192 and 256.
    rng = np.random.default_rng(1)
    for letters in (1, 170):
        uae.generate("x" * letters, **PAINT)
    with compilations() as programs:
        for call in range(12):
            letters = (rng.integers(1, 80), rng.integers(130, 170))[call % 2]
            uae.generate("x" * int(letters), seed=call, guidance=float(rng.uniform(2, 6)), **PAINT)
    assert programs == []


@pytest.mark.slow
def test_a_checkpoint_without_a_tokenizer_takes_the_base_models(uae_checkpoint, small_uae, tmp_path):
    # The published llm_model may lack tokenizer files.
    root = tmp_path / "bare"
    shutil.copytree(uae_checkpoint[0], root)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "preprocessor_config.json"):
        (root / "llm_model" / name).unlink()
    with pytest.raises(ValueError, match=r"no tokenizer\.json in it .* give the base model as processor"):
        UAE.from_pretrained(root, dtype="float32")
    base = uae_checkpoint[0] / "llm_model"
    whole = UAE.from_pretrained(root, dtype="float32", max_pixels=20_000, processor=base)
    assert whole.prompts.encode_user("a cup") == small_uae.prompts.encode_user("a cup")
    assert whole.prompts.vision_inputs == small_uae.prompts.vision_inputs


@pytest.mark.slow
def test_questions_are_each_rows_own(uae):
    images = photographs()[:2]
    settings = CaptionSettings(prompt=QUESTION, max_new_tokens=NEW, temperature=0.0)
    others = ["What is this?", QUESTION]
    answers = dict(uae.iter_answers(images, others, settings))
    # Greedy answers to a question do not depend on what else is asked beside it.
    assert answers[1] == uae.caption(images[1], QUESTION, max_new_tokens=NEW, temperature=0.0)[0]
    assert answers[0] == uae.caption(images[0], others[0], max_new_tokens=NEW, temperature=0.0)[0]


def test_what_is_no_number_is_no_result(uae, monkeypatch):
    """It would be a black picture, or the first token over and over, and look like a poor model."""
    broken = jax.tree.map(lambda x: x * np.nan, uae.engine._decoder_variables)
    monkeypatch.setattr(uae.engine, "_decoder_variables", broken)
    with pytest.raises(ValueError, match="a painting has values that are no numbers, computed in float32"):
        uae.generate("a cup", **PAINT)
    broken = jax.tree.map(lambda x: x * np.nan, uae.engine._encoder_variables)
    monkeypatch.setattr(uae.engine, "_encoder_variables", broken)
    with pytest.raises(ValueError, match="a caption has values that are no numbers"):
        uae.caption(photographs()[0], max_new_tokens=NEW)


def test_a_question_needs_no_image(uae):
    settings = CaptionSettings(max_new_tokens=NEW, temperature=0.0)
    first = dict(uae.iter_answers(None, ["Tell me more of a cup.", "a"], settings))
    assert sorted(first) == [0, 1] and dict(uae.iter_answers(None, ["a"], settings))[0] == first[1]
    with pytest.raises(ValueError, match="1 images and 2 questions"):
        dict(uae.iter_answers(photographs()[:1], ["a", "b"], settings))
