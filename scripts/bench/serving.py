"""What the reward server carries: speed against a client that asks one pair at a time, and correctness under load.

    OMP_NUM_THREADS=1 python scripts/bench/serving.py --output outputs/bench/serving.json
    python scripts/bench/serving.py --parts load memory --requests 20000 --output outputs/bench/serving_memory.json

speed   groups of 8 candidates on the tiny model, over HTTP on loopback, /v1/rank with all pairs in both orders, against
        the published clients' way: one /v1/chat/completions a pair, the next when the last is read. Rounds alternate.
cache   one group of 8, all pairs in both orders, by a server that remembers pictures and one that does not
        (--cache-mib 0); CPU seconds of each server, in turn. On the toy base and on a larger random model, whose tower
        and language model stand in about the proportion of a 7B model's, with the prompts of the real tasks.
load    1,000 /v1/compare requests at once; a scripted judge whose answer is a function of the two pictures, and which
        names them in its reasoning, so that a lost, wrong or mixed-up answer shows.
bad     comparisons on the tiny model, 32 at once: all good, or one in 16 bad (broken, hostile, without room in the
        model), in turn. Good answers for each CPU second of the server; bad ones must get the status they deserve.
decode  comparisons of photographs of 1024x1024, PNG and JPEG, decoded in the server's process or in others, in turn.
memory  many requests, each with new pictures; the resident memory of the server's process after each tenth.

The server runs in a process of its own. Latencies are those the client sees, the queue included.
"""

import argparse
import asyncio
import base64
import json
import os
import random
import re
import ssl
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack, ExitStack, contextmanager
from importlib import metadata
from io import BytesIO
from pathlib import Path
from statistics import harmonic_mean, median

import httpx
from PIL import Image, ImageChops
from scripted_judge import colour_of, picture, verify

from unifiedreward_think.models import tiny
from unifiedreward_think.prompting import load_prompts
from unifiedreward_think.serving.client import RewardClient, data_url, request_body
from unifiedreward_think.writing import write_whole

REPO = Path(__file__).parents[2]
SCRIPTED = Path(__file__).with_name("scripted_judge.py")
LARGER = tiny.Size(hidden=256, layers=4, vision_hidden=128, vision_layers=2, patch=14, side=448, init=0.06)


@contextmanager
def serving(*arguments):
    """A server in a process of its own; yields its address and process id."""
    command = [sys.executable, *map(str, arguments), "--port", "0"]
    with tempfile.NamedTemporaryFile("w+") as log, subprocess.Popen(command, stderr=log, cwd=REPO) as child:
        try:
            yield listening(child, log), child.pid
        finally:
            child.terminate()
            child.wait(60)


def listening(child, log):
    """The address of a server, once its log names it."""
    while child.poll() is None:
        log.seek(0)
        if found := re.search(r"running on (http://127\.0\.0\.1:\d+)", log.read()):
            return found.group(1)
        time.sleep(0.1)
    log.seek(0)
    raise SystemExit(f"the server did not start:\n{log.read()}")


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def latencies(seconds):
    return {"p50": round(percentile(seconds, 0.5), 3), "p99": round(percentile(seconds, 0.99), 3)}


def chat_body(caption, pair, template):
    """What a published client sends for a pair: the prompt with the two pictures in it."""
    content = []
    for piece in re.split(r"(\{media_[12]\})", template.replace("{prompt}", caption)):
        if piece in ("{media_1}", "{media_2}"):
            content.append({"type": "image_url", "image_url": {"url": pair[int(piece[7]) - 1]}})
        else:
            content.append({"type": "text", "text": piece})
    return {"model": "UnifiedReward", "messages": [{"role": "user", "content": content}], "max_tokens": 192}


def speed(args):
    """Rank groups, batched and pair by pair.

    Pictures differ between the rounds, so no answer is remembered, and the model remembers no pictures: the second way
    would find those of the first. What remembering gains is measured by `cache`.
    """
    command = ["-m", "unifiedreward_think.serving", "--model", args.model, "--prompts", args.prompts]
    command += ["--dtype", "float32", "--device", args.device, "--max-new-tokens", 192, "--batch-size", 64, "--quiet"]
    command += ["--cache-mib", 0]
    template = load_prompts("cot", path=args.prompts)["image_generation"]
    loop, batched, pair_seconds, rank_seconds, equal = [], [], [], [], 0
    with serving(*command) as (url, _), httpx.Client(base_url=url, timeout=600) as http:
        for round_ in range(args.rounds + 1):  # the first one warms up
            number = 1000 * round_
            groups = [[picture(number + 8 * g + i, side=64) for i in range(8)] for g in range(args.groups)]
            started, texts = time.perf_counter(), {}
            for g, group in enumerate(groups):
                for a in range(8):
                    for b in range(8):
                        if a != b:
                            begun = time.perf_counter()
                            reply = http.post(
                                "/v1/chat/completions", json=chat_body(f"kite {g}", (group[a], group[b]), template)
                            )
                            texts[g, a, b] = reply.raise_for_status().json()["choices"][0]["message"]["content"]
                            pair_seconds.append(time.perf_counter() - begun)
            loop.append(time.perf_counter() - started)
            started = time.perf_counter()
            for g, group in enumerate(groups):
                begun = time.perf_counter()
                body = request_body("image_generation", f"kite {g}", group, orders="both", reasoning=True)
                reply = http.post("/v1/rank", json=body).raise_for_status().json()
                rank_seconds.append(time.perf_counter() - begun)
                for row in reply["judgments"]:
                    other = row["b"] if row["shown_first"] == row["a"] else row["a"]
                    equal += texts[g, row["shown_first"], other] == row["reasoning"]
            batched.append(time.perf_counter() - started)
    judgments = 56 * args.groups
    return {
        "judgments_a_round": judgments,
        "seconds_one_by_one": [round(s, 2) for s in loop[1:]],
        "seconds_rank": [round(s, 2) for s in batched[1:]],
        "judgments_a_second": [round(judgments / median(way[1:]), 1) for way in (loop, batched)],
        "speedup": round(median(loop[1:]) / median(batched[1:]), 2),
        "equal_completions": f"{equal}/{judgments * (args.rounds + 1)}",
        "latency_one_pair": latencies(pair_seconds[judgments:]),
        "latency_group_of_8": latencies(rank_seconds[args.groups :]),
    }


def cache(args):
    """Rank groups with pictures remembered and not; each is new to both servers."""
    toy = ["--model", args.model, "--prompts", args.prompts]
    with tempfile.TemporaryDirectory() as folder:
        tiny.build("qwen2_5_vl", Path(folder), corpus=load_prompts("cot").values(), size=LARGER)
        return {
            "toy": remembered(args, toy, 64, groups=8),
            "larger": remembered(args, ["--model", folder], LARGER.side),
            "larger_direct": remembered(args, ["--model", folder, "--style", "direct"], LARGER.side, tokens=12),
        }


def remembered(args, model, side, *, groups=1, tokens=192):
    command = ["-m", "unifiedreward_think.serving", *model, "--dtype", "float32", "--device", args.device]
    command += ["--batch-size", 64, "--max-new-tokens", tokens, "--quiet"]
    spent, texts = {"off": [], "on": []}, {"off": [], "on": []}
    with serving(*command, "--cache-mib", 0) as off, serving(*command) as on:
        for round_ in range(args.rounds + 1):  # the first one warms up
            bodies = [rank_noise(number, side) for number in range(round_ * groups, (round_ + 1) * groups)]
            for name, (url, pid) in (("off", off), ("on", on)):
                before = cpu_seconds(pid)
                replies = [httpx.post(f"{url}/v1/rank", json=body, timeout=600).raise_for_status() for body in bodies]
                spent[name].append(cpu_seconds(pid) - before)
                texts[name] += [row["reasoning"] for reply in replies for row in reply.json()["judgments"]]
        lines = httpx.get(f"{on[0]}/metrics").text.splitlines()
    same = sum(a is not None and a == b for a, b in zip(*texts.values(), strict=True))
    return {
        "cpu_seconds": {name: [round(second, 2) for second in seconds[1:]] for name, seconds in spent.items()},
        "speedup": round(median(spent["off"][1:]) / median(spent["on"][1:]), 2),
        "equal_completions": f"{same}/{len(texts['on'])}",
        "metrics": [line for line in lines if line.startswith("unifiedreward_vision_cache{")],
    }


def rank_noise(number, side):
    """What asks for a ranking of 8 pictures of noise."""
    draws = random.Random(number)
    pictures = [data_url(Image.frombytes("RGB", (side, side), draws.randbytes(3 * side * side))) for _ in range(8)]
    return request_body("image_generation", f"kite {number}", pictures, orders="both", reasoning=True)


def cpu_seconds(pid):
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def storm(url, count, concurrency, start=0, part=None, after=None):
    """Send `count` comparisons, `concurrency` at once; return the latencies and what was wrong.

    With `part`, that many at a time, and `after` is called after each part.
    """
    seconds, wrong = [], []
    async with AsyncExitStack() as stack:
        # A client each: in one client a thousand connections wait for each other, and that is not the server's time.
        tls = ssl.create_default_context()
        clients = [httpx.AsyncClient(base_url=url, timeout=600, verify=tls) for _ in range(concurrency)]
        free = asyncio.Queue()
        for client in clients:
            free.put_nowait(await stack.enter_async_context(client))

        async def one(i):
            pair = (start + 2 * i, start + 2 * i + 1)
            asked = request_body("image_generation", "one colour", [picture(n) for n in pair], reasoning=True)
            http = await free.get()
            begun = time.perf_counter()
            reply = await http.post("/v1/compare", json=asked)
            seconds.append(time.perf_counter() - begun)
            free.put_nowait(http)
            if found := verify({"colours": [colour_of(n) for n in pair]}, reply):
                wrong.append(found)

        for begin in range(0, count, part or count):
            await asyncio.gather(*(one(i) for i in range(begin, min(count, begin + (part or count)))))
            if after:
                after()
    return seconds, wrong


def load(args):
    with serving(SCRIPTED) as (url, _):
        asyncio.run(storm(url, 50, 10, start=2**23))
        started = time.perf_counter()
        seconds, wrong = asyncio.run(storm(url, 1000, 1000))
        took = time.perf_counter() - started
    return {
        "requests": len(seconds),
        "wrong_lost_or_mixed_up": len(wrong),
        "first_wrong": wrong[:3],
        "requests_a_second": round(len(seconds) / took, 1),
        "latency": latencies(seconds),
    }


def bad_requests():
    """One request of each bad kind, with the status it deserves."""
    good = request_body("image_generation", "a kite", [picture(1), picture(2)])
    whole = base64.b64decode(picture(3, side=64).partition(",")[2])
    scan = BytesIO()
    Image.new("L", (2000, 2000)).save(scan, "JPEG", progressive=True)
    last = scan.getvalue().rindex(b"\xff\xda")
    bomb = scan.getvalue()[:-2] + scan.getvalue()[last:-2] * 500
    first = good["candidates"][0]
    kinds = [
        ({**good, "candidates": [first, {"image": data_url(whole[:-30])}]}, 422),
        ({**good, "candidates": [first, {"image": data_url(bomb)}]}, 422),
        ({**good, "prompt": "\U0001f9ff" * 16_000}, 422),  # three tokens or more each
        ({**good, "surprise": 1}, 422),
    ]
    return [(json.dumps(body).encode(), status) for body, status in kinds] + [(json.dumps(good).encode("utf-16"), 400)]


async def answered(url, bodies, concurrency=32):
    """Send requests, each with the status it deserves; return the seconds it took and what was wrong."""
    waiting, wrong = list(enumerate(bodies))[::-1], []
    limits = httpx.Limits(max_connections=concurrency)

    async def client(http):
        while waiting:
            number, (body, status) = waiting.pop()
            reply = await http.post("/v1/compare", content=body, headers={"Content-Type": "application/json"})
            if reply.status_code != status or (status == 200 and reply.json()["status"] == "error"):
                wrong.append((number, reply.status_code, reply.text[:100]))

    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as http:
        begun = time.perf_counter()
        await asyncio.gather(*(client(http) for _ in range(concurrency)))
        return time.perf_counter() - begun, wrong


def compared(pictures):
    """What asks for a comparison, which is to succeed."""
    return json.dumps(request_body("image_generation", "a kite", pictures)).encode(), 200


def bad(args):
    """Compare with and without bad requests among the good ones."""
    command = ["-m", "unifiedreward_think.serving", "--model", args.model, "--prompts", args.prompts]
    command += ["--dtype", "float32", "--device", args.device, "--max-new-tokens", 192, "--batch-size", 64, "--quiet"]
    kinds, count = bad_requests(), 16 * 6 * args.groups
    rates, wrong = {"good": [], "mixed": []}, []
    with serving(*command) as (url, pid):
        for round_ in range(args.rounds + 1):  # the first one warms up
            for turn, name in enumerate(("good", "mixed")):
                start = 2 * count * (2 * round_ + turn)
                bodies = [compared([picture(start + 2 * i, 64), picture(start + 2 * i + 1, 64)]) for i in range(count)]
                if name == "mixed":
                    bodies[7::16] = [kinds[i % len(kinds)] for i in range(count // 16)]
                before = cpu_seconds(pid)
                wrong += asyncio.run(answered(url, bodies))[1]
                good = sum(status == 200 for _, status in bodies)
                rates[name].append(round(good / (cpu_seconds(pid) - before), 1))
        ratios = [round(b / a, 3) for a, b in zip(rates["good"][1:], rates["mixed"][1:], strict=True)]
    return {
        "requests_a_wave": count,
        "good_answers_a_cpu_second": {name: values[1:] for name, values in rates.items()},
        "ratio_of_each_round": ratios,
        "ratio": round(harmonic_mean(rates["mixed"][1:]) / harmonic_mean(rates["good"][1:]), 3),
        "wrong": len(wrong),
        "first_wrong": wrong[:3],
    }


def photograph(number, side=1024):
    """Smooth noise, which is as large when it is encoded as a photograph."""
    small = Image.effect_noise((side // 8, side // 8), 60 + number % 50)
    layers = [small.rotate(90 * i).resize((side, side), Image.Resampling.BICUBIC) for i in range(3)]
    grain = Image.effect_noise((side, side), 12)
    return Image.merge("RGB", [ImageChops.add(layer, grain, scale=1, offset=-128) for layer in layers])


def decode(args):
    """Compare photographs with all of them decoded in the server's process, and with all decoded in others."""
    waves = {form: [photograph(i) for i in range(48)] for form in ("PNG", "JPEG")}
    rates = {}
    places = {"here": 2**30, "apart": 0}
    with ExitStack() as stack:
        urls = {place: stack.enter_context(serving(SCRIPTED, "--quick-pixels", n))[0] for place, n in places.items()}
        for form, pictures in waves.items():
            for round_ in range(args.rounds + 1):
                for place, url in urls.items():
                    bodies = []
                    for i in range(0, len(pictures), 2):
                        urls_of_pair = [encoded_as(form, image, round_) for image in pictures[i : i + 2]]
                        bodies.append(compared(urls_of_pair))
                    seconds, wrong = asyncio.run(answered(url, bodies, 8))
                    assert not wrong, wrong
                    rates.setdefault(form, {}).setdefault(place, []).append(round(len(bodies) / seconds, 2))
    return {
        form: {
            "requests_a_second": {place: values[1:] for place, values in of_form.items()},
            "apart_to_here": round(median(of_form["apart"][1:]) / median(of_form["here"][1:]), 3),
        }
        for form, of_form in rates.items()
    }


def encoded_as(form, image, round_):
    """A picture as a data URL, with one pixel that makes it new in each round."""
    image.putpixel((0, 0), (round_, 0, 0))
    buffer = BytesIO()
    image.save(buffer, form, **({"compress_level": 1} if form == "PNG" else {"quality": 90}))
    return data_url(buffer.getvalue())


def resident(pid):
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def memory(args):
    sizes = []
    with serving(SCRIPTED) as (url, pid):
        sizes.append(resident(pid))

        def note():
            sizes.append(resident(pid))
            print(f"memory after {len(sizes) - 1} tenths: {sizes[-1]} MiB", file=sys.stderr, flush=True)

        seconds, wrong = asyncio.run(storm(url, args.requests, 32, part=args.requests // 10, after=note))
        alive = RewardClient(url).health()["status"]
    return {
        "requests": len(seconds),
        "wrong_lost_or_mixed_up": len(wrong),
        "resident_mib": sizes,
        "growth_of_the_second_half_mib": round(sizes[-1] - sizes[len(sizes) // 2], 1),
        "latency": latencies(seconds),
        "health": alive,
    }


PARTS = {"speed": speed, "cache": cache, "load": load, "bad": bad, "decode": decode, "memory": memory}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="what to measure")
    add("--model", default=str(REPO / "src/unifiedreward_think/toy/base"), help="speed, cache: folder of the model")
    add("--prompts", default=str(REPO / "configs/toy/prompts"), help="speed, cache: folder of prompt templates")
    add("--device", default="cpu", help="speed, cache: of the model")
    add("--groups", type=int, default=4, help="speed: groups of 8 candidates in a round; bad: 96 requests each")
    add("--rounds", type=int, default=5, help="speed, cache, bad, decode: of each of the two ways, in turn")
    add("--requests", type=int, default=20_000, help="memory: how many")
    add("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    report = {part: PARTS[part](args) for part in args.parts}
    report["arguments"] = {key: str(value) for key, value in vars(args).items()}
    report["versions"] = {name: metadata.version(name) for name in ("torch", "transformers", "fastapi", "uvicorn")}
    if args.output:
        write_whole(args.output, json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
