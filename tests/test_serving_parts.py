"""The parts of the reward server that need no server: schedules and scores, limits on JSON, fetching, odd pictures."""

import asyncio
import base64
import io
import json
import random
import re
import threading
import time

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unifiedreward_think import ranking
from unifiedreward_think.bounded import DECODERS
from unifiedreward_think.media import open_image
from unifiedreward_think.ranking import Game
from unifiedreward_think.serving.client import data_url
from unifiedreward_think.serving.fetch import Fetcher
from unifiedreward_think.serving.intake import FORMATS, Intake
from unifiedreward_think.serving.limits import Limits, Refused, check_json
from unifiedreward_think.serving.telemetry import Telemetry

FIELDS = st.integers(2, 12)


def met(count, pairs):
    return [sum(i in pair for pair in pairs) for i in range(count)]


@settings(deadline=None)
@given(count=FIELDS, opponents=st.integers(1, 12), seed=st.integers(0, 3))
def test_everybody_meets_as_many_opponents_as_asked(count, opponents, seed):
    pairs = ranking.k_opponents(count, opponents, seed)
    assert len(set(pairs)) == len(pairs) and all(a < b for a, b in pairs)
    wanted = min(opponents, count - 1)
    odd = wanted % 2 and count % 2
    assert sorted(met(count, pairs)) == [wanted] * (count - 1) + [wanted + 1 if odd else wanted]


@settings(max_examples=30, deadline=None)
@given(count=FIELDS, seed=st.integers(0, 3), data=st.data())
def test_a_swiss_round_repeats_no_pair_and_rests_in_turn(count, seed, data):
    games = []
    for number in range(1, ranking.swiss_rounds(count) + 1):
        pairs = ranking.swiss_round(count, games, seed)
        assert not {(a, b) for a, b in pairs} & {(game.a, game.b) for game in games}
        games += [Game(a, b, data.draw(st.sampled_from([a, b, None]))) for a, b in pairs]
        played = met(count, [(game.a, game.b) for game in games])
        assert max(played) <= number
        if count % 2 == 0 and number <= count // 2:
            assert played == [number] * count


def test_a_swiss_tournament_plays_until_all_have_met():
    games = []
    while pairs := ranking.swiss_round(6, games, 0):
        games += [Game(a, b, a) for a, b in pairs]
    assert sorted((game.a, game.b) for game in games) == ranking.round_robin(6)


def test_scores_do_not_depend_on_names_or_order_and_add_up_to_zero():
    games = [Game(0, 1, 0), Game(1, 2, 1), Game(0, 2, 0), Game(2, 3, None), Game(1, 3, 3)]
    scores = [e.value for e in ranking.bradley_terry(4, games)]
    turned = {0: 3, 1: 2, 2: 1, 3: 0}
    other = [Game(turned[g.b], turned[g.a], None if g.winner is None else turned[g.winner]) for g in reversed(games)]
    again = [e.value for e in ranking.bradley_terry(4, [g for g in other if g.winner is not None])]
    first = [e.value for e in ranking.bradley_terry(4, [g for g in games if g.winner is not None])]
    assert first == pytest.approx(again[::-1]) and sum(first) == pytest.approx(0)
    assert scores[0] > scores[1] > scores[2]


def test_a_score_is_that_of_the_closed_form_for_two():
    # With two candidates the maximum solves share - 1 / (1 + exp(-2 x)) = x / PRIOR_SD**2.
    (first, second) = ranking.bradley_terry(2, [Game(0, 1, 0)])
    x = first.value
    assert 1 - 1 / (1 + 2.718281828459045 ** (-2 * x)) == pytest.approx(x / ranking.PRIOR_SD**2, abs=1e-9)
    assert second.value == pytest.approx(-x) and second.low == pytest.approx(-first.high)


def test_two_orders_of_a_pair_are_one_trial():
    once = ranking.bradley_terry(3, [Game(0, 1, 0), Game(1, 2, 1)])
    twice = ranking.bradley_terry(3, [Game(0, 1, 0), Game(1, 0, 0), Game(1, 2, 1), Game(2, 1, 1)])
    assert [x for e in once for x in e] == pytest.approx([x for e in twice for x in e])


def test_a_clean_sweep_has_a_finite_score_and_no_games_have_the_width_of_the_prior():
    games = [Game(a, b, a) for a, b in ranking.round_robin(8)]
    scores = ranking.bradley_terry(8, games)
    assert [e.value for e in scores] == sorted((e.value for e in scores), reverse=True) and scores[0].value < 6
    (idle, _) = ranking.bradley_terry(2, [])
    assert idle.value == 0 and idle.high == pytest.approx(1.959964 * ranking.PRIOR_SD, rel=1e-5)


def test_the_intervals_hold_the_true_strength_as_often_as_they_say():
    draw, inside, total = random.Random(0), 0, 0
    for _ in range(150):
        true = [draw.gauss(0, ranking.PRIOR_SD) for _ in range(8)]
        games = []
        for a, b in ranking.round_robin(8):
            chance = 1 / (1 + 2.718281828459045 ** (true[b] - true[a]))
            games.append(Game(a, b, a if draw.random() < chance else b))
        mean = sum(true) / 8
        scores = ranking.bradley_terry(8, games)
        inside += sum(e.low <= t - mean <= e.high for e, t in zip(scores, true, strict=True))
        total += 8
    assert 0.93 <= inside / total <= 0.99


# JSON ----------------------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


def depth(value):
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


@settings(max_examples=50, deadline=None)
@given(value=VALUES, limit=st.integers(0, 4), ascii_only=st.booleans())
def test_nesting_is_counted_outside_of_strings_only(value, limit, ascii_only):
    body = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    limits = Limits(json_depth=limit)
    if depth(value) > limit:
        with pytest.raises(Refused):
            check_json(body, limits)
    else:
        check_json(body, limits)


@pytest.mark.parametrize(
    "body", [b'"' + b'\\"' * 2_000_000, b'"' * 300_000, b"[" * 3_000_000, b'{"a":"' + b"\\" * 10**6]
)
def test_a_hostile_body_is_checked_in_linear_time(body):
    try:
        check_json(body, Limits())  # in quadratic time these would take hours; the test has a time limit
    except Refused as error:
        assert error.status == 400


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_json_in_another_encoding_hides_nothing(encoding):
    text = '{"\u2200":' + "[" * 500 + "]" * 500 + "}"  # in UTF-16, a byte of the character is a quote
    for hidden in (text, '{"prompt": "a kite"}'):
        with pytest.raises(Refused, match="send it in UTF-8") as refused:
            check_json(hidden.encode(encoding), Limits())
        assert refused.value.status == 400
    with pytest.raises(Refused, match="deeper than 16"):
        check_json(text.encode("utf-8-sig"), Limits())
    check_json('{"prompt": "a kite \u2200"}'.encode("utf-8-sig"), Limits())


# Fetching ------------------------------------------------------------------------------------------------------------

PUBLIC = "93.184.215.14"


def fetch(address, respond=None, *, hosts=("pictures.example",), addresses=(PUBLIC,), limit=1000):
    asked = []

    def answer(request):
        asked.append(request)
        return respond(request) if respond else httpx.Response(200, stream=httpx.ByteStream(b"pixels"))

    async def resolve(host, port):
        return addresses[host] if isinstance(addresses, dict) else addresses

    fetcher = Fetcher(hosts, limit=limit, resolve=resolve, transport=httpx.MockTransport(answer))
    return asyncio.run(fetcher(address)), asked


def test_an_allowed_host_is_asked_at_the_address_that_was_checked():
    content, (request,) = fetch("https://pictures.example/a.png?x=1")
    assert content == b"pixels" and str(request.url) == f"https://{PUBLIC}/a.png?x=1"
    assert request.headers["host"] == "pictures.example"
    assert request.extensions["sni_hostname"] == "pictures.example"


@pytest.mark.parametrize(
    "address",
    [
        "http://pictures.example/a.png",
        "https://pictures.example:8443/a.png",
        "https://evil.example/a.png",
        "https://pictures.example.evil.example/a.png",
        "https://pictures.example@evil.example/a.png",
        "https://user:word@pictures.example/a.png",
        "https://127.0.0.1/a.png",
        "https://[::1]/a.png",
        "https://",
        "https://pictures.example\x00/a.png",
    ],
)
def test_an_address_that_is_not_on_the_list_is_not_asked(address):
    def never(request):
        raise AssertionError(f"asked {request.url}")

    with pytest.raises(Refused):
        fetch(address, never)


@pytest.mark.parametrize(
    "private",
    ["127.0.0.1", "10.0.0.7", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1", "::1",
     "fe80::1%eth0", "fc00::1", "::ffff:10.0.0.7", "64:ff9b::a00:7", "2002:a00:7::", "::"],
)  # fmt: skip
def test_a_name_that_points_to_a_private_address_is_not_asked(private):
    for addresses in ((private,), (PUBLIC, private), ()):
        with pytest.raises(Refused, match="private address"):
            fetch("https://pictures.example/a.png", addresses=addresses)


def redirect(to):
    return lambda request: (
        httpx.Response(302, headers={"location": to})
        if request.url.path == "/a"
        else httpx.Response(200, stream=httpx.ByteStream(b"ok"))
    )


def test_redirects_obey_the_same_rules():
    hosts = ("pictures.example", "inside.example")
    addresses = {"pictures.example": (PUBLIC,), "inside.example": ("10.0.0.7",)}
    assert fetch("https://pictures.example/a", redirect("/b"))[0] == b"ok"
    for to in (
        "https://evil.example/",
        "http://pictures.example/b",
        "https://inside.example/",
        "file:///etc/passwd",
        "//127.0.0.1",
    ):
        with pytest.raises(Refused):
            fetch("https://pictures.example/a", redirect(to), hosts=hosts, addresses=addresses)
    with pytest.raises(Refused, match="3 redirects"):
        fetch("https://pictures.example/a", redirect("/a"))


def test_what_is_fetched_is_limited_and_its_failure_has_a_reason():
    big = lambda request: httpx.Response(200, stream=httpx.ByteStream(b"0" * 1001))  # noqa: E731
    with pytest.raises(Refused, match="1000 bytes"):
        fetch("https://pictures.example/a", big)
    with pytest.raises(Refused, match="answered 404"):
        fetch("https://pictures.example/a", lambda request: httpx.Response(404))

    def broken(request):
        raise httpx.ConnectTimeout("slow")

    with pytest.raises(Refused, match="ConnectTimeout"):
        fetch("https://pictures.example/a", broken)


def test_millions_of_short_strings_are_not_even_looked_at():
    body = b"[" + b'"",' * 2_000_000 + b'""]'
    refused, looked = [], []
    for _ in range(3):  # the quickest of each: other threads of the tests may be in the way
        started = time.thread_time()
        with pytest.raises(Refused, match="besides the strings"):
            check_json(body, Limits())
        refused.append(time.thread_time() - started)
        sum(1 for _ in re.finditer(rb'""', body))  # what looking at all of them takes at the least
        looked.append(time.thread_time() - started - refused[-1])
    assert min(refused) < min(looked) / 2, (refused, looked)


# Pictures ------------------------------------------------------------------------------------------------------------


def encoded(form, **options):
    buffer = io.BytesIO()
    Image.effect_noise((31, 17), 90).convert("RGB").save(buffer, form, **options)
    return buffer.getvalue()


TURNED = Image.Exif()
TURNED[0x0112], TURNED[0x011A] = 6, 72.0
PICTURES = [encoded(form) for form in FORMATS] + [encoded("JPEG", exif=TURNED), encoded("PNG", exif=TURNED)]


def opened(source):
    async def work():
        intake = Intake(Limits(pixels=10**6), Fetcher(limit=10), Telemetry())
        with intake.request() as media:
            return (await media.picture(source, "candidates[0].image")).image

    return asyncio.run(work())


@settings(max_examples=100, deadline=None)
@given(
    picture=st.sampled_from(PICTURES),
    changes=st.lists(st.tuples(st.integers(0, 250), st.integers(0, 255)), max_size=6),
    cut=st.none() | st.integers(0, 700),
)
def test_a_damaged_picture_is_opened_or_refused(picture, changes, cut):
    content = bytearray(picture)
    for place, value in changes:
        content[place % len(content)] = value
    try:
        assert opened(data_url(bytes(content[:cut]))).mode == "RGB"
    except Refused as error:
        assert 400 <= error.status < 500 and str(error).startswith("candidates[0].image")


@pytest.mark.parametrize("kind", range(len(PICTURES)))
def test_pictures_of_every_format_are_opened_upright(kind):
    image = opened(data_url(PICTURES[kind]))
    assert (image.mode, image.size) == ("RGB", (31, 17) if kind < len(FORMATS) else (17, 31))


def test_equal_pictures_are_decoded_once_and_the_cache_keeps_its_size():
    async def work():
        telemetry = Telemetry()
        intake = Intake(Limits(), Fetcher(limit=10), telemetry, cache_pictures=3)
        with intake.request() as media:
            for shade in (0, 1, 0, 2, 3, 4, 0):
                await media.picture(data_url(Image.new("RGB", (4, 4), (shade, 0, 0))), "x")
        return telemetry.text().decode(), len(intake._kept), intake._kept_bytes

    text, kept, size = asyncio.run(work())
    assert 'media_total{cache="hit"} 1.0' in text and 'media_total{cache="miss"} 6.0' in text
    assert kept == 3 and size == 3 * 64


def decoding(monkeypatch, before=lambda: None):
    """Count what is decoded, each after `before`."""
    decoded = []

    def counted(file, **options):
        decoded.append(1)
        before()
        return open_image(file, **options)

    monkeypatch.setattr("unifiedreward_think.serving.intake.open_image", counted)
    return decoded


def test_requests_that_come_together_have_a_picture_decoded_once(monkeypatch):
    decoded = decoding(monkeypatch, lambda: time.sleep(0.2))
    source = data_url(Image.new("RGB", (4, 4), "red"))

    async def one(intake):
        with intake.request() as media:
            return (await media.picture(source, "x")).image

    async def work():
        telemetry = Telemetry()
        intake = Intake(Limits(), Fetcher(limit=10), telemetry)
        asking = [asyncio.create_task(one(intake)) for _ in range(9)]
        await asyncio.sleep(0.05)
        asking[0].cancel()  # the client that came first leaves
        images = await asyncio.gather(*asking[1:], one(intake))
        return images, telemetry.text().decode()

    images, metrics = asyncio.run(work())
    assert decoded == [1] and len({id(image) for image in images}) == 1
    assert 'media_total{cache="shared"} 9.0' in metrics and 'media_total{cache="miss"} 1.0' in metrics


def test_a_broken_picture_of_two_requests_is_named_in_each_as_that_one_calls_it(monkeypatch):
    decoding(monkeypatch, lambda: time.sleep(0.1))
    source = data_url(PICTURES[0][:-30])

    async def one(intake, where):
        with intake.request() as media:
            try:
                await media.picture(source, where)
            except Refused as error:
                return str(error)

    async def work():
        intake = Intake(Limits(), Fetcher(limit=10), Telemetry())
        return await asyncio.gather(one(intake, "media[0]"), one(intake, "candidates[1]"))

    first, second = asyncio.run(work())
    assert first.startswith("media[0]: ") and second.startswith("candidates[1]: ") and "not a readable" in second


def gated(monkeypatch):
    """Let the threads that decode, two at a time, wait to be told to go."""
    go = threading.Event()
    return go, decoding(monkeypatch, lambda: go.wait(30))


def pixels_and_bytes(intake):
    return intake._pixels.held, intake.flying.held


def test_what_outlives_its_request_is_counted_until_it_ends_and_what_has_not_begun_is_dropped(monkeypatch):
    go, decoded = gated(monkeypatch)
    sources = [data_url(Image.new("RGB", (4, 4), (shade, 0, 0))) for shade in range(6)]
    sizes = [len(base64.b64decode(source.partition(",")[2])) for source in sources]

    async def one(intake, source):
        with intake.request() as media:
            await media.picture(source, "x")

    async def work():
        intake = Intake(Limits(), Fetcher(limit=10), Telemetry())
        asking = [asyncio.create_task(one(intake, source)) for source in sources]
        while len(decoded) < 2:
            await asyncio.sleep(0.01)
        during = pixels_and_bytes(intake)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        await asyncio.sleep(0.05)  # what was dropped says so in a callback
        left = pixels_and_bytes(intake)
        go.set()
        await asyncio.gather(*(job.done for job in intake._decoding.values()))
        await asyncio.sleep(0)
        again = await asyncio.gather(*(one(intake, source) for source in sources))
        return during, left, pixels_and_bytes(intake), again

    during, left, after, again = asyncio.run(work())
    assert during == (6 * 16, sum(sizes)) and left == (2 * 16, sum(sizes[:2])) and after == (0, 0)
    assert len(decoded) == 6 and len(again) == 6  # those that were dropped are decoded when they are asked for again


def test_bytes_on_their_way_to_be_decoded_have_a_budget(monkeypatch):
    go, decoded = gated(monkeypatch)

    async def work():
        intake = Intake(Limits(flying_bytes=100), Fetcher(limit=10), Telemetry())
        with intake.request() as media:
            first = asyncio.create_task(media.picture(data_url(Image.new("RGB", (4, 4))), "a"))
            while not decoded:
                await asyncio.sleep(0.01)
            with pytest.raises(Refused) as refused:
                await media.picture(data_url(Image.new("RGB", (5, 5))), "b")
            go.set()
            await first
        return refused.value.status, pixels_and_bytes(intake)

    assert asyncio.run(work()) == (429, (0, 0))


def test_what_is_quick_to_decode_does_not_wait_for_what_is_not(monkeypatch):
    go = threading.Event()
    monkeypatch.setattr(DECODERS, "open", lambda *_, **__: go.wait(30) and Image.new("RGB", (1, 1)))
    slow = [data_url(encoded("GIF") + bytes([i])) for i in range(20)]

    async def work():
        intake = Intake(Limits(), Fetcher(limit=10), Telemetry())
        with intake.request() as media:
            waiting = [asyncio.create_task(media.picture(source, "slow")) for source in slow]
            await asyncio.sleep(0.1)
            quick = await asyncio.wait_for(media.picture(data_url(Image.new("RGB", (4, 4))), "quick"), 10)
            go.set()
            return quick.image.size, len(await asyncio.gather(*waiting))

    assert asyncio.run(work()) == ((4, 4), 20)


def test_broken_exif_data_are_refused():
    content = encoded("JPEG", exif=TURNED)
    place = next(p for p in (b"\x01\x1a\x00\x05", b"\x1a\x01\x05\x00") if p in content)
    text = place.replace(
        b"\x05", b"\x02"
    )  # a resolution that is text: Pillow raises TypeError when it turns the picture
    with pytest.raises(Refused, match="not a readable image"):
        opened(data_url(content.replace(place, text)))
