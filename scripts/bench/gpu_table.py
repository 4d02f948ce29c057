"""The table and the plots of a run of gpu.sh, from its results.jsonl.

python scripts/bench/gpu_table.py outputs/gpu
"""

import json
import sys
from pathlib import Path

import measuring
import precision

from unifiedreward_think.writing import write_whole

SHARE = 0.9  # of the token bound
HIGHER = {"tokens_per_second"}  # is better
MEASURES = {
    "seconds": "seconds",
    "rollout_seconds": "of these, the rollout",
    "tokens_per_second": "tokens a second",
    "peak_memory_mib": "memory (MiB)",
    "decode_error": "error of log-probabilities, decode",
    "reference_error": "error of log-probabilities, reference",
    "policy_error": "error of log-probabilities, policy",
    "gradient_error": "error of the gradient",
}
POINTS = ("tokens", "sequences", "rows")


def read(folder):
    """Return the machine, what was measured as {(item, model, point): {implementation: line}}, and how items ended."""
    machine, *lines = map(json.loads, (folder / "results.jsonl").read_text(encoding="utf-8").splitlines())
    measured, ended = {}, []
    for line in lines:
        if "status" in line:
            ended.append(line)
            continue
        point = next(f"{line[kind]} {kind}" for kind in POINTS if kind in line)
        measured.setdefault((line["item"], line["model"], point), {})[line["impl"]] = line
    return machine, measured, ended


def comparisons(rows):
    """Yield (measure, baseline, ours, their ratio, its goal) of what was measured at one point; None is not there."""
    exact, ours = rows.get("ours_float32", {}), rows.get("ours", {})
    base = next((line for impl, line in rows.items() if not impl.startswith("ours")), {})
    for key, title in MEASURES.items():
        if key in exact:
            goal = "" if exact[key] < precision.ROUNDING else f"above {precision.ROUNDING}"
            yield f"{title}, float32", None, exact[key], None, goal
        a, b = base.get(key), ours.get(key)
        if a is None and b is None:
            continue
        ratio = None
        if a and b:
            ratio = b / a if key in HIGHER or key.endswith("_error") else a / b
        goal = ""
        if ratio and key.endswith("_error"):
            goal = f"at most {precision.LIMIT}: {'yes' if ratio <= precision.LIMIT else 'NO'}"
        yield title, a, b, ratio, goal
        if ratio and key == "seconds" and "token_bound" in ours:
            share = ratio / ours["token_bound"]
            yield (
                "share of the token bound",
                None,
                share,
                None,
                f"at least {SHARE}: {'yes' if share >= SHARE else 'NO'}",
            )


def text(value):
    """Return a number with four digits, nothing for None."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def table(machine, measured, ended):
    """Return the table as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [f"{machine['device']}, {machine['memory_gib']} GiB, CUDA {machine['cuda']}; commit {machine['commit']}"]
    lines += [versions, "", "| item | model | result | seconds in all |", "|---|---|---|---|"]
    for line in ended:
        result = f"{line['status']} {line.get('reason', '')}".replace("|", "/").strip()
        lines.append(f"| {line['item']} | {line['model']} | {result} | {line.get('wall_seconds', '')} |")
    lines += ["", "| item | model | at | measure | baseline | ours | ratio | goal |", "|" + "---|" * 8]
    for (item, model, point), rows in measured.items():
        for name, line in rows.items():
            if "error" in line:
                reason = line["error"].replace("|", "/")[:150]
                lines.append(f"| {item} | {model} | {point} | {name} failed: {reason} | | | | |")
        for title, base, ours, ratio, goal in comparisons(rows):
            cells = [item, model, point, title, text(base), text(ours), text(ratio), goal]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plots(folder, measured):
    """Draw seconds and memory over tokens, a file for each model and kind of work."""
    drawn = {}
    for (item, model, _), rows in measured.items():
        kind = {"step": "step", "long_step": "step", "policy": "policy"}.get(item)
        rows = {impl: line for impl, line in rows.items() if "seconds" in line}
        if kind and rows:
            drawn.setdefault((kind, model), {})[next(iter(rows.values()))["tokens"]] = rows
    for (kind, model), points in drawn.items():
        measuring.plot(points, "tokens of a completion", folder / f"{kind}_{model}.png", ("seconds", "seconds"))


def write(folder):
    """Write table.md and the plots of a folder."""
    machine, measured, ended = read(folder)
    write_whole(folder / "table.md", table(machine, measured, ended))
    plots(folder, measured)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
