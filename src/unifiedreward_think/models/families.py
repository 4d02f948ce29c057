"""What is special in each model family: the one table that loading, engine, backends, trainers and memory plans read.

A family is a `config.model_type` of transformers. To add one: a row here, a tiny random model in `models/tiny.py`, and
its parameter counts in `training/memory/architecture.py`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A model family.

    Attributes:
        vision_tower: path of the vision tower inside the model. Freezing goes by module: the published trainer froze
            parameters whose name starts with "visual.", which matches none since they are called "model.visual.*".
        native_video: whether released judges of the family were trained on videos as such.
        not_shared: why prompts cannot be shared in packed sequences; empty where they can.
        tiles_lone_image: whether an image is cut into tiles only where it is the only one of its prompt.
        counts_images: whether its forward needs `batch_num_images` to tell a prompt's images from the next one's.
        projector: whether the layers between tower and language model are a module of their own.
        head_norm: whether queries and keys are normalized head by head, in place of biases.
    """

    vision_tower: str = "model.visual"
    native_video: bool = True
    not_shared: str = ""
    tiles_lone_image: bool = False
    counts_images: bool = False
    projector: bool = False
    head_norm: bool = False


FAMILIES = {
    "qwen2_vl": Family(),
    "qwen2_5_vl": Family(),
    "qwen3_vl": Family(head_norm=True),
    "qwen3_5": Family(head_norm=True, not_shared="linear attention keeps no single tokens to attend to"),
    "llava_onevision": Family(
        vision_tower="model.vision_tower",
        native_video=False,
        tiles_lone_image=True,
        counts_images=True,
        projector=True,
    ),
}
