"""Where everything is inside an experiment (docs/formats.md says what is in each place)."""

from __future__ import annotations

from dataclasses import dataclass

from storage.files import is_remote, join, local


@dataclass(frozen=True)
class Paths:
    """Places inside an experiment folder or object-store prefix."""

    root: str

    @classmethod
    def of(cls, experiment: str) -> Paths:
        """Places of a folder or URI; absolute, because the working folder of a remote worker is another one."""
        if is_remote(experiment):
            return cls(experiment.rstrip("/"))
        return cls(str(local(experiment).expanduser().resolve()))

    def __getattr__(self, name: str) -> str:
        """`paths.pool` is <root>/pool; see docs/formats.md for what is in each."""
        if name not in _PLACES:
            raise AttributeError(name)
        return join(self.root, _PLACES[name])

    def marker(self, stage: str) -> str:
        """The file that says how far a stage is."""
        return join(self.root, "stages", f"{stage}.json")


_PLACES = {
    "config": "config.yaml",
    "population": "population.lance",
    "base": "base",
    "raw_base": "base-raw",
    "adapting": "adapting",
    "selection": "sharers.json",
    "pool": "pool",
    "own": "own",
    "own_warm": "own_warm",
    "own_prompt_tuning": "own_kinds/prompt_tuning",
    "own_ia3": "own_kinds/ia3",
    "joint": "joint",
    "indexes": "indexes",
    "recipes": "recipes.lance",
    "served": "served",
    "tokens": "tokens.json",
    "answers": "answers",
    "predictions": "predictions.jsonl",
    "events": "events.jsonl",
    "event_parts": "events",
    "driver": "driver.json",
    "results": "results.json",
    "report": "report.html",
    "audit": "audit.json",
}
