"""Steps that changed nothing are counted and named, and end the run when they do not end."""

import json

import numpy as np
import pytest

from uae_jax.training.metrics import Reading
from uae_jax.training.nonfinite import BadSteps, NonFiniteError


def reading(step, bad, *which, ids=("a", "b", "c", "d")):
    mask = np.array([name in which for name in ids])
    return Reading(step, {"loss": 0.0, "nonfinite": float(bad), "bad_examples": mask}, list(ids))


def test_good_steps_say_nothing():
    counts = BadSteps(3)
    assert counts.update([reading(1, False), reading(2, False)]) == []
    assert (counts.count, counts.in_a_row, counts.samples) == (0, 0, {})


def test_bad_steps_are_counted_with_their_samples():
    counts = BadSteps(3)
    messages = counts.update([reading(1, False), reading(2, True, "b"), reading(3, False), reading(4, True, "b", "d")])
    assert len(messages) == 2
    assert "step 2: " in messages[0] and messages[0].endswith("1 in all); samples whose loss is no number: b")
    assert "step 4: " in messages[1] and messages[1].endswith(
        "(1 in a row, 2 in all); samples whose loss is no number: b, d"
    )
    assert (counts.count, counts.in_a_row) == (2, 1)
    assert counts.samples == {"b": 2, "d": 1}


def test_where_no_loss_says_so_all_samples_are_suspects():
    counts = BadSteps(3)
    [message] = counts.update([reading(1, True)])
    assert message.endswith("one of its samples: a, b, c, d")
    [message] = counts.update([Reading(2, {"nonfinite": 1.0}, [str(i) for i in range(20)])])
    assert message.endswith("0, 1, 2, 3, 4, 5, 6, 7 and 12 more")
    assert counts.samples["a"] == counts.samples["19"] == 1


def test_too_many_in_a_row_end_the_run():
    counts = BadSteps(3)
    counts.update([reading(1, True, "a"), reading(2, True, "a"), reading(3, False), reading(4, True, "b")])
    with pytest.raises(NonFiniteError) as caught:  # step 7 comes too late to be looked at
        counts.update([reading(5, True, "c"), reading(6, True, "b"), reading(7, True, "d")])
    message = str(caught.value)
    assert message.startswith("steps 4 to 6: no finite loss and gradient 3 times in a row")
    assert "samples: b, c;" in message
    assert counts.count == 5 and "d" not in counts.samples


def test_a_step_that_made_some_of_its_updates_ends_no_run():
    counts = BadSteps(2)
    [whole, half] = counts.update([reading(1, True, "a"), reading(2, 0.5, "b")])
    assert (
        "nothing was updated (1 in a row" in whole and "50% of its updates were left out (0 in a row, 2 in all)" in half
    )
    assert counts.update([reading(3, True, "c")]) and counts.in_a_row == 1
    with pytest.raises(NonFiniteError, match="steps 3 to 4: "):
        counts.update([reading(4, True, "d")])


def test_a_resumed_run_goes_on_counting():
    counts = BadSteps(3)
    counts.update([reading(1, True, "a"), reading(2, True, "b")])
    again = BadSteps.from_json(json.loads(json.dumps(counts.to_json())), 3)
    assert (again.count, again.in_a_row, again.samples) == (2, 2, {"a": 1, "b": 1})
    with pytest.raises(NonFiniteError, match=r"steps 1 to 3: .*samples: a, b, c"):
        again.update([reading(3, True, "c")])
    assert BadSteps.from_json(None, 3).count == 0
