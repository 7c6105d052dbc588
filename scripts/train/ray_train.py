"""Training on a Ray cluster: the same program on every worker, with Ray's torch processes in torchrun's place.

    python scripts/train/ray_train.py --workers 16 --gpus_per_worker 1 finetune --model_name_or_path … --output_dir …

What comes after the stage are the flags of ``llava-s2 train``. All nodes must see the same folders. Ray starts a run
whose worker died again, up to ``--max_failures`` times; it goes on from its last checkpoint in ``--output_dir``.
"""

import argparse
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer


def run(config: dict[str, Any]) -> None:
    """One worker: Ray has joined the processes, and told torch's environment of their ranks."""
    from llava_s2.train.recipe import train

    train(config["stage"], config["flags"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--gpus_per_worker", type=float, default=1)
    parser.add_argument("--cpus_per_worker", type=float, default=1)
    parser.add_argument("--max_failures", type=int, default=3)
    parser.add_argument("--storage", help="folder for Ray's own records, seen by all nodes")
    parser.add_argument("stage", choices=("pretrain", "finetune"))
    args, flags = parser.parse_known_args()
    ray.init()
    resources = {"CPU": args.cpus_per_worker}
    if args.gpus_per_worker:
        resources["GPU"] = args.gpus_per_worker
    TorchTrainer(
        run,
        train_loop_config={"stage": args.stage, "flags": flags},
        scaling_config=ScalingConfig(
            num_workers=args.workers, use_gpu=args.gpus_per_worker > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(storage_path=args.storage, failure_config=FailureConfig(max_failures=args.max_failures)),
    ).fit()


if __name__ == "__main__":
    main()
