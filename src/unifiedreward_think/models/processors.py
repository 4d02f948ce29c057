"""Whether a processor is whole, and that of its model: its files are there, its template and its tokens fit.

transformers makes a tokenizer without words where the files of one are gone, and loads the processor of any family.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from unifiedreward_think.models.soundness import BrokenModelError, read_object, reading

if TYPE_CHECKING:
    from transformers import PretrainedConfig, ProcessorMixin

FROM_BASE = "copy the tokenizer and processor files of its base model"
FILES = (  # one of each row
    ("tokenizer_config.json",),
    ("tokenizer.json", "vocab.json"),
    ("tokenizer.json", "merges.txt"),
    ("processor_config.json", "preprocessor_config.json"),
)
QUESTION = "which?"


def must_have_processor(path: str | Path) -> None:
    """Require the files of a processor in a local folder: without some, transformers makes a tokenizer without words.

    Raises:
        BrokenModelError: names what is missing.
    """
    folder = Path(path)
    for names in FILES if folder.is_dir() else ():
        if not any((folder / name).is_file() for name in names):
            raise BrokenModelError(f"{path}: no {' or '.join(names)}; {FROM_BASE}")


def must_suit(processor: ProcessorMixin, config: PretrainedConfig | None, path: str | Path) -> None:
    """Require a processor that shows texts and pictures to the model of `config`.

    Args:
        processor: as transformers has loaded it.
        config: of the model; None where the folder holds no model, as an adapter's.
        path: of the processor.

    Raises:
        BrokenModelError: says what does not fit.
    """
    from transformers import PROCESSOR_MAPPING

    if not hasattr(processor, "image_processor"):
        raise BrokenModelError(f"{path}: its processor knows no pictures; {FROM_BASE}")
    _must_render(processor, path)
    if config is None:
        return
    due, its = PROCESSOR_MAPPING[type(config)].__name__, type(processor).__name__
    number = getattr(config, "image_token_id", None) or config.image_token_index
    patch, rows = config.vision_config.patch_size, config.get_text_config().vocab_size
    lacking = _lacking(processor, Path(path) / "tokenizer.json")
    misfits = {
        f"the processor is {its}, not {due}": its != due,
        f"{processor.image_token} is not the token {number}, which stands for pictures": (
            processor.tokenizer.convert_tokens_to_ids(processor.image_token) != number
        ),
        f"pictures are not cut into patches of {patch} pixels": (
            getattr(processor.image_processor, "patch_size", patch) != patch
        ),
        f"tokenizer.json lacks special tokens of tokenizer_config.json ({', '.join(lacking)})": bool(lacking),
        f"the tokenizer has {len(processor.tokenizer)} tokens, the model {rows}": len(processor.tokenizer) > rows,
    }
    if reasons := [misfit for misfit, applies in misfits.items() if applies]:
        raise BrokenModelError(f"{path}: processor or tokenizer of another model: {'; '.join(reasons)}; {FROM_BASE}")


def _lacking(processor: ProcessorMixin, file: Path) -> list[str]:
    """Return the special tokens that a local tokenizer.json does not hold: another file has added them."""
    if not file.is_file():
        return []
    table = read_object(file, "model")
    known = {row["content"] for row in table.get("added_tokens", ())} | dict(table["model"]["vocab"]).keys()
    return sorted(set(processor.tokenizer.all_special_tokens) - known)


def _must_render(processor: ProcessorMixin, path: str | Path) -> None:
    """Require a chat template that shows a text and a picture once, and then opens the answer."""
    if not processor.chat_template:
        raise BrokenModelError(f"{path}: no chat template (chat_template.jinja); {FROM_BASE}")
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    with reading(path, "its chat template"):
        turn, opened = (
            processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation)
            for generation in (False, True)
        )
    shown = turn.count(processor.image_token) == turn.count(QUESTION) == 1
    if not shown or turn == opened or not opened.startswith(turn):
        raise BrokenModelError(
            f"{path}: its chat template does not show one picture and one text and then open the answer; {FROM_BASE}"
        )
