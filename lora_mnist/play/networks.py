"""The base and all adapters of a run, in memory, and their predictions at any strength."""

import copy

import torch

from lora_mnist.datasets.preprocess import prepare
from lora_mnist.errors import AlteredError, DataError, RunError, UsageError
from lora_mnist.evaluation.metrics import require_finite
from lora_mnist.lora.model import switch
from lora_mnist.lora.peft import load_adapter
from lora_mnist.pipeline.workspace import Workspace, free_name
from lora_mnist.play.protocol import (
    AdapterInfo,
    AdapterSelection,
    Prediction,
    PredictRequest,
    PredictResponse,
    RunInfo,
    SearchRequest,
    rasterize,
)
from lora_mnist.runs.atomic import version_of
from lora_mnist.runs.run import Run
from lora_mnist.training.model import logits_of

SEARCH_BATCH = 250  # test images in one call of `search`; strokes are answered between two calls


class Networks:
    """The networks of one run. Not thread-safe: every call switches adapters on and off in the same model."""

    def __init__(self, work: Workspace):
        self.work = work
        self._base_wrong = work.logits_with(())["test"].argmax(1) != work.dataset.test.labels.cpu()  # bool (N,)
        self.test_count = len(self._base_wrong)
        self._versions: dict[str, tuple[int, int] | None] | None = None  # of the adapter folders that were loaded
        self.info()  # so that a damaged run is reported now

    def info(self) -> RunInfo:
        """The run as it is on disk now: its adapters are loaded again if another command saved or deleted one.

        A damaged one is listed, not loaded. Raises RunError if the base was replaced.
        """
        run = Run(self.work.run.path)
        if run.base.evaluation.base_fingerprint != self.work.fingerprint.sha256:
            raise RunError(f"{run.base.folder} was replaced by another command.", "Start the playground again.")
        versions = {saved.name: version_of(saved.folder) for saved in run.adapters()}
        if versions != self._versions:
            adapters, model = [], copy.deepcopy(self.work.base)  # a new one: an error half way leaves the old as it was
            for saved in map(run.adapter, versions):
                try:
                    run.require_adapter(saved.name)
                    load_adapter(saved.file(""), model, saved.name, self.work.fingerprint)
                    record = saved.finetune
                    content = f"{record.lesson.count} drawings" if record.lesson else f"digit {record.digit}"
                    summary = f"{content}, rank {record.rank}"
                    adapters.append(AdapterInfo(name=saved.name, summary=summary, on_top_of=record.on_top_of))
                except RunError as error:
                    problem = error.cause if isinstance(error, AlteredError) else str(error)
                    adapters.append(AdapterInfo(name=saved.name, problem=problem))
            self._model, self._adapters, self._versions = model, tuple(adapters), versions
        return RunInfo(
            run=str(run.path),
            dataset=self.work.dataset.name,
            test=self.test_count,
            base_errors=int(self._base_wrong.sum()),
            rare=str(run.record.rare) if run.record.rare else None,
            adapters=self._adapters,
            taught=free_name("taught", {one.name for one in self._adapters}),
        )

    def predict(self, request: PredictRequest) -> PredictResponse:
        """What the base and, if any adapter is on, the adapted network predict for a drawing or a test image.

        Raises:
            UsageError: there is no such test image, or the logits are not finite.
            LoRAError: there is no such adapter.
        """
        test, index, label = self.work.dataset.test, request.index, None
        if index is not None:
            if index >= self.test_count:
                raise UsageError(f"There is no test image {index}.", f"They go from 0 to {self.test_count - 1}.")
            image, label = test.images[index], int(test.labels[index])
        else:
            try:
                pixels = prepare(rasterize(request.strokes or ()))
            except DataError as error:  # a blank canvas, or several digits: normal while somebody draws
                return PredictResponse(problem=error.cause)
            image = torch.from_numpy(pixels).to(self.work.device)

        def predicted(selection: AdapterSelection) -> Prediction:
            logits = self._logits(image[None], selection)  # (28, 28) -> (1, 10)
            shares = logits[0].double().softmax(0).tolist()
            return Prediction(digit=int(logits.argmax()), probabilities=tuple(round(share, 5) for share in shares))

        return PredictResponse(
            pixels=image.cpu().numpy().tobytes(),
            index=index,
            label=label,
            base=predicted(AdapterSelection()),
            adapted=predicted(request) if request.adapters else None,
        )

    def search(self, request: SearchRequest, start: int) -> int | None:
        """The first match among `SEARCH_BATCH` test images, from the `start`-th after `request.after`."""
        stop = min(start + SEARCH_BATCH, self.test_count)
        indices = (torch.arange(start, stop) + request.after + 1) % self.test_count
        matches = self._base_wrong[indices]
        if request.which == "adapters-break":
            test, chosen = self.work.dataset.test, indices.to(self.work.device)
            matches = ~matches & (self._logits(test.images[chosen], request).argmax(1) != test.labels[chosen].cpu())
        found = indices[matches]
        return int(found[0]) if len(found) else None

    def _logits(self, images: torch.Tensor, selection: AdapterSelection) -> torch.Tensor:
        """(N, 28, 28) -> (N, 10)."""
        switch(self._model, dict.fromkeys(selection.adapters, selection.strength))
        logits = logits_of(self._model, images)
        require_finite({"it": logits}, "Choose a smaller strength.")
        return logits
