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
ROOMS = ("training", "engine", "backends", "models")

# Name: why it is used, and the hash of the method in the library, None for an attribute.
PRIVATE = {
    "_attn_implementation": ("the attention that the shared prefix takes the place of", None),
    "_buffered_inputs": ("micro-batches of a rollout are regrouped by prompt", None),
    "_calculate_rewards": ("rewards are logged by task; equal rewards are told before rounding", "736ae29b0838"),
    "_compute_loss": ("rows without advantage need no pass", "80295546bbdb"),
    "_entropy_bonus_enabled": ("such a loss looks at every row", None),
    "_generate_and_score_completions": (
        "prompts are encoded once a rollout; dead groups are replaced",
        "1fa48922792d",
    ),
    "_generate_single_turn": ("completions of a group share their prompt", "e0f02e4fc094"),
    "_get_grad_norm": ("a NaN gradient ends the run before it is applied", "913ba6f52f07"),
    "_get_per_token_logps_and_entropies": ("packed sequences; LLaVA-OneVision needs batch_num_images", "ea73c3909275"),
    "_get_train_sampler": ("an order for each epoch that a resumed run finds again", "1580d7493244"),
    "_load_best_model": ("as _load_from_checkpoint", "0e183d55a9db"),
    "_load_from_checkpoint": ("stock resume restores nearly nothing (huggingface/transformers#43701)", "a2804e8d93a2"),
    "_logs": ("columns of the completions table follow replaced groups", None),
    "_metrics": ("what is logged beside TRL's own", None),
    "_name_or_path": ("part of the key of the feature cache on disk", None),
    "_prepare_inputs": ("micro-batches of a rollout are regrouped by prompt", "8f8c4e430d2f"),
    "_save_checkpoint": ("a checkpoint is marked complete once it is", "b6ee0a370c26"),
    "_step": ("the micro-batch of a rollout that comes next", None),
    "_tokenize_prompts": ("prompts of a group are tokenized once", "d2d27f7c9bfd"),
    "_tokenizer": ("token ids of ends and padding", None),
    "_total_train_tokens": ("the count of tokens goes on after a resume", None),
}


def library_classes():
    import transformers
    import trl
    from transformers.cache_utils import Cache, DynamicLayer
    from transformers.trainer_pt_utils import LengthGroupedSampler
    from trl.trainer.utils import RepeatSampler

    trainers = [trl.GRPOTrainer, trl.SFTTrainer]
    others = [transformers.PreTrainedModel, transformers.PreTrainedConfig, transformers.ProcessorMixin]
    return [*trainers, *others, transformers.TextStreamer, Cache, DynamicLayer, RepeatSampler, LengthGroupedSampler]


@functools.cache
def owners():
    """Private name -> the library's class that defines it, as a method or by an assignment to self."""
    found = {}
    for cls in library_classes():
        for base in reversed(cls.__mro__):
            if base.__module__.partition(".")[0] not in ("trl", "transformers"):
                continue
            source = inspect.getsource(base)
            names = set(vars(base)) | set(re.findall(r"self\.(_\w+)(?:\s*:[^=\n]+)?\s*=[^=]", source))
            found |= {name: base for name in names if re.match(r"_[a-z]", name)}
    return found


@functools.cache
def used():
    """Private names of the library that occur in our source: overridden, called, read or written."""
    known, names = owners(), {}
    for room in ROOMS:
        for file in sorted((PACKAGE / room).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "name", None)
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    name = node.value  # getattr(model, "_name")
                if name in known:
                    names.setdefault(name, set()).add(str(file.relative_to(PACKAGE)))
    return names


def fingerprint(name):
    method = inspect.unwrap(getattr(owners()[name], name, None) or object)
    return hashlib.sha256(inspect.getsource(method).encode()).hexdigest()[:12] if inspect.isfunction(method) else None


def test_every_private_name_that_is_used_is_listed_with_its_reason():
    places = used()
    new = {name: sorted(places[name]) for name in places.keys() - PRIVATE}
    gone = sorted(PRIVATE.keys() - places)
    assert not new, f"private names of TRL or transformers that PRIVATE does not list: {new}"
    assert not gone, f"PRIVATE lists what nothing uses any more: {gone}; remove the lines"


@pytest.mark.parametrize("name", PRIVATE)
def test_a_private_method_is_the_one_that_was_read(name):
    owner = owners().get(name)
    assert owner, f"neither TRL nor transformers has {name} any more; {PRIVATE[name][0]}: see what uses it"
    assert fingerprint(name) == PRIVATE[name][1], (
        f"{owner.__module__}.{owner.__name__}.{name} has changed: read it again beside {sorted(used()[name])}, let the "
        f"equality and resume tests pass, then write {fingerprint(name)!r} here"
    )


if __name__ == "__main__":
    for name, files in sorted(used().items()):
        print(name, fingerprint(name), owners()[name].__name__, *sorted(files), file=sys.stdout)
