"""Judge with vLLM inside this process, as `--backend vllm` does; the python of .venv-vllm runs it.

    .venv-vllm/bin/python -m helpers.vllm_offline JOBS.json

JOBS is a list of {"model", "world", "count", "layouts", "new_tokens", "misfits", "output"}, and
"max_pixels" where pictures are scaled down. The folder `output` of a
job gets <layout>.jsonl, the judgments; tokens.json, for each layout the prompt tokens and text of every request; with
`misfits` their judgments, misfits.jsonl; or error.txt, if vLLM does not take the model.
"""

import gc
import json
import sys
import traceback
from functools import partial
from pathlib import Path

import vllm
from vllm.distributed import cleanup_dist_env_and_memory

from helpers.vllm_cpu import MAX_LENGTH, asked, held_out, misfits
from unifiedreward_think.backends.vllm import VllmBackend
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.judging.judge import judge


def answer(job):
    backend = VllmBackend(job["model"], dtype="float32", max_model_len=MAX_LENGTH, max_pixels=job.get("max_pixels"))
    chat, seen = backend._llm.chat, []

    def recording(*arguments, **options):
        outputs = chat(*arguments, **options)
        seen.extend((output.prompt_token_ids, output.outputs[0].text) for output in outputs)
        return outputs

    backend._llm.chat = recording
    output, tokens = Path(job["output"]), {}
    for layout in job["layouts"]:
        protocol = asked(layout, job["world"], sampling=Sampling(max_new_tokens=job["new_tokens"]))
        judge(held_out(job["world"], job["count"]), backend, protocol, output / f"{layout}.jsonl")
        tokens[layout] = list(seen)
        seen.clear()
    (output / "tokens.json").write_text(json.dumps(tokens))
    if job["misfits"]:
        pairs, protocol = misfits(job["world"])
        judge(pairs, backend, protocol, output / "misfits.jsonl")


def main(jobs):
    vllm.LLM = partial(vllm.LLM, enforce_eager=True, max_num_seqs=32)  # compiling takes longer than judging
    for job in jobs:
        try:
            answer(job)
        except Exception:  # of any kind: a model that vLLM does not take must not keep it from the next
            Path(job["output"], "error.txt").write_text(traceback.format_exc())
        gc.collect()
        cleanup_dist_env_and_memory()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
