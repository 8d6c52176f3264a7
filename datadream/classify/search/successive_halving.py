"""Choose knobs of training by validation accuracy: synchronous successive halving, and its records in a run's folder.

Every combination is trained for a few steps; the best third goes on with three times the steps, and so on, until the
steps are those of the final training (Jamieson & Talwalkar, AISTATS 2016). There the config's own knobs compete in any
case: with few shots a short training can favour what overfits in a long one, and a search should not choose worse than
no search. ASHA gives up a trial when it is worse than those that happen to be done; here a rung waits for all of its
trials, so that the choice depends on neither their order nor the workers. A trial begins anew in each rung: its
warm-up and cosine fit the rung's steps, so that what is compared are finished trainings, and a rung of a third of the
steps costs a third of the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

from datadream.classify.schedule import Schedule
from datadream.config import ClassifyConfig, Setting
from datadream.run.layout import SearchRecord, TrialRecord, search_marker, trial_marker
from datadream.run.store import RunStore

OWN = 0
"""Index of the config's own values among the candidates; ties go to it."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One combination in one rung."""

    setting: Setting
    number: int
    """Place among the candidates."""
    knobs: dict[str, float]
    """What is under trial."""
    steps: int

    @property
    def marker(self) -> str:
        """Where its record is, once it is finished."""
        return trial_marker(self.setting, self.steps, self.number)

    def schedule(self, whole: Schedule) -> dict[str, int]:
        """Knobs of training for its steps, which may be a part of a `whole` training: warm-up keeps its share."""
        return {
            "steps": self.steps,
            "warmup_steps": whole.warmup_steps * self.steps // whole.steps,
            "eval_every": min(whole.eval_every, self.steps),
        }


@dataclass(frozen=True, slots=True)
class Search:
    """The search of one setting of one run; all that it knows is in the run's folder."""

    store: RunStore
    setting: Setting
    config: ClassifyConfig
    steps: int
    """Of a whole training of the setting."""

    def next_trials(self) -> list[Trial]:
        """Trials of the first rung that lacks records; none when the choice is made, and then it is recorded.

        Raises RuntimeError when training diverged under every combination.
        """
        if self.store.exists(search_marker(self.setting)):
            return []
        search, records, listed = self.config.search, [], candidates(self.config)
        numbers, before = list(range(len(listed))), list[TrialRecord]()
        for steps in rung_steps(self.steps, search.grace, search.reduction):
            # A short training can favour what overfits in a long one: the config's own knobs need not have got so far.
            if steps == self.steps:
                numbers = sorted({OWN, *numbers})
            while True:
                rung = [Trial(self.setting, number, listed[number], steps) for number in numbers]
                missing, found = self._look_up(rung)
                if missing:
                    return missing
                best = ranked(found)
                if best[0].val_top1 is not None:
                    break
                # All that went on diverged in their longer trainings: the next best goes on, of the rung before first.
                out = {*numbers, *(each.number for each in before if each.val_top1 is None)}
                further = [each.number for each in before if each.number not in out]
                if not further:
                    raise RuntimeError(
                        f"{self.setting}: training diverged under every combination of classify.search. "
                        "List lower learning rates, in a new run."
                    )
                numbers = [*numbers, further[0]]
            records += best
            before = [*best, *before]
            going_on = best[: max(1, len(best) // search.reduction)]
            numbers = [record.number for record in going_on if record.val_top1 is not None]
        # The best of the last rung, whose trainings are as long as the final one.
        knobs, steps, top1 = best[0].knobs, best[0].steps, best[0].val_top1
        trials = [{"knobs": each.knobs, "steps": each.steps, "val_top1": each.val_top1} for each in records]
        choice = SearchRecord(knobs=knobs, steps=steps, val_top1=top1, n_trials=len(trials), trials=trials)
        self.store.write_json(search_marker(self.setting), choice.to_json())
        return []

    def _look_up(self, trials: Sequence[Trial]) -> tuple[list[Trial], list[TrialRecord]]:
        """Those that are yet to be trained, and the records of the others."""
        missing, found = [], []
        for trial in trials:
            exists = self.store.exists(trial.marker)
            record = TrialRecord.from_json(self.store.read_json(trial.marker)) if exists else None
            # Earlier versions numbered the combinations otherwise: a record may be that of other knobs.
            if record is None or record.knobs != trial.knobs:
                missing.append(trial)
            else:
                found.append(record)
        return missing, found


def candidates(config: ClassifyConfig) -> list[dict[str, float]]:
    """The config's own values of the knobs that are searched, then all other combinations."""
    listed = config.search.combinations
    # A knob that is unset is one that is off.
    own = {name: False if (value := attrgetter(name)(config)) is None else value for name in listed[0]}
    return [own, *(combination for combination in listed if combination != own)]


def rung_steps(steps: int, grace: float, reduction: int) -> list[int]:
    """Steps of the rungs, the last of which has all; the first has at least the share `grace` of them."""
    rungs = [steps]
    while (shorter := steps // reduction ** len(rungs)) >= max(1, grace * steps):
        rungs.insert(0, shorter)
    return rungs


def ranked(records: list[TrialRecord]) -> list[TrialRecord]:
    """Best first by validation accuracy; of equal ones the first candidate, and last what diverged."""
    return sorted(records, key=lambda record: (record.val_top1 is None, -(record.val_top1 or 0.0), record.number))


def found_knobs(store: RunStore, setting: Setting) -> SearchRecord | None:
    """What the search of a setting found; None without search."""
    marker = search_marker(setting)
    return SearchRecord.from_json(store.read_json(marker)) if store.exists(marker) else None
