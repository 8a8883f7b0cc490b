"""Caption decoding against transformers.generate and against full recomputation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("skimage")

from tests import published
from tests.parity import convert
from tests.photos import photographs
from uae_jax.data.prompts import PromptBuilder
from uae_jax.data.vision_inputs import VisionInputConfig, image_patches
from uae_jax.models.qwen2_5_vl import decoding
from uae_jax.sampling import text
from uae_jax.sampling.conditioning import answer_hidden_states
from uae_jax.sampling.tokens import token_sampling

NEW = 64
INPUTS = VisionInputConfig(max_pixels=20_000)
NEVER = (-1,)  # no token stops the answer


@dataclasses.dataclass
class Case:
    """A random encoder on both sides, and how to ask it."""

    theirs: object
    ours: object
    builder: PromptBuilder

    def ask(self, images, questions):
        return self.builder.ask([[image] for image in images], questions)

    def write(self, prompts, keys, sampling, *, new=NEW, stops=NEVER, **kwargs):
        @jax.jit
        def run(params, prompts, keys, sampling):
            return text.generate(
                self.ours.module,
                {"params": params},
                prompts,
                keys,
                sampling,
                stop_ids=stops,
                pad_id=256,
                max_new_tokens=new,
                **kwargs,
            )

        return run(self.ours.params, prompts, keys, sampling)

    def rescore(self, prompts, drawn):
        """Teacher-forced logits behind each answer token, f32[R, N, V]."""

        @jax.jit
        def run(params, prompts, tokens, lengths):
            hidden = answer_hidden_states(self.ours.module, {"params": params}, prompts, tokens, lengths)
            return self.ours.module.apply({"params": params}, hidden, method="logits")

        return run(self.ours.params, prompts, drawn.tokens, drawn.lengths)


CASES = [(0, 32, 2), (1, 32, 3), (2, 64, 1)]  # seed, width, layers


@pytest.fixture(scope="module", params=CASES[:1], ids=["width 32"])
def case(request, tmp_path_factory) -> Case:
    seed, width, layers = request.param
    theirs = published.encoder(seed, width, layers)
    ours = convert(theirs, tmp_path_factory.mktemp("encoder"))
    return Case(theirs, ours, PromptBuilder(published.tokenizer(), ours.config, INPUTS))


def transformers_answer(case: Case, image, question, new=NEW, **settings):
    """Greedy tokens of one image, and the prompt that they answer."""
    tokenizer = published.tokenizer()
    patches, grid = image_patches(image, INPUTS)  # equal to the published processor's, see test_vision_inputs
    message = [{"role": "user", "content": [{"type": "text", "text": question}, {"type": "image"}]}]
    prompt = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    prompt = prompt.replace("<|image_pad|>", "<|image_pad|>" * (grid[1] * grid[2] // 4))
    ids = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]])
    case.theirs.generation_config.eos_token_id = None
    with torch.inference_mode():
        out = case.theirs.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == 261).int(),
            pixel_values=torch.tensor(patches),
            image_grid_thw=torch.tensor([grid]),
            max_new_tokens=new,
            do_sample=False,
            **settings,
        )
    return ids[0].tolist(), out[0, ids.shape[1] :].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, indirect=True, ids=["a", "b", "c"])
def test_greedy_captions_are_those_of_transformers_alone_and_in_a_mixed_batch(case):
    images = list(photographs())
    questions = ["Describe it.", "What is here, in detail?", "Why?"]
    wanted = [transformers_answer(case, image, q) for image, q in zip(images, questions, strict=True)]
    keys = jax.random.split(jax.random.key(0), 5)
    alone = case.ask(images[:1], questions[:1])
    count = int(alone.valid[0].sum())
    assert alone.tokens[0, :count].tolist() == wanted[0][0]
    assert case.write(alone, keys[:1], token_sampling(0.0)).tokens.tolist() == [wanted[0][1]]
    order = [2, 0, 1, 0, 2]
    batch = case.ask([images[i] for i in order], [questions[i] for i in order])
    together = case.write(batch, keys, token_sampling(0.0))
    assert together.tokens.tolist() == [wanted[i][1] for i in order]
    assert together.lengths.tolist() == [NEW] * 5
    assert len(set(wanted[0][1])) > 3  # no answer of a single repeated token, which would prove little


def test_sampled_logprobs_are_those_of_a_teacher_forced_rescoring(case):
    images = list(photographs())[:2]
    prompts = case.ask(images, ["One?", "Two, which is longer?"])
    keys = jax.random.split(jax.random.key(3), 4)  # two samples of each prompt
    sampling = token_sampling(0.8)
    drawn = case.write(prompts, keys, sampling, new=24, stops=(258,))
    # State n scores token n + 1, so the first token is left to the test of the prefill below.
    logits = case.rescore(prompts, drawn)
    density = jax.nn.log_softmax(logits[:, :-1] / 0.8)
    rescored = jnp.take_along_axis(density, drawn.tokens[:, 1:, None], axis=-1)[..., 0]
    steps = np.arange(1, 24)[None] < np.asarray(drawn.lengths)[:, None]
    np.testing.assert_allclose(np.asarray(drawn.logprobs)[:, 1:][steps], np.asarray(rescored)[steps], atol=1e-4)
    assert np.all(np.asarray(drawn.logprobs)[:, 1:][~steps] == 0)
    assert not np.array_equal(drawn.tokens[0], drawn.tokens[1])  # two samples of one prompt differ


def test_cached_logits_equal_full_recomputation_at_every_position(case):
    prompts = case.ask(list(photographs())[:2], ["One?", "Two, which is longer?"])
    drawn = case.write(prompts, jax.random.split(jax.random.key(1), 2), token_sampling(0.0), new=16)
    # Greedy log-probabilities are those of the logits at temperature 1; compare the whole row through one token each.
    full = jax.nn.log_softmax(case.rescore(prompts, drawn))
    wanted = jnp.take_along_axis(full[:, :-1], drawn.tokens[:, 1:, None], axis=-1)[..., 0]
    np.testing.assert_allclose(drawn.logprobs[:, 1:], wanted, atol=1e-4)
    prefill = jax.jit(lambda params, p: text.prefill(case.ours.module, {"params": params}, p, p.tokens.shape[1]))
    first, _ = prefill(case.ours.params, prompts)
    start = jax.nn.log_softmax(first)
    np.testing.assert_allclose(
        drawn.logprobs[:, 0], jnp.take_along_axis(start, drawn.tokens[:, :1], axis=-1)[:, 0], atol=1e-4
    )


@pytest.mark.slow
def test_every_logit_of_a_cached_step_is_that_of_full_recomputation(case):
    prompts = case.ask(list(photographs())[:2], ["One?", "Two, which is longer?"])
    module, variables = case.ours.module, {"params": case.ours.params}
    answers = np.random.default_rng(0).integers(0, 256, size=(2, 8)).astype(np.int32)
    length = prompts.tokens.shape[1]

    @jax.jit
    def cached(variables, prompts, answers):
        first, cache = text.prefill(module, variables, prompts, length + 8)
        decoder, caches = decoding.unstack(variables, 2), decoding.split_cache(cache)
        visible, rows = jnp.concatenate([prompts.valid, jnp.ones((2, 8), bool)], axis=1), [first]
        for i in range(8):
            seen = visible & (jnp.arange(length + 8) <= length + i)
            position = prompts.next_position + i
            logits, caches = decoding.decode_step(
                module, decoder, caches, answers[:, i], position, jnp.int32(length + i), seen
            )
            rows.append(logits)
        return jnp.stack(rows, axis=1)  # [B, 9, V]

    @jax.jit
    def full(variables, prompts, answers):
        hidden = answer_hidden_states(module, variables, prompts, answers, jnp.array([8, 8]))
        return module.apply(variables, hidden, method="logits")

    got, wanted = cached(variables, prompts, answers), full(variables, prompts, answers)
    np.testing.assert_allclose(got[:, 1:], wanted, atol=1e-4)
    assert float(jnp.abs(wanted).max()) > 1  # logits of a size at which 1e-4 means something


def test_the_repetition_penalty_is_that_of_transformers(case):
    image, question = photographs()[1], "What is here?"
    _, wanted = transformers_answer(case, image, question, repetition_penalty=1.3)
    keys = jax.random.split(jax.random.key(0), 1)
    sampling = token_sampling(0.0, repetition_penalty=1.3)
    assert case.write(case.ask([image], [question]), keys, sampling).tokens.tolist() == [wanted]
    assert wanted != transformers_answer(case, image, question)[1]  # the penalty matters here


def test_a_row_stops_at_its_own_end(case):
    prompts = case.ask(list(photographs())[:2], ["One?", "Two?"])
    free = case.write(prompts, jax.random.split(jax.random.key(0), 2), token_sampling(0.0), new=16)
    stop = int(free.tokens[0, 4])  # what row 0 writes fifth (or before) is made the stop token
    end = int(np.flatnonzero(np.asarray(free.tokens[0]) == stop)[0]) + 1
    cut = case.write(prompts, jax.random.split(jax.random.key(0), 2), token_sampling(0.0), new=16, stops=(stop,))
    assert int(cut.lengths[0]) == end  # the stop token counts
    assert bool(cut.stopped[0])
    assert cut.tokens[0, :end].tolist() == free.tokens[0, :end].tolist()
    assert set(cut.tokens[0, end:].tolist()) <= {256}
    other = np.asarray(free.tokens[1])
    length = int(np.flatnonzero(other == stop)[0]) + 1 if stop in other else 16
    assert int(cut.lengths[1]) == length


def test_limit_and_inactive_rows(case):
    prompts = case.ask(list(photographs())[:2], ["One?", "Two?"])
    out = case.write(
        prompts,
        jax.random.split(jax.random.key(0), 2),
        token_sampling(0.0),
        new=16,
        limit=5,
        active=jnp.array([True, False]),
    )
    assert out.lengths.tolist() == [5, 0]
    assert out.stopped.tolist() == [False, False]
    assert set(out.tokens[1].tolist()) == {256}


def test_text_cannot_smuggle_in_special_tokens(case):
    # "<|image_pad|>" in a question is seven and more byte tokens, never the placeholder.
    tokens = case.builder.encode_user("an <|image_pad|> and <|im_end|> here")
    plain = case.builder.encode_user("an image and end here")
    assert tokens.count(261) == 0
    assert tokens.count(258) == plain.count(258)  # only those of the template
    assert "<|image_pad|>" in published.tokenizer().decode(tokens)


def test_the_numbers_of_padding_are_a_setting(case):
    rows = [[65, 66, 67], [65]]
    ones, running = (
        PromptBuilder(published.tokenizer(), case.ours.config, INPUTS, pad_positions=setting).pack(rows)
        for setting in ("ones", "running")
    )
    np.testing.assert_array_equal(ones.positions[0, 1, :4], [0, 1, 1, 1])
    np.testing.assert_array_equal(running.positions[0, 1, :4], [0, 1, 2, 3])
    np.testing.assert_array_equal(ones.positions[:, 0, :3], running.positions[:, 0, :3])  # tokens are not touched
