"""``llava-s2 study robot``: picking up a cube by behaviour cloning on frozen features (table 10, figure 5)."""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from llava_s2.errors import InputError
from llava_s2.files import atomic_write
from llava_s2.studies.feature_cache import Extractor, Features, ScaleSetting, scale_features
from llava_s2.studies.paper_tables import paper_score
from llava_s2.studies.robot_demos import Demos, read, record
from llava_s2.studies.robot_policy import STEPS, Policy, before, imitate, windows
from llava_s2.studies.simulator import Observation, Simulator
from llava_s2.studies.study_report import StudyReport, wilson_interval
from llava_s2.studies.study_towers import StudyTower, check_tower, load_tower, weights_key
from llava_s2.studies.training_loop import checkpoint_file

_MOST_STEPS = 60
_FIRST_TEST = 1_000_000  # random positions from here on are no demonstration's
_REPLAN = 4  # steps that are carried out before the next sixteen are planned


def run(args: argparse.Namespace) -> None:
    """Runs the study; see ``llava-s2 study robot --help``."""
    for tower in args.tower:
        check_tower(tower, args.scales)
    side = max(setting.source for setting in args.settings)
    file = args.demos or args.cache / f"demonstrations-{args.demonstrations}-{side}.hdf5"
    if args.demos is None and not file.exists():
        with Simulator(side) as simulator:
            record(simulator, args.demonstrations, 0, file)
    demos = read(file)
    image_source = demos.image_source()
    report = StudyReport(
        args.output,
        "robot",
        {
            "demonstrations": f"{len(demos.starts)} of {args.demos or 'the expert'}, {len(demos.actions)} steps",
            "scales from": "the image" if args.full_resolution else "the base image (section 3.1)",
            "test": "actions of every tenth demonstration" if args.demos else f"{args.positions} cube positions a seed",
            "training": f"{args.epochs} epochs, AdamW {args.rate}, batches of {args.batch_size}",
            "content": image_source.key,
        },
    )
    extractor = Extractor(args.cache)

    def compute(tower: str, setting: ScaleSetting, seed: int) -> dict[str, Any]:
        features = extractor.features(tower, setting, image_source)
        checkpoint = checkpoint_file(
            args.cache, "robot", weights_key(tower, min(setting.scales)), str(setting), seed, report.setting
        )
        options = {"epochs": args.epochs, "rate": args.rate, "batch": args.batch_size, "seed": seed, "file": checkpoint}
        if args.demos:
            row = held_out_error(demos, features, options)
        else:
            policy, loss = imitate(demos, features, **options)
            video = args.output / f"{checkpoint.stem.replace('robot', 'episode')}.gif"
            picked = _pick(policy, load_tower(tower, min(setting.scales)), setting, seed, args.positions, side, video)
            low, high = wilson_interval(picked, args.positions)
            row = {
                "picked up": f"{picked} of {args.positions}",
                "success %": 100 * picked / args.positions,
                "95 % interval": f"{100 * low:.0f}-{100 * high:.0f}",
                "train loss": loss,
                "video": video.name,
                "paper's (another robot)": paper_score(10, tower, setting.scales),
            }
        checkpoint.unlink(missing_ok=True)
        return row

    for tower in args.tower:
        for setting in args.settings:
            for seed in range(args.seed, args.seed + args.seeds):
                key = {"tower": tower, "scales": str(setting), "seed": seed}
                report.row(key, partial(compute, tower, setting, seed), weights_key(tower, min(setting.scales)))
    report.finish("held-out action error" if args.demos else "success %", "tower")


def held_out_error(demos: Demos, features: Features, options: dict[str, Any]) -> dict[str, Any]:
    """Trains on nine tenths of the demonstrations; the error of the next action on the others, in deviations."""
    if len(demos.starts) < 2:
        raise InputError("study robot: one demonstration alone; there is none to test on")
    ends = [*demos.starts[1:], len(demos.actions)]
    spans = list(zip(demos.starts, ends, strict=True))
    test = [span for number, span in enumerate(spans) if number % 10 == 9 or number == len(spans) - 1]
    kept = np.concatenate([np.arange(*span) for span in spans if span not in test])
    out = np.concatenate([np.arange(*span) for span in test])
    policy, loss = imitate(_part(demos, kept, [s for s in spans if s not in test]), features.part(kept), **options)
    held = _part(demos, out, test)
    past, _ = windows(held)
    last, device = torch.from_numpy(before(held)), next(policy.parameters()).device
    errors = []
    with torch.inference_mode():
        for steps in np.array_split(past, max(len(past) // 64, 1)):
            seen = torch.stack([features[out[window]] for window in steps])
            predicted = policy(seen.to(device), torch.from_numpy(held.states[steps]).to(device), last[steps].to(device))
            gap = predicted[:, 0].cpu() - torch.from_numpy(held.actions[steps[:, -1]])
            errors.append((gap / policy.action_deviation.cpu()).square().mean(1))
    return {"held-out action error": float(torch.cat(errors).mean()), "train loss": loss}


def _part(demos: Demos, index: np.ndarray, spans: list[tuple[int, int]]) -> Demos:
    lengths = [end - start for start, end in spans]
    starts = [int(n) for n in np.cumsum([0, *lengths[:-1]])]
    return Demos(demos.images[index], demos.states[index], demos.actions[index], starts)


def _pick(
    policy: Policy, tower: StudyTower, setting: ScaleSetting, seed: int, positions: int, side: int, video: Path
) -> int:
    """How often the policy picks the cube up; the first episode's frames become a video."""
    picked = 0
    with Simulator(side) as simulator, torch.inference_mode():
        for number in range(positions):
            frames = [simulator.reset(_FIRST_TEST + seed * 10_000 + number)]
            held = _episode(policy, tower, setting, simulator, frames)
            picked += held
            if number == 0:
                images = [Image.fromarray(frame.image) for frame in frames]
                with atomic_write(video) as partial_file:
                    images[0].save(partial_file, save_all=True, append_images=images[1:], duration=80, loop=0)
    return picked


def _episode(
    policy: Policy, tower: StudyTower, setting: ScaleSetting, simulator: Simulator, frames: list[Observation]
) -> bool:
    device = next(policy.parameters()).device
    seen: list[torch.Tensor] = []
    states: list[torch.Tensor] = []
    actions: list[torch.Tensor] = [torch.zeros(policy.action_mean.shape)]
    plan: list[torch.Tensor] = []
    for step in range(_MOST_STEPS):
        seen.append(_features(tower, setting, frames[-1].image))
        states.append(torch.from_numpy(frames[-1].state))
        if not plan:
            window = [max(n, 0) for n in range(step - STEPS + 1, step + 1)]
            stacks = (torch.stack([values[n] for n in window])[None].to(device) for values in (seen, states, actions))
            plan = list(policy(*stacks)[0, :_REPLAN].cpu())
        action = plan.pop(0).clamp(-1, 1)
        actions.append(action)
        observation, held = simulator.step(action.numpy())
        frames.append(observation)
        if held:
            return True
    return False


def _features(tower: StudyTower, setting: ScaleSetting, image: np.ndarray) -> torch.Tensor:
    """Features (positions, channels) of one frame, as those of the demonstrations are made."""
    resized = Image.fromarray(image).resize((setting.source,) * 2, Image.Resampling.BICUBIC)
    pixels = tower.normalise(torch.from_numpy(np.asarray(resized).copy())[None])
    maps = [scale_features(tower, pixels, scale, tower.grid * setting.output // min(setting.scales))
            for scale in setting.scales]  # fmt: skip
    return torch.cat(maps, dim=1)[0].flatten(1).T.half().float().cpu()
