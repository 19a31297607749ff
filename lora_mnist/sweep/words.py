"""The sentences of an answer."""

from lora_mnist.sweep.answer import Answer, Enough, Estimate, Metric, spelled

_RULE = "Enough is the smallest that is not worse than the best by more than chance (paired t-test over seeds)."
ONE_SEED = "One seed does not say which is enough: how sure it is comes from several."
METRIC_NAMES: dict[Metric, str] = {"missed": "missed", "false_alarms": "false alarms", "errors": "all errors"}


def sentences(answer: Answer) -> list[str]:
    """What is enough, of every digit and then of all together."""
    if all(one.enough is None and one.helps is None for one in answer.enough):
        return [ONE_SEED]
    return [sentence(one) for one in answer.enough]


def rule(answer: Answer) -> str:
    """How it was found out, if something was."""
    return _RULE if any(one.enough is not None for one in answer.enough) else ""


def sentence(one: Enough) -> str:
    """What is enough for one digit, or for all."""
    whom = "all digits together" if one.digit is None else f"the {one.digit}"
    if one.among == 1:
        if one.helps is None:
            return f"There are too few seeds to say whether {one.best} is better than the base for {whom}."
        better = "better" if one.helps else "not better"
        return f"{capital(one.best)} is {better} than the base for {whom} by more than chance."
    if one.enough is None:
        return f"For {whom}, {one.best} is best; there are too few seeds to say what is enough."
    if one.helps is False:
        return f"None is better than the base for {whom} by more than chance; {one.best} comes nearest."
    best = "" if one.enough == one.best else f"; {one.best} is best, by what may be chance"
    if one.next_smaller is None or one.p is None or one.worse is None:
        smallest = ", the smallest," if one.smallest else ""
        return f"{capital(one.enough)}{smallest} is enough for {whom}{best}."
    p = f"p = {one.p:.2g}" if one.p >= 1e-4 else "p < 0.0001"
    return f"{capital(one.enough)} is enough for {whom}; {one.next_smaller} is not: {one.worse:.1f} more ({p})."


def capital(text: str) -> str:
    """With a capital at its beginning, as a sentence has."""
    return text[:1].upper() + text[1:]


def scope(answer: Answer) -> str:
    """Of what the means are."""
    digits = f"{len(answer.digits)} digit{'s' if len(answer.digits) > 1 else ''}"
    seeds = f"{len(answer.seeds)} seed{'s' if len(answer.seeds) > 1 else ''}"
    return f"{images(answer)}: means over {digits} and {seeds}"


def images(answer: Answer) -> str:
    """On which it is counted."""
    return f"{answer.split}, held out of the training images" if answer.held_out else answer.split


def title(answer: Answer) -> str:
    """The question that is answered."""
    names = [one.name for one in answer.variants if one.by is not None]
    return f"What does {names[0]} do?" if len(names) == 1 else f"Which {spelled(answer.by)} is enough?"


def estimate(one: Estimate) -> str:
    """Mean and half its interval."""
    return f"{one.mean:.1f}" + ("" if one.half is None else f" ± {one.half:.1f}")


def points(one: Estimate) -> str:
    """A change of an error rate, with its sign."""
    text = f"{one.mean:+.2f}" + ("" if one.half is None else f" ± {one.half:.2f}")
    return text.replace("-", "−")
