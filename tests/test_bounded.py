"""Pictures of strangers: as `open_image` shows them, in bounded time and memory, whatever their bytes are made for."""

import io
import os
import signal
import struct
import time

import pytest
from PIL import Image, PngImagePlugin

from unifiedreward_think import bounded
from unifiedreward_think.bounded import DECODERS, Decoders, open_bounded, plain, quick
from unifiedreward_think.errors import MediaError
from unifiedreward_think.media import open_image
from unifiedreward_think.pixels import FORMATS


def encoded(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def noise(width=31, height=17):
    return Image.effect_noise((width, height), 90).convert("RGB")


def with_scans(count, side):
    """A progressive JPEG whose last scan is there so many times."""
    content = encoded(Image.new("L", (side, side)), "JPEG", progressive=True, quality=50)
    last = content.rindex(b"\xff\xda")
    return content[:-2] + content[last:-2] * count + content[-2:]


def greedy_exif(entries=20_000, each=100_000):
    """EXIF data of 240 KB whose entries all hold the same bytes."""
    rows = b"".join(struct.pack("<HHLL", tag, 1, each, 0) for tag in range(1, entries + 1))
    return b"Exif\0\0II*\0" + struct.pack("<LH", 8, entries) + rows + bytes(4)


@pytest.mark.parametrize("form", FORMATS)
def test_a_picture_of_every_format_is_opened_as_in_this_process(form, tmp_path):
    file = tmp_path / "a"
    file.write_bytes(encoded(noise(), form))
    shown = open_bounded(file)
    assert (shown.mode, shown.size) == ("RGB", (31, 17)) and shown.tobytes() == open_image(file).tobytes()


def test_a_picture_is_turned_upright_and_a_bad_one_is_named(tmp_path):
    turned, file = Image.Exif(), tmp_path / "a.jpg"
    turned[0x0112] = 6
    file.write_bytes(encoded(noise(), "JPEG", exif=turned))
    assert open_bounded(file).size == (17, 31)
    file.write_bytes(encoded(noise(200, 200), "JPEG")[:-900])
    with pytest.raises(MediaError, match=r"a\.jpg: not a readable image"):
        open_bounded(file)
    file.write_bytes(b"no picture")
    with pytest.raises(MediaError, match=r"a\.jpg: no picture of the formats"):
        open_bounded(file)
    with pytest.raises(MediaError, match="no such file"):
        open_bounded(tmp_path / "b.jpg")


def text(**values):
    info = PngImagePlugin.PngInfo()
    for key, value in values.items():
        info.add_text(key, value, zip=True)
    return info


@pytest.mark.parametrize(
    ("content", "sure"),
    [
        (encoded(noise(), "PNG"), True),
        (encoded(noise(), "JPEG"), True),
        (encoded(noise(), "JPEG", progressive=True), True),
        (encoded(noise(), "PNG", pnginfo=text(a="b")), False),
        (encoded(noise(), "PNG", icc_profile=b"profile"), False),
        (encoded(noise(), "PNG", exif=greedy_exif()), False),
        (encoded(noise(), "JPEG", exif=b"Exif\0\0II*\0"), False),
        (encoded(noise(), "PNG")[:-12] + b"\0\0\0\0tIMEcrc!" * 2000, False),
        (encoded(noise(), "GIF"), False),
        (encoded(noise(), "WEBP"), False),
        (b"\x89PNG\r\n\x1a\n", False),
        (b"\xff\xd8\xff", False),
    ],
)
def test_only_what_holds_nothing_but_pixels_is_sure_to_be_quick(content, sure):
    assert plain(content) == sure and quick(content, 31 * 17) == sure


def test_what_is_quick_depends_on_the_pixels_and_how_often_they_are_gone_over():
    png, slow = encoded(noise(), "PNG"), with_scans(60, 512)
    assert quick(png, 2**21) and not quick(png, 2**21 + 1)
    assert plain(slow) and not quick(slow, 512 * 512) and not quick(with_scans(101, 8), 64)


def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded():
    started = time.process_time()
    with pytest.raises(MediaError, match="a JPEG of 1506 scans; the limit is 100"):
        DECODERS.open(with_scans(1500, 4000), name="a", pixels=16_000_000)
    assert time.process_time() - started < 5


def test_decoding_that_takes_too_long_is_ended_and_the_next_picture_is_opened(monkeypatch):
    monkeypatch.setattr(bounded, "SECONDS", 0.1)
    monkeypatch.setattr(bounded, "SECONDS_A_MEGAPIXEL", 0.0)
    decoders = Decoders(1)
    with pytest.raises(MediaError, match=r"a: decoding it takes more than 0\.1 s; save it anew"):
        decoders.open(with_scans(90, 4000), name="a", pixels=16_000_000)  # 2 s
    monkeypatch.undo()
    assert decoders.open(encoded(noise(), "PNG"), name="b", pixels=31 * 17).size == (31, 17)
    decoders.close()


def test_a_picture_of_few_pixels_whose_data_unfold_is_refused():
    content = encoded(noise(), "PNG", exif=greedy_exif())
    assert len(content) < 300_000
    with pytest.raises(MediaError, match="a: decoding it takes"):
        DECODERS.open(content, name="a", pixels=31 * 17)


def test_a_process_that_has_died_is_replaced_and_one_that_is_killed_fails_one_picture():
    decoders, content = Decoders(1), encoded(noise(), "PNG")
    decoders.size(content, name="a")
    process = decoders._free.get()
    decoders._free.put(process)
    os.kill(process._child.pid, signal.SIGKILL)
    process._child.wait()
    assert decoders.size(content, name="a") == (31, 17)
    decoders.close()
    assert decoders._free.qsize() == 1
