"""The images that a repair changed: which were fixed, which were broken, and how sure the network was of each."""

from typing import Any

import torch

MOST = 24  # of either kind


def changed_images(before: torch.Tensor, after: torch.Tensor, labels: torch.Tensor) -> list[dict[str, Any]]:
    """The fixed and then the broken images, those first whose true digit's probability changed most; `MOST` of each.

    Args:
        before, after: logits (N, 10).
        labels: int64 (N,).

    Returns:
        For each its `index` among the N, `kind` (`fixed` or `broken`), `label`, and `before` and `after` the
        `prediction` and the `probability` (softmax) of the true digit.
    """
    index = torch.arange(len(labels))
    predictions = [logits.argmax(1) for logits in (before, after)]
    probabilities = [logits.double().softmax(1)[index, labels] for logits in (before, after)]
    right_before, right_after = (prediction == labels for prediction in predictions)
    swing = probabilities[1] - probabilities[0]
    rows = []
    for kind, chosen in (("fixed", ~right_before & right_after), ("broken", right_before & ~right_after)):
        places = index[chosen]
        for i in places[swing[chosen].abs().sort(descending=True, stable=True).indices][:MOST].tolist():
            row = {"index": i, "kind": kind, "label": int(labels[i])}
            for when, prediction, probability in zip(("before", "after"), predictions, probabilities, strict=True):
                row[when] = {"prediction": int(prediction[i]), "probability": float(probability[i])}
            rows.append(row)
    return rows
