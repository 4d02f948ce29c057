"""Completions from vLLM inside this process: the fastest way to judge or sample a lot on a GPU.

    pip install -e '.[vllm]'
    python inference/image_generation.py --backend vllm --model MODEL ...

The prompts of a batch run together; samples of a prompt share its prefix cache and differ in their seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unifiedreward_think.backends import BackendError, Completion, Failure, Request, Tokens, end_at_tag, with_images
from unifiedreward_think.backends.isolation import apart
from unifiedreward_think.backends.launch import alone
from unifiedreward_think.blocks import STOP_STRING
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.models.adapters import must_be_whole
from unifiedreward_think.models.chat_template import thinking_of
from unifiedreward_think.models.loading import load_processor, must_be_sound


class VllmBackend:
    """Run a checkpoint with vLLM 0.30.

    Args:
        path: folder or Hub name of the model.
        batch_size: pairs given to vLLM at a time; it schedules them itself.
        dtype: of the weights.
        min_pixels, max_pixels: area that smaller and larger pictures are scaled to; None keeps the model's.
        max_images: pictures and frames in one prompt; two videos of 8 frames need 16.
        tensor_parallel_size: GPUs that share the model; under torchrun each process has that many of its own.
        max_model_len: tokens of prompt and completion; None takes the model's, which may need too much memory.
        thinking: whether a chat template that has a switch lets the model think.

    Raises:
        BackendError: vLLM is not installed.
        InputError: the folder is an adapter's, or damaged or incomplete.
    """

    def __init__(
        self,
        path: str,
        *,
        batch_size: int = 256,
        dtype: str = "auto",
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        max_images: int = 16,
        tensor_parallel_size: int = 1,
        max_model_len: int | None = None,
        thinking: bool = True,
    ) -> None:
        must_be_whole(path, "vLLM")
        must_be_sound(path)
        limits = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        self.model = path
        self.batch_size = batch_size
        self._vllm = _library()
        self._processor: Any = load_processor(path)
        self._thinking = thinking_of(self._processor, thinking)
        self.settings: Mapping[str, Any] = {"backend": "vllm", "dtype": dtype, **limits, **self._thinking.settings}
        with alone(tensor_parallel_size):
            self._llm = self._vllm.LLM(
                model=path,
                dtype=dtype,
                limit_mm_per_prompt={"image": max_images},
                mm_processor_kwargs={name: area for name, area in limits.items() if area is not None} or None,
                tensor_parallel_size=tensor_parallel_size,
                max_model_len=max_model_len,
                seed=0,
                generation_config="vllm",  # a checkpoint's own defaults must not change what `sampling` says
            )

    def complete(
        self, prompts: Sequence[Mapping[str, Any]], *, sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> list[list[Completion | Failure]]:
        """Return len(seeds[i]) completions of prompt i; vLLM's reason for a prompt that it refuses.

        Where one is too long, or holds too many images, vLLM takes none of them.
        """
        answers: list[list[Completion | Failure]] = []
        refusals = (ValueError, self._vllm.exceptions.VLLMClientError)
        seeded = list(zip(prompts, seeds, strict=True))
        for group, completed in apart(lambda some: self._chat(some, sampling), seeded, refusals):
            if isinstance(completed, Exception):
                answers.append([Failure(f"vLLM refuses the prompt: {completed}")] * len(group[0][1]))
            else:
                answers += completed
        return answers

    def _chat(self, seeded: Sequence[Request], sampling: Sampling) -> list[list[Completion | Failure]]:
        # A greedy completion is the same for every seed.
        drawn = [
            (prompt, prompt_seeds if sampling.temperature > 0 else prompt_seeds[:1]) for prompt, prompt_seeds in seeded
        ]
        requests = [(with_images(prompt, _image_part), seed) for prompt, prompt_seeds in drawn for seed in prompt_seeds]
        outputs = iter(
            self._llm.chat(
                [messages for messages, _ in requests],
                sampling_params=[self._params(sampling, seed) for _, seed in requests],
                use_tqdm=False,
                chat_template_content_format="openai",
                chat_template_kwargs=dict(self._thinking.options),
            )
        )
        answers = [[self._completion(next(outputs)) for _ in prompt_seeds] for _, prompt_seeds in drawn]
        return [some * (len(wanted) // len(some)) for some, (_, wanted) in zip(answers, seeded, strict=True)]

    def _params(self, sampling: Sampling, seed: int) -> Any:
        return self._vllm.SamplingParams(
            n=1,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=-1,
            repetition_penalty=1.0,
            max_tokens=sampling.max_new_tokens,
            seed=seed % 2**63,
            stop=[STOP_STRING],
            include_stop_str_in_output=True,
            skip_special_tokens=False,  # tags may be such, and vLLM would not see the one to stop at
        )

    def _completion(self, output: Any) -> Completion | Failure:
        generated = output.outputs[0]
        if generated.finish_reason not in ("stop", "length"):
            return Failure(f"vLLM ended the request (finish reason {generated.finish_reason!r})")
        text = self._processor.tokenizer.decode(generated.token_ids, skip_special_tokens=True)
        prompt = output.prompt_token_ids
        tokens = None if prompt is None else Tokens(len(prompt), len(generated.token_ids))
        return end_at_tag(self._thinking.opening + text, generated.finish_reason, tokens)


def _image_part(image: Any) -> dict[str, Any]:
    return {"type": "image_pil", "image_pil": image}


def _library() -> Any:
    try:
        import vllm.exceptions
    except ImportError as error:
        raise BackendError("vLLM is not installed: pip install -e '.[vllm]' (Linux with CUDA)") from error
    return vllm
