"""A reward server whose judge needs no model: what it says is a function of the colours of the pictures it is shown.

    python scripts/bench/scripted_judge.py --port 8080

It names the colours in its reasoning, so that a lost, wrong or mixed-up answer shows (`verify`). serving.py and the
tests ask it.
"""

import argparse
import re
import time
from hashlib import sha256

from PIL import Image

from unifiedreward_think.backends import Completion
from unifiedreward_think.serving.client import data_url
from unifiedreward_think.verdict import render

SEEN = re.compile(r"saw (\w{6}) and (\w{6})")


class ScriptedBackend:
    """A judge without a model: what it says is a function of the colours of the pictures it is shown.

    `seconds` is what a batch takes, `calls` the sizes of the batches so far.
    """

    model = "scripted"
    settings = {}  # noqa: RUF012

    def __init__(self, batch_size=64, seconds=0.0):
        self.batch_size = batch_size
        self.seconds = seconds
        self.calls = []

    def complete(self, prompts, *, sampling, seeds):
        self.calls.append(len(prompts))
        time.sleep(self.seconds)
        return [[Completion(say(*(seen(image) for image in row["images"][:2])), "stop")] for row in prompts]


def seen(image):
    """The colour of a picture of one colour, as six hex digits."""
    return bytes(image.getpixel((0, 0))).hex()


def quality(colour):
    """How good a picture is: a fixed, arbitrary order of all colours."""
    return int(sha256(colour.encode()).hexdigest()[:6], 16)


def say(first, second="000000"):
    """The completion on two colours, which it names in the order shown."""
    better = 1 if quality(first) > quality(second) else 2
    scores = [("Aesthetics", 9, 4) if better == 1 else ("Aesthetics", 4, 9)]
    return render(better, scores, noun="Image", preamble=f"saw {first} and {second}")


def colour_of(number):
    return f"{number % 2**24:06x}"


def picture(number, side=8):
    """A picture of one colour, of its own for each number below 2**24."""
    return data_url(Image.new("RGB", (side, side), f"#{colour_of(number)}"))


def verify(body, reply):
    """What is wrong with a reply to a request for two single-coloured pictures; "" for nothing."""
    colours = body["colours"]
    if reply.status_code != 200:
        return f"lost: {reply.status_code} {reply.text[:100]}"
    (row,) = reply.json()["judgments"]
    named = SEEN.search(row["reasoning"] or "")
    expected = (colours[row["shown_first"]], colours[1 - row["shown_first"]])
    if named is None or named.groups() != expected:
        return f"mixed up: {named and named.groups()} for {expected}"
    if row["winner"] != (0 if quality(colours[0]) > quality(colours[1]) else 1):
        return "wrong winner"
    return ""


def serve(port, quick_pixels):
    import uvicorn

    from unifiedreward_think import bounded
    from unifiedreward_think.judging.settings import JudgingArguments
    from unifiedreward_think.serving.__main__ import KEEP_ALIVE
    from unifiedreward_think.serving.app import create_app
    from unifiedreward_think.serving.questions import Settings

    bounded.QUICK_PIXELS = bounded.QUICK_PIXELS if quick_pixels is None else quick_pixels
    app = create_app(ScriptedBackend(), Settings(JudgingArguments().config()))
    uvicorn.run(app, port=port, log_level="info", access_log=False, backlog=4096, timeout_keep_alive=KEEP_ALIVE)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="0: a free one, which the log names")
    parser.add_argument("--quick-pixels", type=int, help="decode larger pictures in other processes (bounded.py)")
    args = parser.parse_args()
    serve(args.port, args.quick_pixels)


if __name__ == "__main__":
    main()
