import json

import pytest

from lora_mnist.sweep.rows import Store
from tests.conftest import snapshot

GRID = ("--digit", "3,8", "--rank", "1,2", "--seed", "0-1", "--dataset", "mnist-5k", "--threads", "1")
SETTINGS = ("--config", "smoke", "--set", "finetune.batch_size=10")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("sweeps") / "small"


def test_a_plan_changes_nothing(succeeds, out):
    printed = succeeds("sweep", *GRID, *SETTINGS, "--out", out, "--plan")
    assert "8 jobs, 0 of them finished" in printed
    assert not out.exists()


def test_tables_and_sentences(succeeds, out):
    printed = succeeds("sweep", *GRID, *SETTINGS, "--out", out)
    for said in ("rank 1", "rank 2", "threshold", "for the 8", "8 jobs done", "results.csv"):
        assert said in printed
    assert max(map(len, printed.splitlines())) <= max(80, len(str(out)) + 60)
    again = succeeds("sweep", *GRID, *SETTINGS, "--out", out, "--metric", "missed")
    assert "8 were there before" in " ".join(again.split())
    assert "Missed on test" in again


def test_json_has_every_row(cli, out):
    printed = cli("sweep", *GRID, *SETTINGS, "--out", out, "--json")[1]
    document = json.loads(printed)
    assert len(document["sweep"]["rows"]) == 8
    assert document["answer"]["metric"] == "errors"
    assert cli("sweep", *GRID, *SETTINGS, "--out", out, "--quiet")[1] == f"{out}\n"


def test_the_best_is_kept_and_named(succeeds, out):
    free = ("--set", "finetune.guard=none", "--out", out, "--keep", "best")
    printed = succeeds("sweep", *GRID, *SETTINGS, *free)
    said = " ".join(printed.split())
    assert "Kept as digit" in said
    assert "(as in the sweep); verified from its files." in said
    page = out / "report" / "index.html"
    assert str(page) in printed.replace("\n", "")
    assert page.is_file()


def test_what_the_adapters_are_compared_with_is_printed(succeeds, out):
    weakest = ("--digit", "weakest", "--rank", "1", *GRID[4:])
    beside = ("--control", "--full", "--rounds", "2", "--out", out)
    said = " ".join(succeeds("sweep", *weakest, *SETTINGS, *beside).split())
    for name in ("all weights", "control:", "hard examples", "In rounds, all errors"):
        assert name in said
    tables = (out / "report" / "tables.md").read_text()
    assert "| all weights |" in tables
    assert "| round | kept |" in tables


def test_the_results_do_not_go_into_a_run(fails, run_copy):
    before = snapshot(run_copy)
    for place in (run_copy, run_copy / "adapters"):
        fails(2, "sweep", *GRID[:6], "--run", run_copy, "--out", place, says="is in a run")
    assert snapshot(run_copy) == before


def test_a_search_counts_on_held_out_images_and_keeps_no_row_of_them(cli, succeeds, out):
    printed = succeeds("sweep", *GRID, *SETTINGS, "--out", out, "--hold-out")
    assert "held out of the training images" in " ".join(printed.split())
    row = next(row for row in Store(out).rows.values() if row.held_out)
    for key, said in ((row.key, "other images"), ("", "the key of 0 rows")):
        code, _, err = cli("sweep", *GRID, *SETTINGS, "--out", out, "--keep", key)
        assert (code, said in " ".join(err.split())) == (2, True)


def test_a_failed_job_is_said_and_is_no_success(cli, out):
    wild = ("--set", "finetune.learning_rate=1e30", "--out", out)
    code, printed, _ = cli("sweep", *GRID, *SETTINGS, *wild)
    assert code == 1
    assert "failed: digit 3, rank 1, seed 0" in printed
    code, printed, err = cli("sweep", *GRID, *SETTINGS, *wild, "--keep", "best")  # whose error hides nothing
    assert code == 2
    assert "failed: digit 3, rank 1, seed 0" in printed
    assert "No adapter of this sweep is done and met its guard, so there is no best." in " ".join(err.split())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--by", "focus"), "`by` (='focus') was not varied"),
        (("--by", "seed"), "`by` (='seed') was not varied"),
        (("--set", "finetune.focus=0.3", "--by", "focus"), "`by` (='focus') was not varied"),
        (("--engine", "quick"), "none of stacked, local, ray"),
        (("--plan", "--threads", "-1"), "`threads` (=-1)"),
        (("--set", "seed.x=3"), "names seed.x"),
        (("--set", "finetune.rank.x=1"), "names finetune.rank.x"),
        (("--set", "finetune.focus=" + 900 * "["), "`finetune.focus`"),
        (("--set", f"finetune.focus={10**5000:x}"), "more than 1,000 characters"),
        (("--rounds", "2"), "need one value per setting, but finetune.digit has 2 values"),
        (("--metric", "all"), "none of missed, false_alarms, errors"),
        (("--rank", "1,x"), "`finetune.rank` (='x')"),
        (("--set", "focus"), "`set` (='focus')"),
        (("--rounds", "2"), "--digit weakest"),
        (("--rounds", "-1"), "`rounds` (=-1)"),
        (("--hold-out", "--keep", "best"), "--hold-out"),
        (("--hold-out", "--set", "data.val_share=0.0"), "hold out"),
        (("--dataset", "mnist", "--offline", "--data", "nowhere"), "--offline"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is(fails, tmp_path, options, said):
    code = 3 if "--offline" in options else 2
    fails(code, "sweep", *GRID, *SETTINGS, "--out", tmp_path / "out", *options, says=said)
    assert not (tmp_path / "out").exists()
