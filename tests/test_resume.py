"""The order of rows that a resumed run finds again, on any number of ranks."""

import itertools

import pytest
from torch.utils.data import DataLoader, RandomSampler

from unifiedreward_think.training.trainers.resume import EpochSampler


def test_the_order_depends_on_seed_and_epoch_alone():
    sampler = EpochSampler(RandomSampler(range(20)), seed=3)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] == orders[2] == list(EpochSampler(RandomSampler(range(20)), seed=3))
    assert orders[0] != orders[1] == list(EpochSampler(RandomSampler(range(20)), seed=4))
    assert sorted(orders[1]) == list(range(20)) and len(sampler) == 20


@pytest.mark.parametrize("ranks", [1, 2])
def test_batches_of_a_later_epoch_are_skipped_in_its_own_order(ranks):
    """What transformers does to resume in the middle of an epoch."""
    from accelerate import Accelerator
    from accelerate.data_loader import prepare_data_loader, skip_first_batches
    from trl.trainer.utils import RepeatSampler

    from unifiedreward_think.training.trainers.resume import by_epoch

    Accelerator(cpu=True)

    def loader():
        stock = DataLoader(range(24), batch_size=2, sampler=RepeatSampler(range(24), 2, 2, seed=3))
        return by_epoch(prepare_data_loader(stock, num_processes=ranks, process_index=0), seed=3)

    def batches(of, epoch):
        of.set_epoch(epoch)
        return [batch.tolist() for batch in of]

    first, second = (batches(loader(), epoch) for epoch in (0, 1))
    assert first != second and len(second) == 24 // ranks
    assert batches(skip_first_batches(loader(), 5), 1) == second[5:]
    running = loader()
    assert [batches(running, epoch) for epoch in (0, 1)] == [first, second]
    assert len(list(itertools.chain(*second))) == 48 // ranks
