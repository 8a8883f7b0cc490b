"""Stage two, the cold start: 1 - reward, differentiated through caption, sampler, VAE and judge.

    uae train --config configs/cold_start.py --workdir runs/cold_start
    uae train --config configs/cold_start.py:size=small,data=data/train,held_out=data/held_out --workdir runs/cold_start
    uae train --config configs/cold_start.py:size=full,model=models/UAE,data=data/train --workdir runs/cold_start

Adapters of encoder and decoder and the whole projector learn, from the hidden states of given captions. Expect the
reward to rise within a hundred steps, and little afterwards: it joins the two models, it does not teach them much.
Hardware: see `configs/sizes.py`. At small and full the last three of ten denoising steps carry a gradient, for which
they are computed twice; `settings.gradient_steps=0` takes all, as published.
"""

from configs import sizes


def get_config(arg=None):
    models = {"tiny": "tiny", "small": "runs/pretrain/model", "full": "models/UAE"}
    options = sizes.read(arg, models, steps=0)
    return experiment(options, options.steps or (100 if options.size == "tiny" else 2000))


def experiment(options, steps: int):
    """The stage at a size, for so many steps."""
    tiny = options.size == "tiny"
    lora = {"mode": "lora", "rank": 8 if tiny else 32, "alpha": 16.0 if tiny else 64.0}
    lora["existing"] = "merge" if tiny else "continue"  # bfloat16 cannot hold what an adapter adds to a weight
    remat = "none" if tiny else "full"
    settings = sizes.loop(
        options,
        encoder={**lora, "frozen": ("vision/.*",), "remat": remat},
        projector={"mode": "full"},
        decoder={**lora, "remat": remat},
        paint={"steps": 4 if tiny else 10, "guidance": 3.0 if tiny else 5.0},
        evaluation_steps=10 if tiny else 28,
        gradient_steps=0 if tiny else 3,
    )
    return sizes.run(
        options,
        "cold_start",
        settings,
        sizes.data(options, captions=True),
        optimiser={"learning_rate": {"tiny": 3e-4, "small": 1e-4, "full": 1e-5}[options.size], "warmup": 10},
        steps=steps,
        batch_size=8 if tiny else 64,
        accumulate=1 if tiny else 8,
        log_every=5,
        evaluate_every=50 if tiny else 200,
        checkpoint_every=50 if tiny else 200,
    )
