"""Multi-token prediction with and without guesses, in turns: the demo model's own answers (the same, or this fails) and the shape of
the 80B model. Writes mtp_demo.json, mtp.json and mtp.txt; exit status 1 if an answer is not the one without guesses."""

import argparse
import json
import pathlib
import subprocess
import sys

ROUTING = "locality"
TEST = "decode:64@512"


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bin", required=True, help="folder of the programs")
    parser.add_argument("--out", default=".", help="folder for the results")
    parser.add_argument("--backend", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--demo", required=True, help="models/demo")
    parser.add_argument("--answers", default="24")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--model", default="synthetic:qwen3-next-80b,layers=12,mtp=1")
    parser.add_argument("--threads", default="16")
    parser.add_argument("--slots", default="", help="experts in VRAM, by commas; empty: all, and 14 GiB's share of 48 layers")
    return parser.parse_args()


def demo(arguments):
    """Rows of text, and what is wrong."""
    program = pathlib.Path(arguments.bin) / "hearth-bench-mtp"
    if not program.exists():
        return ["the demo model's answers: hearth-bench-mtp was not packed"], []
    done = subprocess.run([str(program), arguments.demo, "8", arguments.answers, str(arguments.turns), arguments.backend],
                          capture_output=True, text=True, timeout=180, check=False)
    if done.returncode != 0:
        return [], [f"hearth-bench-mtp: {done.stderr.strip()}"]
    report = json.loads(done.stdout)
    (pathlib.Path(arguments.out) / "mtp_demo.json").write_text(done.stdout)
    rows, wrong = [], []
    for result in report["results"]:
        for mode in result["modes"]:
            name = f"{result['at_once']} at once, {result['sampling']}, {mode['mode']}"
            rows.append(f"{name:42} {mode['tokens_per_second']['median']:9.1f} tok/s  x {mode['ratio']['median']:.3f}  "
                        f"right {100 * mode['share_right']:5.1f} %  same {mode['answers_as_without']} of {mode['answers']}")
            if mode["answers_as_without"] != mode["answers"]:
                wrong.append(f"{name}: {mode['answers'] - mode['answers_as_without']} answers are not those without guesses")
    return rows, wrong


def benchmark(arguments, slots, drafts):
    command = [str(pathlib.Path(arguments.bin) / "hearth"), "benchmark", "--json", "--backend", arguments.backend, "--model",
               arguments.model, "--threads", arguments.threads, "--repetitions", "2", "--routing", ROUTING, "--tests", TEST]
    if arguments.backend == "cuda" and slots:
        command += ["--expert-slots", slots]
    command += ["--mtp", "on", "--mtp-drafts", str(drafts)] if drafts else ["--mtp", "off"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()}")
    result = json.loads(done.stdout)["results"][0]
    return {"slots": slots or "all", "drafts": drafts, "tokens_per_second": result["tokens_per_second"]["median"],
            "hit_rate": result.get("tiers", {}).get("hit_rate")}


def main():
    arguments = parse()
    rows, wrong = demo(arguments)
    runs = []
    shares = arguments.slots.split(",") if arguments.slots else ["", "1400"]
    for slots in shares:
        for _ in range(2):
            for drafts in (0, 1, 2):
                run = benchmark(arguments, slots, drafts)
                runs.append(run)
                hits = "" if run["hit_rate"] is None else f"  hits {100 * run['hit_rate']:.1f} %"
                rows.append(f"80B shape, {run['slots']} slots, {drafts} guesses: {run['tokens_per_second']:9.1f} tok/s{hits}")
    text = "\n".join(rows + [f"wrong: {what}" for what in wrong]) + "\n"
    out = pathlib.Path(arguments.out)
    (out / "mtp.json").write_text(json.dumps({"model": arguments.model, "runs": runs, "wrong": wrong}, indent=1) + "\n")
    (out / "mtp.txt").write_text(text)
    print(text + f"mtp: {len(runs)} runs, {len(wrong)} differ from those without guesses")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
