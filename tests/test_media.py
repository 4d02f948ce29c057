"""Images and videos from disk: the frame sampler, exact frames, broken files by name, the cache."""

import errno
import io
import re
import shutil
import sys
import warnings
import zlib
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unifiedreward_think import media
from unifiedreward_think.errors import InputError
from unifiedreward_think.media import (
    DecoderError,
    FrameSampling,
    MediaError,
    check_media,
    decode_frames,
    frame_indices,
    image_paths,
    native_clip,
    open_image,
    pixel_sha256,
    video_frames,
)

DECODERS = ["decord", "pyav"]  # torchcodec is not among the locked packages
GREYS = [10 + 8 * i for i in range(30)]  # the brightness of each frame of the test clip


def write_clip(path, *, codec="libx264", pixels="yuv420p", container=None):
    options = {"crf": "10", "threads": "1"} if codec.startswith("lib") else {}
    with av.open(str(path), "w", options=container or {}) as output:
        stream = output.add_stream(codec, rate=8, options=options)
        stream.width = stream.height = 32
        stream.pix_fmt = pixels
        for grey in GREYS:
            array = np.full((32, 32, 3), grey, np.uint8)
            array[:, 16:] = 255 - grey
            output.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        output.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    # The index in front, as in most files of the web: such a file still opens when its end is missing.
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", container={"movflags": "+faststart"})


@pytest.fixture
def sampling(tmp_path):
    return FrameSampling(frames=4, cache=tmp_path / "cache")


def save(path, side=8, colour="red", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), colour).save(path, **options)
    return path


# The frame sampler


@settings(deadline=None)
@given(st.integers(0, 5000), st.integers(1, 64))
def test_sampled_frames_are_distinct_in_order_and_evenly_spread(total, count):
    indices = frame_indices(total, count)
    assert len(indices) == min(total, count) and indices == sorted(set(indices))
    if total > count > 1:
        assert indices[0] == 0 and indices[-1] == total - 1
        gaps = np.diff(indices)
        assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize(
    ("total", "count", "indices"),
    [(8, 4, [0, 2, 5, 7]), (120, 8, [0, 17, 34, 51, 68, 85, 102, 119]), (7, 1, [3]), (0, 4, [])],
)
def test_the_frames_picked_never_change(total, count, indices):
    assert frame_indices(total, count) == indices


# Decoding


@pytest.mark.parametrize("count", [1, 2, 4, 7, 29, 30, 99])
def test_both_decoders_give_the_same_known_frames(clip, count):
    wanted = frame_indices(len(GREYS), count)
    frames = {decoder: decode_frames(clip, count, decoder) for decoder in DECODERS}
    for decoder in DECODERS:
        assert [frame.size for frame in frames[decoder]] == [(32, 32)] * len(wanted)
        for index, frame in zip(wanted, frames[decoder], strict=True):
            left, right = np.asarray(frame)[:, :14].mean(), np.asarray(frame)[:, 18:].mean()
            assert abs(left - GREYS[index]) < 3 and abs(right - (255 - GREYS[index])) < 3
    for one, other in zip(*frames.values(), strict=True):
        assert np.array_equal(np.asarray(one), np.asarray(other))


def test_the_decoders_give_red_as_red(tmp_path):
    with av.open(str(tmp_path / "red.mp4"), "w") as output:
        stream = output.add_stream("libx264", rate=8)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        array = np.zeros((32, 32, 3), np.uint8)
        array[..., 0] = 220
        output.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        output.mux(stream.encode())
    for decoder in DECODERS:
        red, green, blue = decode_frames(tmp_path / "red.mp4", 1, decoder)[0].getpixel((16, 16))
        assert red > 200 and green < 20 and blue < 20


def test_a_container_that_declares_no_frame_count_is_decoded_too(tmp_path):
    video = write_clip(tmp_path / "clip.mkv")
    with av.open(str(video)) as container:
        assert container.streams.video[0].frames == 0
    one, other = (decode_frames(video, 4, decoder) for decoder in DECODERS)
    assert [pixel_sha256(frame) for frame in one] == [pixel_sha256(frame) for frame in other]
    assert len(one) == 4


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.9, 0.99])
def test_a_video_cut_short_is_refused_by_name(clip, tmp_path, decoder, share):
    data = clip.read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(data[: int(len(data) * share)])
    for count in (2, 99):
        with pytest.raises(MediaError, match=r"cut\.mp4: .*; fetch it again"):
            decode_frames(cut, count, decoder)


def test_fewer_frames_than_declared_are_noticed(clip, monkeypatch):
    # PyAV ends quietly where the packets of a file end cleanly before their declared number.
    whole = media._pyav_frames
    monkeypatch.setattr(media, "_pyav_frames", lambda video: list(whole(video))[:17])
    with pytest.raises(MediaError, match=r"clip\.mp4: holds 17 of 30 declared frames: the file is cut short"):
        decode_frames(clip, 4, "pyav")


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("content", [b"", b"garbage" * 500, b"\x00" * 5000, b"\x00\x00\x00\x18ftypmp42" + b"moov" * 99])
def test_what_is_no_video_is_refused_by_name(tmp_path, decoder, content):
    file = tmp_path / "odd.mp4"
    file.write_bytes(content)
    with pytest.raises(MediaError, match=r"odd\.mp4: "):
        decode_frames(file, 4, decoder)


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_missing_video_or_a_folder_in_its_place_is_refused_by_name(tmp_path, decoder):
    for file in (tmp_path / "absent.mp4", tmp_path):
        with pytest.raises(MediaError) as caught:
            decode_frames(file, 4, decoder)
        assert str(file) in str(caught.value)


def test_a_decoder_that_is_not_installed_is_named_and_no_fault_of_the_video(clip, monkeypatch):
    for decoder, module in (("torchcodec", "torchcodec.decoders"), ("decord", "decord"), ("pyav", "av")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(DecoderError, match=f"decoder '{decoder}' cannot be loaded .*; ") as caught:
            decode_frames(clip, 4, decoder)
        assert not isinstance(caught.value, MediaError) and "clip.mp4" not in str(caught.value)
    with pytest.raises(DecoderError, match="pip install torchcodec"):
        decode_frames(clip, 4, "torchcodec")


def stand_in_for_torchcodec(declared=30):
    """What the adapter calls of torchcodec, made of PyAV: it tells nothing of torchcodec itself, only of our calls."""
    import torch

    class VideoDecoder:
        def __init__(self, source, *, dimension_order="NCHW", num_ffmpeg_threads=1, seek_mode="exact"):
            try:
                frames = [frame.to_ndarray(format="rgb24") for frame in media._pyav_frames(Path(source))]
            except (av.FFmpegError, IndexError) as error:
                raise RuntimeError("Could not open input file") from error
            self.frames = torch.from_numpy(np.stack(frames))
            self.order = dimension_order
            self.metadata = SimpleNamespace(num_frames_from_header=declared, average_fps=8.0)

        def __len__(self):
            return len(self.frames)

        def get_frames_at(self, indices):
            assert self.order == "NHWC"
            return SimpleNamespace(data=self.frames[indices])

    return SimpleNamespace(VideoDecoder=VideoDecoder)


@pytest.mark.parametrize("real", [False, True], ids=["stand-in", "itself"])
def test_the_torchcodec_adapter_gives_the_same_frames_as_the_others(real, clip, tmp_path, monkeypatch):
    if not real:
        monkeypatch.setitem(sys.modules, "torchcodec.decoders", stand_in_for_torchcodec())
    try:
        media._library("torchcodec")
    except DecoderError as error:
        pytest.skip(str(error))
    one, other = (decode_frames(clip, 4, decoder) for decoder in ("torchcodec", "pyav"))
    assert [pixel_sha256(frame) for frame in one] == [pixel_sha256(frame) for frame in other]
    sampling = FrameSampling(frames=4, cache=tmp_path / "cache", decoder="torchcodec")
    assert native_clip([str(clip)], sampling)[2:] == ([0, 10, 19, 29], 30, 8.0)
    (tmp_path / "odd.mp4").write_bytes(b"no video")
    with pytest.raises(MediaError, match=r"odd\.mp4: torchcodec cannot read this video"):
        decode_frames(tmp_path / "odd.mp4", 4, "torchcodec")


def test_torchcodec_is_not_believed_where_a_file_is_cut_short(clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", stand_in_for_torchcodec(declared=40))
    with pytest.raises(MediaError, match=r"holds 30 of 40 declared frames: the file is cut short"):
        decode_frames(clip, 4, "torchcodec")


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_native_clip_has_the_frames_and_the_timing_of_its_video(clip, tmp_path, decoder):
    found = native_clip([str(clip)], FrameSampling(frames=4, cache=tmp_path / "cache", decoder=decoder))
    assert found.video == clip and found[2:] == ([0, 10, 19, 29], 30, 8.0)
    assert [file.name for file in found.frames] == ["0000.png", "0001.png", "0002.png", "0003.png"]


def test_frames_without_timing_are_no_native_video(tmp_path, sampling):
    frames = [str(save(tmp_path / "frames" / f"{i}.png")) for i in range(3)]
    for paths in (frames, frames[:1], [str(tmp_path / "frames")], [str(tmp_path / "gone.mp4")]):
        with pytest.raises(MediaError, match="native video needs one video file"):
            native_clip(paths, sampling)


def test_frames_that_cannot_be_stored_stop_the_run_with_the_folder(clip, sampling, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(InputError, match=r"cache: frames cannot be stored .*No space left.*free space") as caught:
        video_frames(clip, sampling)
    assert not isinstance(caught.value, MediaError) and not any(sampling.cache.iterdir())


def test_every_command_offers_the_decoders_of_one_list():
    listed = re.compile(r'"decord",\s*"(pyav|torchcodec)"')
    sources = (Path(__file__).parents[1] / "src").rglob("*.py")
    assert [path.name for path in sources if listed.search(path.read_text())] == ["media.py"]


def test_an_unknown_decoder_is_refused(clip):
    with pytest.raises(MediaError, match="decoder 'cv2' is unknown; choose one of 'decord', 'pyav', 'torchcodec'"):
        decode_frames(clip, 4, "cv2")


# Which files stand for an entry


def test_an_image_entry_is_its_files(tmp_path, sampling):
    files = [save(tmp_path / name) for name in ("b.png", "a.jpg")]
    assert image_paths([str(file) for file in files], "image", sampling) == files


def test_frames_are_thinned_by_the_one_sampler(tmp_path, sampling):
    files = [save(tmp_path / f"{i}.png") for i in range(10)]
    assert image_paths([str(file) for file in files], "video", sampling) == [files[i] for i in (0, 3, 6, 9)]
    assert image_paths([str(file) for file in files[:3]], "video", sampling) == files[:3]
    assert image_paths([str(files[0])], "video", sampling) == files[:1]


def test_a_folder_of_frames_is_read_in_the_order_of_its_numbers(tmp_path, sampling):
    files = [save(tmp_path / "frames" / f"frame_{i}.png") for i in range(12)]
    (tmp_path / "frames" / "notes.txt").write_text("not a frame")
    assert image_paths([str(tmp_path / "frames")], "video", sampling) == [files[i] for i in (0, 4, 7, 11)]


def test_a_folder_without_frames_is_refused(tmp_path, sampling):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MediaError, match="empty: a folder without image files; expected the frames of a video"):
        image_paths([str(tmp_path / "empty")], "video", sampling)


def test_an_animated_gif_is_a_video_not_its_first_frame(tmp_path):
    gif = write_clip(tmp_path / "clip.gif", codec="gif", pixels="rgb8")
    sampling = FrameSampling(frames=4, cache=tmp_path / "cache", decoder="pyav")
    assert len(image_paths([str(gif)], "video", sampling)) == 4
    assert image_paths([str(gif)], "image", sampling) == [gif]


def test_a_video_for_a_task_with_images_is_told_as_such(tmp_path, sampling):
    clip = tmp_path / "clip.MP4"
    clip.write_bytes(b"never opened")
    with pytest.raises(MediaError, match=r"clip\.MP4: a video, and the task shows images; choose a video task"):
        check_media([str(clip)], "image", sampling)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_missing_file_is_refused_by_name(tmp_path, sampling, kind):
    absent = tmp_path / "absent.png"
    with pytest.raises(MediaError, match=r"absent\.png: no such file; check the path and the media root"):
        image_paths([str(save(tmp_path / "a.png")), str(absent)], kind, sampling)
    with pytest.raises(MediaError, match=r"absent\.png: no such file; check the path and the media root"):
        open_image(absent)


def test_checking_an_entry_opens_what_it_points_to(clip, tmp_path, sampling):
    check_media([str(clip)], "video", sampling)
    broken = tmp_path / "broken.png"
    broken.write_bytes(save(tmp_path / "a.png").read_bytes()[:40])
    with pytest.raises(MediaError, match=r"broken\.png: "):
        check_media([str(broken)], "image", sampling)


# The cache


def test_a_cached_video_is_not_decoded_again(clip, tmp_path, sampling, monkeypatch):
    first = video_frames(clip, sampling)
    assert [file.name for file in first] == ["0000.png", "0001.png", "0002.png", "0003.png"]
    expected = decode_frames(clip, 4, "decord")
    assert [pixel_sha256(open_image(file)) for file in first] == [pixel_sha256(frame) for frame in expected]
    monkeypatch.setattr(media, "decode_frames", None)
    assert video_frames(clip, sampling) == first
    assert video_frames(Path(shutil.copy(clip, tmp_path / "same content.mp4")), sampling) == first


def test_other_content_another_number_and_another_decoder_are_cached_apart(clip, tmp_path, sampling):
    other = write_clip(tmp_path / "other.mp4", codec="mpeg4")
    folders = {video_frames(clip, sampling)[0].parent, video_frames(other, sampling)[0].parent}
    for change in ({"frames": 5}, {"decoder": "pyav"}):
        options = {"frames": 4, "cache": sampling.cache, **change}
        folders.add(video_frames(clip, FrameSampling(**options))[0].parent)
    assert len(folders) == 4


def test_a_killed_run_leaves_no_half_filled_cache(clip, sampling, monkeypatch):
    saved = []
    real = Image.Image.save

    def killed_at_the_third(image, path, **options):
        if len(saved) == 2:
            raise KeyboardInterrupt
        saved.append(path)
        real(image, path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", killed_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            video_frames(clip, sampling)
    assert len(saved) == 2 and not any(sampling.cache.iterdir())
    assert len(video_frames(clip, sampling)) == 4


def test_two_processes_may_cache_the_same_video(clip, sampling, monkeypatch):
    real = media.decode_frames

    def other_process_is_faster(*args):
        monkeypatch.setattr(media, "decode_frames", real)
        video_frames(clip, sampling)
        return real(*args)

    monkeypatch.setattr(media, "decode_frames", other_process_is_faster)
    files = video_frames(clip, sampling)
    assert len(files) == 4 and list(sampling.cache.iterdir()) == [files[0].parent]


def test_a_broken_video_leaves_no_cache(tmp_path, sampling):
    (tmp_path / "odd.mp4").write_bytes(b"garbage")
    with pytest.raises(MediaError):
        video_frames(tmp_path / "odd.mp4", sampling)
    assert not sampling.cache.exists()


# Images


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "1", "P", "CMYK", "I;16", "LA"])
def test_images_of_every_mode_open_as_rgb(tmp_path, mode):
    file = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new(mode, (5, 7)).save(file)
    image = open_image(file)
    assert image.mode == "RGB" and image.size == (5, 7)


def test_a_photo_is_turned_upright(tmp_path):
    photo = Image.new("RGB", (20, 10), "blue")
    exif = photo.getexif()
    exif[0x0112] = 6  # taken with the camera on its side
    photo.save(tmp_path / "photo.jpg", exif=exif)
    assert open_image(tmp_path / "photo.jpg").size == (10, 20)


@pytest.mark.parametrize("content", [b"", b"garbage" * 100, b"\x89PNG\r\n\x1a\n", b"GIF89a", b"<svg></svg>"])
def test_what_is_no_image_is_refused_by_name(tmp_path, content):
    (tmp_path / "odd.png").write_bytes(content)
    with pytest.raises(MediaError, match=r"odd\.png: not a readable image .*; replace or remove it"):
        open_image(tmp_path / "odd.png")


def test_a_folder_is_no_image(tmp_path):
    with pytest.raises(MediaError, match="not a readable image"):
        open_image(tmp_path)


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "bmp", "webp", "tiff"])
def test_a_damaged_image_opens_or_is_refused_but_nothing_else(tmp_path, kind):
    rng = np.random.default_rng(0)
    memory = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(memory, kind)
    whole = np.frombuffer(memory.getvalue(), np.uint8)
    refused = 0
    for _ in range(150):
        data = whole[: rng.integers(1, len(whole))] if rng.random() < 0.3 else whole.copy()
        if len(data) == len(whole):
            data[rng.integers(0, min(len(data), 300), 4)] = rng.integers(0, 255, 4)
        (tmp_path / "damaged").write_bytes(data.tobytes())
        try:
            with warnings.catch_warnings(action="ignore"):
                open_image(tmp_path / "damaged")
        except MediaError:
            refused += 1
    assert refused


def test_a_huge_image_is_refused_without_decoding_it(tmp_path, monkeypatch):
    file = save(tmp_path / "huge.png", side=100)
    monkeypatch.setattr(media, "MAX_PIXELS", 9_999)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    with pytest.raises(MediaError, match=r"huge\.png: 100x100 pixels; the limit is 9,999: scale it down"):
        open_image(file)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9_000, 60_000])
def test_a_bomb_is_refused_by_its_declared_size(tmp_path, side):
    file = save(tmp_path / "bomb.png")
    data = bytearray(file.read_bytes())
    data[16:24] = side.to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    file.write_bytes(data)
    with pytest.raises(MediaError, match=r"bomb\.png: "):
        open_image(file)


def test_equal_pictures_have_equal_hashes_whatever_the_format(tmp_path):
    png, bmp = (open_image(save(tmp_path / name)) for name in ("a.png", "a.bmp"))
    assert pixel_sha256(png) == pixel_sha256(bmp)
    assert pixel_sha256(png) != pixel_sha256(Image.new("RGB", (8, 8), "blue"))
    assert pixel_sha256(Image.new("RGB", (4, 16))) != pixel_sha256(Image.new("RGB", (8, 8)))
