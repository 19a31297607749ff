"""Lessons on the embedded digits: what is trained on what, what it costs, what is kept, and what is noticed later."""

import importlib
import pickle
import shutil

import pytest
import torch

from lora_mnist.datasets.drawings import Drawings
from lora_mnist.errors import AlteredError, RunError, UsageError
from lora_mnist.pipeline import Applied, Request, evaluate, finetune, open_workspace, pretrain, verify
from lora_mnist.pipeline.convert import merge
from lora_mnist.pipeline.teach import folds_of, keep, teach, teach_and_keep
from lora_mnist.report.page import write_report
from lora_mnist.runs.listing import list_adapters
from lora_mnist.runs.run import Run
from lora_mnist.training import train as recipe
from lora_mnist.training.model import logits_of, normalise

from ..conftest import drawings_of, edited, smoke, snapshot


def turned(each=3, split="val"):
    """A hand that the base does not know: every drawing lies on its side."""
    upright = drawings_of("mnist-5k", each, split)
    return Drawings(upright.images.rot90(1, (1, 2)).contiguous(), upright.labels)


def opened(path, force=False, **asked):
    return open_workspace(Request(run=path, options={"teach": {"steps": 60, **asked}}, force=force))


@pytest.fixture(scope="session")
def kept_run(finished_run, tmp_path_factory):
    """`finished_run` with a lesson kept; never changed."""
    path = shutil.copytree(finished_run, tmp_path_factory.mktemp("kept") / "run")
    work = opened(path)
    keep(work, teach(work, turned()))
    return path


@pytest.fixture
def kept_copy(kept_run, tmp_path):
    return shutil.copytree(kept_run, tmp_path / "run")


# The lesson -----------------------------------------------------------------------------------------------------------


def test_a_lesson_writes_nothing_and_says_what_it_gained_and_cost(run_copy):
    before, work, drawings = snapshot(run_copy), opened(run_copy), turned()
    taught = teach(work, drawings)
    assert snapshot(run_copy) == before
    lesson, adapted = taught.lesson, taught.on(work.base)

    def right(model):  # by hand, image by image
        answers = [int(model(normalise(image[None])).argmax()) for image in drawings.images]
        return sum(answer == label for answer, label in zip(answers, drawings.labels.tolist(), strict=True))

    assert (lesson.before, lesson.after) == (right(work.base), right(adapted))
    assert lesson.after > lesson.before
    assert lesson.unseen.images == lesson.count == 30
    val = work.dataset.val
    wrong = [logits_of(model, val.images).argmax(1) != val.labels for model in (work.base, adapted)]
    assert (lesson.val.before, lesson.val.after) == tuple(int(part.sum()) for part in wrong)
    by_digit = [int((wrong[1] & (val.labels == d)).sum() - (wrong[0] & (val.labels == d)).sum()) for d in range(10)]
    assert [b - f for f, b in zip(lesson.val.fixed, lesson.val.broken, strict=True)] == by_digit


def test_no_drawing_is_judged_by_an_adapter_that_has_seen_it(run_copy, monkeypatch):
    seen, adapters = [], []
    honest = recipe.train_on_drawings

    def watched(base, name, drawings, *rest):
        seen.append({image.numpy().tobytes() for image in drawings.images})
        adapted, history = honest(base, name, drawings, *rest)
        adapters.append(adapted)
        return adapted, history

    monkeypatch.setattr(importlib.import_module("lora_mnist.pipeline.teach"), "train_on_drawings", watched)
    drawings = turned()
    lesson = teach(opened(run_copy), drawings).lesson
    right = []
    for image, label in zip(drawings.images, drawings.labels.tolist(), strict=True):
        assert image.numpy().tobytes() in seen[0]  # of the adapter itself
        (judge,) = [i for i in range(1, len(seen)) if image.numpy().tobytes() not in seen[i]]
        right.append(int(adapters[judge](normalise(image[None])).argmax()) == label)
    assert lesson.unseen.after == sum(right)


def test_every_part_has_as_many_of_each_digit_and_the_same_drawing_twice_is_in_one_part():
    drawings = turned()
    twice = Drawings(drawings.images.repeat(2, 1, 1), drawings.labels.repeat(2))
    for part in folds_of(twice, 3):
        assert torch.equal(part[:30], part[30:])
        assert torch.bincount(twice.labels[part], minlength=10).tolist() == [2] * 10


def test_too_few_drawings_are_judged_by_nobody_else(run_copy):
    few = Drawings(turned().images[:5], turned().labels[:5])
    steps = []
    lesson = teach(opened(run_copy), few, steps.append).lesson
    assert lesson.unseen is None
    assert "all seen in training" in lesson.verdict.words
    assert (steps[-1].step, steps[-1].steps) == (60, 60)


def test_the_digit_it_is_judged_by_is_the_one_with_most_drawings_wrong(run_copy):
    work, drawings = opened(run_copy), turned()
    wrong = logits_of(work.base, drawings.images).argmax(1) != drawings.labels
    most = torch.bincount(drawings.labels[wrong], minlength=10)
    assert most[teach(work, drawings).digit] == most.max()


def test_the_order_of_the_drawings_changes_nothing(run_copy):
    drawings = turned()
    order = torch.cat([torch.arange(30)[part::3] for part in range(3)])  # each digit's own order is as it was
    mixed = Drawings(drawings.images[order], drawings.labels[order])
    one, other = (teach(opened(run_copy), hand) for hand in (drawings, mixed))
    assert one.lesson == other.lesson
    for path, weights in one.weights.items():
        assert all(torch.equal(weights[part], other.weights[path][part]) for part in ("lora_A", "lora_B"))


def test_a_lesson_is_reported_step_by_step_and_ends_when_the_listener_raises(run_copy):
    steps, before = [], snapshot(run_copy)
    teach(opened(run_copy), turned(), steps.append)
    assert [one.step for one in steps] == list(range(1, 151))  # one adapter, and three that judge, half as long
    assert {one.steps for one in steps} == {150}
    assert steps[-1].loss < steps[0].loss

    def cancel(step):
        if step.step == 70:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        teach(opened(run_copy), turned(), cancel)
    assert snapshot(run_copy) == before


def test_a_guard_needs_val(tmp_path):
    pretrain(smoke(tmp_path, data={"dataset": "mnist-5k", "val_share": 0.0}))
    with pytest.raises(UsageError, match="--guard none"):
        teach(opened(tmp_path, guard="every-digit"), turned())
    lesson = teach(opened(tmp_path), turned()).lesson
    assert (lesson.val, lesson.verdict.side_effects) == (None, "")


# The guard ------------------------------------------------------------------------------------------------------------


def test_the_guard_takes_the_strongest_that_it_allows(run_copy):
    work = opened(run_copy, guard="errors", steps=150)
    taught = teach(work, turned())
    guard = taught.guard
    *refused, taken = guard.tried
    assert all(one.errors > guard.before.errors for one in refused)
    assert taken.errors <= guard.before.errors
    assert taken.scale == guard.scale == taught.lesson.scale
    assert taught.lesson.val.after == taken.errors


def test_what_the_guard_refuses_is_not_kept(run_copy):
    work, before = opened(run_copy, guard="errors", learning_rate=0.3, share=1.0), snapshot(run_copy)
    result = teach_and_keep(work, turned())
    assert (result.kept, result.folder, result.lesson.scale) == (False, None, None)
    assert result.verdict.kind == "no scale"
    with pytest.raises(UsageError, match="--guard none"):
        keep(work, teach(work, turned()))
    assert snapshot(run_copy) == before


# What is kept ---------------------------------------------------------------------------------------------------------


def test_what_is_kept_is_an_adapter_like_any_other(kept_run, kept_copy):
    assert verify(Request(run=kept_run)).passed
    saved = Run(kept_run).require_adapter("taught")
    assert (saved.finetune.method, saved.finetune.name, saved.finetune.settings.name) == ("taught", "taught", "taught")
    assert saved.finetune.proof.passed
    drawn = [torch.from_numpy(image) for _, image in saved.labelled_drawings()]
    assert torch.equal(torch.stack(drawn), turned().images)
    work = open_workspace(Request(run=kept_copy))
    assert evaluate(work, [Applied("taught")]) == saved.evaluation
    assert merge(work, [Applied("taught")]).evaluation.splits == saved.evaluation.splits
    line = next(one for one in list_adapters(Run(kept_run)).adapters if one.name == "taught")
    assert (line.method, line.drawings, line.digit) == ("taught", 30, None)  # it was taught all digits
    on_top = finetune(open_workspace(Request(run=kept_copy, options={"finetune": {"digit": 3}})), ["taught"])
    assert on_top.record.on_top_of == ("taught",)


def test_what_was_taught_is_kept_to_the_last_bit_also_by_another_process(kept_run, run_copy):
    work = opened(run_copy)
    keep(work, pickle.loads(pickle.dumps(teach(work, turned()))), "mine")
    one, other = (Run(path).adapter(name) for path, name in ((kept_run, "taught"), (run_copy, "mine")))
    assert one.hashes[one.weights] == other.hashes[other.weights]
    assert one.finetune.lesson == other.finetune.lesson


def test_a_name_is_the_first_that_is_free_or_the_one_asked_for(run_copy):
    work = opened(run_copy)
    taught = teach(work, turned())
    folders = [keep(work, taught, name) for name in (None, None, "mine", None)]
    assert [folder.name for folder in folders] == ["taught", "taught-2", "mine", "taught-3"]
    with pytest.raises(RunError, match="finished already"):
        keep(work, taught, "mine")
    for name in ("../mine", "", "base", "a" * 65):
        with pytest.raises(UsageError, match="name"):
            keep(work, taught, name)
    forced = opened(run_copy, force=True, steps=1)
    assert keep(forced, teach(forced, turned())).name == "taught"
    assert Run(run_copy).adapter("taught").finetune.settings.steps == 1


def test_a_lesson_is_kept_on_its_own_base_only(run_copy):
    taught = teach(opened(run_copy), turned())
    pretrain(Request(run=run_copy, options={"seed": 1}, force=True))
    with pytest.raises(RunError, match="another base"):
        keep(opened(run_copy), taught)


def test_the_report_shows_the_drawings_and_what_they_cost(kept_copy):
    page = write_report(Run(kept_copy)).read_text()
    lesson = Run(kept_copy).adapter("taught").finetune.lesson
    assert page.count('alt="A drawing of a 7"') == 3
    assert lesson.verdict.words.partition(":")[0] in page
    assert "lora-mnist teach ../adapters/taught/drawings" in page


def forge(path, change):
    """Rewrite finetune.json, and the manifest with it: what `verify` then says."""
    with edited(path / "adapters" / "taught" / "finetune.json") as document:
        change(document)
    return " ".join(verify(Request(run=path)).failures)


def test_a_lesson_that_contradicts_itself_or_is_missing_is_noticed(kept_copy):
    failures = forge(kept_copy, lambda record: record["lesson"]["unseen"].update(after=30))
    assert "must test every drawing once" in failures
    assert "lesson" in forge(kept_copy, lambda record: record.pop("lesson"))
    with pytest.raises(AlteredError, match="lesson"):
        _ = Run(kept_copy).adapter("taught").finetune
