import pytest

from lora_mnist.errors import UsageError
from lora_mnist.settings.config import load_config, resolve
from lora_mnist.sweep.grid import MOST_JOBS, combinations, make_jobs, parse_axes, parse_values


def resolved(tables):
    return resolve([load_config("default"), tables], "mnist-5k")


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
    assert parse_values("x", text) == values


@pytest.mark.parametrize("text", ["", ",", "3-1", "1,2,1", "0-99999999"])
def test_what_is_no_list_of_values(text):
    with pytest.raises(UsageError, match=r"`digit` \(="):
        parse_values("digit", text)


@pytest.mark.parametrize("entry", ["focus", "=1", "finetune focus=1", "finetune.rank=3", "finetune.name=x", "seed=1"])
def test_what_cannot_be_set(entry):
    with pytest.raises(UsageError, match="`set`"):
        parse_axes("0-9", "1", "0", [entry])


def test_every_combination_is_a_job_with_its_settings():
    axes = parse_axes("3,8", "1,4", "0-2", ["finetune.focus=0.2,0.4"])
    assert parse_axes("3", "1", "0", ["finetune.learning-rate=1"]) == parse_axes("3", "1", "0", ["finetune.lr=1"])
    jobs = make_jobs(axes, resolved)
    assert len(jobs) == 2 * 2 * 3 * 2
    found = {(j.digit, j.settings.finetune.rank, j.settings.seed, j.settings.finetune.focus) for j in jobs}
    assert len(found) == len(jobs)
    assert len({job.base for job in jobs}) == 3
    assert {job.base for job in make_jobs(axes, resolved, "run")} == {"run"}
    full = [job for job in make_jobs(axes, resolved, full=True) if job.method == "full"]
    assert len(full) == 2 * 3 * 2  # for everything but the rank


def test_a_grid_too_large_is_refused_before_it_is_made():
    with pytest.raises(UsageError, match="100,000,000"):
        combinations({"seed": range(10_000), "finetune.rank": range(10_000)})
    assert len(combinations({"seed": range(1000)})) == 1000 < MOST_JOBS


def test_the_key_is_of_base_data_and_settings_alone():
    def key(digit="3", rank="1", seed="0", *settings, base="fingerprint", data="data", **changes):
        (job,) = make_jobs(parse_axes(digit, rank, seed, settings), resolved)
        return job.model_copy(update=changes).with_finetune(name="mine").key(base, data)

    (job,) = make_jobs(parse_axes("3", "1", "0"), resolved)
    elsewhere = job.model_copy(update={"base": "elsewhere"})
    assert key() == job.key("fingerprint", "data") == elsewhere.key("fingerprint", "data")
    settings = ("finetune.focus=0.9", "finetune.guard=none", "finetune.steps=3", "data.val_share=0.1")
    others = [key("3", "1", "0", setting) for setting in settings]
    others += [key(base="other"), key(data="other"), key(method="full"), key("4"), key(rank="2"), key(seed="1")]
    assert len({key(), *others}) == len(others) + 1


def test_bases_differ_by_what_they_are_trained_with():
    def bases(*settings, ranks="1", seeds="0"):
        return {job.base for job in make_jobs(parse_axes("3", ranks, seeds, settings), resolved)}

    assert bases(ranks="1,2") == bases()
    assert len(bases() | bases(seeds="1") | bases("pretrain.epochs=2") | bases("model.hidden=[9]")) == 4


def test_controls_and_rounds_are_jobs_of_their_own_beside_each_adapter():
    jobs = make_jobs(parse_axes("weakest", "4", "0-1"), resolved, control=True, rounds=3)
    assert [job.method for job in jobs] == ["lora", "control", "hard control", "rounds"] * 2
    assert len({job.with_finetune(digit=3).key("fingerprint", "data") for job in jobs}) == len(jobs)
    assert [job.rounds for job in jobs] == [1, 1, 1, 3] * 2
