"""Rooms rendered with MuJoCo, with the exact class and depth of every pixel; a program, run in a process of its own.

``python -m llava_s2.studies.render_rooms OUT SCENES_TRAIN SCENES_VAL SIDE SEED TEXTURE.png …``

Once Mesa has rendered through EGL, importing transformers can crash the process, so that nothing here imports torch.
"""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

KINDS = ("floor", "wall", "box", "ball", "column", "pill")  # classes 1 to 6 of the masks
_SHAPES = {"box": "box", "ball": "sphere", "column": "cylinder", "pill": "capsule"}
_EACH = 3  # things of a kind in a room, at most


def room_xml(textures: list[str]) -> str:
    """A room of unit size with `_EACH` things of every kind in it, and a material for each texture."""
    assets = "".join(
        f'<texture name="t{n}" type="cube" file="{file}"/><material name="m{n}" texture="t{n}"/>'
        for n, file in enumerate(textures)
    )
    walls = (("0 0 0", "floor"), ("0 0 3", "wall"), ("4 0 0", "wall"), ("-4 0 0", "wall"), ("0 4 0", "wall"))
    sizes = {"0 0 0": "4 4 .05", "0 0 3": "4 4 .05", "0 4 0": "4 .05 3"}
    geoms = "".join(
        f'<geom name="{kind}{n}" type="box" pos="{place}" size="{sizes.get(place, ".05 4 3")}" material="m0"/>'
        for n, (place, kind) in enumerate(walls)
    )
    for kind, shape in _SHAPES.items():
        # Not at the body's own place, which MuJoCo would take as a fact that never changes.
        geoms += "".join(
            f'<geom name="{kind}_{n}" type="{shape}" size=".2 .2 .2" pos="1 1 1" euler="1 2 3" material="m0"/>'
            for n in range(_EACH)
        )
    return (
        '<mujoco><visual><quality shadowsize="1024"/><global offwidth="1024" offheight="1024"/>'
        '<map znear=".01"/><headlight ambient=".45 .45 .45" diffuse=".25 .25 .25"/></visual>'
        f"<asset>{assets}</asset><worldbody>{geoms}"
        '<light name="lamp" pos="0 0 2.7" dir="0 .3 -1" diffuse=".7 .7 .7"/>'
        '<camera name="eye" pos="0 -3 1.5" fovy="60"/></worldbody></mujoco>'
    )


def main(out: Path, counts: dict[str, int], side: int, seed: int, textures: list[str]) -> None:
    """Renders the scenes in ADE20k's layout, with depths as ``SPLIT/images`` and ``SPLIT/depths`` beside it.

    Textures of ``train`` are not those of ``val``: every third is for testing.
    """
    os.environ.setdefault("MUJOCO_GL", "egl")
    import mujoco

    model = mujoco.MjModel.from_xml_string(room_xml(textures))
    data = mujoco.MjData(model)
    renderer = mujoco.Renderer(model, side, side)
    names = [mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_GEOM, n) for n in range(model.ngeom)]
    kinds = np.array([0, *(1 + KINDS.index(name.rstrip("_0123456789")) for name in names)], dtype=np.uint8)
    for split, count in counts.items():
        word = {"train": "training", "val": "validation"}[split]
        images, masks = out / "images" / word, out / "annotations" / word
        links, depths = out / split / "images", out / split / "depths"
        for folder in (images, masks, links, depths):
            folder.mkdir(parents=True, exist_ok=True)
        mine = [n for n in range(len(textures)) if (n % 3 == 2) == (split == "val")]
        for number in range(count):
            if (depths / f"{number:04d}.png").exists():
                continue
            arrange(model, names, mine, np.random.default_rng([seed, split == "val", number]))
            mujoco.mj_forward(model, data)
            renderer.update_scene(data, "eye")
            frame = Image.fromarray(renderer.render())
            frame.save(images / f"{number:04d}.png")
            (links / f"{number:04d}.png").unlink(missing_ok=True)
            (links / f"{number:04d}.png").hardlink_to(images / f"{number:04d}.png")
            renderer.enable_segmentation_rendering()
            ids = renderer.render()[..., 0]
            renderer.disable_segmentation_rendering()
            Image.fromarray(kinds[ids + 1]).save(masks / f"{number:04d}.png")
            renderer.enable_depth_rendering()
            metres = renderer.render()
            renderer.disable_depth_rendering()
            millimetres = np.clip(metres * 1000, 0, 65535).astype(np.uint16)
            Image.fromarray(millimetres).save(depths / f".{number:04d}.png")
            (depths / f".{number:04d}.png").replace(depths / f"{number:04d}.png")


def arrange(model: Any, names: list[str], textures: list[int], rng: np.random.Generator) -> None:
    """Puts things, the camera and the textures where chance wants them, in place."""
    m = model
    for n, name in enumerate(names):
        m.geom_matid[n] = rng.choice(textures)
        m.geom_rgba[n] = [*rng.uniform(0.6, 1, 3), 1]
        if "_" not in name:
            continue
        radius, height = rng.uniform(0.12, 0.45), rng.uniform(0.15, 0.7)
        kind = name.split("_")[0]
        size = {"box": [radius, rng.uniform(0.12, 0.45), height], "ball": [radius, 0, 0]}.get(kind, [radius, height, 0])
        half = {"ball": radius, "pill": height + radius}.get(kind, height)
        there = rng.random() < 0.7
        m.geom_size[n] = size
        m.geom_rbound[n] = 2.0
        m.geom_pos[n] = [rng.uniform(-2.8, 2.8), rng.uniform(-0.8, 3.5), 0.05 + half if there else -9]
        turn = rng.uniform(0, np.pi)
        m.geom_quat[n] = [np.cos(turn / 2), 0, 0, np.sin(turn / 2)]
    aside, down = rng.uniform(-0.35, 0.35), np.pi / 2 - rng.uniform(0.1, 0.45)
    m.cam_pos[0] = [rng.uniform(-1.5, 1.5), -3.2, rng.uniform(1.0, 2.0)]
    w, z, x = np.cos(aside / 2), np.sin(aside / 2), np.sin(down / 2)  # aside about the vertical, after down
    m.cam_quat[0] = [w * np.cos(down / 2), w * x, z * x, z * np.cos(down / 2)]


if __name__ == "__main__":
    out, train_count, val_count, side, seed, *files = sys.argv[1:]
    main(Path(out), {"train": int(train_count), "val": int(val_count)}, int(side), int(seed), files)
