"""What warm worker groups save: the same short cells, each with 2-worker DDP, in two ways in one run.

    python -m benchmarks.orchestration [--cells 24] [--cold-cells 6]

warm   the engine as ``oec run`` uses it: ledger, checkpoints, Optuna, MLflow and all
cold   the recipe of Ray's own guide: a Tune trial builds a ``TorchTrainer`` and calls ``fit``

Printed: seconds a cell both ways and their ratio; what the engine adds to a cell's training; seconds from the
command to the first warm group; and how far apart several groups start.
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
from search_spaces.plan import Plan
from search_spaces.study import Intervals, Study
from service.cluster.connection import ENVIRONMENT
from service.home.data import prepare_tokens
from service.home.location import open_home
from service.sweep.run import run_study


def study(cells: int, workers: int) -> Study:
    """``cells`` learning rates of the baseline, 6 steps each, with an evaluation before and after and a checkpoint."""
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
    """Times of a study through the engine, from its own ledger."""
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
    """Seconds of each trial of a Tune sweep that builds a trainer a trial, with Ray's defaults."""
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
    """One way in a process of its own, so that neither finds the other's settings or warm imports."""
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
