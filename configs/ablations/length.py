"""Captions cut to a budget of tokens when measured: does their length alone explain the gain?

    uae train --config configs/ablations/length.py --workdir runs/loop
    uae bench ablate --workdir runs/ablations --only length

The trained model beside the one that it started from, both with captions whole, and both cut off at 40, 20 and 10
tokens. Were it length alone, nothing would be left where lengths are the same. The embedded model writes some 20 words,
and a word of the scene world is a token. Trains nothing that the other ablations do not.
"""

from configs.ablations import common

ARMS = {"whole": {}, **{f"tokens_{count}": {"max_new_tokens": count} for count in (40, 20, 10)}}
AGAINST = "untrained"  # measured in the same way


def get_config(arg=None):
    options = common.read_loop(arg, ARMS)
    return common.chain(options, options.names)
