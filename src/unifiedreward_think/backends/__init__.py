"""Where completions come from. A backend turns prompts into completions; it knows nothing of records or verdicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.errors import InputError
from unifiedreward_think.media import Clip
from unifiedreward_think.verdict import STOP_STRING


class BackendError(InputError):
    """No item can be judged: the server is out of reach, a package is missing, the arguments do not fit together."""


class Completion(NamedTuple):
    """A completion and why it ended: "stop" or "length"; the seconds it took where the backend knows them."""

    text: str
    finish_reason: str
    seconds: float | None = None


class Video(NamedTuple):
    """A video of a prompt with native video: its timing, and its sampled frames, opened."""

    clip: Clip
    images: list[Any]


class Failure(NamedTuple):
    """Why there is no completion: this item failed, which says nothing of the others."""

    reason: str


def end_at_tag(text: str, finish_reason: str) -> Completion:
    """Return a completion that ends where every backend stops: at the first closing answer tag.

    >>> end_at_tag("<answer>Image 1 is better</answer> As I said", "length").finish_reason
    'stop'
    """
    head, tag, _ = text.partition(STOP_STRING)
    return Completion(head + tag, "stop" if tag else finish_reason)


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
        said = shows.get(part["type"])
        return said(next(media[part["type"]])) if said else part

    return [{"role": turn["role"], "content": [filled(part) for part in turn["content"]]} for turn in prompt["prompt"]]


class Backend(Protocol):
    """What the judge needs of a backend.

    Attributes:
        model: name of the model, stored in every judgment.
        batch_size: prompts in one call of `complete`.
        settings: what else decides the completions, such as pixel limits; stored in every judgment.

    One that takes the next prompt as soon as it has room, not batch after batch, has a method `complete_each` (see
    `TransformersBackend`). One that takes videos as such, not as pictures, says by an attribute `native_video` what it
    takes of them: "frames", sampled here, or the "file", which a server samples by itself. One that remembers what it
    made of pictures has an attribute `cache` with the numbers `hits`, `misses` and `bytes`.
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
        ...
