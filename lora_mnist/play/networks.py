"""The base and every adapter of a run in memory, and what they see."""

import copy
import dataclasses

import torch

from lora_mnist.datasets.preprocess import prepare
from lora_mnist.errors import AlteredError, DataError, RunError, UsageError
from lora_mnist.evaluation.metrics import logits_of, require_finite
from lora_mnist.lora.model import switch
from lora_mnist.lora.peft import load_adapter
from lora_mnist.pipeline.workspace import Workspace
from lora_mnist.play.protocol import AdapterFacts, Answer, Choice, Question, RunFacts, Search, Sight
from lora_mnist.play.strokes import draw
from lora_mnist.runs.artifact import Artifact
from lora_mnist.runs.atomic import version_of
from lora_mnist.runs.run import Run
from lora_mnist.runs.schemas import FinetuneRecord

BLOCK = 250  # test images between two looks at what else was asked


class Networks:
    """Of one run. Used by one thread at a time."""

    def __init__(self, work: Workspace):
        self.work = work
        self._loaded: dict[str, tuple[int, int] | None] = {}  # what stood there of each adapter when it was read
        self._adapters: tuple[AdapterFacts, ...] = ()
        self._model = copy.deepcopy(work.base)
        test = work.dataset.test
        self._base_wrong = work.logits_of_stack(())["test"].argmax(1) != test.labels.cpu()  # bool (N,)

    @property
    def test_images(self) -> int:
        """How many there are."""
        return len(self._base_wrong)

    def facts(self) -> RunFacts:
        """The run as it lies on the disk now.

        Raises:
            RunError: its base is another one now.
        """
        self._look_again()
        run = self.work.run
        return RunFacts(
            run=str(run.path),
            dataset=self.work.dataset.name,
            test=self.test_images,
            base_errors=int(self._base_wrong.sum()),
            adapters=self._adapters,
            taught=_free_name({one.name for one in self._adapters}),
        )

    def answer(self, question: Question) -> Answer:
        """What base and adapters see in a drawing or a test image.

        Raises:
            UsageError: there is no such test image, or the logits are not finite.
            LoRAError: there is no such adapter.
        """
        if question.strokes is None:
            assert question.index is not None  # it is one or the other
            return self._of_test_image(question.index, question)
        try:
            pixels = prepare(draw(question.strokes), self.work.dataset.name)
        except DataError as error:  # a blank canvas, or several digits, is nothing wrong while one draws
            return Answer(problem=error.cause)
        image = torch.from_numpy(pixels).to(self.work.device)
        return self._sights(Answer(pixels=pixels.tobytes()), image, question)

    def find(self, search: Search, start: int) -> int | None:
        """The first test image that is searched for among `BLOCK` from the `start`-th after `search.after`."""
        count = self.test_images
        indices = (torch.arange(start, min(start + BLOCK, count)) + search.after + 1) % count
        wrong = self._base_wrong[indices]
        if search.which == "adapters-break":
            test = self.work.dataset.test
            chosen = indices.to(self.work.device)
            adapted = self._logits(test.images[chosen], search).argmax(1)
            wrong = ~wrong & (adapted != test.labels[chosen].cpu())
        found = indices[wrong]
        return int(found[0]) if len(found) else None

    def _of_test_image(self, index: int, choice: Choice) -> Answer:
        test = self.work.dataset.test
        if index >= len(test):
            raise UsageError(f"There is no test image {index}.", f"They go from 0 to {len(test) - 1}.")
        image = test.images[index]
        shown = Answer(pixels=image.cpu().numpy().tobytes(), index=index, label=int(test.labels[index]))
        return self._sights(shown, image, choice)

    def _sights(self, answer: Answer, image: torch.Tensor, choice: Choice) -> Answer:
        """`answer` with what the base and, if any adapter is on, the adapted network see in an image (28, 28)."""
        base = _sight(self._logits(image[None], Choice()))
        adapted = _sight(self._logits(image[None], choice)) if choice.adapters else None
        return answer.model_copy(update={"base": base, "adapted": adapted})

    def _logits(self, images: torch.Tensor, choice: Choice) -> torch.Tensor:
        """(N, 10)."""
        switch(self._model, dict.fromkeys(choice.adapters, choice.strength))
        logits = logits_of(self._model, images)
        require_finite({"it": logits}, "Choose a smaller strength.")
        return logits

    def _look_again(self) -> None:
        """Read the adapters anew if there are others than before."""
        run = Run(self.work.run.path)
        if run.base.evaluation.base_fingerprint != self.work.fingerprint.sha256:
            raise RunError(f"{run.base.folder} was replaced by another command.", "Start the playground again.")
        there = {saved.name: version_of(saved.folder) for saved in run.adapters()}
        if there == self._loaded:
            return
        work = dataclasses.replace(self.work, run=run)
        model = copy.deepcopy(work.base)
        adapters = tuple(_load(run.adapter(name), work, model) for name in there)
        self.work, self._model, self._adapters, self._loaded = work, model, adapters, there


def _load(saved: Artifact, work: Workspace, model: torch.nn.Module) -> AdapterFacts:
    """Put an adapter into `model`, if it is as it was saved."""
    try:
        work.run.require_adapter(saved.name)
        load_adapter(saved.file(""), model, saved.name, work.fingerprint)
        record = saved.finetune
    except RunError as error:
        return AdapterFacts(name=saved.name, problem=error.cause if isinstance(error, AlteredError) else str(error))
    return AdapterFacts(name=saved.name, summary=_summary(record), on_top_of=record.on_top_of)


def _summary(record: FinetuneRecord) -> str:
    made_for = f"{record.lesson.count} drawings" if record.lesson else f"digit {record.digit}"
    return f"{made_for}, rank {record.rank}"


def _sight(logits: torch.Tensor) -> Sight:
    """Of one image's logits (1, 10)."""
    shares = logits[0].double().softmax(0)
    return Sight(digit=int(shares.argmax()), probabilities=tuple(round(float(one), 5) for one in shares))


def _free_name(taken: set[str]) -> str:
    """`taught`, with the first number that makes it new."""
    names = ("taught", *(f"taught-{i}" for i in range(2, len(taken) + 3)))
    return next(name for name in names if name not in taken)
