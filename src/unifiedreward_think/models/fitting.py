"""Whether a prompt fits a model: a place for each of its pictures, and positions for its tokens and its completion.

What does not fit makes a model raise in the middle of a batch, or write what means nothing.

>>> too_long(30000, 2048, 32768), too_long(32000, 2048, 32768).partition(";")[0]
('', '32000 tokens and 2048 to be written are more than the 32768 that the model was made for')
"""

from __future__ import annotations

from typing import Any


def positions(config: Any) -> int:
    """Return the most tokens of a sequence, as vLLM counts them: each token of a picture is one, and YaRN adds some."""
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    stretched = rope.get("factor", 1) * rope.get("original_max_position_embeddings", 0)
    return max(int(text.max_position_embeddings), int(stretched))


def too_long(prompt: int, completion: int, most: int) -> str:
    """Return why a prompt and the completion that may follow have no room in a model; "" where they have."""
    if prompt + completion <= most:
        return ""
    return (
        f"{prompt} tokens and {completion} to be written are more than the {most} that the model was made for; lower "
        "max_pixels, frames or the limit of a completion, or shorten the texts"
    )


def misplaced(text: str, processor: Any, *, images: int, videos: int = 0) -> str:
    """Return why the places for media in a rendered prompt are not those of its media; "" where they are."""
    for kind, count in (("image", images), ("video", videos)):
        token = getattr(processor, f"{kind}_token")
        if (places := text.count(token)) != count:
            return f"the chat template writes {places} places ({token}) for {count} {kind}s; correct the template"
    return ""
