"""Stage three, generation for understanding: GRPO on captions, rewarded by what the decoder makes of them.

    uae train --config configs/gen_for_understanding.py --workdir runs/g4u
    uae train --config configs/gen_for_understanding.py:size=small,data=data/train --workdir runs/g4u
    uae train --config configs/gen_for_understanding.py:size=full,data=data/train --workdir runs/g4u

Images need no captions. Expect captions to grow longer and to name what they left out, and the held-out reward to rise;
watch `kl`, `entropy`, and the judges that reward nothing. Where captions begin to state what is not there, raise
`settings.kl`: on scenes, 0.05 holds precision where 0.001, as is usual, does not. Hardware: see `configs/sizes.py`.
"""

from configs import sizes


def get_config(arg=None):
    models = {"tiny": "tiny", "small": "runs/cold_start/model", "full": "runs/cold_start/model"}
    options = sizes.read(arg, models, steps=0)
    return experiment(options, options.steps or (120 if options.size == "tiny" else 1000))


def experiment(options, steps: int):
    """The stage at a size, for so many steps."""
    tiny = options.size == "tiny"
    lora = {"mode": "lora", "rank": 16 if tiny else 32, "alpha": 32.0 if tiny else 64.0}
    lora["existing"] = "merge" if tiny else "continue"  # bfloat16 cannot hold what an adapter adds to a weight
    settings = sizes.loop(
        options,
        encoder={**lora, "frozen": ("vision/.*",), "remat": "none" if tiny else "full"},
        paint={"steps": 8 if tiny else 10, "guidance": 3.0 if tiny else 5.0},
        evaluation_steps=10 if tiny else 28,
        group=8,
        kl=5e-2 if tiny else 1e-3,
    )
    return sizes.run(
        options,
        "gen_for_understanding",
        settings,
        sizes.data(options, captions=False),
        optimiser={"learning_rate": {"tiny": 5e-4, "small": 5e-5, "full": 1e-5}[options.size], "warmup": 5},
        steps=steps,
        batch_size=12 if tiny else 32,
        accumulate=1 if tiny else 4,
        log_every=2 if tiny else 1,
        evaluate_every=40 if tiny else 50,
        checkpoint_every=20,
    )
