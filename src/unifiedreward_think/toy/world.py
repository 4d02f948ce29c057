"""Draw the toy world: coloured shapes, some noisy or broken, some moving, as PNG images and short mp4 clips.

Everything about a picture is known, so the true scores of a pair follow from a rule (`teacher.py`).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np

COLOURS = {"red": (214, 46, 40), "green": (46, 160, 67), "blue": (52, 84, 209), "yellow": (232, 190, 40)}
SHAPES = ("circle", "bar")
MOTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SIDE = 32
CLIP_FRAMES = 8
SPECKS = 0.4  # share of darkened pixels in a noisy picture
CLIP_RATE = 8


@dataclass(frozen=True, slots=True)
class Scene:
    """The contents of one picture or clip.

    Attributes:
        colour, shape: what is shown; keys of COLOURS and SHAPES.
        clean: without dark specks.
        whole: without a bar that cuts the shape in two.
        motion: a key of MOTIONS for clips, "" for pictures.
        steady: the clip does not flicker.
    """

    colour: str
    shape: str
    clean: bool = True
    whole: bool = True
    motion: str = ""
    steady: bool = True

    @property
    def subject(self) -> str:
        """Name what is shown: 'red circle', or 'red circle moving left'."""
        return f"{self.colour} {self.shape}" + (f" moving {self.motion}" if self.motion else "")


def random_scene(rng: random.Random, *, moving: bool) -> Scene:
    """Draw the contents of a picture, or of a clip if `moving`."""
    return Scene(
        colour=rng.choice(list(COLOURS)),
        shape=rng.choice(SHAPES),
        clean=rng.random() < 0.5,
        whole=rng.random() < 0.5 if not moving else True,
        motion=rng.choice(list(MOTIONS)) if moving else "",
        steady=rng.random() < 0.5 if moving else True,
    )


def draw_frames(scene: Scene, seed: int) -> list[np.ndarray]:
    """Return the (SIDE, SIDE, 3) uint8 frames of a scene: one for a picture, CLIP_FRAMES for a clip.

    `seed` decides place, size, tint and noise, so two drawings of the same scene differ in their pixels.
    """
    rng = np.random.default_rng(seed)
    radius = int(rng.integers(7, 10))
    tint = rng.integers(-18, 19, 3)
    background = rng.integers(225, 250)
    jitter = rng.integers(-2, 3, 2)
    dx, dy = MOTIONS.get(scene.motion, (0, 0))
    count = CLIP_FRAMES if scene.motion else 1
    frames = []
    for t in range(count):
        travel = (2 * t / (count - 1) - 1) * (SIDE // 2 - radius) if count > 1 else 0.0
        centre = (SIDE / 2 + jitter[0] * (dx == 0) + dx * travel, SIDE / 2 + jitter[1] * (dy == 0) + dy * travel)
        frame = _draw(scene, centre, radius, tint, int(background))
        if not scene.steady and t % 2 == 1:
            frame = 255 - frame
        if not scene.clean:
            frame = np.where(rng.random((SIDE, SIDE, 1)) < SPECKS, frame * 0.3, frame)
        frames.append(np.clip(frame, 0, 255).astype(np.uint8))
    return frames


def write_scene(scene: Scene, seed: int, stem: Path) -> Path:
    """Write a scene as `stem`.png or `stem`.mp4 and return the file."""
    frames = draw_frames(scene, seed)
    if scene.motion:
        return _write_clip(frames, stem.with_suffix(".mp4"))
    from PIL import Image

    Image.fromarray(frames[0]).save(stem.with_suffix(".png"))
    return stem.with_suffix(".png")


def _draw(scene: Scene, centre: tuple[float, float], radius: int, tint: np.ndarray, background: int) -> np.ndarray:
    y, x = np.mgrid[0:SIDE, 0:SIDE] + 0.5
    dx, dy = np.abs(x - centre[0]), np.abs(y - centre[1])
    circle, bar = dx**2 + dy**2 <= radius**2, (dx <= radius) & (dy <= radius / 2)
    inside = circle if scene.shape == "circle" else bar
    frame = np.full((SIDE, SIDE, 3), float(background))
    frame[inside] = np.array(COLOURS[scene.colour]) + tint
    if not scene.whole:
        frame[inside & (np.abs(x - y - centre[0] + centre[1]) < 3.5)] = 10.0
    return frame


def _write_clip(frames: list[np.ndarray], path: Path) -> Path:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=CLIP_RATE, options={"crf": "12", "preset": "ultrafast", "threads": "1"}
        )
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for array in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode())
    return path
