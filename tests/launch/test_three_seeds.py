"""Both stages over seeds, with their controls: what is trained, what is compared with what."""


def prepare(cloud):
    cloud.install()
    cloud.write_standin(cloud.root / ".venv/bin/python")


def test_a_stage_and_its_control_are_trained_and_compared(cloud):
    prepare(cloud)
    done = cloud.run("three_seeds.sh", "runs/s", STAGES="understanding_for_gen", SEEDS="0 7", STEPS="3", SCENES="5")
    assert done.returncode == 0, done.stderr
    trained = [tuple(call["argv"]) for call in cloud.calls("train")]
    stage, control = "configs/understanding_for_gen.py:", "configs/control.py:of=understanding_for_gen,"
    assert trained == [
        ("train", "--config", f"{config}steps=3,seed={seed}", "--workdir", f"runs/s/{folder}/{seed}")
        for seed in "07"
        for config, folder in ((stage, "understanding_for_gen"), (control, "control_understanding_for_gen"))
    ]
    (compared,) = cloud.calls("uae_jax.tiny.compare")
    told = " ".join(compared["argv"])
    assert "--treated runs/s/understanding_for_gen/0 runs/s/understanding_for_gen/7 --control runs/s/control_" in told
    assert "--control tiny --scenes 5 --guidance 1 --output runs/s/understanding_for_gen.json" in told


def test_other_settings_go_to_the_stage_and_not_to_its_control(cloud):
    prepare(cloud)
    settings = ("--config.settings.paint.guidance=1.0", "--config.name=it's two words")
    variables = {"STAGES": "gen_for_understanding", "SEEDS": "0", "GUIDANCE": "1.5"}
    done = cloud.run("three_seeds.sh", "runs/s", *settings, **variables)
    assert done.returncode == 0, done.stderr
    own, control = (call["argv"] for call in cloud.calls("train"))
    assert tuple(own[5:]) == settings and control[5:] == []
    (compared,) = cloud.calls("uae_jax.tiny.compare")
    assert compared["argv"][compared["argv"].index("--guidance") + 1] == "1.5"


def test_without_a_folder_it_says_how_to_be_called(cloud):
    done = cloud.run("three_seeds.sh")
    assert done.returncode == 2
    assert "GUIDANCE" in done.stderr and "set -euo" not in done.stderr
