"""A rare digit: pretraining sees a share of it, everything else sees all, and the record is right about both."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from lora_mnist.datasets.dataset import load
from lora_mnist.errors import AlteredError, DataError, UsageError
from lora_mnist.pipeline.pretrain import pretrain
from lora_mnist.pipeline.verify import verify
from lora_mnist.pipeline.workspace import open_workspace
from lora_mnist.runs.run import Run
from lora_mnist.settings.layers import overlay
from lora_mnist.settings.request import Request
from lora_mnist.training.train import finetuning_data, least_confidence, train_base

from ..conftest import rehash, smoke

RARE = {"rare_digit": 9, "rare_share": 0.02}


def test_a_base_is_one_that_never_got_the_images_that_are_left_out(tmp_path):
    work, found = pretrain(smoke(tmp_path, pretrain=RARE))
    assert (found.rare.digit, found.rare.seen, found.rare.images) == (9, 6, 300)
    assert str(found.rare) == "saw 6 of 300 9s"
    train = work.dataset.train
    nines = (train.labels == 9).nonzero()[:, 0]
    kept = nines[torch.randperm(300, generator=torch.Generator().manual_seed(0))[:6]]  # seed of the split
    seen = torch.cat([(train.labels != 9).nonzero()[:, 0], kept]).sort().values
    thin = replace(train, images=train.images[seen], labels=train.labels[seen])
    balanced = work.settings.model_copy(
        update={"pretrain": Run(tmp_path).record.settings.pretrain.model_copy(update={"rare_digit": "none"})}
    )
    again, _ = train_base(balanced, replace(work.dataset, train=thin), work.device)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), work.base.parameters(), strict=True))


def test_val_and_test_and_fine_tuning_see_all_of_it(tmp_path):
    work, _ = pretrain(smoke(tmp_path, pretrain=RARE))
    plain = load("mnist-5k", tmp_path, 0.25, 0)
    for split in ("train", "val", "test"):
        assert torch.equal(getattr(work.dataset, split).images, getattr(plain, split).images)
    recipe = work.settings.finetune.model_copy(update={"steps": 400, "focus": 1.0})
    data = finetuning_data(
        9,
        work.settings.model_copy(update={"finetune": recipe}),
        work.dataset,
        least_confidence(work.base, plain.train.images),
    )
    assert len(data.batches.unique()) > 290  # of 300


def test_what_the_record_counts_is_checked(tmp_path):
    pretrain(smoke(tmp_path, pretrain=RARE))
    assert verify(Request(run=tmp_path)).passed
    record = tmp_path / "base" / "run.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"rare": {"digit": 9, "seen": 7, "images": 300}}))
    rehash(tmp_path / "base")
    with pytest.raises(AlteredError, match="rare digit"):
        open_workspace(Request(run=tmp_path))


def test_a_balanced_base_records_none(finished_run):
    assert "rare" not in json.loads((finished_run / "base" / "run.json").read_text())


@pytest.mark.parametrize(
    "setting",
    [{"rare_digit": 10}, {"rare_digit": True}, {"rare_digit": "nine"}, {"rare_share": 0.0}, {"rare_share": 2.0}],
)
def test_bad_values_are_refused_by_name(tmp_path, setting):
    with pytest.raises(UsageError, match=rf"`pretrain\.{next(iter(setting))}`"):
        pretrain(smoke(tmp_path, pretrain=setting))


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("9", {"rare_digit": 9}),
        ("9:0.05", {"rare_digit": 9, "rare_share": 0.05}),
        ("none", {"rare_digit": "none"}),
    ],
)
def test_how_it_is_asked_for(text, asked):
    from lora_mnist.cli.options import Base

    assert overlay([Base(rare=text).settings()], "mnist")["pretrain"] == asked
    assert overlay([{"pretrain": {"rare": text}}], "mnist")["pretrain"] == asked  # in a config likewise


def test_the_command_line_says_what_the_base_saw(cli, tmp_path):
    code, out, _ = cli("pretrain", "--config", "smoke", "--dataset", "mnist-5k", "--rare", "9", "--run", tmp_path / "r")
    assert code == 0
    assert "saw 9 of 300 9s" in " ".join(out.split())
    for wrong in ("9:", "9:x", "ten:0.1", "12"):
        code, _, err = cli("pretrain", "--rare", wrong, "--run", tmp_path / "s")
        assert (code, "rare" in err) == (2, True)


def test_a_run_remembers_where_its_data_lay(mnist, tmp_path, monkeypatch):
    monkeypatch.delenv("LORA_MNIST_DATA", raising=False)
    monkeypatch.chdir(tmp_path)  # where there is no data/
    mine = {"data": {"dataset": "mnist"}, "model": {"hidden": [8]}, "finetune": {"steps": 2}}
    pretrain(Request(run=tmp_path / "r", data=mnist, config="smoke", options=mine))
    assert Run(tmp_path / "r").base.provenance.data == str(mnist.absolute())
    assert open_workspace(Request(run=tmp_path / "r", offline=True)).dataset.name == "mnist"
    with pytest.raises(DataError, match="elsewhere"):  # what is said wins
        open_workspace(Request(run=tmp_path / "r", data=tmp_path / "elsewhere", offline=True))


def test_an_adapter_that_the_guard_refuses_ends_with_a_code_of_its_own(cli, finished_run, tmp_path):
    harsh = ("--learning-rate", 3, "--steps", 30, "--name", "harsh")
    run = shutil.copytree(finished_run, tmp_path / "r")
    assert cli("finetune", "--run", run, "--guard", "errors", *harsh)[0] == 7
    assert cli("finetune", "--run", run, "--guard", "none", *harsh)[0] == 0
