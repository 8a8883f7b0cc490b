"""Saves one checkpoint after another until it is killed: `python -m tests.training.checkpoint_loop FOLDER`.

Starts from what it finds there, having checked it, and says on stdout what it does.
"""

import sys

from tests.training.checkpoint_states import abstract, bits, values
from uae_jax.training.checkpoints import CheckpointStore

ROWS = 40_000  # some 15 MB, so that a save takes long enough to be killed in


def main(folder: str) -> None:
    store = CheckpointStore(folder)
    restored = store.restore(abstract(values(0, ROWS)))
    step = 0
    if restored is not None:
        step = restored.step
        if bits(restored.state) != bits(values(step, ROWS)) or restored.record != {"step": step}:
            sys.exit(f"step {step} came back changed")
    print("restored", step, flush=True)
    while True:
        step += 1
        state = values(step, ROWS)
        values.cache_clear()
        print("saving", step, flush=True)
        store.save(step, state, {"step": step})
        if failures := store.wait():
            sys.exit(str(failures))
        print("saved", step, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
