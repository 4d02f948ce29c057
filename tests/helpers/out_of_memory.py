"""Answer prompts with as little memory as the command line says; prints the answers as JSON. Not a test file.

python tests/helpers/out_of_memory.py MODEL MIB_OF_MEMORY WORDS_OF_EACH_PROMPT...
"""

import json
import resource
import sys
from pathlib import Path

from PIL import Image

from unifiedreward_think.backends.transformers import TransformersBackend
from unifiedreward_think.engine.sampling import Sampling


def main():
    model, mib, *words = sys.argv[1:]
    backend = TransformersBackend(model, dtype="float32", device="cpu", batch_size=8)
    sampling = Sampling(max_new_tokens=3)
    picture = Image.new("RGB", (32, 32), "red")

    def shows(count):
        content = [{"type": "image", "text": None}, {"type": "text", "text": "kite " * int(count)}]
        return {"id": count, "order": "ab", "prompt": [{"role": "user", "content": content}], "images": [picture]}

    backend.complete([shows(1)], sampling=sampling, seeds=[[0]])  # what is allocated once
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (int(mib) << 20), resource.RLIM_INFINITY))
    said = backend.complete([shows(count) for count in words], sampling=sampling, seeds=[[0]] * len(words))
    print(json.dumps([answer[0] for (answer,) in said]))


if __name__ == "__main__":
    main()
