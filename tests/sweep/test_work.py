import pytest

from lora_mnist.sweep.rows import Failure, Row
from lora_mnist.sweep.work import COPIES, Worker, numbers_of, stacks_of
from lora_mnist.training.stack import shape_of
from tests.sweep.grids import same


def changed(job, **tuning):
    recipe = job.settings.finetune.model_copy(update=tuning)
    return job.model_copy(update={"settings": job.settings.model_copy(update={"finetune": recipe})})


def test_a_stack_comes_to_the_same_rows_as_its_jobs_alone(small):
    _, world, jobs = small
    for stack in stacks_of(jobs, numbers_of(world)):
        together = Worker(world).do(stack)
        assert all(isinstance(row, Row) and row.engine == "stacked" for row in together)
        for job, row in zip(stack, together, strict=True):
            assert same(row, Worker(world).do([job])[0])


def test_stacks_hold_every_job_once_with_one_base_and_shape(small):
    _, world, jobs = small
    odd = [changed(jobs[0], dropout=0.1), jobs[0].model_copy(update={"method": "full"})]
    stacks = stacks_of([*jobs, *odd], numbers_of(world))
    assert sorted(id(job) for stack in stacks for job in stack) == sorted(map(id, [*jobs, *odd]))
    assert [[one] for one in odd] == stacks[-2:]
    for stack in stacks:
        assert len({(job.base, shape_of(job.settings.finetune)) for job in stack}) == 1


def test_stacks_keep_to_the_memory(small):
    _, world, jobs = small
    alike = [changed(jobs[0], learning_rate=0.001 * number) for number in range(1, 11)]
    numbers = numbers_of(world)
    each = 4 * COPIES * numbers(jobs[0])
    assert [len(stack) for stack in stacks_of(alike, numbers, 4 * each)] == [4, 4, 2]
    assert [len(stack) for stack in stacks_of(alike, numbers, 1)] == [1] * 10
    assert [len(stack) for stack in stacks_of(alike, numbers)] == [10]
    batch = jobs[0].settings.finetune.batch_size
    assert [len(stack) for stack in stacks_of(alike, numbers, rows=5 * batch)] == [5, 5]


def test_many_jobs_are_as_many_stacks_for_each_process(small):
    _, world, jobs = small

    def sizes(count, processes):
        batch = jobs[0].settings.finetune.batch_size
        stacks = stacks_of([jobs[0]] * count, numbers_of(world), rows=60 * batch, processes=processes)
        return [len(stack) for stack in stacks]

    assert sizes(150, 1) == sizes(150, 4) == [50, 50, 50]
    assert sizes(150, 2) == [38, 38, 38, 36]
    assert sizes(150, 3) == [50, 50, 50]
    assert sizes(60, 2) == [60]


def test_the_count_is_that_of_the_adapter(small):
    _, world, jobs = small
    (row,) = Worker(world).do([jobs[0]])
    assert row.parameters == numbers_of(world)(jobs[0])


@pytest.mark.parametrize("wild", [{"learning_rate": 1e30}, {"focus": 0.01}])
def test_one_that_fails_says_why_and_stops_no_other(small, wild):
    _, world, jobs = small
    good, other = stacks_of(jobs, numbers_of(world))[0]
    outcomes = Worker(world).do([good, changed(other, **wild)])
    assert isinstance(outcomes[1], Failure)
    assert "--learning-rate" in outcomes[1].cause or "`focus`" in outcomes[1].cause
    assert same(outcomes[0], Worker(world).do([good])[0])


def test_all_weights_are_trained_alone(small):
    _, world, jobs = small
    job = jobs[0].model_copy(update={"method": "full"})
    (row,) = Worker(world).do([job])
    assert (row.method, row.rank, row.engine, row.strength) == ("full", None, "alone", 1.0)
    assert row.parameters == sum(weight.numel() for weight in world.bases[job.base].network.parameters())


def test_the_work_that_is_done_grows_to_all_of_it(small):
    _, world, jobs = small
    told = []
    Worker(world).do(stacks_of(jobs, numbers_of(world))[0], told.append)
    assert told == sorted(told)
    assert told[-1] == pytest.approx(2)
    assert len(told) > 10
