"""Pictures and clips of known structure, and what ImageMagick and the ffmpeg command line make of them.

Tests and fuzzers share it. Neither program shares code with Pillow or decord, but for the libraries of single formats
(libwebp, lcms); PyAV and torchcodec are FFmpeg's libraries in other versions. Debian's packages have both programs.
"""

import shutil
import struct
import subprocess
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

FFMPEG = ["ffmpeg", "-hide_banner", "-loglevel", "error", "-y"]
CONVERT = (
    "convert-im6.q16" if shutil.which("convert-im6.q16") else "magick"
)  # Debian's name for version 6, and version 7
MOGRIFY = ["mogrify-im6.q16"] if CONVERT == "convert-im6.q16" else ["magick", "mogrify"]
SHOWN = ["-auto-orient", "-background", "white", "-alpha", "remove", "-colorspace", "sRGB", "-depth", "8"]
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of the colour types of PNG


def png(depth, colour, side, pixels, *, trns=None, palette=None):
    """Return a PNG of any bit depth and colour type, `side` high and wide."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    width = (side * depth * CHANNELS[colour] + 7) // 8
    rows = b"".join(b"\0" + pixels[i * width : (i + 1) * width] for i in range(side))
    extra = (chunk(b"PLTE", palette) if palette else b"") + (chunk(b"tRNS", trns) if trns else b"")
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")


def tiff(depth, side, data, *, ink=1, sample_format=1, planes=1, channels=1, order="<"):
    """Return an uncompressed TIFF; the numbers in `data` are in the byte order."""
    size = len(data) // (channels if planes == 2 else 1)
    strips = channels if planes == 2 else 1
    body = data + bytes(len(data) % 2)

    def placed(kind, values):
        """Return a field of several values: inside where it fits, else behind the pixels."""
        nonlocal body
        packed = struct.pack(f"{order}{len(values)}{kind}", *values)
        if len(packed) <= 4:
            return packed.ljust(4, b"\0")
        body += packed + bytes(len(packed) % 2)
        return struct.pack(f"{order}I", 8 + len(body) - len(packed) - len(packed) % 2)

    fields = [
        (256, "I", [side]),
        (257, "I", [side]),
        (258, "H", [depth] * channels),
        (259, "H", [1]),
        (262, "H", [ink]),
    ]
    fields += [(273, "I", [8 + i * size for i in range(strips)]), (277, "H", [channels]), (278, "I", [side])]
    fields += [(279, "I", [size] * strips), (284, "H", [planes])]
    if channels in (2, 4) and ink != 5:
        fields.append((338, "H", [2]))
    fields.append((339, "H", [sample_format] * channels))
    kinds = {"H": 3, "I": 4}
    entries = b"".join(
        struct.pack(f"{order}HHI", tag, kinds[kind], len(values)) + placed(kind, values) for tag, kind, values in fields
    )
    directory = struct.pack(f"{order}H", len(fields)) + entries + bytes(4)
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(body))
    return start + body + directory


def as_shown(files, folder):
    """Return what ImageMagick makes of pictures: upright, on white, 8-bit sRGB; None for one that it refuses."""
    folder.mkdir(exist_ok=True)
    subprocess.run([*MOGRIFY, *SHOWN, "-format", "ppm", "-path", folder, *files], capture_output=True, check=False)
    shown = []
    for file in files:
        made = folder / f"{file.stem}.ppm"
        shown.append(np.asarray(Image.open(made).convert("RGB")).astype(int) if made.is_file() else None)
        made.unlink(missing_ok=True)
    return shown


class Clip(NamedTuple):
    """How a clip is made; sizes are those of its frames as stored."""

    codec: str
    suffix: str
    pixels: str
    width: int = 64
    height: int = 48
    frames: int = 8
    rate: str = "10"
    gop: int = 5
    b_frames: int = 0
    turn: str = ""  # a, b, c, d of the display matrix, as digits with signs: "0,1,-1,0"
    start: float = 0.0  # of the part that an edit list shows
    variable: bool = False
    interlaced: bool = False
    pixel_aspect: str = ""
    full_range: bool = False
    colours: str = ""
    cover: bool = False
    alpha: int = 255
    seed: int = 0


SLOW = {
    "libaom-av1": ["-cpu-used", "8", "-usage", "realtime"],
    "libvpx-vp9": ["-deadline", "realtime", "-cpu-used", "8"],
}
MATRICES = {"bt709": "bt709", "bt2020nc": "bt2020", "smpte240m": "smpte240m", "smpte170m": "smpte170m"}


def make_clip(clip, folder, name="clip"):
    """Write a clip with the ffmpeg command line and return its file."""
    file = folder / f"{name}{clip.suffix}"
    source = f"testsrc2=size=128x96:rate={clip.rate}:alpha={clip.alpha},trim=start_frame={clip.seed}"
    # Rows are turned by the seed, so that pictures differ; a moving box tells the frames apart.
    chain = [source, "format=rgba" if clip.alpha < 255 else "format=rgb24", f"hue=h={37 * clip.seed % 360}"]
    chain += [f"scale={clip.width}:{clip.height}:flags=neighbor"]
    if clip.variable:
        chain += ["select='lt(random(7),0.5)+eq(n,0)'"]
    if clip.interlaced:
        chain += ["interlace"]
    chain += [f"setsar={clip.pixel_aspect}"] if clip.pixel_aspect else []
    matrix = f":out_color_matrix={MATRICES[clip.colours]}" if clip.colours else ""
    chain += [f"scale=out_range={'full' if clip.full_range else 'tv'}{matrix}", f"format={clip.pixels}"]
    tags = ["-colorspace", clip.colours] if clip.colours else []
    tags += ["-color_range", "pc"] if clip.full_range else []
    tags += ["-flags", "+ilme+ildct"] if clip.interlaced else []
    lossy = clip.codec in ("libx264", "libx265", "mpeg4", "mpeg2video", "libvpx", "libvpx-vp9")
    tags += ["-g", str(clip.gop), "-bf", str(clip.b_frames)] if lossy else []
    tags += ["-x265-params", "log-level=none"] if clip.codec == "libx265" else []
    tags += ["-preset", "ultrafast"] if clip.codec in ("libx264", "libx265") else []
    tags += ["-lossless", "1"] if clip.codec == "libwebp_anim" else []
    form = ["-f", "apng"] if clip.codec == "apng" else []
    encode = ["-c:v", clip.codec, *SLOW.get(clip.codec, []), "-threads", "1", *tags, "-fps_mode", "vfr"]
    first = folder / f"{name}.first{clip.suffix}"
    _run("-f", "lavfi", "-i", ",".join(chain), "-frames:v", str(clip.frames), *encode, *form, first)
    if clip.start:
        _run("-ss", str(clip.start), "-i", first, "-c", "copy", *form, file)
        first.unlink()
    else:
        first.replace(file)
    if clip.cover:
        still = folder / f"{name}.jpg"
        _run("-f", "lavfi", "-i", "testsrc2=size=400x300", "-frames:v", "1", still)
        mapped = ["-map", "1", "-map", "0", "-c", "copy", "-disposition:v:0", "attached_pic"]
        _run("-i", file, "-i", still, *mapped, first)
        still.unlink()
        first.replace(file)
    if clip.turn:
        turn_clip(file, clip.turn)
    return file


def turn_clip(file, turn):
    """Write a display matrix into the first track of an mp4."""
    data = bytearray(file.read_bytes())
    place = data.index(b"tkhd") + 4
    place += 40 if data[place] == 0 else 52
    a, b, c, d = (int(number) << 16 for number in turn.split(","))
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    file.write_bytes(data)


def frames_shown(clip, file, folder):
    """Return the frames of a clip that the ffmpeg command line shows, on white."""
    if file.suffix == ".webp":  # which it writes and cannot read: the same frames in another file, both lossless
        file = make_clip(clip._replace(codec="png", suffix=".mov", pixels="rgba"), folder, "twin")
    channels = 4 if clip.alpha < 255 or file.suffix in (".gif", ".mov") else 3
    shape = ["-pix_fmt", "rgba" if channels == 4 else "rgb24", "-f", "image2", "-c:v", "pam", folder / "frame%04d.pam"]
    _run("-i", file, "-fps_mode", "passthrough", *shape)
    frames = []
    for path in sorted(folder.glob("frame*.pam")):
        header, _, pixels = path.read_bytes().partition(b"ENDHDR\n")
        size = dict(line.split() for line in header.decode().splitlines()[1:])
        array = np.frombuffer(pixels, np.uint8).reshape(int(size["HEIGHT"]), int(size["WIDTH"]), channels).astype(float)
        alpha = array[..., 3:] / 255 if channels == 4 else 1
        frames.append(np.round(array[..., :3] * alpha + 255 * (1 - alpha)).astype(int))
        path.unlink()
    return frames


def _run(*arguments):
    subprocess.run([*FFMPEG, *map(str, arguments)], check=True, capture_output=True, timeout=120, cwd=Path("/"))
