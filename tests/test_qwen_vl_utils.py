"""Our resizing and our choice of frames are those of qwen-vl-utils, which the released judges were trained with."""

import imageio_ffmpeg
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from qwen_vl_utils import vision_process

from unifiedreward_think.decoders import decode, frame_indices
from unifiedreward_think.models.loading import load_processor

SIZES = [(64, 64), (37, 211), (500, 333), (1023, 41), (28, 28), (900, 901)]
LIMITS = [(56 * 56, 28 * 28 * 1280), (4 * 32 * 32, 30 * 32 * 32), (56 * 56, 200_000)]


@pytest.mark.parametrize("limits", LIMITS, ids=["large", "small", "middle"])
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_pictures_are_resized_as_qwen_vl_utils_does(family, limits, models):
    processor = load_processor(models[family], min_pixels=limits[0], max_pixels=limits[1]).image_processor
    size = processor.size
    least, most = size["shortest_edge"], size["longest_edge"]
    for width, height in SIZES:
        noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(noise)
        described = {"image": image, "min_pixels": least, "max_pixels": most}
        reference = vision_process.fetch_image(described, image_patch_size=processor.patch_size)
        _, rows, columns = processor(images=[image], return_tensors="pt")["image_grid_thw"][0].tolist()
        assert (columns * processor.patch_size, rows * processor.patch_size) == reference.size


@given(st.integers(2, 4000), st.integers(1, 32))
def test_frames_are_spaced_as_qwen_vl_utils_spaces_them(total, pairs):
    """It takes even numbers of frames only, and no more than there are."""
    count = min(2 * pairs, total // 2 * 2)
    assert vision_process.smart_nframes({"nframes": count}, total_frames=total, video_fps=8.0) == count
    reference = vision_process.torch.linspace(0, total - 1, count).round().long().tolist()
    exact = [k * (total - 1) / (count - 1) for k in range(count)]
    for ours, theirs, place in zip(frame_indices(total, count), reference, exact, strict=True):
        # float32 puts a half on the other side at times: the next frame then.
        assert ours == theirs or (abs(ours - theirs) == 1 and abs(place % 1 - 0.5) < 1e-3)


def test_a_clip_gives_the_frames_that_qwen_vl_utils_reads(tmp_path):
    clip = tmp_path / "clip.mp4"
    writer = imageio_ffmpeg.write_frames(str(clip), (64, 48), fps=8, codec="libx264", macro_block_size=1)
    writer.send(None)
    for i in range(30):
        writer.send(np.full((48, 64, 3), i * 8, dtype=np.uint8).tobytes())
    writer.close()
    video, metadata, _ = vision_process._read_video_decord({"video": str(clip), "nframes": 8})
    assert list(metadata["frames_indices"]) == frame_indices(30, 8)
    for reference, ours in zip(video, decode(clip, 8, "decord").frames, strict=True):
        assert np.array_equal(reference.permute(1, 2, 0).numpy(), np.asarray(ours))
