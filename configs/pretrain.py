"""Stage one, long-caption pre-training: the decoder and its projector learn to paint captions of many words.

    uae train --config configs/pretrain.py --workdir runs/pretrain
    uae train --config configs/pretrain.py:size=small,data=data/train,held_out=data/held_out --workdir runs/pretrain
    uae train --config configs/pretrain.py:size=full,model=models/UAE,data=data/train --workdir runs/pretrain

At small, first train an encoder and a VAE (docs/guides/data.md): runs/captioner/model and runs/autoencoder/model.
`uae data caption` writes long captions for a folder of pictures. Expect the held-out loss at middle noise levels to
fall and paintings to follow the later sentences of a caption; see `configs/sizes.py` for models and hardware. Tiny: the
embedded decoder, which knows short captions, goes on with long ones.
"""

from configs import sizes


def get_config(arg=None):
    options = sizes.read(arg, {"tiny": "tiny", "small": "new:small", "full": "models/UAE"}, steps=0)
    return experiment(options, options.steps or {"tiny": 800, "small": 200_000, "full": 20_000}[options.size])


def experiment(options, steps: int):
    """The stage at a size, for so many steps."""
    tiny = options.size == "tiny"
    settings = {"model": options.model, "dtype": "float32" if tiny else "bfloat16"}
    settings |= {"max_tokens": 160 if tiny else 512, "pictures": 16}
    if options.size == "small":
        settings |= {"encoder_from": "runs/captioner/model", "vae_from": "runs/autoencoder/model"}
    if not tiny:
        settings |= {"decoder": {"remat": "full"}, "drop": 0.1}
    data = sizes.data(options, captions=True, levels=sizes.LONG, weights=(0.5, 0.5))
    return sizes.run(
        options,
        "pretrain",
        settings,
        data,
        optimiser={"learning_rate": {"tiny": 5e-4, "small": 2e-4, "full": 2e-5}[options.size], "warmup": 50},
        ema={"decay": 0.995 if tiny else 0.9999},
        steps=steps,
        batch_size={"tiny": 32, "small": 128, "full": 256}[options.size],
        accumulate={"tiny": 1, "small": 2, "full": 4}[options.size],
        log_every=20,
        evaluate_every=200 if tiny else 2000,
        checkpoint_every=200 if tiny else 1000,
    )
