"""`ModalitySampler`: every example once, steps of one kind, an order that seed and epoch alone decide."""

import pytest
from accelerate import skip_first_batches
from accelerate.data_loader import SeedableRandomSampler, prepare_data_loader
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, SequentialSampler

from llava_s2.train.sampler import FILLER, EpochSampler, ModalitySampler
from llava_s2.train.trainer import NumberedDataset

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
    sampler = EpochSampler(SequentialSampler(range(examples)), multiple)
    order = list(sampler)
    assert len(order) == len(sampler)
    assert len(order) % multiple == 0 and len(order) - examples < multiple
    assert order[:examples] == list(range(examples))
    assert set(order[examples:]) <= {FILLER}


def test_a_filled_order_changes_with_the_epoch():
    sampler = EpochSampler(ModalitySampler(list(range(1, 40)), 4, 0), 8)
    first = list(sampler)
    sampler.set_epoch(1)
    assert first != list(sampler) and sorted(first) == sorted(sampler)


EXAMPLES = 23
ORDERS = {
    "random": lambda: SeedableRandomSampler(range(EXAMPLES), data_seed=3),
    "sequential": lambda: SequentialSampler(range(EXAMPLES)),
    "grouped": lambda: ModalitySampler([*range(1, 15), *range(-9, 0)], 4, 3),
}


class Ids:
    """A data set whose items are empty."""

    def __len__(self):
        return EXAMPLES

    def __getitem__(self, index):
        return {"input_ids": []}


def batches(order, processes, process, epoch, skipped=0, workers=0):
    """The ids of one process's batches, as ``Trainer`` has them: prepared, skipped, told the epoch."""
    sampler = EpochSampler(ORDERS[order](), 2 * processes)
    numbered = NumberedDataset(Ids(), sampler)
    loader = DataLoader(numbered, 2, sampler=sampler, num_workers=workers, collate_fn=lambda items: items)
    loader = prepare_data_loader(
        loader, num_processes=processes, process_index=process, use_seedable_sampler=True, data_seed=3
    )
    if skipped:
        loader = skip_first_batches(loader, skipped)
    loader.set_epoch(epoch)
    return [[item["record"] for item in batch] for batch in loader]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_resumed_at_any_batch_of_any_epoch_the_ids_are_those_of_the_whole_run(order, processes):
    epochs = []
    for epoch in range(3):
        whole = [batches(order, processes, process, epoch) for process in range(processes)]
        seen = [index for own in whole for batch in own for index in batch if index != FILLER]
        assert sorted(seen) == list(range(EXAMPLES))
        for skipped in range(1, len(whole[0])):
            for process in range(processes):
                assert batches(order, processes, process, epoch, skipped) == whole[process][skipped:]
        epochs.append(whole)
    assert (epochs[0] == epochs[1]) == (order == "sequential") and (epochs[1] == epochs[2]) == (order == "sequential")
    assert batches(order, processes, 0, 2, 2, workers=2) == epochs[2][0][2:]
