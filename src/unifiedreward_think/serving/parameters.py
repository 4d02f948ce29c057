"""Which parameters a chat may bring besides those that are honoured: those that change nothing, at that value.

>>> check_parameters({"user": "me", "response_format": {"type": "text"}, "skip_special_tokens": True, "tools": None})
>>> check_parameters({"skip_special_tokens": False})
Traceback (most recent call last):
...
unifiedreward_think.serving.limits.Refused: skip_special_tokens: not honoured here; leave it out, or set it to true
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from unifiedreward_think.serving.limits import Refused

# Whatever they say: names and notes of the client, and where it would like the answer to be kept.
_ANY = frozenset({"metadata", "request_id", "safety_identifier", "store", "user"})
_ANY |= {"cache_salt", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"}
# What leaves the answer as it is. OpenAI's API (openai.types.chat), then what vLLM takes besides.
_SAME: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "stop": ([],),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
    "add_generation_prompt": (True,),
    "add_special_tokens": (False,),
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "best_of": (1,),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "detokenize": (True,),
    "documents": ([],),
    "echo": (False,),
    "ignore_eos": (False,),
    "include_reasoning": (True,),
    "include_stop_str_in_output": (True, False),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "min_p": (0,),
    "min_tokens": (0,),
    "mm_processor_kwargs": ({},),
    "priority": (0,),
    "repetition_penalty": (1,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "stop_token_ids": ([],),
    "top_k": (-1, 0),
    "use_beam_search": (False,),
    "vllm_xargs": ({},),
}
# Parts of parameters and of messages that are read. Pictures are shown as they are, so "low" would change them.
_PARTS: Mapping[str, tuple[Any, ...]] = {
    "continuous_usage_stats": (False,),
    "detail": ("auto", "high"),
    "include_obfuscation": (True, False),
    "tool_calls": ([],),
    "annotations": ([],),
}


def check_parameters(given: Mapping[str, Any]) -> None:
    """Refuse what would change the answer and is not honoured; null is as good as absent.

    Raises:
        Refused: with status 400, and the value that changes nothing.
    """
    for name, value in given.items():
        if value is not None and name not in _ANY:
            _check(name, name, value, _SAME)


def check_parts(where: str, given: Mapping[str, Any]) -> None:
    """Refuse what a message, a part of it or the options of a stream hold, as `check_parameters` does.

    Raises:
        Refused: with status 400.
    """
    for name, value in given.items():
        if value is not None:
            _check(f"{where}.{name}", name, value, _PARTS)


def _check(where: str, name: str, value: Any, harmless: Mapping[str, tuple[Any, ...]]) -> None:
    if name not in harmless:
        raise Refused(f"{where[:100]}: not known here; leave it out", status=400)
    if not any(_same(value, one) for one in harmless[name]):
        fix = f"leave it out, or set it to {json.dumps(harmless[name][0])}"
        raise Refused(f"{where}: not honoured here; {fix}", status=400)


def _same(value: Any, one: Any) -> bool:
    """Return whether two values of JSON are the same: 0 is not false."""
    return isinstance(value, bool) == isinstance(one, bool) and bool(value == one)
