"""Completions from vLLM inside this process: the fastest way to judge or sample a lot on a GPU.

    pip install -e '.[vllm]'
    python inference/image_generation.py --backend vllm --model MODEL ...

The prompts of a batch run together; samples of a prompt share its prefix cache and differ in their seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unifiedreward_think.backends import BackendError, Completion, Failure, end_at_tag, with_images
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.verdict import STOP_STRING


class VllmBackend:
    """Run a checkpoint with vLLM 0.22 to 0.31.

    Args:
        path: folder or Hub name of the model.
        batch_size: pairs given to vLLM at a time; it schedules them itself.
        dtype: of the weights.
        min_pixels, max_pixels: area that smaller and larger pictures are scaled to; None keeps the model's.
        max_images: pictures and frames in one prompt; two videos of 8 frames need 16.
        tensor_parallel_size: GPUs that share the model.
        max_model_len: tokens of prompt and completion; None takes the model's, which may need too much memory.

    Raises:
        BackendError: vLLM is not installed.
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
    ) -> None:
        limits = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        self.model = path
        self.batch_size = batch_size
        self.settings: Mapping[str, Any] = {"backend": "vllm", "dtype": dtype, **limits}
        self._vllm = _library()
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
        """Return len(seeds[i]) completions of prompt i; vLLM's reason for a prompt that it refuses."""
        try:
            return self._chat(prompts, sampling, seeds)
        except ValueError as error:  # one prompt is too long, or holds too many pictures: vLLM takes none of them
            if len(prompts) == 1:
                return [[Failure(f"vLLM refuses the prompt: {error}")] * len(seeds[0])]
            pairs = zip(prompts, seeds, strict=True)
            return [self.complete([prompt], sampling=sampling, seeds=[mine])[0] for prompt, mine in pairs]

    def _chat(
        self, prompts: Sequence[Mapping[str, Any]], sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> list[list[Completion | Failure]]:
        # A greedy completion is the same for every seed.
        drawn = [mine if sampling.temperature > 0 else mine[:1] for mine in seeds]
        asked = zip(prompts, drawn, strict=True)
        requests = [(with_images(prompt, _image_part), seed) for prompt, mine in asked for seed in mine]
        outputs = iter(
            self._llm.chat(
                [messages for messages, _ in requests],
                sampling_params=[self._params(sampling, seed) for _, seed in requests],
                use_tqdm=False,
                chat_template_content_format="openai",
            )
        )
        answers = [[_completion(next(outputs)) for _ in mine] for mine in drawn]
        return [mine * (len(wanted) // len(mine)) for mine, wanted in zip(answers, seeds, strict=True)]

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
        )


def _image_part(image: Any) -> dict[str, Any]:
    return {"type": "image_pil", "image_pil": image}


def _completion(output: Any) -> Completion | Failure:
    said = output.outputs[0]
    if said.finish_reason not in ("stop", "length"):
        return Failure(f"vLLM ended the request (finish reason {said.finish_reason!r})")
    return end_at_tag(said.text, said.finish_reason)


def _library() -> Any:
    try:
        import vllm
    except ImportError as error:
        raise BackendError("vLLM is not installed: pip install -e '.[vllm]' (Linux with CUDA)") from error
    return vllm
