"""`ModalitySampler`: every example once, steps of one kind, an order that seed and epoch alone decide."""

from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import SequentialSampler

from llava_s2.train.sampler import FILLER, FilledSampler, ModalitySampler

lengths = st.lists(st.integers(-50, 50).filter(bool), min_size=1, max_size=60)


@settings(deadline=None)
@given(lengths=lengths, per_step=st.integers(1, 9), seed=st.integers(0, 99))
def test_every_example_once_and_steps_of_one_kind(lengths, per_step, seed):
    order = list(ModalitySampler(lengths, per_step, seed))
    assert sorted(order) == list(range(len(lengths)))
    with_images = sum(length > 0 for length in lengths)
    whole = with_images // per_step + (len(lengths) - with_images) // per_step
    for step in range(whole):
        assert len({lengths[index] > 0 for index in order[step * per_step : (step + 1) * per_step]}) == 1


def test_like_lengths_come_together():
    lengths = [1 + index % 100 for index in range(1000)]
    order = list(ModalitySampler(lengths, 10, 0))
    spreads = []
    for start in range(0, 1000, 10):
        step = [lengths[index] for index in order[start : start + 10]]
        spreads.append(max(step) - min(step))
    assert sorted(spreads)[50] <= 15  # of 100; ten drawn at random spread over more than 60 nearly always


def test_seed_and_epoch_decide_the_order():
    def order(seed, epoch):
        sampler = ModalitySampler([*range(1, 40), *range(-40, -1)], 4, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 2) == order(1, 2)
    assert len({tuple(order(1, 0)), tuple(order(1, 1)), tuple(order(5, 0))}) == 3


@given(examples=st.integers(0, 40), multiple=st.integers(1, 9))
def test_filled_up_to_whole_batches(examples, multiple):
    sampler = FilledSampler(SequentialSampler(range(examples)), multiple)
    order = list(sampler)
    assert len(order) == len(sampler)
    assert len(order) % multiple == 0 and len(order) - examples < multiple
    assert order[:examples] == list(range(examples))
    assert set(order[examples:]) <= {FILLER}


def test_a_filled_order_changes_with_the_epoch():
    sampler = FilledSampler(ModalitySampler(list(range(1, 40)), 4, 0), 8)
    first = list(sampler)
    sampler.set_epoch(1)
    assert first != list(sampler) and sorted(first) == sorted(sampler)
