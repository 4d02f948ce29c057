"""Pictures of every kind of pixel against ImageMagick, which shares no code with Pillow: equal, or refused by name."""

import io
import struct
import subprocess

import numpy as np
import pytest
from PIL import Image, ImageCms

from helpers.bench import need, script
from unifiedreward_think.data.tokens import picture_size
from unifiedreward_think.errors import MediaError
from unifiedreward_think.media import open_image, pixel_sha256
from unifiedreward_think.pixels import MAX_ASPECT, to_rgb

cases = script("media_cases")
SIDE = 16
RANDOM = np.random.default_rng(0)
NOISE = RANDOM.integers(0, 256, (SIDE, SIDE, 4), dtype=np.uint8)


def reference(file):
    """Return what ImageMagick makes of a picture."""
    need(cases.CONVERT)
    (shown,) = cases.as_shown([file], file.parent / "shown")
    return shown


def noise(depth, channels=1):
    return RANDOM.bytes(SIDE * SIDE * depth * channels // 8)


def open_bytes(folder, data, suffix):
    file = folder / f"picture{suffix}"
    file.write_bytes(data)
    return file, np.asarray(open_image(file)).astype(int)


# Files


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("clear", [False, True], ids=["opaque", "transparent"])
def test_grey_png_of_every_depth(depth, clear, tmp_path):
    pixels = noise(depth)
    first = struct.unpack(">H", pixels[:2])[0] >> (16 - depth)
    data = cases.png(depth, 0, SIDE, pixels, trns=struct.pack(">H", first) if clear else None)
    file, shown = open_bytes(tmp_path, data, ".png")
    assert np.abs(shown - reference(file)).max() <= 1
    assert not clear or (shown[0, 0] == 255).all()


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("clear", ["", "one", "each"])
def test_palettes_of_every_depth(depth, clear, tmp_path):
    trns = {"": None, "one": b"\xff\0", "each": RANDOM.bytes(2**depth)}[clear]
    data = cases.png(depth, 3, SIDE, noise(depth), palette=RANDOM.bytes(3 * 2**depth), trns=trns)
    file, shown = open_bytes(tmp_path, data, ".png")
    assert np.abs(shown - reference(file)).max() <= 1


@pytest.mark.parametrize(
    ("depth", "colour", "channels"), [(8, 2, 3), (16, 2, 3), (8, 4, 2), (16, 4, 2), (8, 6, 4), (16, 6, 4)]
)
def test_png_with_several_channels(depth, colour, channels, tmp_path):
    file, shown = open_bytes(tmp_path, cases.png(depth, colour, SIDE, noise(depth, channels)), ".png")
    assert np.abs(shown - reference(file)).max() <= 2  # Pillow cuts 16 bits off, ImageMagick rounds


def test_a_transparent_colour_of_rgb(tmp_path):
    pixels = noise(8, 3)
    data = cases.png(8, 2, SIDE, pixels, trns=struct.pack(">HHH", *pixels[:3]))
    file, shown = open_bytes(tmp_path, data, ".png")
    assert np.array_equal(shown, reference(file)) and (shown[0, 0] == 255).all()


def test_line_art_on_a_transparent_ground_is_not_black(tmp_path):
    art = Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 0))
    art.putpixel((3, 3), (0, 0, 0, 255))
    for picture in (art, art.convert("LA"), art.convert("PA"), art.convert("RGBa"), art.convert("P")):
        shown = np.asarray(to_rgb(picture))
        assert (shown[3, 3] == 0).all() and (shown[0] == 255).all(), picture.mode
    assert to_rgb(art.convert("LA").convert("La")).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("depth", [8, 12, 16])
@pytest.mark.parametrize("ink", [0, 1], ids=["white is zero", "black is zero"])
def test_grey_tiff(depth, ink, tmp_path):
    values = RANDOM.integers(0, 2**depth, (SIDE, SIDE))
    if depth == 12:
        pairs = values.reshape(-1, 2)
        data = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], 1)
        data = data.astype(np.uint8).tobytes()
    else:
        data = values.astype(f"<u{depth // 8}").tobytes()
    if (depth, ink) == (12, 0):  # which Pillow cannot read
        with pytest.raises(MediaError, match="not a readable image"):
            open_bytes(tmp_path, cases.tiff(depth, SIDE, data, ink=ink), ".tif")
        return
    file, shown = open_bytes(tmp_path, cases.tiff(depth, SIDE, data, ink=ink), ".tif")
    truth = values / (2**depth - 1) * 255
    assert np.abs(shown[..., 0] - (255 - truth if ink == 0 else truth)).max() <= 1
    assert np.abs(shown - reference(file)).max() <= 1


def test_a_grey_pgm_of_16_bits(tmp_path):
    values = RANDOM.integers(0, 2**16, (SIDE, SIDE))
    file, shown = open_bytes(tmp_path, b"P5 %d %d 65535\n" % (SIDE, SIDE) + values.astype(">u2").tobytes(), ".pgm")
    assert np.abs(shown[..., 0] - values / 257).max() <= 1 and np.abs(shown - reference(file)).max() <= 1


def test_floats_from_0_to_1_are_scaled_and_others_refused(tmp_path):
    values = RANDOM.random((SIDE, SIDE)).astype("<f4")
    file, shown = open_bytes(tmp_path, cases.tiff(32, SIDE, values.tobytes(), sample_format=3), ".tif")
    assert np.abs(shown[..., 0] - values * 255).max() <= 1 and np.abs(shown - reference(file)).max() <= 1
    for wrong in (values * 255, values - 1, values * np.nan):
        with pytest.raises(
            MediaError, match=r"picture\.tif: mode F with values from .* to .*, and 0 to 1 can be scaled"
        ):
            open_bytes(tmp_path, cases.tiff(32, SIDE, wrong.astype("<f4").tobytes(), sample_format=3), ".tif")


@pytest.mark.parametrize(("depth", "sample_format"), [(32, 1), (32, 2), (16, 2)])
def test_integers_whose_white_is_unknown_are_refused_by_name(depth, sample_format, tmp_path):
    data = RANDOM.integers(0, 30000, (SIDE, SIDE)).astype(f"<i{depth // 8}").tobytes()
    with pytest.raises(MediaError, match=r"picture\.tif: TIFF of mode I .*; save it as PNG with 8 bits a channel"):
        open_bytes(tmp_path, cases.tiff(depth, SIDE, data, sample_format=sample_format), ".tif")


def test_what_pillow_reads_wrongly_is_refused_by_name(tmp_path):
    deep = RANDOM.integers(0, 65536, (3, SIDE, SIDE)).astype("<u2").tobytes()
    header = struct.pack("<IiiHHIIiiII", 40, SIDE, SIDE, 1, 32, 0, 0, 0, 0, 0, 0)
    bmp = b"BM" + struct.pack("<IHHI", 54 + NOISE.nbytes, 0, 0, 54) + header + NOISE.tobytes()
    wrong = [
        (bmp, ".bmp", "BMP of 32 bits a pixel that does not say whether it is transparent"),
        (cases.tiff(8, SIDE, NOISE[..., :3].tobytes(), ink=6, channels=3), ".tif", "YCbCr without JPEG"),
        (cases.tiff(16, SIDE, deep, ink=2, channels=3, planes=2), ".tif", "16 bits in separate planes"),
        (cases.png(16, 2, SIDE, noise(16, 3), trns=RANDOM.bytes(6)), ".png", "16-bit RGB with a transparent colour"),
        (
            b"#define a_width 8\n#define a_height 1\nstatic char a_bits[] = {\n0x07\n};\n",
            ".xbm",
            r"not a readable image \(no PNG",
        ),
    ]
    for data, suffix, why in wrong:
        with pytest.raises(MediaError, match=rf"picture\{suffix}: .*{why}"):
            open_bytes(tmp_path, data, suffix)


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_cmyk_without_a_profile(suffix, tmp_path):
    smooth = Image.fromarray(NOISE).resize((4, 4)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    Image.frombytes("CMYK", smooth.size, smooth.tobytes()).save(buffer, "JPEG" if suffix == ".jpg" else "TIFF")
    file, shown = open_bytes(tmp_path, buffer.getvalue(), suffix)
    assert np.abs(shown - reference(file)).max() <= 2


def press():
    """Return a CMYK profile of a press with odd inks: cyan prints red, and nothing else prints."""

    def tag(kind, data):
        return kind + bytes(4) + data

    steps = np.zeros((2, 2, 2, 2, 3), np.uint8)
    steps[0], steps[1] = (255, 128, 128), (128, 205, 190)  # Lab of paper, and of the ink
    curve = bytes(range(256))
    matrix = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    lut = tag(b"mft1", bytes([4, 3, 2, 0]) + matrix + curve * 4 + steps.tobytes() + curve * 3)
    text = tag(b"desc", struct.pack(">I", 6) + b"press\0" + bytes(78))
    white = tag(b"XYZ ", struct.pack(">3i", 63190, 65536, 54061))
    parts = [(b"desc", text), (b"cprt", tag(b"text", b"none\0")), (b"wtpt", white), (b"A2B0", lut)]
    table, body, place = struct.pack(">I", len(parts)), b"", 132 + 12 * len(parts)
    for name, data in parts:
        data += bytes(-len(data) % 4)
        table += struct.pack(">4sII", name, place + len(body), len(data))
        body += data
    date = struct.pack(">6H", 2024, 1, 1, 0, 0, 0)
    header = bytes(4) + b"\x02\x40\0\0prtrCMYKLab " + date + b"acsp" + bytes(28) + white[8:] + bytes(48)
    return struct.pack(">I", place + len(body)) + header + table + body


def test_cmyk_with_a_profile_looks_as_printed(tmp_path):
    inks = Image.new("CMYK", (SIDE, SIDE), (255, 0, 0, 0))
    inks.paste((0, 0, 0, 255), (0, 0, 8, SIDE))
    buffer = io.BytesIO()
    inks.save(buffer, "TIFF", icc_profile=press())
    file, shown = open_bytes(tmp_path, buffer.getvalue(), ".tif")
    assert (shown[0, 0] >= 253).all()  # the black ink of this press does not print
    assert shown[0, 12, 0] > 190 and shown[0, 12, 1:].max() < 60  # cyan prints red
    srgb = tmp_path / "srgb.icc"
    srgb.write_bytes(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    need(cases.CONVERT)
    command = [cases.CONVERT, file, "-intent", "relative", "-profile", srgb, "-depth", "8", "ppm:-"]
    printed = np.asarray(Image.open(io.BytesIO(subprocess.run(command, capture_output=True, check=True).stdout)))
    assert np.abs(shown - printed).max() <= 3
    inks.save(file, icc_profile=b"no profile")
    with pytest.raises(MediaError, match="CMYK with a colour profile that cannot be used"):
        open_image(file)


def test_profiles_of_rgb_are_ignored_as_the_reference_processors_do(tmp_path):
    plain = Image.fromarray(NOISE[..., :3])
    swapped = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes().replace(b"rXYZ", b"temp")
    plain.save(tmp_path / "a.png", icc_profile=swapped.replace(b"bXYZ", b"rXYZ").replace(b"temp", b"bXYZ"))
    assert np.array_equal(np.asarray(open_image(tmp_path / "a.png")), NOISE[..., :3])


def test_lab_is_turned_into_rgb_by_its_definition():
    lab = np.stack(np.meshgrid([30, 50, 70], [-15, 0, 15], [-10, 0, 20]), -1).reshape(1, -1, 3).astype(float)
    stored = np.stack([lab[..., 0] * 2.55, lab[..., 1], lab[..., 2]], -1).round().astype(np.int16).astype(np.uint8)
    y = (lab[..., 0] + 16) / 116
    cube = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], -1)
    xyz = np.where(cube > 6 / 29, cube**3, 3 * (6 / 29) ** 2 * (cube - 4 / 29)) * (0.9642, 1, 0.8249)  # D50
    to_linear = [
        [3.1338561, -1.6168667, -0.4906146],
        [-0.9787684, 1.9161415, 0.033454],
        [0.0719453, -0.2289914, 1.4052427],
    ]
    linear = (xyz @ np.array(to_linear).T).clip(0, 1)
    srgb = np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear) * 255
    picture = Image.frombytes("LAB", (27, 1), stored.tobytes())
    assert np.abs(np.asarray(to_rgb(picture)).astype(int) - srgb).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
def test_pictures_are_turned_upright(orientation, kind, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    corner = Image.new("L", (24, SIDE), 40)
    corner.paste(220, (0, 0, 8, 8))
    # Raw CMYK and grey TIFF files are those that Pillow would map into memory.
    (corner if kind == "tif" else corner.convert("RGB")).save(tmp_path / f"a.{kind}", exif=exif)
    shown = np.asarray(open_image(tmp_path / f"a.{kind}")).astype(int)
    assert picture_size(tmp_path / f"a.{kind}") == shown.shape[:2]
    corner.save(tmp_path / "b.tif", exif=exif)  # ImageMagick 6 leaves EXIF of PNG and WebP out
    assert np.abs(shown - reference(tmp_path / "b.tif")).max() <= 8


def test_the_first_picture_of_a_multi_picture_jpeg_is_shown(tmp_path):
    first, second = Image.new("RGB", (SIDE, SIDE), "red"), Image.new("RGB", (SIDE, SIDE), "blue")
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second])
    red, _, blue = open_image(tmp_path / "a.jpg").getpixel((0, 0))
    assert red > 250 and blue < 5


# Pictures in memory


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBX", "YCbCr", "HSV", "CMYK"])
def test_modes_without_transparency_are_converted_as_pillow_does(mode):
    picture = Image.fromarray(NOISE[..., :3]).convert(mode)
    assert pixel_sha256(to_rgb(picture)) == pixel_sha256(picture.convert("RGB"))


@pytest.mark.parametrize(("dtype", "white"), [(np.uint16, 65535), (np.int32, 65535), (np.float32, 1), (bool, True)])
def test_arrays_are_scaled_by_their_kind(dtype, white):
    values = (np.linspace(0, 1, SIDE * SIDE).reshape(SIDE, SIDE) * white).astype(dtype)
    shown = np.asarray(to_rgb(Image.fromarray(values)))
    assert np.abs(shown[..., 1] - values.astype(float) / white * 255).max() <= 0.51


def test_numbers_out_of_range_are_refused_with_the_range():
    for values in ([[-3, 7]], [[0, 70000]]):
        with pytest.raises(
            MediaError, match=f"frame: mode I with values from {values[0][0]} to {values[0][1]}, and 0 to"
        ):
            to_rgb(Image.fromarray(np.array(values, np.int32)), "frame")


# Every way a picture comes in


def odd_pictures(folder):
    """Write what `convert("RGB")` gets wrong: 16-bit grey, transparency of three kinds, a plain one beside them."""
    art = Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 0))
    art.paste((200, 30, 30, 255), (0, 0, SIDE, 4))
    ramp = np.linspace(0, 65535, SIDE * SIDE).reshape(SIDE, SIDE).astype(np.uint16)
    pictures = {"grey.png": Image.fromarray(ramp), "art.webp": art, "la.png": art.convert("LA")}
    pictures |= {"palette.gif": art, "plain.png": art.convert("RGB")}
    for name, picture in pictures.items():
        picture.save(folder / name, **({"lossless": True} if name == "art.webp" else {}))
    return [folder / name for name in pictures]


def test_training_and_exports_show_the_pixels_that_judging_shows(tmp_path):
    from datasets import load_dataset

    from unifiedreward_think.data.rows import to_dataset, write_parquet

    files = odd_pictures(tmp_path)
    judged = [pixel_sha256(open_image(file)) for file in files]
    rows = to_dataset([{"id": "a", "images": [str(file) for file in files]}])
    assert [image.mode for image in rows[0]["images"]] == ["RGB"] * len(files)
    assert [pixel_sha256(image) for image in rows[0]["images"]] == judged
    write_parquet(rows, tmp_path / "train.parquet")
    stock = load_dataset(
        "parquet", data_files=str(tmp_path / "train.parquet"), split="train", cache_dir=str(tmp_path / "c")
    )
    assert [pixel_sha256(image.convert("RGB")) for image in stock[0]["images"]] == judged  # as TRL reads it
    plain = load_dataset(
        "parquet", data_files=str(tmp_path / "train.parquet"), split="train", cache_dir=str(tmp_path / "c")
    )
    stored = plain.with_format("arrow")[0]["images"].to_pylist()[0]
    assert stored[-1]["bytes"] == files[-1].read_bytes()


def test_grpo_reads_ahead_the_pixels_that_judging_shows(models, tmp_path):
    from unifiedreward_think.models.loading import load_processor
    from unifiedreward_think.training.trainers.prefetch import Reader

    files = odd_pictures(tmp_path)
    content = [{"type": "image", "text": None} for _ in files]
    row = {"prompt": [{"role": "user", "content": content}]}
    reading = Reader(load_processor(models["qwen2_5_vl"])).read(
        {**row, "images": [{"path": str(file), "bytes": None} for file in files]}
    )
    assert [pixel_sha256(image) for image in reading.images] == [pixel_sha256(open_image(file)) for file in files]


def test_the_demo_hands_on_uploads_as_they_are(tmp_path):
    pytest.importorskip("gradio")
    from gradio.components.image import ImageData

    from unifiedreward_think.demo.fields import _field

    for file in odd_pictures(tmp_path):
        assert _field("image", "A", None).preprocess(ImageData(path=str(file), orig_name=file.name)) == str(file)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "LAB"])
def test_the_client_of_the_reward_server_sends_every_mode(mode):
    import base64

    from unifiedreward_think.serving.client import data_url

    source = Image.fromarray(NOISE[..., :3])
    picture = (
        source.convert("RGBA").convert(mode) if mode == "RGBa" else source.convert(mode) if mode != "LAB" else None
    )
    picture = picture or Image.frombytes("LAB", (SIDE, SIDE), NOISE[..., :3].tobytes())
    sent = Image.open(io.BytesIO(base64.b64decode(data_url(picture).partition(",")[2])))
    assert pixel_sha256(sent) == pixel_sha256(to_rgb(picture))


def test_the_client_refuses_arrays_without_a_known_range():
    from unifiedreward_think.serving.client import RewardError, data_url

    with pytest.raises(RewardError, match="mode F with values from 0 to 255, and 0 to 1 can be scaled"):
        data_url(np.linspace(0, 255, SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE))


# The limit of the models


@pytest.mark.parametrize("size", [(1, 10_000), (10_000, 1), (1, MAX_ASPECT + 1)])
def test_a_picture_that_no_processor_takes_is_refused_when_it_is_opened(size, tmp_path):
    Image.new("RGB", size).save(tmp_path / "thread.png")
    with pytest.raises(MediaError, match=rf"thread\.png: {size[0]}x{size[1]} is too narrow; the limit is 200:1"):
        open_image(tmp_path / "thread.png")
    with pytest.raises(MediaError, match="too narrow"):
        picture_size(tmp_path / "thread.png")


def test_the_limit_is_that_of_the_processors(models, tmp_path):
    from unifiedreward_think.models.loading import load_processor

    widest = Image.new("RGB", (MAX_ASPECT, 1))
    widest.save(tmp_path / "widest.png")
    for family, folder in models.items():
        processor = load_processor(folder).image_processor
        assert len(processor(images=[open_image(tmp_path / "widest.png")], return_tensors="pt")["pixel_values"])
        if family.startswith("qwen"):
            with pytest.raises(ValueError, match="aspect ratio"):
                processor(images=[Image.new("RGB", (MAX_ASPECT + 1, 1))], return_tensors="pt")
