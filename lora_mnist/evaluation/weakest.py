"""How weak the weakest digit is, and how sure it is that no other digit is weaker."""

from lora_mnist.evaluation.results import ImageCount, SplitResult
from lora_mnist.evaluation.significance import LEVEL, fisher, wilson
from lora_mnist.settings.strict import Digit, Document, Many


class Weakest(Document):
    """The digit with the highest error rate on `val`, and the digits that may be weaker in truth.

    Attributes:
        digit, wrong, images: so many of its images are wrong.
        low, high: Wilson's 95 % interval of their share.
        rivals: digits that cannot be told apart from it. It and they hold the digit with truly the highest error rate,
            with at least 95 % confidence.

    Which digits they are is S. S. Gupta's subset selection (1965, "On some multiple decision (selection and ranking)
    rules"): those that are not better by more than chance. Every other digit has other images, so each is asked by
    Fisher's exact test, one-sided, at `LEVEL` divided by their number (Bonferroni). That is enough although the weakest
    was picked after looking: the truly weakest digit is lost only if its own test fails, against one of the others.
    """

    digit: Digit
    wrong: ImageCount
    images: ImageCount
    low: float
    high: float
    rivals: Many[Digit]


def how_sure(digit: int, val: SplitResult) -> Weakest:
    """What `val` says of `digit`, the weakest on it. Digits without images are no rivals."""
    wrong, images = val.wrong, val.images
    others = [other for other in range(10) if other != digit and images[other]]
    level = LEVEL / max(1, len(others))
    rivals = [o for o in others if fisher(wrong[digit], images[digit], wrong[o], images[o]) > level]
    rivals.sort(key=lambda other: -wrong[other] / images[other])
    low, high = wilson(wrong[digit], images[digit])
    return Weakest(digit=digit, wrong=wrong[digit], images=images[digit], low=low, high=high, rivals=tuple(rivals))
