import pytest

from lora_mnist.errors import UsageError
from lora_mnist.settings.config import load_config, resolve
from lora_mnist.sweep.grid import MOST_JOBS, Beside, base_key, jobs_of, parse_axes, settings_of, values_in


def resolved(tables):
    return resolve([load_config("default"), tables], "digits")


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0-3", (0, 1, 2, 3)),
        ("7", (7,)),
        ("1,2,16", (1, 2, 16)),
        ("0.2,0.35", (0.2, 0.35)),
        ("cosine,constant", ("cosine", "constant")),
        ("true,false", (True, False)),
        ('["linear1"],["linear1","linear2"]', (["linear1"], ["linear1", "linear2"])),
    ],
)
def test_values(text, values):
    assert values_in("x", text) == values


@pytest.mark.parametrize("text", ["", ",", "3-1", "1,2,1", "0-99999999"])
def test_what_is_no_list_of_values(text):
    with pytest.raises(UsageError, match=r"`digit` \(="):
        values_in("digit", text)


@pytest.mark.parametrize("entry", ["focus", "=1", "finetune focus=1", "finetune.rank=3", "finetune.name=x", "seed=1"])
def test_what_cannot_be_set(entry):
    with pytest.raises(UsageError, match="`set`"):
        parse_axes("0-9", "1", "0", [entry])


def test_every_combination_is_a_job_with_its_settings():
    axes = parse_axes("3,8", "1,4", "0-2", ["finetune.focus=0.2,0.4"])
    jobs = jobs_of(axes, resolved)
    assert len(jobs) == 2 * 2 * 3 * 2
    found = {(j.digit, j.settings.finetune.rank, j.settings.seed, j.settings.finetune.focus) for j in jobs}
    assert len(found) == len(jobs)
    assert len({job.base for job in jobs}) == 3
    assert {job.base for job in jobs_of(axes, resolved, "run")} == {"run"}


def test_all_weights_are_a_job_for_everything_but_the_rank():
    jobs = jobs_of(parse_axes("3,8", "1,4,8", "0-2"), resolved, beside=Beside(full=True))
    assert [job.method for job in jobs].count("full") == 2 * 3


def test_a_grid_too_large_is_refused_before_it_is_made():
    with pytest.raises(UsageError, match="100,000,000"):
        settings_of({"seed": range(10_000), "finetune.rank": range(10_000)})
    assert len(settings_of({"seed": range(1000)})) == 1000 < MOST_JOBS


def test_a_setting_that_is_none_is_refused():
    with pytest.raises(UsageError, match=r"finetune\.focsu"):
        jobs_of(parse_axes("3", "1", "0", ["finetune.focsu=1"]), resolved)


def test_the_key_is_of_base_data_and_settings_alone():
    (job,) = jobs_of(parse_axes("3", "1", "0"), resolved)
    key = job.key("fingerprint", "data")
    assert key == job.key("fingerprint", "data")
    assert len(key) == 16
    other = [
        job.key("other", "data"),
        job.key("fingerprint", "other"),
        job.model_copy(update={"method": "full"}).key("fingerprint", "data"),
    ]
    for setting in ("finetune.focus=0.9", "finetune.guard=none", "finetune.steps=3", "data.val_share=0.1"):
        (changed,) = jobs_of(parse_axes("3", "1", "0", [setting]), resolved)
        other.append(changed.key("fingerprint", "data"))
    other += [
        jobs_of(parse_axes(*grid), resolved)[0].key("fingerprint", "data")
        for grid in (("4", "1", "0"), ("3", "1", "1"))
    ]
    assert len({key, *other}) == len(other) + 1
    named = job.settings.finetune.model_copy(update={"name": "mine"})
    renamed = job.model_copy(update={"settings": job.settings.model_copy(update={"finetune": named})})
    assert renamed.key("fingerprint", "data") == key
    assert job.model_copy(update={"base": "elsewhere"}).key("fingerprint", "data") == key


def test_bases_differ_by_what_they_are_trained_with():
    one = base_key(resolved({}))
    assert one == base_key(resolved({"finetune": {"rank": 3}}))
    assert len({one, base_key(resolved({"seed": 1})), base_key(resolved({"pretrain": {"epochs": 2}}))}) == 3


def test_the_rank_can_be_the_configs():
    (job,) = jobs_of(parse_axes("3", "config", "0"), resolved)
    assert job.settings.finetune.rank == load_config("default")["finetune"]["rank"]


def test_controls_and_rounds_are_jobs_of_their_own_beside_each_adapter():
    jobs = jobs_of(parse_axes("weakest", "4", "0-1"), resolved, beside=Beside(control=True, rounds=3))
    assert [job.method for job in jobs] == ["lora", "control", "hard control", "rounds"] * 2
    assert len({job.repairing(3).key("fingerprint", "data") for job in jobs}) == len(jobs)
    assert [job.rounds for job in jobs] == [1, 1, 1, 3] * 2


def test_rounds_look_for_the_digit_themselves():
    with pytest.raises(UsageError, match="weakest"):
        jobs_of(parse_axes("3", "1", "0"), resolved, beside=Beside(rounds=2))
    with pytest.raises(UsageError, match=r"finetune\.rank has 2 values"):  # of which each would be other rounds
        jobs_of(parse_axes("weakest", "1,4", "0"), resolved, beside=Beside(rounds=2))


def test_the_images_are_split_in_one_way():
    with pytest.raises(UsageError, match="several ways"):
        parse_axes("3", "1", "0", ["data.split_seed=0,1"])
    assert parse_axes("3", "1", "0", ["data.val_share=0.2"])["data.val_share"] == (0.2,)
