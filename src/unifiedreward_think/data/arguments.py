"""What the data commands ask for on the command line, where several ask for the same.

>>> parser = command("check", "Clean records.", output="folder for the records that stay")
>>> add_frames(parser)
>>> args = parser.parse_args(["--input", "data/hpd", "--output", "data/clean"])
>>> args.input, frame_sampling(args, Path("frames")).frames
([PosixPath('data/hpd')], 8)
"""

from __future__ import annotations

import argparse
from pathlib import Path

from unifiedreward_think.media import DECODERS, FrameSampling


def command(name: str, doc: str | None, *, output: str, inputs: bool = True) -> argparse.ArgumentParser:
    """Return the parser of a data command: `doc` as its help, `--output`, and `--input` folders of records."""
    parser = argparse.ArgumentParser(
        prog=f"python -m unifiedreward_think.data {name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if inputs:
        parser.add_argument("--input", type=Path, nargs="+", required=True, help="folders of records")
    parser.add_argument("--output", type=Path, required=True, help=output)
    return parser


def add_frames(parser: argparse.ArgumentParser) -> None:
    """Add what decides how videos become frames."""
    parser.add_argument("--frames", type=int, default=8, help="frames of each video")
    parser.add_argument("--decoder", choices=DECODERS, default="decord", help="reads the videos")


def add_prompts(parser: argparse.ArgumentParser) -> None:
    """Add what decides the text of a prompt."""
    parser.add_argument("--layout", choices=["one_line", "three_line"], default="one_line", help="form of a dimension")
    parser.add_argument("--prompt-dir", help="folder of prompt templates of your own")


def frame_sampling(args: argparse.Namespace, cache: Path) -> FrameSampling:
    """Return what the arguments of `add_frames` mean, frames being kept in `cache`."""
    return FrameSampling(frames=args.frames, cache=cache.absolute(), decoder=args.decoder)
