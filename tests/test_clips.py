"""Clips of every kind by every decoder: the frames of the ffmpeg command line, or a refusal that names the clip."""

import struct
from pathlib import Path
from zlib import compress, crc32

import numpy as np
import pytest
from PIL import Image

from helpers.bench import need, script
from unifiedreward_think.decoders import DECODERS, TOLERANCE, _library, decode
from unifiedreward_think.errors import DecoderError, MediaError
from unifiedreward_think.media import FrameSampling, native_clip, open_image, video_frames

cases = script("media_cases")
H264 = cases.Clip("libx264", ".mp4", "yuv420p", width=66)
SMALL = "decord cannot read this video .*; choose --decoder pyav"
ALPHA = "the clip is transparent, which {} leaves out; choose --decoder pyav"
MIRROR = "the clip is to be mirrored, which {} leaves out; choose --decoder pyav"
EDITED = "decord counts 8 frames, and . are shown; choose --decoder pyav"
TEN_BITS = "decord's first frame is not FFmpeg's .*, or choose --decoder pyav"


def other(codec, suffix, pixels="yuv420p", **more):
    return cases.Clip(codec, suffix, pixels, width=66, **more)


# What a clip is -> (how it is made, what decord says, what torchcodec says); PyAV reads every one.
CLIPS = {
    "plain": (H264, "", ""),
    "long groups of pictures": (H264._replace(gop=30, b_frames=2, frames=14), "", ""),
    "turned right": (H264._replace(turn="0,1,-1,0", height=66), "", ""),
    "turned around": (H264._replace(turn="-1,0,0,-1"), "", ""),
    "turned left": (H264._replace(turn="0,-1,1,0", height=66), "", ""),
    "mirrored": (H264._replace(turn="-1,0,0,1"), MIRROR, MIRROR),
    "upside down": (H264._replace(turn="1,0,0,-1"), MIRROR, MIRROR),
    "transposed": (H264._replace(turn="0,1,1,0"), MIRROR, MIRROR),
    "transversed": (H264._replace(turn="0,-1,-1,0"), MIRROR, MIRROR),
    "an edit list that hides frames": (H264._replace(start=0.33, gop=8), EDITED, ""),
    "a variable rate": (H264._replace(variable=True), "", ""),
    "interlaced": (H264._replace(interlaced=True), "", ""),
    "pixels that are not square": (H264._replace(pixel_aspect="2"), "", ""),
    "full range": (H264._replace(full_range=True, pixels="yuvj420p"), "", ""),
    "BT.709": (H264._replace(colours="bt709"), "", ""),
    "HDR": (H264._replace(colours="bt2020nc", pixels="yuv420p10le"), TEN_BITS, ""),
    "a cover picture in front": (H264._replace(cover=True), "", ""),
    "odd sizes": (H264._replace(pixels="yuv444p", width=63, height=47), "", ""),
    "two pixels wide": (H264._replace(width=2, height=4), SMALL, ""),
    "24 pixels wide": (H264._replace(width=24), SMALL, ""),
    "AV1": (other("libaom-av1", ".mp4"), SMALL, ""),
    "Matroska": (H264._replace(suffix=".mkv"), "", ""),
    "WebM": (other("libvpx-vp9", ".webm"), "", ""),
    "a transport stream": (H264._replace(suffix=".ts"), "", ""),
    "AVI": (other("mpeg4", ".avi"), "", ""),
    "Motion JPEG": (other("mjpeg", ".avi", "yuvj420p"), "", ""),
    "RGBA": (other("png", ".mov", "rgba", alpha=90), ALPHA, ALPHA),
    "ARGB": (other("qtrle", ".mov", "argb", alpha=0), ALPHA, ALPHA),
    "animated GIF": (other("gif", ".gif", "bgra"), "", ""),
    "animated PNG": (other("apng", ".png", "rgba", alpha=90), "", ""),
    "animated WebP": (other("libwebp_anim", ".webp", "bgra"), "", ""),
    "transparent animated WebP": (other("libwebp_anim", ".webp", "bgra", alpha=90), "", ""),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Name -> the file, and the frames of the command line; made once."""
    need("ffmpeg")
    known = {}

    def make(name):
        if name not in known:
            folder = tmp_path_factory.mktemp("clip")
            file = cases.make_clip(CLIPS[name][0], folder)
            known[name] = file, cases.frames_shown(CLIPS[name][0], file, folder)
        return known[name]

    return make


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", CLIPS)
def test_a_clip_is_shown_as_ffmpeg_shows_it_or_refused_by_name(name, decoder, made):
    try:
        _library(decoder)
    except DecoderError as error:
        pytest.skip(str(error))
    file, reference = made(name)
    refusal = dict(zip(("decord", "torchcodec"), CLIPS[name][1:], strict=True)).get(decoder, "")
    if refusal:
        with pytest.raises(MediaError, match=f"{file.name}: {refusal.format(decoder)}"):
            decode(file, 99, decoder)
        return
    film = decode(file, 99, decoder)
    assert (len(film.frames), film.total) == (len(reference), len(reference))
    for frame, shown in zip(film.frames, reference, strict=True):
        assert np.asarray(frame).shape == shown.shape
        assert np.abs(np.asarray(frame).astype(int) - shown).mean() <= TOLERANCE


@pytest.mark.parametrize("decoder", DECODERS)
def test_one_frame_is_no_video(decoder, tmp_path):
    need("ffmpeg")
    Image.new("RGB", (8, 8)).save(tmp_path / "still.webp")
    file = cases.make_clip(H264._replace(frames=1), tmp_path)
    for video, why in ((file, "one frame is no video"), (tmp_path / "still.webp", "one picture is no video")):
        with pytest.raises(MediaError, match=rf"{video.name}: {why}; give .*, or choose an image task"):
            decode(video, 4, decoder)


def test_turns_that_no_decoder_knows_and_alpha_that_all_leave_out_are_refused(tmp_path):
    need("ffmpeg")
    file = cases.make_clip(H264, tmp_path, "tilted")
    cases.turn_clip(file, "1,1,-1,1")
    with pytest.raises(MediaError, match=r"tilted\.mp4: to be turned by 45 degrees, no quarter turn; re-encode it"):
        decode(file, 4, "pyav")
    file = cases.make_clip(other("libvpx-vp9", ".webm", "yuva420p", alpha=90), tmp_path, "clear")
    with pytest.raises(
        MediaError, match=r"clear\.webm: a transparent WebM, whose alpha is left out; convert it: ffmpeg"
    ):
        decode(file, 4, "pyav")


def test_a_clip_that_no_processor_takes_is_refused_by_its_own_name(tmp_path):
    need("ffmpeg")
    file = cases.make_clip(H264._replace(width=2, height=402), tmp_path, "thread")
    with pytest.raises(MediaError, match=r"thread\.mp4: 2x402 is too narrow; the limit is 200:1"):
        video_frames(file, FrameSampling(frames=4, cache=tmp_path / "cache", decoder="pyav"))


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
@pytest.mark.parametrize(
    "name", ["take:1.mp4", "file:clip.mp4", "-i.mp4", "50%d.mp4", "a b#c?d=e.mp4", "\u00e9\u4e2d.mp4"]
)
def test_any_name_is_the_name_of_a_file(name, decoder, tmp_path, monkeypatch):
    need("ffmpeg")
    cases.make_clip(H264, tmp_path).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert len(decode(Path(name), 4, decoder).frames) == 4


def test_frames_with_the_picture_of_other_readers_in_front_leave_it_out(made, tmp_path):
    file, reference = made("animated PNG")
    data = file.read_bytes()
    control = data.index(b"fcTL") - 4
    header = data[:control]  # a picture before the first frame control is none of the animation
    pixels = compress(b"".join(b"\0" + bytes([9, 9, 9, 255]) * 66 for _ in range(48)))
    picture = struct.pack(">I", len(pixels)) + b"IDAT" + pixels + struct.pack(">I", crc32(b"IDAT" + pixels))
    rest, number = bytearray(data[control:]), 0
    place = 0
    while place < len(rest):  # frames are numbered, and what was the first picture is one of them now
        size, kind = struct.unpack(">I4s", rest[place : place + 8])
        body = bytes(rest[place + 8 : place + 8 + size])
        if kind in (b"fcTL", b"fdAT"):
            body = struct.pack(">I", number) + body[4:]
            number += 1
        elif kind == b"IDAT":
            kind, body = b"fdAT", struct.pack(">I", number) + body
            number += 1
        chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc32(kind + body))
        rest[place : place + 12 + size] = chunk
        place += len(chunk)
    (tmp_path / "hidden.png").write_bytes(header + picture + bytes(rest))
    assert open_image(tmp_path / "hidden.png").getpixel((0, 0)) == (9, 9, 9)
    film = decode(tmp_path / "hidden.png", 99, "pyav")
    assert len(film.frames) == len(reference)
    assert np.abs(np.asarray(film.frames[0]).astype(int) - reference[0]).mean() <= 1


def test_an_animation_has_the_timing_of_its_frames(made, tmp_path):
    for name in ("animated GIF", "animated PNG", "animated WebP"):
        clip = native_clip([str(made(name)[0])], FrameSampling(frames=4, cache=tmp_path / "cache"))
        assert (clip.total, round(clip.fps, 3), clip.indices) == (8, 10.0, [0, 2, 5, 7])


def test_a_damaged_animation_is_read_or_refused(made, tmp_path):
    for name in ("animated GIF", "animated PNG", "animated WebP"):
        data = made(name)[0].read_bytes()
        for share in (0.2, 0.5, 0.9):
            cut = tmp_path / f"cut{made(name)[0].suffix}"
            cut.write_bytes(data[: int(len(data) * share)])
            with pytest.raises(MediaError, match=cut.name):
                decode(cut, 99, "pyav")
