"""What warm worker groups save: the same short cells, each with 2-worker DDP, run in two ways.

    python -m benchmarks.orchestration [--cells 24] [--cold-cells 6]

warm   ``oec run``, with ledger, checkpoints, Optuna and MLflow
cold   the recipe in Ray's own guide: a Tune trial creates a ``TorchTrainer`` and calls ``fit``

It prints the seconds per cell of both and their ratio, the overhead of a cell beyond its training, the seconds from the
command to the first warm group, and the time between the starts of several groups.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median

from rich.console import Console

from search_spaces.cell import Cell
from search_spaces.intervals import Intervals
from search_spaces.plan import Plan
from search_spaces.study import Study
from service.cluster.connection import ENVIRONMENT
from service.home.data import prepare_tokens
from service.home.location import open_home
from service.sweep.run import run_study


def study(cells: int, workers: int) -> Study:
    """Returns a study with ``cells`` learning rates of the baseline, 6 steps each, two evaluations and a checkpoint."""
    smoke = Study.load("smoke")
    return smoke.model_copy(
        update={
            "name": f"bench-{workers}",
            "methods": smoke.methods[:1],
            "lrs": tuple(1e-3 * (1 + i) for i in range(cells)),
            "training": smoke.training.model_copy(update={"steps": 6}),
            "intervals": Intervals(evaluate=6, checkpoint=3),
            "resources": smoke.resources.model_copy(update={"workers": workers}),
        }
    )


def warm(cells: int, workers: int, folder: Path) -> dict[str, list[float]]:
    """Runs a study with ``oec run``'s code and returns times from its ledger."""
    home, spec = open_home(folder), study(cells, workers)
    began = time.time()
    run_study(spec, home, address=None, retry_crashed=False, console=Console(stderr=True))
    lines = [json.loads(line) for line in home.ledger(spec.name).read_text().splitlines()]
    at = {(line["event"], line.get("cell")): datetime.fromisoformat(line["at"]).timestamp() for line in lines}
    ends = sorted(moment for (event, _), moment in at.items() if event in ("finished", "diverged"))
    training = [line["result"]["train_seconds"] for line in lines if "result" in line]
    rows = [home.metrics(cell, spec.name).read_text().splitlines() for event, cell in at if event == "planned"]
    first_rows = sorted(json.loads(row[0])["time"] for row in rows)
    return {
        "period": [after - before for before, after in pairwise(ends)],
        "training": training,
        "in_trainer": [json.loads(row[-1])["time"] - json.loads(row[0])["time"] for row in rows],
        "first_rows": [moment - began for moment in first_rows],
    }


def cold(cells: int, folder: Path) -> list[float]:
    """Returns the seconds of each trial of a Tune sweep that creates a trainer for each trial, with Ray's defaults."""
    import ray
    from ray import tune

    spec = study(cells, 2)
    home = open_home(folder)
    tokens = prepare_tokens(spec, home, print)
    ray.init(address="local", num_cpus=len(os.sched_getaffinity(0)), resources={"trial_slot": 1}, log_to_driver=False)

    def train_worker(config: dict[str, object]) -> None:
        import ray.train
        import ray.train.torch

        from trainers.loop import Trainer
        from trainers.world import World

        context = ray.train.get_context()
        world = World(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
        cell = Cell.model_validate(config["cell"])
        result = Trainer(world, tokens).run(cell, home.cell(cell.id), evaluate_every=6, checkpoint_every=3)
        ray.train.report({"val_loss": result.val_loss})

    def trial(config: dict[str, object]) -> None:
        import ray.train
        from ray.train.torch import TorchTrainer

        began = time.time()
        TorchTrainer(
            train_worker,
            train_loop_config=config,
            scaling_config=ray.train.ScalingConfig(num_workers=2),
            run_config=ray.train.RunConfig(storage_path=str(home.ray)),
        ).fit()
        tune.report({"seconds": time.time() - began})

    space = {"cell": tune.grid_search([cell.model_dump(mode="json") for cell in Plan(spec, tokens.digest).cells])}
    config = tune.RunConfig(storage_path=str(home.ray), verbose=0)
    results = tune.Tuner(tune.with_resources(trial, {"trial_slot": 1}), param_space=space, run_config=config).fit()
    ray.shutdown()
    return [result.metrics["seconds"] for result in results if result.metrics]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=24)
    parser.add_argument("--cold-cells", type=int, default=6)
    parser.add_argument("--only", choices=["warm", "side", "cold"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.only == "cold":
            print(json.dumps(cold(arguments.cold_cells, Path(folder))))
            return
        if arguments.only:
            print(json.dumps(warm(arguments.cells, 2 if arguments.only == "warm" else 1, Path(folder))))
            return
    results = {only: measured(only, sys.argv[1:]) for only in ("warm", "side", "cold")}
    show(results["warm"], results["side"], results["cold"])


def measured(only: str, options: list[str]) -> dict[str, list[float]]:
    """Runs one variant in its own process, so that it does not inherit settings or warm imports from the other."""
    environment = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
    command = [sys.executable, "-m", "benchmarks.orchestration", "--only", only, *options]
    print(f"running: {only}", file=sys.stderr)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def show(warm: dict[str, list[float]], side: dict[str, list[float]], cold: list[float]) -> None:
    each, apart = median(warm["period"]), side["first_rows"][1] - side["first_rows"][0]
    added = [period - training for period, training in zip(warm["period"], warm["training"][1:], strict=True)]
    print(f"cold, seconds a cell: median {median(cold):.2f} of {[round(s, 2) for s in cold]}")
    print(f"warm, seconds a cell: median {each:.2f} of {[round(s, 2) for s in warm['period']]}")
    print(f"ratio cold / warm: {median(cold) / each:.0f}")
    print(f"of a warm cell, training steps: median {median(warm['training']):.2f} s")
    print(f"the engine adds to the training steps, evaluation included: median {median(added):.2f} s")
    print(f"first evaluation of the first warm group: {warm['first_rows'][0]:.1f} s after the command")
    print(f"two groups of one worker side by side: the second is warm {apart:.1f} s after the first")


if __name__ == "__main__":
    main()
