"""A simulated arm that picks up a red cube (gymnasium-robotics' FetchPickAndPlace), in a process of its own.

Once Mesa has rendered through EGL, importing transformers can crash the process, so that nothing here imports torch and
the simulator runs beside the study.
"""

import multiprocessing
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from llava_s2.errors import InputError

STATES = 9  # the hand's position and velocity, the fingers', and whether they are closed
_LIFTED = 0.05  # metres above the table, of a cube that counts as picked up
_HOVER = 0.08


@dataclass(frozen=True)
class Observation:
    """What a policy sees: an image (side, side, 3) of bytes, and the arm's own state (STATES)."""

    image: np.ndarray
    state: np.ndarray


class Simulator:
    """A client of the simulator's process.

    Args:
        side: of the images, in pixels.

    Raises:
        InputError: a package or a way to render is missing.
    """

    def __init__(self, side: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, side), daemon=True)
        self._process.start()
        theirs.close()
        problem = self._receive()
        if problem:
            raise InputError(problem)

    def reset(self, position: int) -> Observation:
        """The cube at random position number `position`."""
        return self._ask("reset", position)

    def step(self, action: np.ndarray) -> tuple[Observation, bool]:
        """Acts for a twenty-fifth of a second; what is seen then, and whether the cube is held over the table."""
        return self._ask("step", np.asarray(action, dtype=np.float64))

    def expert(self) -> np.ndarray:
        """What the scripted expert, which knows where the cube is, would do now."""
        return self._ask("expert", None)

    def close(self) -> None:
        self._pipe.close()
        self._process.join(5)
        self._process.terminate()

    def __enter__(self) -> "Simulator":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, what: str, argument: Any) -> Any:
        self._pipe.send((what, argument))
        return self._receive()

    def _receive(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError:
            self._process.join(5)
            raise InputError(
                f"the simulator's process ended (exit status {self._process.exitcode}); rendering needs EGL (Debian: "
                "libegl1 libgl1-mesa-dri) or MUJOCO_GL=osmesa"
            ) from None


def serve(pipe: Any, side: int) -> None:
    """The simulator's process: answers until the pipe is closed."""
    os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        world = _World(side)
    except ImportError as error:
        pipe.send(f"study robot: {error}; pip install 'llava-s2[studies]'")
        return
    pipe.send(None)
    while True:
        try:
            what, argument = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        pipe.send(getattr(world, what)(argument))


class _World:
    def __init__(self, side: int) -> None:
        import gymnasium
        import gymnasium_robotics
        import mujoco

        gymnasium.register_envs(gymnasium_robotics)
        self.env = gymnasium.make("FetchPickAndPlace-v4", max_episode_steps=10_000)
        robot: Any = self.env.unwrapped
        self.model, self.data = robot.model, robot.data
        self.model.vis.quality.shadowsize = 1024  # 4096 takes four times as long to draw
        self.model.geom_rgba[self.model.geom("object0").id] = [0.9, 0.05, 0.05, 1]
        material = self.model.geom_matid[self.model.geom("object0").id]
        if material >= 0:
            self.model.mat_rgba[material] = [0.9, 0.05, 0.05, 1]
        self.model.site_rgba[self.model.site("target0").id] = 0  # there is no place to bring the cube to
        self.renderer = mujoco.Renderer(self.model, side, side)
        self.camera = mujoco.MjvCamera()
        self.camera.lookat[:] = [1.30, 0.75, 0.45]
        self.camera.distance, self.camera.azimuth, self.camera.elevation = 0.85, 180.0, -45.0

    def reset(self, position: int) -> Observation:
        seen, _ = self.env.reset(seed=position)
        self.seen = seen["observation"]
        self.table = float(self.seen[5])
        return self._look()

    def step(self, action: np.ndarray) -> tuple[Observation, bool]:
        seen, *_ = self.env.step(np.clip(action, -1, 1).astype(np.float32))
        self.seen = seen["observation"]
        return self._look(), bool(self.seen[5] > self.table + _LIFTED)

    def expert(self, _: None) -> np.ndarray:
        hand, cube, fingers = self.seen[0:3], self.seen[3:6], float(self.seen[9:11].sum())
        gap = cube - hand
        aside = float(np.linalg.norm(gap[:2]))
        grip, goal = 1.0, gap
        if aside > 0.015 and gap[2] > -0.03:  # rise before moving aside
            goal = np.array([0, 0, _HOVER])
        elif aside > 0.008 and gap[2] <= -0.03:
            goal = gap + np.array([0, 0, _HOVER])
        elif np.linalg.norm(gap) < 0.012:
            grip = -1.0
            if fingers < 0.055:  # as wide as the cube: it is held
                goal = np.array([0, 0, 0.1])
        return np.array([*np.clip(goal * 8, -1, 1), grip])

    def _look(self) -> Observation:
        self.renderer.update_scene(self.data, self.camera)
        state = np.array([*self.seen[0:3], *self.seen[20:23], *self.seen[9:11], float(self.seen[9:11].sum() < 0.055)])
        return Observation(self.renderer.render().copy(), state.astype(np.float32))
