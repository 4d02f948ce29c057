"""The fuzz targets for pictures and clips (see fuzz.py): shown as ImageMagick and ffmpeg show them, or refused by name.

pictures  PNG, TIFF and PPM of any depth, colour type, transparency, byte order and maximum; JPEG, WebP, GIF and BMP of
          every mode and orientation. Three in ten are damaged, which may be read or refused, and nothing else.
clips     codecs, containers, animations, sizes, rates, rotations, mirrors, edit lists, fields, ranges, matrices, alpha,
          covers, by every decoder; two in ten are damaged.
"""

import io
import random
import struct
import subprocess
import traceback
import warnings
from collections import Counter

import numpy as np
from media_cases import CHANNELS, CONVERT, Clip, as_shown, frames_shown, make_clip, png, tiff
from PIL import Image

from unifiedreward_think.decoders import TOLERANCE, decode
from unifiedreward_think.errors import DecoderError, MediaError
from unifiedreward_think.media import open_image

__all__ = ["CONVERT", "TARGETS", "fuzz"]
BATCH = 40  # pictures that one process of ImageMagick reads
LEAST = {"png": 3, "tif": 3, "ppm": 2, "bmp": 2, "gif": 0, "jpg": 6, "webp": 3}  # grey levels a pixel may differ by
MODES = {
    "jpg": ("L", "RGB", "CMYK"),
    "webp": ("RGB", "RGBA", "L", "LA"),
    "gif": ("1", "L", "P", "RGBA"),
    "bmp": ("1", "L", "P", "RGB", "RGBA"),
    "tif": ("1", "L", "P", "I;16", "F", "RGB", "RGBA", "CMYK"),
}
PACKED = ("raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate")
CODECS = [
    *[
        ("libx264", suffix, pixels)
        for suffix in (".mp4", ".mov", ".mkv", ".ts", ".avi")
        for pixels in ("yuv420p", "yuv444p")
    ],
    *(("libx264", ".mp4", "yuv422p10le"), ("libx264", ".mp4", "yuv420p10le"), ("libx265", ".mp4", "yuv420p")),
    *(("mpeg4", ".avi", "yuv420p"), ("mpeg4", ".mp4", "yuv420p"), ("mpeg2video", ".mpg", "yuv420p")),
    *(("libvpx", ".webm", "yuv420p"), ("libvpx-vp9", ".webm", "yuv420p"), ("libvpx-vp9", ".webm", "yuva420p")),
    *(("libaom-av1", ".mp4", "yuv420p"), ("mjpeg", ".avi", "yuvj420p"), ("ffv1", ".mkv", "yuv420p")),
    *(
        ("ffv1", ".mkv", "bgra"),
        ("qtrle", ".mov", "argb"),
        ("png", ".mov", "rgba"),
        ("prores_ks", ".mov", "yuv422p10le"),
    ),
    *(("apng", ".png", "rgba"), ("apng", ".png", "rgb24"), ("gif", ".gif", "bgra"), ("libwebp_anim", ".webp", "bgra")),
    *(("wmv2", ".wmv", "yuv420p"), ("flv1", ".flv", "yuv420p"), ("rawvideo", ".avi", "bgr24")),
]
TURNS = ["0,1,-1,0", "-1,0,0,-1", "0,-1,1,0", "-1,0,0,1", "1,0,0,-1", "0,1,1,0", "0,-1,-1,0"]


def some_png(chance, side):
    """Return a PNG of any depth and colour type."""
    colour = chance.choice(list(CHANNELS))
    depth = chance.choice({0: (1, 2, 4, 8, 16), 3: (1, 2, 4, 8)}.get(colour, (8, 16)))
    pixels = chance.randbytes(side * side * depth * CHANNELS[colour] // 8 + 2 * side)
    trns = None
    if colour in (0, 2) and chance.random() < 0.5:
        trns = b"".join(
            struct.pack(">H", int.from_bytes(pixels[2 * i : 2 * i + 2], "big") >> (16 - depth))
            for i in range(CHANNELS[colour])
        )
    elif colour == 3 and chance.random() < 0.7:
        trns = chance.choice((b"\xff\0", b"\0", chance.randbytes(chance.randint(1, 2**depth))))
    palette = chance.randbytes(3 * 2**depth) if colour == 3 else None
    return png(depth, colour, side, pixels, trns=trns, palette=palette)


def some_tiff(chance, side):
    """Return a TIFF of any depth, ink, number of channels and byte order."""
    order = chance.choice("<>")
    # Of 4 bits ImageMagick 6 does not turn what it wrote as white is zero; so 8 and 16 only where white is zero.
    kind = chance.choice(("grey", "negative", "float", "rgb", "rgba", "cmyk", "signed", "planes"))
    channels = {"rgb": 3, "rgba": 4, "cmyk": 4, "planes": 3}.get(kind, 1)
    depth = {"float": 32, "signed": chance.choice((16, 32))}.get(kind) or chance.choice((8, 16))
    dtype = f"{order}f4" if kind == "float" else f"{order}u{depth // 8}"
    draw = np.random.default_rng(chance.getrandbits(32))
    top = 2**15 if kind == "signed" else 2**depth
    values = draw.random(side * side) if kind == "float" else draw.integers(0, top, side * side * channels)
    ink = {"negative": 0, "rgb": 2, "rgba": 2, "cmyk": 5, "planes": 2}.get(kind, 1)
    options = {"ink": ink, "channels": channels, "order": order, "planes": 2 if kind == "planes" else 1}
    sample_format = {"float": 3, "signed": 2}.get(kind, 1)
    return tiff(depth, side, values.astype(dtype).tobytes(), sample_format=sample_format, **options)


def some_ppm(chance, side):
    """Return a PPM, PGM or PBM with any maximum."""
    kind = chance.choice((4, 5, 6))
    top = chance.choice((1, 7, 100, 255, 256, 1000, 4095, 65535))
    draw = np.random.default_rng(chance.getrandbits(32))
    if kind == 4:
        return f"P4\n{side} {side}\n".encode() + chance.randbytes((side + 7) // 8 * side)
    values = draw.integers(0, top + 1, side * side * (3 if kind == 6 else 1)).astype(">u2" if top > 255 else "u1")
    return f"P{kind}\n{side} {side}\n{top}\n".encode() + values.tobytes()


def some_saved(chance, side, suffix):
    """Return a picture that Pillow wrote, of any mode, with or without an orientation."""
    mode = chance.choice(MODES[suffix])
    draw = np.random.default_rng(chance.getrandbits(32))
    small = draw.integers(0, 256, (4, 4, 4), dtype=np.uint8)
    smooth = Image.fromarray(small).resize((side, side + chance.randint(0, 5)), Image.Resampling.BICUBIC)
    grey = np.asarray(smooth.convert("L"))
    if mode == "CMYK":
        image = Image.frombytes("CMYK", smooth.size, smooth.tobytes())
    elif mode in ("I;16", "F"):
        image = Image.fromarray((grey * 257.0).astype(np.uint16) if mode == "I;16" else grey.astype(np.float32) / 255)
    else:
        image = smooth.convert(mode)
    options = {"webp": {"lossless": True}, "jpg": {"quality": 95, "progressive": chance.random() < 0.5}}.get(suffix, {})
    if suffix == "tif":
        options = {"compression": chance.choice(PACKED)}
    if suffix in ("jpg", "tif") and chance.random() < 0.7:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = chance.randint(1, 8)
    buffer = io.BytesIO()
    image.save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix), **options)
    return buffer.getvalue()


def damaged(data, chance):
    """Return data cut, or with some bytes changed, or a part of it twice or left out."""
    data = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        i, j = sorted(chance.randrange(len(data) + 1) for _ in range(2))
        fault = chance.randrange(4)
        if fault == 0:
            data = data[: max(1, j)]
        elif fault == 1:
            for _ in range(chance.randint(1, 8)):
                data[chance.randrange(len(data))] = chance.randrange(256)
        elif fault == 2:
            data[i:i] = data[i : min(j, i + 50)]
        elif j - i < len(data):
            del data[i : min(j, i + 50)]
    return bytes(data)


def pictures(count, chance, folder):
    """Yield (outcome, what went wrong, input) for pictures."""
    for start in range(0, count, BATCH):
        files, broken = [], set()
        for number in range(min(BATCH, count - start)):
            suffix, side = chance.choice(list(LEAST)), chance.randint(1, 24)
            makers = {"png": some_png, "tif": some_tiff, "ppm": some_ppm}
            by_hand = suffix in makers and (suffix != "tif" or chance.random() < 0.5)
            data = makers[suffix](chance, side) if by_hand else some_saved(chance, side, suffix)
            file = folder / f"{number}.{suffix}"
            if chance.random() < 0.3:
                data = damaged(data, chance)
                broken.add(file)
            file.write_bytes(data)
            files.append(file)
        whole = [file for file in files if file not in broken]
        references = dict(zip(whole, as_shown(whole, folder / "shown"), strict=True))
        for file in files:
            yield (*judged(file, references.get(file), damaged=file in broken), file.read_bytes())
            file.unlink()


def judged(file, reference, *, damaged):
    """Return the outcome of one picture, and how it is wrong."""
    try:
        with warnings.catch_warnings(action="ignore"):
            shown = np.asarray(open_image(file)).astype(int)
    except MediaError:
        return "damaged, refused" if damaged else "refused by name", ""
    except Exception:
        return "crash", traceback.format_exc()[-1500:]
    if damaged:
        return "damaged, read", ""
    if reference is None:
        return "not in ImageMagick", ""
    if shown.shape != reference.shape:
        return "wrong", f"{file.name}: {shown.shape} for {reference.shape}"
    difference = np.abs(shown - reference).max()
    return ("equal", "") if difference <= LEAST[file.suffix[1:]] else ("wrong", f"{file.name}: by {difference}")


def some_clip(chance):
    """Return how a clip is made."""
    codec, suffix, pixels = chance.choice(CODECS)
    often = chance.random
    even = 1 if pixels in ("rgba", "rgb24", "bgra", "argb", "yuv444p", "bgr24") else 2
    edited = codec in ("libx264", "libx265", "mpeg4") and suffix in (".mp4", ".mov")
    return Clip(
        codec,
        suffix,
        pixels,
        width=chance.randint(16 // even, 80 // even) * even,
        height=chance.randint(16 // even, 80 // even) * even,
        frames=chance.randint(1, 14),
        rate=chance.choice(("5", "10", "30", "24000/1001")) if codec not in ("mpeg2video",) else "25",
        gop=chance.choice((1, 3, 12)),
        b_frames=chance.choice((0, 2)) if codec in ("libx264", "libx265", "mpeg4") else 0,
        turn=chance.choice(TURNS) if edited and often() < 0.4 else "",
        start=chance.choice((0.15, 0.33)) if edited and often() < 0.3 else 0.0,
        variable=suffix in (".mp4", ".mov", ".mkv", ".webm") and often() < 0.2,
        interlaced=codec in ("libx264", "mpeg2video") and even == 2 and often() < 0.2,
        full_range=codec == "libx264" and often() < 0.2,
        colours=chance.choice(("", "bt709", "bt2020nc", "smpte170m")) if codec == "libx264" else "",
        cover=suffix == ".mp4" and codec == "libx264" and often() < 0.1,
        alpha=chance.choice((0, 90, 254)) if pixels in ("rgba", "bgra", "argb", "yuva420p") and often() < 0.5 else 255,
        seed=chance.randint(0, 20),
    )


def clips(count, chance, folder):
    """Yield (outcome, what went wrong, input) for clips: one outcome for all decoders."""
    made = 0
    while made < count:
        clip = some_clip(chance)
        try:
            file = make_clip(clip, folder)
        except subprocess.CalledProcessError:  # a combination that ffmpeg itself does not write
            continue
        made += 1
        broken = chance.random() < 0.2
        if broken:
            file.write_bytes(damaged(file.read_bytes(), chance))
        outcomes, wrong = [], []
        reference = [] if broken else frames_shown(clip, file, folder)
        for decoder in ("pyav", "decord", "torchcodec"):
            try:
                film = decode(file, 99, decoder)
            except DecoderError:
                continue
            except MediaError:
                outcomes.append("refused")
                continue
            except Exception:
                wrong.append(traceback.format_exc()[-1500:])
                continue
            outcomes.append("read")
            if not broken and (fault := difference(film, reference)):
                wrong.append(f"{decoder}: {fault}")
        name = "damaged, " if broken else ""
        name += "read by all" if set(outcomes) == {"read"} else "read by some" if "read" in outcomes else "refused"
        yield ("wrong" if wrong else name), f"{wrong} {clip}" if wrong else "", file.read_bytes()
        file.unlink()


def difference(film, reference):
    """Return how the frames of a film differ from those of the ffmpeg command line, or nothing."""
    if (len(film.frames), film.total) != (len(reference), len(reference)):
        return f"{film.total} frames for {len(reference)}"
    for number, (frame, other) in enumerate(zip(film.frames, reference, strict=True)):
        shown = np.asarray(frame).astype(int)
        if shown.shape != other.shape:
            return f"frame {number}: {shown.shape} for {other.shape}"
        if (mean := np.abs(shown - other).mean()) > TOLERANCE:
            return f"frame {number} by {mean:.1f}"
    return ""


TARGETS = {"pictures": pictures, "clips": clips}


def fuzz(name, count, seed, folder, kept):
    """Read `count` inputs and return the outcomes, and what crashed or was wrong."""
    chance, outcomes, faults = random.Random(f"{seed} {name}"), Counter(), []
    for outcome, why, data in TARGETS[name](count, chance, folder):
        outcomes["crash" if why else outcome] += 1
        if why and len(faults) < kept:
            faults.append({"error": why, "input": data[:2000].hex()})
    return dict(sorted(outcomes.items())), faults
