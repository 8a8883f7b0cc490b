"""Which record comes when."""

import collections
import pickle

import pytest

from uae_jax.data.order import Order


def order(sizes=(10,), weights=None, seed=0, **settings):
    settings = {"shuffle": True} | settings
    return Order(sizes, weights or [1.0] * len(sizes), seed, **settings)


@pytest.mark.parametrize("size", [1, 2, 10, 257])
def test_each_epoch_holds_every_record_once_in_another_order(size):
    stream = order((size,))
    epochs = [[stream[e * size + i] for i in range(size)] for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == [(0, i) for i in range(size)]
    if size >= 10:  # two of 10! orders are equal by chance once in millions
        assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
        assert epochs[0] != sorted(epochs[0])


def test_the_order_follows_the_seed():
    def first(seed, start=0):
        return [order((100,), seed=seed)[start + i] for i in range(100)]

    assert first(3) == first(3) != first(4)
    # The shuffle of an epoch must not be that of the epoch before under the next seed.
    assert first(3, start=100) != first(4)


def test_without_shuffling_the_order_is_the_sources():
    stream = order((4,), shuffle=False)
    assert [stream[i][1] for i in range(10)] == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]


def test_sources_are_mixed_by_weight_at_every_stretch():
    stream = order((50, 200, 7), weights=[3.0, 6.0, 1.0])
    for start in (0, 500, 12_340):
        counts = collections.Counter(stream[start + i][0] for i in range(1000))
        # Turns, not draws: off by one or two at the ends of a stretch, where chance would be off by sqrt(210) = 14.
        assert abs(counts[0] - 300) <= 2 and abs(counts[1] - 600) <= 2 and abs(counts[2] - 100) <= 2


def test_each_source_of_a_mixture_is_gone_through_as_a_whole():
    stream = order((50, 20), weights=[1.0, 2.0])
    seen = collections.defaultdict(list)
    for i in range(300):
        source, index = stream[i]
        seen[source].append(index)
    assert sorted(seen[0][:50]) == sorted(seen[0][50:100]) == list(range(50))
    assert all(sorted(seen[1][k : k + 20]) == list(range(20)) for k in range(0, 200, 20))


def test_two_sources_of_one_size_are_shuffled_apart():
    stream = order((30, 30))
    drawn = [[stream[i][1] for i in range(60) if stream[i][0] == source] for source in (0, 1)]
    assert drawn[0] != drawn[1]


def test_epochs_end_the_stream():
    assert len(order((7,), epochs=3)) == 21
    assert len(order((7,))) > 10**15
    # 10 and 30 records in turns: the first has nothing left after 20.
    assert len(order((10, 30), epochs=1)) == 20


def test_an_order_can_be_sent_to_a_worker():
    stream = order((20, 30))
    again = pickle.loads(pickle.dumps(stream))
    assert [again[i] for i in range(50)] == [stream[i] for i in range(50)]


@pytest.mark.parametrize(
    ("sizes", "weights", "epochs"),
    [([], [], None), ([5, 0], [1, 1], None), ([5], [0.0], None), ([5], [1, 2], None), ([5], [1], 0)],
)
def test_what_makes_no_sense_is_refused(sizes, weights, epochs):
    with pytest.raises(ValueError, match=r"wanted|no records"):
        Order(sizes, weights, 0, shuffle=True, epochs=epochs)
