"""A sweep's trials against the same trials as independent Tune trials, with equality of their answers; Tune's own time
per trial; memory over many tiny trials.

Independent: what one would write first, a Tune function that opens the experiment, assembles and evaluates one setting.
Both run on the same Ray with the same workers, one after the other, over pools that are trained before the clock starts
(runs/bench/sweep; taken over from runs/quickstart where that is there). A sample of the trials is run independently.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from jobs import sweep as sweep_job
from jobs.runtime import connect
from jobs.sweep_plan import Trial, plan
from jobs.sweep_tune import QUIET
from perpcs.sweep.config import Sweep, load_sweep

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "sweep.json"
CONFIG = ROOT / "configs" / "sweeps" / "topk_ratio.yaml"
FOLDER = ROOT / "runs" / "bench" / "sweep"


def independent(config: dict[str, Any]) -> None:
    """One trial on its own, by the pipeline's parts."""
    import torch
    from ray import tune

    from jobs.evaluator import Evaluator
    from jobs.experiment import stage_info
    from jobs.loading import open_assembler
    from perpcs.assembly.merge import adapter_from_recipe
    from perpcs.assembly.rules import make_recipe
    from perpcs.evaluation.runner import Asking, answer
    from storage.layout import Paths

    trial: Trial = config["trial"]
    torch.set_num_threads(1)
    cfg, method = trial.cfg, trial.method
    paths = Paths.of(cfg.experiment)
    evaluator = Evaluator(cfg, paths)
    version = stage_info(paths, "index", wanted_by="the bench")["pool_version"]
    assembler = open_assembler(cfg, paths, evaluator.base, version=version)
    picks = assembler.picks(method.rule, method.merge, evaluator.users)
    recipes = {
        u.id: make_recipe(u.id, "bench", p, assembler.pieces, merge=method.merge)
        for u, p in zip(evaluator.users, picks, strict=True)
    }
    how = Asking(
        context=method.context(retrieve=1),
        adapter_of=lambda user: adapter_from_recipe(recipes[user], assembler.pieces),
        scale=cfg.lora.alpha / cfg.lora.rank,
        batch=cfg.evaluate.batch,
        max_queries=cfg.evaluate.max_queries,
    )
    found = answer(evaluator.base, evaluator.prompter, evaluator.users, how)
    right = sum(p == g for p, g in zip(found.predictions, found.golds, strict=True)) / len(found.golds)
    tune.report({"value": right, "predictions": list(found.predictions)})


def run_independent(sweep: Sweep, trials: list[Trial]) -> tuple[float, dict[str, dict[str, Any]]]:
    """(seconds per trial, results by trial id)."""
    from ray import tune

    ray_cfg, scratch = sweep.draft.config().ray, tempfile.mkdtemp()
    tuner = tune.Tuner(
        tune.with_resources(independent, {"cpu": ray_cfg.cpus}),
        param_space={"trial": tune.grid_search(trials)},
        tune_config=tune.TuneConfig(max_concurrent_trials=ray_cfg.workers),
        run_config=tune.RunConfig(storage_path=scratch, verbose=0),
    )
    started = time.perf_counter()
    results = tuner.fit()
    seconds = (time.perf_counter() - started) / len(trials)
    shutil.rmtree(scratch, ignore_errors=True)
    return seconds, {result.config["trial"].id: result.metrics for result in results}


def run_sweep(overrides: list[str], folder: Path) -> tuple[float, list[dict[str, Any]], int]:
    """(seconds, rows, most bytes of memory of this process and its children) of a sweep in a fresh folder over pools
    that are there."""
    shutil.rmtree(folder / "trials.lance", ignore_errors=True)
    sweep = load_sweep(CONFIG, [*overrides, f"experiment={folder}"])
    started = time.perf_counter()
    sweep_job.main(sweep)
    seconds = time.perf_counter() - started
    return seconds, sweep_job.Folder(str(folder)).table.rows(), memory()


def memory() -> int:
    """Resident bytes of this process and of all Ray processes below it."""
    me = psutil.Process()
    return sum(p.memory_info().rss for p in [me, *me.children(recursive=True)] if p.is_running())


def train(overrides: list[str]) -> float:
    """Make the pools ready; seconds."""
    started = time.perf_counter()
    sweep_job.main(load_sweep(CONFIG, [*overrides, f"experiment={FOLDER}", "sweep.space.assembly.top_k=[1]",
                                       "sweep.space.assembly.sharing_ratio=[1.0]"]))  # fmt: skip
    return time.perf_counter() - started


def main() -> None:
    """Run and print; with --full also write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--full", action="store_true", help="three seeds, 24 independent trials; writes benchmarks/results/"
    )
    parser.add_argument("--sample", type=int, default=4, help="independent trials")
    parser.add_argument(
        "--tiny", type=int, default=0, help="random settings of the memory run (--full: 1000)"
    )
    parser.add_argument("overrides", nargs="*", help="key=value, as for the sweep")
    given = parser.parse_args()
    seeds = "sweep.seeds=[0, 1, 2]" if given.full else "sweep.seeds=[0]"
    sample, tiny = (24, 1000) if given.full else (given.sample, given.tiny)
    overrides = [
        f"sweep.reuse=[{ROOT / 'runs' / 'quickstart'}]",
        seeds,
        "evaluate.save_text=true",
        *given.overrides,
    ]
    os.environ.update(QUIET)
    sweep = load_sweep(CONFIG, [*overrides, f"experiment={FOLDER}"])
    ready = train(overrides)
    with connect(sweep.draft.config().ray):
        seconds, rows, _ = run_sweep(overrides, FOLDER)
        chosen = random.Random(0).sample(list(plan(sweep).trials), sample)
        alone, results = run_independent(sweep, chosen)
        grown = memory_run(overrides, tiny) if tiny else {}
    by_id = {row["id"]: row for row in rows}
    pairs = [(by_id[trial_id], found) for trial_id, found in results.items()]
    spent = sum(row["spent"] for row in rows) / sweep.draft.config().ray.workers
    result = {
        "cpus": os.cpu_count(),
        "load_at_start": round(os.getloadavg()[0], 2),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "workers": sweep.draft.config().ray.workers,
        "pools_seconds": round(ready, 1),
        "trials": len(rows),
        "sweep_seconds": round(seconds, 1),
        "sweep_seconds_per_trial": round(seconds / len(rows), 3),
        "outside_of_evaluation_seconds_per_trial": round((seconds - spent) / len(rows), 3),
        "independent_trials": sample,
        "independent_seconds_per_trial": round(alone, 2),
        "times_faster": round(alone / (seconds / len(rows)), 1),
        "questions": sum(row["queries"] for row in rows),
        "questions_answered": sum(row["answered"] for row in rows),
        "largest_difference_of_accuracy": max(abs(ours["value"] - theirs["value"]) for ours, theirs in pairs),
        "answers_that_differ": sum(
            a != b
            for ours, theirs in pairs
            for a, b in zip(ours["predictions"], theirs["predictions"], strict=True)
        ),
        **grown,
    }
    text = json.dumps(result, indent=2) + "\n"
    print(text)
    if given.full:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(text)


def memory_run(overrides: list[str], count: int) -> dict[str, Any]:
    """Random settings over two questions each: memory after a tenth of them and after all, in the same Ray."""
    found = []
    for number in (count // 10, count):
        space = ["sweep.search=random", f"sweep.trials={number}", "sweep.seeds=[0]", "evaluate.max_queries=2",
                 "sweep.space.method=[gradient]", "sweep.space.assembly.top_k={low: 1, high: 12}",
                 "sweep.space.assembly.sharing_ratio={low: 0.1, high: 1.0}"]  # fmt: skip
        folder = FOLDER.with_name("sweep-tiny")
        shutil.rmtree(folder, ignore_errors=True)
        reuse = [str(path) for path in (FOLDER / "experiments").iterdir()]
        found.append(run_sweep([*overrides, *space, f"sweep.reuse=[{','.join(reuse)}]"], folder))
    (_, few, before), (seconds, many, after) = found
    return {
        "tiny_trials": len(many),
        "tiny_seconds": round(seconds, 1),
        "memory_mb_after": {len(few): round(before / 1e6), len(many): round(after / 1e6)},
    }


if __name__ == "__main__":
    main()
