"""Where completions come from. A backend turns prompts into completions; it knows nothing of records or verdicts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from unifiedreward_think.blocks import STOP_STRING
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.errors import InputError
from unifiedreward_think.expectation import Masses, Place
from unifiedreward_think.media import Clip

Numbers = Callable[[str], Sequence[Place]]  # where a completion says the numbers whose probabilities are wanted
Request = tuple[Mapping[str, Any], Sequence[int]]  # a prompt, and a seed for each of its completions


class BackendError(InputError):
    """No item can be judged: the server is out of reach, a package is missing, the arguments do not fit together."""


class Tokens(NamedTuple):
    """How many tokens a prompt has, its pictures included, and how many were written."""

    prompt: int
    completion: int


class Completion(NamedTuple):
    """A completion and why it ended: "stop" or "length"; its seconds and tokens where the backend knows them.

    `numbers`, of a backend that was asked for them: each place of a number, and how probable the allowed ones were.
    """

    text: str
    finish_reason: str
    seconds: float | None = None
    tokens: Tokens | None = None
    numbers: tuple[tuple[Place, Masses], ...] = ()


class Video(NamedTuple):
    """A video of a prompt with native video: its timing, and its sampled frames, opened."""

    clip: Clip
    images: list[Any]


class Failure(NamedTuple):
    """Why there is no completion: this item failed, which says nothing of the others.

    Attributes:
        reason: what went wrong.
        refused: whether the prompt is at fault, so that it would fail again.
    """

    reason: str
    refused: bool = False


def end_at_tag(text: str, finish_reason: str, tokens: Tokens | None = None) -> Completion:
    """Return a completion that ends where every backend stops: at the first closing answer tag.

    >>> end_at_tag("<answer>Image 1 is better</answer> As I said", "length").finish_reason
    'stop'
    """
    head, tag, _ = text.partition(STOP_STRING)
    return Completion(head + tag, "stop" if tag else finish_reason, tokens=tokens)


def with_images(
    prompt: Mapping[str, Any],
    show: Callable[[Any], dict[str, Any]],
    show_video: Callable[[Video], dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Return a prompt's messages, each placeholder replaced by what `show` makes of its picture.

    Videos are placeholders only in a run with native video, which takes a backend that says how to show them.

    >>> user = {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "Which?"}]}
    >>> with_images({"prompt": [user], "images": ["a"]}, lambda image: {"type": "image", "image": image})
    [{'role': 'user', 'content': [{'type': 'image', 'image': 'a'}, {'type': 'text', 'text': 'Which?'}]}]
    """
    media = {"image": iter(prompt["images"]), "video": iter(prompt.get("videos", ()))}
    shows = {"image": show, "video": show_video}

    def filled(part: dict[str, Any]) -> dict[str, Any]:
        as_part = shows.get(part["type"])
        return as_part(next(media[part["type"]])) if as_part else part

    return [{"role": turn["role"], "content": [filled(part) for part in turn["content"]]} for turn in prompt["prompt"]]


class Backend(Protocol):
    """What the judge needs of a backend.

    Attributes:
        model: name of the model, stored in every judgment.
        batch_size: prompts in one call of `complete`.
        settings: what else decides the completions, such as pixel limits; stored in every judgment.

    What some backends can do besides stands below.
    """

    model: str
    batch_size: int
    settings: Mapping[str, Any]

    def complete(
        self, prompts: Sequence[Mapping[str, Any]], *, sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> Sequence[Sequence[Completion | Failure]]:
        """Return len(seeds[i]) completions for prompt i, or for each that fails the reason.

        A prompt is `prompt`, the messages with a placeholder for each picture, `images`, the opened pictures, and
        the `id` and `order` of what is judged; with native video also `videos`, each a `Video`; and `sample`, the
        number of the sample that the first seed is for, where that is not 0.
        """


@runtime_checkable
class RefillingBackend(Protocol):
    """A backend that takes the next prompt as soon as it has room, not batch after batch."""

    def complete_each(
        self, requests: Iterable[Request], *, sampling: Sampling, samples: int
    ) -> Iterator[Sequence[tuple[int, Sequence[Completion | Failure]]]]:
        """Yield the completions of prompts with their seeds as they are done, each with the number of its prompt."""


@runtime_checkable
class StreamingBackend(Protocol):
    """A backend that tells what it writes while it writes."""

    def stream(
        self, prompt: Mapping[str, Any], *, sampling: Sampling, seed: int, on_text: Callable[[str], object]
    ) -> Completion | Failure:
        """Return the completion that `complete` would, having passed each piece of it to `on_text`."""


@runtime_checkable
class VideoBackend(Protocol):
    """A backend that may take videos as such: their "frames", sampled here, or the "file", which a server samples."""

    native_video: str


@runtime_checkable
class ExpectingBackend(Protocol):
    """A backend that can tell how probable other numbers were; it does where `numbers` says where they stand."""

    numbers: Numbers | None


@runtime_checkable
class RememberingBackend(Protocol):
    """A backend that keeps the features of pictures; its cache, if it has one, counts `hits`, `misses` and `bytes`."""

    cache: Any
