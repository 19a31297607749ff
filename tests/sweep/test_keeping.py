import shutil

import pytest

from lora_mnist.errors import ProofError, RunError, UsageError
from lora_mnist.pipeline import VerifyResult, open_workspace, verify_workspace
from lora_mnist.pipeline.verify import BaseCheck
from lora_mnist.settings.request import Request
from lora_mnist.sweep import keeping
from lora_mnist.sweep.keeping import chosen, keep
from lora_mnist.sweep.rows import Store
from lora_mnist.sweep.sweeping import engine_of, sweep
from tests.sweep.grids import asked


@pytest.fixture(scope="module")
def swept(small, tmp_path_factory):
    """What was asked, and what it came to."""
    folder = tmp_path_factory.mktemp("keep")
    shutil.copytree(small[0] / "bases", folder / "bases")
    wanted = asked(folder, settings=["finetune.guard=none"])
    return wanted, sweep(wanted, engine_of("stacked", 1))


def test_the_best_on_val_becomes_an_adapter_of_its_run(swept):
    wanted, found = swept
    row = chosen("best", found.rows, Store(wanted.out))
    assert row.after["val"].errors == min(one.after["val"].errors for one in found.rows)
    kept = keep(wanted, row)
    assert kept.found == kept.told
    work = open_workspace(Request(run=wanted.out / "bases" / kept.run.split("/")[-1]))
    saved = work.run.require_adapter(kept.name).finetune
    assert (saved.digit, saved.settings.rank, saved.seed) == (row.digit, row.rank, row.seed)
    assert verify_workspace(work).passed
    assert keep(wanted, row) == kept  # it is there already


def test_a_proof_that_fails_is_an_error(swept, monkeypatch):
    wanted, found = swept
    failed = VerifyResult(passed=False, failures=("off",), base=BaseCheck(passed=True), adapters=(), checkpoints=())
    monkeypatch.setattr(keeping, "verify_workspace", lambda work, names: failed)
    with pytest.raises(ProofError, match="off"):
        keep(wanted, found.rows[0])


def test_a_row_is_named_by_its_key_or_how_it_begins(swept):
    wanted, found = swept
    store = Store(wanted.out)
    assert chosen(found.rows[3].key, (), store) == found.rows[3]
    assert chosen(found.rows[3].key[:10], (), store) == found.rows[3]
    for wrong in ("", "zzz"):
        with pytest.raises(UsageError, match=r"key of \d+ rows"):
            chosen(wrong, found.rows, store)


def test_what_has_no_adapter_cannot_be_kept(swept):
    wanted, found = swept
    with pytest.raises(UsageError, match="met its guard"):
        chosen("best", [row.model_copy(update={"strength": None}) for row in found.rows], Store(wanted.out))
    store = Store(wanted.out)
    store.rows = {"full": found.rows[0].model_copy(update={"key": "full", "method": "full"})}
    with pytest.raises(UsageError, match="no adapter to keep"):
        chosen("full", (), store)


def test_a_base_that_is_gone_is_said(swept):
    wanted, found = swept
    with pytest.raises(RunError, match=r"not in .* any more"):
        keep(wanted, found.rows[0].model_copy(update={"base": "gone"}))
