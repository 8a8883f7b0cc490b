"""What crosses from encoder to decoder, and which encoder reads it: is it the words that carry the gain?

    uae train --config configs/ablations/interface.py:arm=answer_hidden --workdir runs/answer_hidden
    uae bench ablate --workdir runs/ablations --only interface

`text` passes the caption alone, read by the encoder as it is; `text_base` has it read without the adapter in training,
so that the decoder's inputs stay what they were. `answer_hidden` passes the encoder's states while it wrote, the image
in sight, through which information can flow around the words; `answer_hidden_in_words` is the same model when only its
words are passed: what it lost there went around them.
"""

from configs.ablations import common

ARMS = {"text": {}, "text_base": {}, "answer_hidden": {}, "answer_hidden_in_words": {"interface": "text"}}
CHANGES = {
    "text": {},
    "text_base": {"text": {"conditioning": "base"}},
    "answer_hidden": {"interface": "answer_hidden"},
    "answer_hidden_in_words": {"interface": "answer_hidden"},
}


def get_config(arg=None):
    options = common.read_loop(arg, ARMS)
    return common.chain(options, options.names, **CHANGES[options.arm])
