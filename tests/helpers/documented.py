"""Every command that a document of this repository names, and the way in which CI runs it; for test_commands."""

import re
from dataclasses import dataclass, field
from pathlib import Path

REPO = Path(__file__).parents[2]
PACKAGE = REPO / "src" / "unifiedreward_think"
DOCUMENTS = [REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted((REPO / "docs").glob("*.md"))]
DOCUMENTS += sorted(path for path in PACKAGE.rglob("*.md"))
PROGRAMS = r"(?:nice |[A-Z_]+=\S+ )*(?:python|bash|pip|trl|pdsh|srun|torchrun|accelerate|curl) "


@dataclass(frozen=True)
class Run:
    """As it is typed, with the toy judge and toy data in place of large ones.

    Attributes:
        instead: words, and what stands in their place; nothing takes a word away.
        more: words that follow.
        after: commands whose outputs it reads.
    """

    instead: dict = field(default_factory=dict)
    more: str = ""
    after: tuple = ()


@dataclass(frozen=True)
class Script:
    """By bash, with programs that write down how they are called. A stage then looks at toy data by --check_data, with
    all arguments that it was given; what else is called has its arguments read, as in `Parsed`."""


@dataclass(frozen=True)
class Parsed:
    """Its arguments are read by its own parser, and it goes no further."""

    why: str


@dataclass(frozen=True)
class ByTest:
    """Run by a test of its own."""

    where: str


@dataclass(frozen=True)
class Foreign:
    """No program of this repository, or one that asks a registry."""

    why: str


TOY = "--prompts configs/toy/prompts --frames 4"
SCORED = "--prompts configs/toy/prompts/pointwise --frames 4 --max-new-tokens 8"
FEW = f"{TOY} --max-new-tokens 8 --limit 2"
LONG = Parsed("minutes to hours")
CI = ByTest("test_fresh_machine.py::test_ci_makes_both_environments_runs_all_tests_and_prints_minutes")
DATA = "python -m unifiedreward_think.data"
IMPORT = f"{DATA} import --source hpdv2_train --input HPD/train.json --output data/hpdv2"
IMPORT_TOO = f"{DATA} import --source open_image_preferences --input oip/*.parquet --output data/oip"
CHECK = f"{DATA} check --input data/hpdv2 data/oip --output data/clean --against data/benchmarks/vl.json"
SPLIT = f"{DATA} split --input data/clean --output data/split --shares 0.2 0.7 0.1"
DISTILL = (
    f"{DATA} distill --input data/split/train --output data/cold_start --model gpt-4o "
    "--server https://api.openai.com/v1 --max-usd 20 --usd-per-million 2.5 10 --rpm 500"
)
DRAW = "python -m unifiedreward_think.toy.dataset --output outputs/toy/data --seed 0"
JUDGE = "python inference/image_generation.py --model"
EVALUATE = (
    "python -m unifiedreward_think.evaluation --model CodeGoat24/UnifiedReward-Think-qwen-7b "
    "--input data/pairs.jsonl --output outputs/eval/released --orders both"
)
ROWS = "python -m unifiedreward_think.data.rows --input outputs/qwen2_5_vl_7b/sampling/hard.jsonl --output outputs/rows"
PLAN = "python -m unifiedreward_think.training.plan configs"
COLD, SAMPLE, GRPO = (f"bash scripts/{name}.sh configs" for name in ("0.cold_start", "1.rejection_sampling", "grpo"))
BENCH = "python scripts/bench"
STEP = f"{BENCH}/grpo_step.py --impl trl,ours"
STOCK_TRL = ByTest("test_stock_trl.py::test_the_command_trl_grpo_takes_our_rows_and_rewards")
VLLM_MODEL = ByTest("test_serving_client.py::test_the_script_starts_the_toy_model_a_model_vllm_or_a_front")
SERVED = ByTest("test_serving_client.py::test_the_toy_server_starts_with_one_command_and_ends_when_told")
GPU_DAY = ByTest("test_gpu_bench.py::test_every_item_of_the_gpu_day_writes_results_a_table_and_plots")
MODEL = {"--model Qwen/Qwen2.5-VL-7B-Instruct": "--model src/unifiedreward_think/toy/judge"}
OWN = {"--model MODEL": "--model src/unifiedreward_think/toy/judge"}
OWN_MODEL = "--model src/unifiedreward_think/toy/judge"  # the config names one of the Hub

WAYS = {
    # README.md
    "bash scripts/quickstart.sh": Script(),
    "bash scripts/test.sh": CI,
    DRAW: Run(),
    f"{JUDGE} src/unifiedreward_think/toy/judge --prompts configs/toy/prompts --input outputs/toy/data/heldout.jsonl "
    "--output outputs/toy/judged.jsonl --max-new-tokens 192 --limit 8": Run(after=(DRAW,)),
    f'{JUDGE} CodeGoat24/UnifiedReward-Think-qwen-7b --prompt "a red kite over a lake" --media a.png b.png': Run(
        more=f"{TOY} --max-new-tokens 192"
    ),
    "python inference/video_understanding.py --model CodeGoat24/UnifiedReward-Think-qwen-7b --input data/pairs.jsonl "
    "--output outputs/judgments.jsonl --orders both --samples 5 --temperature 0.7": Run(more=FEW),
    EVALUATE: Run(more=FEW),
    'python -m unifiedreward_think.evaluation.report --run "released=outputs/eval/released" '
    "--output outputs/report.html": Run(after=(EVALUATE,)),
    "python -m unifiedreward_think.evaluation.compare outputs/eval/released outputs/eval/mine": Run(after=(EVALUATE,)),
    "bash benchmark_evaluation/all.sh CodeGoat24/UnifiedReward-Think-qwen-7b outputs/benchmarks": ByTest(
        "test_benchmarks.py::test_all_runs_every_script_and_says_which_failed"
    ),
    "bash scripts/serve.sh": SERVED,
    "python gradio/app.py --toy": ByTest(
        "test_demo.py::test_the_command_serves_the_toy_model_and_leaves_nothing_behind"
    ),
    f"{COLD}/qwen2_5_vl_7b/cold_start.yaml": Script(),
    f"{SAMPLE}/qwen2_5_vl_7b/rejection_sampling.yaml": Script(),
    f"{GRPO}/qwen2_5_vl_7b/grpo_8gpu.yaml": Script(),
    f"{PLAN}/qwen2_5_vl_7b/grpo.yaml --gpus 64 --gpu-memory 96 --model Qwen/Qwen2.5-VL-7B-Instruct": Run(MODEL),
    f"NNODES=8 NODE_RANK=0 MASTER_ADDR=10.0.0.1 {GRPO}/qwen2_5_vl_7b/grpo.yaml": Script(),
    f"{GRPO}/qwen2_5_vl_7b/grpo_8gpu.yaml --overlay configs/qwen2_5_vl_7b/lora.yaml": Script(),
    f"{GRPO}/qwen2_5_vl_7b/grpo_direct.yaml": Script(),
    "python -m unifiedreward_think.data.formats.loading data/train.jsonl --media-root data/pictures": Run(),
    ROWS: Run(),
    "trl grpo --dataset_name outputs/rows --model_name_or_path outputs/qwen2_5_vl_7b/rejection_sft "
    "--output_dir outputs/stock --reward_funcs unifiedreward_think.rewards.format_reward "
    "unifiedreward_think.rewards.accuracy_reward --num_generations 8 --beta 0.04 --learning_rate 1e-6 "
    "--max_completion_length 4096": STOCK_TRL,
    f"{COLD}/qwen3_vl_8b/cold_start.yaml --check_data true": Script(),
    f"{COLD}/qwen3_vl_8b/cold_start.yaml --learning_rate 1e-6 --attn_implementation sdpa": Script(),
    f"{SAMPLE}/qwen3_vl_8b/rejection_sampling.yaml --samples 8 -- --num_train_epochs 2": Script(),
    f"{GRPO}/qwen3_vl_8b/grpo_8gpu.yaml --skip_bad true --report_to wandb": Script(),
    f"{GRPO}/qwen3_vl_8b/grpo_8gpu.yaml --resume never --overwrite true": Script(),
    **{f"pip install -e '.[{name}]'": Foreign("an extra") for name in ("vllm", "trackers", "flash-attn", "serve")},
    "python -m unifiedreward_think.models.llava_next --help": Run(),
    # CONTRIBUTING.md
    "bash scripts/test.sh tests/test_verdict.py": CI,
    "bash scripts/test.sh -m 'not slow'": CI,
    "bash scripts/test.sh tests/test_demo.py -k serves_the_toy_model": CI,
    "bash scripts/vllm_cpu.sh": CI,
    "bash .ci/run": CI,
    "bash scripts/bench/gpu.sh": GPU_DAY,
    ".venv/bin/pre-commit install": Foreign("of a package in requirements.lock"),
    "bash scripts/lock.sh": Foreign("asks the registry"),
    "bash scripts/ablation.sh": Script(),
    # docs/data.md
    IMPORT: Run(),
    IMPORT_TOO: Run(),
    CHECK: Run(after=(IMPORT, IMPORT_TOO)),
    SPLIT: Run(after=(CHECK,)),
    f"{DATA} report --input data/split/train --output data/report.html --processor Qwen/Qwen2.5-VL-7B-Instruct": Run(
        {"Qwen/Qwen2.5-VL-7B-Instruct": "src/unifiedreward_think/toy/judge"}, after=(SPLIT,)
    ),
    DISTILL: Run({"https://api.openai.com/v1": "$SERVER"}, after=(SPLIT,)),
    f"{DATA} export --input data/split/rejection_sampling --format records --output data/pairs": Run(after=(SPLIT,)),
    f"{DATA} export --input data/hpd --format trl --output data/hpd_trl": Run(
        {"data/hpd ": "data/hpdv2 "}, after=(IMPORT,)
    ),
    "trl grpo --dataset_name data/hpd_trl/train --reward_funcs unifiedreward_think.rewards.accuracy_reward "
    "--model_name_or_path Qwen/Qwen2.5-VL-7B-Instruct": STOCK_TRL,
    f"{BENCH}/data_import.py --output outputs/bench/data_import.json": Run(more="--rows 2000"),
    f"{BENCH}/data_memory.py --rows N --output results/data_memory.json": Run({"--rows N": "--rows 200"}),
    # docs/health.md
    "out=outputs/toy/seed0": Foreign("a variable of the next line"),
    f"{GRPO}/toy/grpo.yaml --model_name_or_path $out/rejection_sft --train_files $out/sampling/hard.jsonl "
    "--output_dir outputs/toy/watched --eval_files $out/data/heldout.jsonl --eval_limit 32 --eval_strategy steps "
    "--eval_steps 20 --eval_max_new_tokens 192 --load_best_model_at_end true "
    "--metric_for_best_model accuracy": Script(),
    # docs/judging.md
    f"{BENCH}/evaluation.py --style direct --model src/unifiedreward_think/toy/base --pairs 32 --rounds 3 "
    "--output results/judging_direct.json": Run({"--pairs 32 --rounds 3": "--pairs 4 --rounds 1"}),
    f"{BENCH}/evaluation.py --model outputs/bench/evaluation/cold_start --pairs 16 --batch-size 8 --rounds 2 "
    "--output results/judging_cot.json": LONG,
    # docs/reward_server.md
    "bash scripts/serve.sh --model MODEL": Script(),
    "bash scripts/serve.sh vllm MODEL": VLLM_MODEL,
    "bash scripts/serve.sh front": Script(),
    """image() { printf '{"image": "data:image/png;base64,%s"}' "$(base64 <"$1" | tr -d '\\n')"; }""": ByTest(
        "test_commands.py::test_the_requests_by_curl_are_answered"
    ),
    "curl -s http://127.0.0.1:8080/v1/compare -H 'Content-Type: application/json' -d @- <<EOF": ByTest(
        "test_commands.py::test_the_requests_by_curl_are_answered"
    ),
    "curl -s http://127.0.0.1:8080/v1/score -H 'Content-Type: application/json' -d @- <<EOF": ByTest(
        "test_commands.py::test_the_requests_by_curl_are_answered"
    ),
    f"{BENCH}/serving.py": LONG,
    # docs/scores.md
    "python -m unifiedreward_think.evaluation.calibrate outputs/eval/released --output outputs/calibration.json "
    "--probabilities outputs/probabilities.jsonl": ByTest(
        "test_sureness.py::test_the_commands_fit_a_calibration_and_score_another_run_with_it"
    ),
    "python -m unifiedreward_think.evaluation.rescore outputs/eval/released": Run(after=(EVALUATE,)),
    f"{BENCH}/genai_calibration.py --input image_generation_gpt4o.jsonl.gz "
    "--output results/genai_calibration.json": ByTest(
        "test_sureness.py::test_the_real_judgments_of_genai_bench_give_the_stored_figures"
    ),
    'python inference/image_generation.py --form pointwise --model MODEL --prompt "a red kite" --media a.png': Run(
        OWN, more=SCORED
    ),
    "python inference/image_understanding.py --form pointwise --model MODEL --input data/pairs.jsonl "
    "--output outputs/scores.jsonl": Run(OWN, more=f"{SCORED} --limit 2"),
    "python -m unifiedreward_think.evaluation --form pointwise --model MODEL --input data/pairs.jsonl "
    "--output outputs/eval/points": Run(OWN, more=f"{SCORED} --limit 2"),
    "python -m unifiedreward_think.evaluation --form pointwise --expectation --model MODEL --input data/pairs.jsonl "
    "--output outputs/eval/expected": Run(OWN, more=f"{SCORED} --limit 2"),
    f"{DATA} cut --input outputs/toy/data/cold_start.jsonl --output outputs/toy/data/points.jsonl": Run(after=(DRAW,)),
    f"{COLD}/toy/cold_start_points.yaml": ByTest(
        "test_points.py::test_the_commands_that_train_and_measure_scores_go_through"
    ),
    f"{GRPO}/toy/grpo_points.yaml": ByTest("test_point_grpo.py::test_the_toy_config_trains_scores_from_preferences"),
    "python -m unifiedreward_think.data.rows --form pointwise --input data/train.jsonl "
    "--output outputs/point_rows": Run(),
    "trl grpo --dataset_name outputs/point_rows --model_name_or_path outputs/points --output_dir outputs/stock_points "
    "--reward_funcs unifiedreward_think.rewards.format_reward unifiedreward_think.rewards.accuracy_reward "
    "--shuffle_dataset false --num_generations 8 --per_device_train_batch_size 16": STOCK_TRL,
    # docs/released.md
    "python inference/image_generation.py --preset v2-points --model MODEL --prompts my_prompt.txt "
    '--prompt "a red kite" --media a.png': Run(
        {
            "MODEL": "src/unifiedreward_think/toy/judge",
            "my_prompt.txt": "configs/toy/prompts/pointwise/image_generation.txt",
        },
        more="--max-new-tokens 8",
    ),
    # docs/scaling.md
    f'pdsh -w ^hosts "cd $PWD && HOSTFILE=hostfile {GRPO}/qwen2_5_vl_7b/grpo.yaml"': ByTest(
        "test_scripts.py::test_a_deepspeed_hostfile_names_the_nodes"
    ),
    f"srun {SAMPLE}/qwen2_5_vl_7b/rejection_sampling.yaml": Script(),
    f"srun {GRPO}/qwen2_5_vl_7b/grpo.yaml": Script(),
    "srun --ntasks-per-node 1 bash scripts/grpo.sh CONFIG": ByTest("test_scripts.py::test_slurm_names_the_nodes"),
    "bash scripts/grpo.sh CONFIG": ByTest("test_scripts.py::test_a_stage_runs_in_one_process_without_a_gpu"),
    **{
        f"export {name}": Foreign("a variable of NCCL or Gloo")
        for name in ("NCCL_SOCKET_IFNAME=eth0", "GLOO_SOCKET_IFNAME=eth0", "NCCL_IB_HCA=mlx5", "NCCL_DEBUG=WARN")
    },
    f"{PLAN}/qwen2_5_vl_7b/cold_start.yaml --gpus 8 --gpu-memory 80": Run(more=OWN_MODEL),
    f"{PLAN}/qwen2_5_vl_7b/grpo_8gpu.yaml --gpus 8 --gpu-memory 40 --model Qwen/Qwen2.5-VL-7B-Instruct "
    "--max_completion_length 2048": Run(MODEL),
    "python -m pytest -s tests/test_memory_ladder.py": CI,
    f"{COLD}/qwen3_vl_8b/cold_start.yaml --overlay configs/qwen3_vl_8b/lora.yaml "
    "--output_dir outputs/qwen3_vl_8b/cold_start_lora": Script(),
    f"{PLAN}/qwen3_vl_8b/grpo_8gpu.yaml --overlay configs/qwen3_vl_8b/lora.yaml --gpus 8": Run(more=OWN_MODEL),
    "python -m unifiedreward_think.models.adapters outputs/qwen3_vl_8b/cold_start_lora/adapter "
    "--output outputs/qwen3_vl_8b/merged": ByTest(
        "test_lora.py::test_vllm_refuses_an_adapter_and_the_named_command_merges_it"
    ),
    # docs/speed.md
    f"{GRPO}/qwen2_5_vl_7b/grpo_8gpu.yaml --use_vllm true --max_steps 20": Script(),
    "trl vllm-serve --model MODEL": Foreign("TRL's own, with vLLM"),
    "python -m unifiedreward_think.evaluation --backend server --model UnifiedReward --input data/pairs.jsonl "
    "--output outputs/eval/vllm --orders both": Parsed("a server with a large model"),
    "python -m unifiedreward_think.evaluation --backend server --server http://127.0.0.1:8000/v1 "
    "http://127.0.0.1:8001/v1 --stop --model UnifiedReward --input data/pairs.jsonl --output outputs/eval/vllm "
    "--orders both": Parsed("two servers with a large model"),
    "for gpu in 0 1; do": Foreign("of the shell"),
    "CUDA_VISIBLE_DEVICES=$gpu VLLM_PORT=800$gpu bash scripts/serve.sh vllm MODEL &": VLLM_MODEL,
    "done": Foreign("of the shell"),
    f"SAMPLE_ONLY=1 {SAMPLE}/qwen2_5_vl_7b/rejection_sampling.yaml --tensor_parallel_size 2 --limit 400": Script(),
    f"{PLAN}/qwen2_5_vl_7b/rejection_sampling.yaml --gpus 8 --pairs 100000": Run(more=OWN_MODEL),
    f"{PLAN}/qwen2_5_vl_7b/rejection_sampling.yaml --gpus 8 --pairs 100000 --model Qwen/Qwen2.5-VL-7B-Instruct "
    "--tokens-per-second 2000": Run(MODEL),
    f"{BENCH}/sampling.py --rounds 2 --output results/sampling_vllm.json": Parsed("vLLM on the CPU, minutes"),
    "bash scripts/bench/gpu.sh --output outputs/gpu": GPU_DAY,
    "bash scripts/bench/gpu.sh --size tiny --device cpu --output outputs/gpu_tiny": GPU_DAY,
    f"{BENCH}/grpo_step.py --impl original,trl,ours --values 24 64 160 --steps 4 --output results/grpo_step.json": Run(
        {"--values 24 64 160 --steps 4": "--values 4 --steps 3 --words 6 --pictures 1 --side 56 --groups 1"}
    ),
    f"{STEP} --lora --values 64 --steps 4 --output results/grpo_step_lora.json": LONG,
    f"{STEP} --dead 0.5 --groups 2 --beta 0 --values 64 --steps 3 --output results/grpo_step_dead.json": LONG,
    f"{BENCH}/policy_pass.py --new-tokens 128 400 --output results/policy_pass.json": Run(
        {"128 400": "4 --words 6 --pictures 1 --group 2 --repeats 1"}
    ),
    f"{BENCH}/policy_pass.py --new-tokens 128 --vocabulary 151936 --impl trl,ours --repeats 1 "
    "--output results/policy_pass_vocabulary.json": LONG,
    f"{BENCH}/policy_pass.py --new-tokens 128 --vocabulary 151936 --group 4 --repeats 1 "
    "--output results/policy_pass_vocabulary_4.json": LONG,
    f"{BENCH}/sft_step.py --output results/sft_step.json": LONG,
    f"{STEP} --vary group --values 2 4 8 16 --output results/curve_group.json --plot docs/cost/group.png": LONG,
    f"{STEP} --vary groups --values 1 2 4 --output results/curve_groups.json --plot docs/cost/groups.png": LONG,
    f"{STEP} --vary words --values 100 400 1600 --output results/curve_words.json --plot docs/cost/words.png": LONG,
    f"{STEP} --vary pictures --values 1 2 4 8 --output results/curve_pictures.json --plot docs/cost/pictures.png": LONG,
    f"{STEP} --vary new-tokens --values 16 64 160 320 --output results/curve_new-tokens.json "
    "--plot docs/cost/new-tokens.png": LONG,
    # docs/survival.md
    f"nice {BENCH}/kills.py --output results/survival.json": Run(
        more="--kills 1 --stages import split judging sft_2_ranks"
    ),
    f"nice {BENCH}/kills.py --kills 6 --stages sft_2_ranks grpo_2_ranks --output results/survival_ranks.json": LONG,
    f"nice {BENCH}/fuzz.py --targets verdict records config --output results/fuzz.json": Run(more="--share 0.0002"),
    f"{BENCH}/fuzz.py --targets pictures clips --output results/fuzz_media.json": Run(more="--share 0.001"),
    f"{BENCH}/fuzz.py --targets checkpoints --output results/fuzz_checkpoints.json": Run(more="--share 0.02"),
    # src/unifiedreward_think/toy/judge/README.md
    "bash scripts/quickstart.sh 0": Script(),
}


def lines_of(block):
    """The commands of a shell block: a line each, whose continuation belongs to it; a here-document does not count."""
    block = re.sub(r"^(.*<<(\w+))\n.*?^\2$", r"\1", block.replace("\\\n", " "), flags=re.DOTALL | re.MULTILINE)
    for line in block.splitlines():
        text = " ".join(re.sub(r"(^| +)#.*", "", line).split())
        if text:
            yield text


def prose(document):
    """The text of a document without what is fenced off."""
    return re.sub(r"^ *```.*?^ *```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def commands(document):
    """The commands that a document names, in shell blocks and, with arguments, in its prose."""
    text = document.read_text(encoding="utf-8")
    for block in re.findall(r"^```bash\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        yield from lines_of(block)
    for code in re.findall(r"`([^`\n]+)`", prose(document)):
        if re.match(PROGRAMS, code) and not re.fullmatch(r"python -m [\w.]+", code):
            yield " ".join(code.split())
