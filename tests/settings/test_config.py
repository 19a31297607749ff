import json
import tomllib
from pathlib import Path

import pytest

from lora_mnist.errors import UsageError
from lora_mnist.settings.config import load_config, resolve
from lora_mnist.settings.layers import overlay

DEFAULT = load_config("default")


def test_classic_is_the_published_recipe():
    settings = resolve([DEFAULT, load_config("classic")], "mnist")
    assert settings.model.hidden == (1000, 2000)
    assert settings.data.val_share == 0
    assert settings.pretrain.model_dump() == {
        "batch_size": 10,
        "learning_rate": 0.001,
        "optimizer": "adam",
        "schedule": "constant",
        "weight_decay": 0.0,
        "epochs": 1,
        "rare_digit": "none",
        "rare_share": 0.02,
    }
    assert settings.finetune.model_dump() == {
        "batch_size": 10,
        "learning_rate": 0.001,
        "optimizer": "adam",
        "schedule": "constant",
        "weight_decay": 0.0,
        "digit": 9,
        "rank": 1,
        "alpha": 1.0,
        "rank_pattern": None,
        "alpha_pattern": None,
        "full_learning_rate": 0.001,
        "rslora": False,
        "init": "gaussian",
        "dropout": 0.0,
        "targets": ("linear1", "linear2", "linear3"),
        "steps": 100,
        "focus": 1.0,
        "hard_examples": 0.0,
        "logit_adjustment": 0.0,
        "label_smoothing": 0.0,
        "shift": 0.0,
        "rotate": 0.0,
        "zoom": 0.0,
        "guard": "none",
        "name": None,
    }


def test_later_layers_win_and_digits_tables_count_on_digits_only():
    low = {"pretrain": {"epochs": 1}, "mnist-5k": {"pretrain": {"epochs": 30}}}
    high = {"finetune": {"rank": 2}}
    assert overlay([low, high], "mnist")["pretrain"]["epochs"] == 1
    assert overlay([low, high], "mnist-5k")["pretrain"]["epochs"] == 30
    assert overlay([low, {"pretrain": {"epochs": 5}}], "mnist-5k")["pretrain"]["epochs"] == 5
    assert low["pretrain"] == {"epochs": 1}


def test_settings_survive_being_stored():
    settings = resolve([DEFAULT], "mnist")
    stored = json.loads(json.dumps(settings.model_dump(mode="json")))
    assert resolve([DEFAULT, stored], "mnist") == settings


WRONG = {  # values by setting
    "finetune.digit": [10, True, "nine"],
    "finetune.rank": [0, True, "1", 1.0],
    "finetune.alpha": [0.0],
    "finetune.dropout": [1.0],
    "finetune.focus": [0.0, 1.5],
    "finetune.targets": [[], "linear1"],
    "finetune.name": ["../up", "", "base", "x" * 65],
    "finetune.steps": [10**9],
    "finetune.learning_rate": [-1.0, 0.0, float("inf"), float("nan")],
    "pretrain.epochs": [0, 10**6],
    "pretrain.optimizer": ["sgd"],
    "pretrain.schedule": ["linear"],
    "model.std": [0.0],
    "model.mean": [float("nan")],
    "model.hidden": [[0], [True]],
    "data.val_share": [0.9],
    "data.dataset": ["cifar"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_wrong_value_is_named_with_what_was_received(name, value):
    table, key = name.split(".")
    with pytest.raises(UsageError) as caught:
        resolve([DEFAULT, {table: {key: value}}], "mnist")
    assert f"`{name}" in str(caught.value)
    assert "must" in str(caught.value)


@pytest.mark.parametrize(
    "text", ["stepz = 1", "[finetune]\nstepz = 1", "[mnist-5k.finetune]\nstepz = 1", "mnist-5k = 3"]
)
def test_an_unknown_key_is_named_with_its_file(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"stepz|mnist-5k") as caught:
        load_config(str(path))
    assert "mine.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("rank = 3", "finetune.rank"),
        ("[finetune]\nlearning_rat = 0.1", "finetune.learning_rate"),
        ("[data]\nepochs = 3", "pretrain.epochs"),
        ('[finetune]\nguard = "error"', "errors"),
        ('[data]\ndataset = "mnist5k"', "mnist-5k"),
    ],
)
def test_what_was_meant_is_asked(tmp_path, text, meant):
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(UsageError, match=rf"Did you mean {meant}\?"):
        load_config(str(tmp_path / "mine.toml"))


def test_keys_may_be_spelled_as_the_options_are_but_once(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('[finetune]\nlearning-rate = 0.5\nuse_rslora = false\n[finetune.rank-pattern]\n"a-b" = 3\n')
    found = resolve([DEFAULT, load_config(str(path))], "mnist").finetune
    assert (found.learning_rate, found.rslora, found.rank_pattern) == (0.5, False, {"a-b": 3})
    path.write_text("[finetune]\nlr = 0.5\nlearning_rate = 0.1")
    with pytest.raises(UsageError, match="`learning_rate` is given twice"):
        load_config(str(path))


def test_a_byte_order_mark_is_no_error(tmp_path):
    (tmp_path / "bom.toml").write_bytes(b"\xef\xbb\xbfseed = 3\n")
    assert load_config(str(tmp_path / "bom.toml")) == {"seed": 3}


def test_a_missing_or_broken_file_is_one_sentence_each(tmp_path):
    with pytest.raises(UsageError, match="classic, default, rare, smoke"):
        load_config("nothere")
    (tmp_path / "broken.toml").write_text("a = ")
    with pytest.raises(UsageError, match="not TOML"):
        load_config(str(tmp_path / "broken.toml"))
    with pytest.raises(UsageError):
        load_config(str(tmp_path))


@pytest.mark.parametrize("name", ["default", "classic"])
def test_every_value_in_a_recipe_is_there_on_purpose(name):
    """A recipe spells out all settings but those of teaching, so that a change of the defaults cannot move it."""
    path = Path(__file__).parents[2] / "configs" / f"{name}.toml"
    document = tomllib.loads(path.read_text())
    settings = resolve([{"teach": load_config("default")["teach"]}, document], "mnist").model_dump(exclude_none=True)
    assert set(document) - {"mnist-5k"} | {"teach"} == set(settings)
    for table in ("data", "model", "pretrain", "finetune"):
        assert set(document[table]) == set(settings[table])
