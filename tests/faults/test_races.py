"""Two and three commands at once on one run: nothing is lost, and who is refused is told by whom."""

import json
import re
from dataclasses import dataclass

import pytest

from lora_mnist.runs.run import Run

from .processes import Ended, at_once, command
from .stages import ADAPTER, SMALL, TINY, VERIFY
from .tally import some
from .trees import is_whole, remains

APART = (0.0, 0.03)  # seconds between the beginnings: a round each
ROUNDS = 60  # at most, until two meet; each takes a third of a second
RACES = "two or three commands at once on one run"
HELD = r"is being written by (process \d+ \(`lora-mnist .*`\), since \d{4}-|another command)"
MEANWHILE = ("is finished already", "changed while it was read", "there is no finished base")


@dataclass(frozen=True)
class Race:
    """Commands that start together, each with a seed of its own if it trains, on a run in state `start`."""

    start: str
    lines: tuple[tuple[str, ...], ...]
    apart: float


def seeded(count: int, *words: str) -> tuple[tuple[str, ...], ...]:
    return tuple((*words, "--seed", str(i), "--json") for i in range(count))


PRETRAIN, FINETUNE = ("pretrain", *TINY), ("finetune", "--name", "z", *SMALL)
REPORT, MERGE = ("report", "--json"), ("merge", "--adapter", ADAPTER, "--json", *SMALL)
FULL, EXTRACT = ("finetune", "--full", "--json", *SMALL), ("extract", "--rank", "2", "--json", *SMALL)
AGAIN = ("pretrain", "--force", "--seed", "5", "--json", *SMALL)
STARTS = (
    ("nothing", seeded(2, *PRETRAIN)),
    ("nothing", seeded(3, *PRETRAIN)),
    ("pretrain", seeded(2, *FINETUNE)),
    ("pretrain", seeded(3, *FINETUNE)),
    ("nothing", 2 * (("run", *TINY, "--json"),)),
    ("nothing", 3 * (("run", *TINY, "--json"),)),
    ("finetune", (*seeded(1, *FINETUNE), REPORT)),
    ("finetune", (*seeded(1, *FINETUNE), REPORT, MERGE)),
    ("finetune", (MERGE, MERGE)),
    ("full after", ((*FULL, "--force"), EXTRACT, (*MERGE, "--force"))),
    ("run", (AGAIN, *seeded(1, *FINETUNE))),
    ("run", (AGAIN, VERIFY, VERIFY)),
)
EVERY = [Race(*start, apart) for apart in APART for start in STARTS]


def require_a_refusal(ended: Ended) -> None:
    assert ended.code == 4, ended
    message = json.loads(ended.out)["error"]["message"]
    missing = "There is no adapter" in message  # it is what another one was to make
    assert missing or re.search(HELD, message) or any(words in message for words in MEANWHILE), message


def require_there(run: Run, words: tuple[str, ...], ended: Ended) -> None:
    """What a command says it has made is what lies there, unless the base was made anew after it."""
    said = json.loads(ended.out)
    if words[0] == "pretrain":
        assert said["base_fingerprint"] == run.record.base_fingerprint
    elif words[0] in ("finetune", "extract"):
        place = run.checkpoint if "--full" in words else run.adapter
        assert place(said["name"]).finetune.seed == said["seed"]
        assert place(said["name"]).provenance.date == said["date"]
    elif words[0] == "merge":
        assert run.checkpoint(said["name"]).is_finished
    elif words[0] in ("report", "run"):
        assert is_whole(run.report)


def test_of_two_or_three_at_once_nothing_is_lost(states, tally):
    def survive(race: Race) -> None:
        with states.copy(race.start) as place:
            ended = at_once(*((*words, "--run", place) for words in race.lines), apart=race.apart)
            won = [(words, one) for words, one in zip(race.lines, ended, strict=True) if one.code == 0]
            assert won, ended
            run = Run(place)
            for words, one in zip(race.lines, ended, strict=True):
                if one.code != 0:
                    require_a_refusal(one)
                elif AGAIN not in race.lines or words == AGAIN:
                    require_there(run, words, one)
            targets = [words[: words.index("--seed") if "--seed" in words else None] for words, _ in won]
            once = [words for words in targets if words[0] not in ("run", "report", "verify")]
            assert len(once) == len(set(once)), "two say that they made the same"
            proved = command(*VERIFY, "--run", place)
            assert proved.code == 0, proved
            assert remains(place.parent) == []

    tally.attack(RACES, "races", some(EVERY, 3), survive)


@pytest.mark.parametrize("line", [PRETRAIN, FINETUNE], ids=lambda line: line[0])
def test_without_the_lock_something_is_lost(states, line):
    """So the test above can fail."""
    start = "nothing" if line is PRETRAIN else "pretrain"
    for _ in range(ROUNDS):
        with states.copy(start) as place:
            ended = at_once(*((*words, "--run", place) for words in seeded(2, *line)), unguarded=True)
            if any(one.code not in (0, 4) for one in ended):
                return  # one fell over what the other was doing
            won = [json.loads(one.out) for one in ended if one.code == 0]
            there = {"seed": Run(place).adapter("z").finetune.seed} if line is FINETUNE else {}
            found = there or {"base_fingerprint": Run(place).record.base_fingerprint}
            if len(won) > 1 and any(one[key] != value for one in won for key, value in found.items()):
                return
    pytest.fail(f"nothing was lost in {ROUNDS} rounds")
