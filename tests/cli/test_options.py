"""What was typed → settings as they stand in a config, or what was meant."""

import pytest

from lora_mnist.cli import options as o
from lora_mnist.settings.request import Applied


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ({"digit": None, "targets": []}, {}),  # left out
        ({"digit": "weakest", "zoom": 0.0, "rslora": False}, {"digit": "weakest", "zoom": 0.0, "rslora": False}),
        ({"alpha_pattern": ["a=b=0.5", "c=2"]}, {"alpha_pattern": {"a=b": 0.5, "c": 2}}),
    ],
)
def test_an_option_that_was_given_is_a_setting(options, settings):
    assert o.given("table", **options) == {"table": settings}


@pytest.mark.parametrize(
    "command", ["run", "evaluate", "finetune", "verify", "merge", "predict --index 1", "sweep --plan"]
)
def test_a_data_set_that_is_none_is_answered_with_those_there_are(fails, finished_run, command):
    out = ("--out" if "sweep" in command else "--run", finished_run)
    says = "`dataset` (='fashion') is none of auto, mnist, mnist-5k."
    fails(2, *command.split(), *out, "--dataset", "fashion", says=says)


def test_the_data_set_of_the_run_may_be_said_again_and_no_other(succeeds, fails, finished_run):
    succeeds("evaluate", "--run", finished_run, "--dataset", "mnist-5k", "--threads", "1", err="")
    fails(2, "evaluate", "--run", finished_run, "--dataset", "mnist", says="contradicts")


def test_a_run_is_named_by_the_same_option_everywhere(succeeds, run_copy):
    for command in ("compare", "runs", "doctor"):
        assert str(run_copy) in succeeds(command, "--run", run_copy).replace("\n", "")
    succeeds("compare", run_copy, "--threads", "1")
    succeeds("report", "--run", run_copy, "--threads", "1")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("params --threads 1", "It belongs to run, pretrain, "),
        ("runs --rank 3", "It belongs to run, finetune, params, extract, teach and sweep."),
        ("finetune --rnk 3", "Did you mean --rank?"),
        ("run --guard evry-digit", "Did you mean every-digit?"),
    ],
)
def test_a_wrong_option_is_answered_with_what_was_meant(fails, tmp_path, monkeypatch, line, says):
    monkeypatch.chdir(tmp_path)
    assert len(fails(2, *line.split(), says=says)) < 180


@pytest.mark.parametrize(
    ("adapters", "applied"),
    [
        (o.Adapters(), []),
        (o.Adapters(["a", "b"]), [Applied("a"), Applied("b")]),
        (o.Adapters(["a", "b", "a"], [0.5]), [Applied("a", 0.5), Applied("b", 0.5)]),
        (o.Adapters(["a", "b"], [0.5, 2.0]), [Applied("a", 0.5), Applied("b", 2.0)]),
    ],
)
def test_one_strength_is_for_all_adapters(adapters, applied):
    assert adapters.applied() == applied


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ("--rank 1", "--rank"),
        ("--guard none", "--guard"),
        ("--alpha-pattern a=1", "--alpha-pattern"),
        ("--control", "--control"),
        ("--on-top-of a", "--on-top-of"),
    ],
)
def test_full_refuses_what_only_an_adapter_has(fails, tmp_path, options, flag):
    fails(2, "finetune", "--full", "--run", tmp_path, *options.split(), says=f"{flag} means nothing with --full")


def test_full_takes_what_every_training_has(fails, tmp_path):
    options = "--digit 9 --steps 3 --focus 0.1 --name x --lr 0.1 --shift 1 --no-rslora"
    fails(4, "finetune", "--full", "--run", tmp_path, *options.split(), says="There is no base")
