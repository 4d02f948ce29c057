"""How a record becomes a prompt, and what the data commands ask for, where several ask for the same.

>>> parser = command("check", "Clean records.", output="folder for the records that stay")
>>> parser.add(ShownArguments, *FRAMES)
>>> args = parser.parse_args(["--input", "data/hpd", "--output", "data/clean"])
>>> args.input, frame_sampling(args, Path("frames")).frames
([PosixPath('data/hpd')], 8)
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from unifiedreward_think.blocks import Style
from unifiedreward_think.decoders import Decoder
from unifiedreward_think.errors import InputError
from unifiedreward_think.flags import Count, Parser, Seed, option
from unifiedreward_think.forms import FORMS, PAIRWISE, Form
from unifiedreward_think.media import FrameSampling
from unifiedreward_think.order import Orders
from unifiedreward_think.prompting import load_prompts
from unifiedreward_think.verdict import Layout

FRAMES = ("frames", "decoder")
PROMPTS = ("style", "layout", "prompts")


@dataclass(kw_only=True)
class ShownArguments:
    """How a record is shown."""

    form: str = option("what is asked for: pairwise (who is better) or pointwise (a score)", default=PAIRWISE.name)
    style: Style = option("chain of thought or answer alone", default="cot")
    layout: Layout = option("how the prompt asks for a dimension", default="one_line")
    prompts: str | None = option(
        "prompt templates of your own: a folder of <task>.txt, or one such file (default: the package's)", default=None
    )
    orders: Orders = option("show each pair in one order or in both; each candidate is scored anyway", default="one")
    order_seed: Seed = option("decides which candidate is shown first, where the order is one", default=0)
    frames: Count = option("of each video, evenly spaced", default=8)
    decoder: Decoder = option("reads the videos", default="decord")
    frame_cache: str = option("folder that keeps decoded frames", default="outputs/frames")

    @property
    def frame_sampling(self) -> FrameSampling:
        """How videos become frames."""
        return FrameSampling(frames=self.frames, cache=Path(self.frame_cache), decoder=self.decoder)

    @property
    def asked_form(self) -> Form:
        """The form of judgment.

        Raises:
            InputError: there is none of this name.
        """
        if self.form not in FORMS:
            raise InputError(f"form {self.form!r} is none of {', '.join(FORMS)}")
        return FORMS[self.form]

    def templates(self, task: str = "", *, form: Form | None = None) -> dict[str, str]:
        """Return task -> prompt template; see `prompting.load_prompts`.

        Args:
            task: whose template a file is.
            form: of judgment; where it is another one than is asked for, its templates stand in the folder of its name
                within `prompts`, as they do in the package.
        """
        asked = self.asked_form
        form = form or asked
        path = self.prompts and (self.prompts if form is asked else str(Path(self.prompts) / form.name))
        return load_prompts(
            self.style, layout=self.layout, path=path, task=task, candidates=form.candidates, home=form.prompts
        )


def command(name: str, doc: str | None, *, output: str, inputs: bool = True) -> Parser:
    """Return the parser of a data command: `doc` as its help, `--output`, and `--input` folders of records."""
    parser = Parser(doc, prog=f"python -m unifiedreward_think.data {name}")
    if inputs:
        parser.add_argument("--input", type=Path, nargs="+", required=True, help="folders of records")
    parser.add_argument("--output", type=Path, required=True, help=output)
    return parser


def frame_sampling(args: argparse.Namespace, cache: Path) -> FrameSampling:
    """Return how videos become frames, by the flags of `ShownArguments`, frames being kept in `cache`."""
    return FrameSampling(frames=args.frames, cache=cache.absolute(), decoder=args.decoder)
