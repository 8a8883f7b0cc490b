"""Every stage as short as it can be and still do all that a run does: steps, saves, an evaluation, pictures.

The argument is the stage's name. For runs of several processes, which compile everything anew.
"""

from ml_collections import ConfigDict

from tests.training import kill_config


def get_config(arg=None):
    config = kill_config.get_config(arg).to_dict()
    config |= {"steps": 3, "accumulate": 1, "evaluate_every": 2, "evaluation_batches": 1, "keep": 5}
    if arg == "gen_for_understanding":  # all captions are cut off, which alone would leave nothing to learn
        config["settings"]["learn_truncated"] = True
    config["data"]["sources"][0]["scenes"]["size"] = config["data"]["resolution"]
    config["validation"] = {**config["data"], "shuffle": False}
    return ConfigDict(config)
