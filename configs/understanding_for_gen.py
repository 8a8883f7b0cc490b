"""Stage four, understanding for generation: Flow-GRPO on the decoder's denoising steps, by the same reward.

    uae train --config configs/understanding_for_gen.py --workdir runs/u4g
    uae train --config configs/understanding_for_gen.py:size=small,data=data/train --workdir runs/u4g
    uae train --config configs/understanding_for_gen.py:size=full,data=data/train --workdir runs/u4g

`preset=flow_grpo` is what Flow-GRPO published, `fast` trains few steps of each (at tiny one of eight), `nft` needs
neither noise nor densities and learns most from a painting, so that tiny has it; see
`uae_jax/stages/flow_grpo_settings.py`. Captions are the frozen encoder's own. `nft` trains and is to be judged without
guidance: what is won without it is not found again with it. Clip fractions of the others should stay below a half.
Hardware: see `configs/sizes.py`.
"""

from configs import sizes
from uae_jax.stages.flow_grpo_settings import preset


def get_config(arg=None):
    models = {"tiny": "tiny", "small": "runs/g4u/model", "full": "runs/g4u/model"}
    options = sizes.read(arg, models, steps=0, preset="")
    return experiment(options, options.steps or (120 if options.size == "tiny" else 1000), options.preset)


def experiment(options, steps: int, name: str = ""):
    """The stage at a size, for so many steps, by a preset ("": "nft" at tiny, else "flow_grpo")."""
    tiny = options.size == "tiny"
    name = name or ("nft" if tiny else "flow_grpo")
    lora = {"mode": "lora", "rank": 16 if tiny else 32, "alpha": 32.0 if tiny else 64.0}
    lora["existing"] = "merge" if tiny else "continue"  # bfloat16 cannot hold what an adapter adds to a weight
    more = {"group": 8, "paint": {"steps": 8}} if tiny else {"paint": {"memory_gb": 24.0}}
    if tiny and name != "nft":
        more["paint"]["guidance"] = 3.0  # which the embedded model paints with
    if tiny and name == "fast":
        more["window"] = 1  # half the work of three, and siblings differ by one step's luck alone
    settings = sizes.loop(
        options,
        decoder={**lora, "remat": "none" if tiny else "full"},
        evaluation_steps=10 if tiny else 28,
        **preset(name, **more),
    )
    return sizes.run(
        options,
        "understanding_for_gen",
        settings,
        sizes.data(options, captions=False),
        optimiser={
            "learning_rate": (6e-4 if name == "nft" else 1.5e-3) if tiny else 1e-4,
            "schedule": "cosine" if tiny else "constant",
            "warmup": 4 if tiny else 5,
            "weight_decay": 1e-4,
        },
        ema={"decay": 0.9, "every": 8},
        steps=steps,
        batch_size=16 if tiny else 48,
        accumulate=1 if tiny else 3,  # times two updates and eight chips: 48 images, one at a time on each
        log_every=2 if tiny else 1,
        evaluate_every=40 if tiny else 50,
        checkpoint_every=20,
    )
