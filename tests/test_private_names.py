"""The private names of TRL and transformers that the trainers and the engine use: all of them, each guarded.

The list is found in the source, so a new use fails here until it is written down with its reason. A method's hash is
that of its source in the library: when it changes, read it again beside the code that uses it.
"""

import ast
import functools
import hashlib
import inspect
import re
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "unifiedreward_think"
# Name: why it is used, and the hash of the method in the library, None for an attribute.
PRIVATE = {
    "_attn_implementation": ("the attention that the shared prefix takes the place of", None),
    "_calculate_rewards": ("rewards are logged by task; equal rewards are told before rounding", "736ae29b0838"),
    "_generate_and_score_completions": (
        "prompts are encoded once a rollout; dead groups are replaced",
        "1fa48922792d",
    ),
    "_generate_single_turn": ("completions of a group share their prompt", "e0f02e4fc094"),
    "_get_num_multimodal_tokens": ("rows are counted without decoding their pictures", "61cc0e7024b7"),
    "_get_per_token_logps_and_entropies": ("packed sequences; LLaVA-OneVision needs batch_num_images", "ea73c3909275"),
    "_load_from_checkpoint": ("stock resume restores nearly nothing (huggingface/transformers#43701)", "a2804e8d93a2"),
    "_log_completion_extra": ("the completions table says which pair a row is and what was read", "afe43ddaa96c"),
    "_logs": ("pictures of the completions table, which TRL is not given", None),
    "_name_or_path": ("no part of the key of the feature cache on disk", None),
    "_tokenize_prompts": ("prompts of a group are tokenized once", "d2d27f7c9bfd"),
    "_total_train_tokens": ("the count of tokens goes on after a resume", None),
    "_weight_conversions": ("those that loading did not use would rename weights on save under ZeRO-3", None),
}


def library():
    """The classes, and the module, whose private names may be in use."""
    import transformers
    import trl
    from transformers import core_model_loading
    from transformers.cache_utils import Cache, DynamicLayer

    trainers = [trl.GRPOTrainer, trl.SFTTrainer]
    models = [transformers.PreTrainedModel, transformers.PreTrainedConfig, core_model_loading]
    processors = [getattr(transformers, f"{family}Processor") for family in ("Qwen2_5_VL", "Qwen3VL", "LlavaOnevision")]
    return [*trainers, *models, *processors, transformers.TextStreamer, Cache, DynamicLayer]


@functools.cache
def owners():
    """Private name -> what of the library defines it, as a method or by an assignment to self or to a model."""
    found = {}
    for base in dict.fromkeys(base for part in library() for base in getattr(part, "__mro__", [part])):
        if getattr(base, "__module__", base.__name__).partition(".")[0] not in ("trl", "transformers"):
            continue
        assigned = re.findall(r"(?:self|model)\.(_\w+)(?:\s*:[^=\n]+)?\s*=[^=]", inspect.getsource(base))
        for name in {*assigned, *(vars(base) if inspect.isclass(base) else ())}:
            if re.match(r"_[a-z]", name):
                found.setdefault(name, []).append(base)
    return found


@functools.cache
def used():
    """Private names of the library that occur in our source: overridden, called, read or written."""
    known, names = owners(), {}
    for file in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        functions = {node for node in tree.body if isinstance(node, ast.FunctionDef)}  # of ours, in no class
        for node in ast.walk(tree):
            name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "name", None)
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                name = node.value  # getattr(model, "_name")
            if name in known and node not in functions:
                names.setdefault(name, set()).add(str(file.relative_to(PACKAGE)))
    return names


def fingerprint(name):
    """The hash of a method in all classes of the library that have it, None of an attribute."""
    methods = [inspect.unwrap(vars(owner)[name]) for owner in owners()[name] if name in vars(owner)]
    sources = [inspect.getsource(method) for method in methods if inspect.isfunction(method)]
    return hashlib.sha256("".join(sources).encode()).hexdigest()[:12] if sources else None


def test_every_private_name_that_is_used_is_listed_with_its_reason():
    places = used()
    new = {name: sorted(places[name]) for name in places.keys() - PRIVATE}
    gone = sorted(PRIVATE.keys() - places)
    assert not new, f"private names of TRL or transformers that PRIVATE does not list: {new}"
    assert not gone, f"PRIVATE lists what nothing uses any more: {gone}; remove the lines"


@pytest.mark.parametrize("name", PRIVATE)
def test_a_private_name_is_what_was_read(name):
    reason, known = PRIVATE[name]
    places = sorted(used().get(name, ()))
    assert name in owners(), f"neither TRL nor transformers has {name} any more ({reason}): read {places} again"
    classes = ", ".join(owner.__name__ for owner in owners()[name])
    assert fingerprint(name) == known, (
        f"{name} ({reason}) has changed in {classes}: read it again beside {places}, let the equality and resume tests "
        f"pass, then write {fingerprint(name)!r} here"
    )


if __name__ == "__main__":
    for name, files in sorted(used().items()):
        print(name, fingerprint(name), *(owner.__name__ for owner in owners()[name]), *sorted(files), file=sys.stdout)
