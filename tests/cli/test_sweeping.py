import json

import pytest

GRID = ("--digit", "3,8", "--rank", "1,2", "--seed", "0-1", "--dataset", "digits", "--threads", "1")
SETTINGS = ("--config", "smoke", "--set", "finetune.batch_size=10")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("sweeps") / "small"


def test_a_plan_changes_nothing(cli, out):
    code, printed, _ = cli("sweep", *GRID, *SETTINGS, "--out", out, "--plan")
    assert code == 0
    assert "8 jobs, 0 of them finished" in printed
    assert not out.exists()


def test_tables_and_sentences(cli, out):
    code, printed, _ = cli("sweep", *GRID, *SETTINGS, "--out", out)
    assert code == 0
    for said in ("rank 1", "rank 2", "threshold", "for the 8", "8 jobs done", "results.csv"):
        assert said in printed
    assert max(map(len, printed.splitlines())) <= max(80, len(str(out)) + 60)
    code, again, _ = cli("sweep", *GRID, *SETTINGS, "--out", out, "--metric", "missed")
    assert "8 were there before" in " ".join(again.split())
    assert "Missed on test" in again


def test_json_has_every_row(cli, out):
    printed = cli("sweep", *GRID, *SETTINGS, "--out", out, "--json")[1]
    document = json.loads(printed)
    assert len(document["sweep"]["rows"]) == 8
    assert document["answer"]["metric"] == "errors"
    assert cli("sweep", *GRID, *SETTINGS, "--out", out, "--quiet")[1] == f"{out}\n"


def test_the_best_is_kept_and_named(cli, out):
    free = ("--set", "finetune.guard=none", "--out", out, "--keep", "best")
    code, printed, _ = cli("sweep", *GRID, *SETTINGS, *free)
    assert code == 0
    said = " ".join(printed.split())
    assert "Kept as digit" in said
    assert "(as in the sweep); verified from its files." in said
    page = out / "report" / "index.html"
    assert str(page) in printed.replace("\n", "")
    assert page.is_file()


def test_what_the_adapters_are_compared_with_is_printed(cli, out):
    weakest = ("--digit", "weakest", *GRID[2:])
    beside = ("--twin", "--full", "--rounds", "2", "--out", out)
    code, printed, _ = cli("sweep", *weakest, *SETTINGS, *beside)
    said = " ".join(printed.split())
    assert code == 0
    for name in ("all weights", "twin:", "hard images,", "In rounds, all errors"):
        assert name in said
    tables = (out / "report" / "tables.md").read_text()
    assert "| all weights |" in tables
    assert "| round | kept |" in tables


def test_a_search_counts_on_held_out_images(cli, out):
    code, printed, _ = cli("sweep", *GRID, *SETTINGS, "--out", out, "--hold-out")
    assert code == 0
    assert "held out of the training images" in " ".join(printed.split())


def test_a_failed_job_is_said_and_is_no_success(cli, out):
    wild = ("--set", "finetune.learning_rate=1e30", "--out", out)
    code, printed, _ = cli("sweep", *GRID, *SETTINGS, *wild)
    assert code == 1
    assert "failed: digit 3, rank 1, seed 0" in printed


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--metric", "all"), 2, "none of missed, claimed, errors"),
        (("--engine", "quick"), 2, "none of stacked, local, ray"),
        (("--rank", "1,x"), 2, "`finetune.rank` (='x')"),
        (("--set", "focus"), 2, "`set` (='focus')"),
        (("--by", "focus"), 2, "was not varied"),
        (("--rounds", "2"), 2, "--digit weakest"),
        (("--rounds", "-1"), 2, "`rounds` (=-1)"),
        (("--hold-out", "--keep", "best"), 2, "--hold-out"),
        (("--hold-out", "--set", "data.val_share=0.0"), 2, "hold out"),
    ],
)
def test_wrong_use(cli, out, options, code, said):
    found = cli("sweep", *GRID, *SETTINGS, "--out", out / "not there", *options)
    assert found[0] == code
    assert said in found[2]
    assert not (out / "not there").exists()
