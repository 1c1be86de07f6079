"""Speed of the synthetic 80B model on a GPU, row by row against what is required, with nvidia-smi's memory in use beside it. Writes
speed.json and speed.txt; exit status 1 if a row is below its requirement, a token came late too often, or VRAM passed the budget.
What the card is too small for is recorded as not run."""

import argparse
import json
import pathlib
import subprocess
import sys
import threading
import time

from cluster import used_vram_mib

LATE = 1.5  # P95 between tokens, of the median
BUDGET_MIB = 14 << 10
ALL_MIB = 46 << 10  # weights, states and work space of 48 layers

# One process each: rows of it are (name, test, tokens, context, required, goal); a share is of the first row's speed.
GROUPS = [
    {"name": "locality", "vram": True, "flags": ["--routing", "locality", "--warm-up", "512", "--tests", "decode:512@2k"],
     "rows": [("14 GiB, decode, 80 % hits", "decode", 512, 2048, 120, 200)]},
    {"name": "flat", "vram": True, "flags": ["--routing", "locality:512", "--warm-up", "128", "--tests", "decode:128@2k"],
     "rows": [("14 GiB, decode, flat routing", "decode", 128, 2048, 90, 130)]},
    {"name": "long", "vram": True, "flags": ["--routing", "locality", "--warm-up", "512", "--tests", "decode:128@32k"],
     "rows": [("14 GiB, decode at 32k, 80 % hits", "decode", 128, 32768, 0.8, 0.9)]},
    {"name": "batch8", "vram": True, "flags": ["--routing", "shared", "--warm-up", "256", "--tests", "decode:128@2k", "--batch", "8"],
     "rows": [("14 GiB, decode, batch 8, sum, 80 % hits", "decode", 128, 2048, 250, 500)]},
    # Every expert needed, and as random weights route: a prompt's tokens alike, to few experts.
    {"name": "prefill", "vram": True,
     "flags": ["--routing", "locality:512", "--tests", "prefill:512,prefill:2048,prefill:8192", "--max-batch-tokens", "8192"],
     "rows": [("14 GiB, prefill 512, all experts", "prefill", 512, 0, 900, 1500),
              ("14 GiB, prefill 2048, all experts", "prefill", 2048, 0, 2500, 3400),
              ("14 GiB, prefill 8192, all experts", "prefill", 8192, 0, 4000, 8000)]},
    {"name": "alike", "vram": True, "flags": ["--tests", "prefill:512,prefill:2048,prefill:8192", "--max-batch-tokens", "8192"],
     "rows": [("14 GiB, prefill 512", "prefill", 512, 0, 900, 1500),
              ("14 GiB, prefill 2048", "prefill", 2048, 0, 2500, 3400),
              ("14 GiB, prefill 8192", "prefill", 8192, 0, 4000, 8000)]},
    # Shows that it fits: any speed will do.
    {"name": "context", "vram": True,
     "flags": ["--kv-type", "int8", "--routing", "locality", "--tests", "decode:16@256k"],
     "rows": [("14 GiB, 8-bit KV, decode at 262,144", "decode", 16, 262144, 0, 0)]},
    {"name": "all", "vram": False, "flags": ["--tests", "decode:128@2k,prefill:512,prefill:2048", "--max-batch-tokens", "2048"],
     "rows": [("all in VRAM, decode", "decode", 128, 2048, 250, 450),
              ("all in VRAM, prefill 512", "prefill", 512, 0, 3500, 8000),
              ("all in VRAM, prefill 2048", "prefill", 2048, 0, 6000, 20000)]},
]


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bin", required=True, help="folder of the programs")
    parser.add_argument("--out", default=".", help="folder for the results")
    parser.add_argument("--backend", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--model", default="synthetic:qwen3-next-80b,layers=48")
    parser.add_argument("--threads", default="16")
    parser.add_argument("--repetitions", default="3")
    parser.add_argument("--groups", default=",".join(group["name"] for group in GROUPS))
    parser.add_argument("--group-seconds", type=float, default=100)
    parser.add_argument("--record-only", action="store_true", help="no requirement fails (another model, another machine)")
    return parser.parse_args()


def ask_smi(what):
    """nvidia-smi's numbers, or None without it."""
    try:
        done = subprocess.run(["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits", "-i", "0"],
                              capture_output=True, text=True, timeout=20, check=True)
        return [field.strip() for field in done.stdout.strip().split(",")]
    except (OSError, subprocess.SubprocessError):
        return None


class VramWatch:
    """The most memory in use while it runs, looked at once a second; None without nvidia-smi."""

    def __enter__(self):
        self.most_mib = used_vram_mib()
        self.before_mib = self.most_mib
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._thread.join()

    def _watch(self):
        while self.most_mib is not None and not self._end.wait(1):
            self.most_mib = max(self.most_mib, used_vram_mib() or 0)


class Speed:
    def __init__(self, arguments):
        self.arguments = arguments
        self.rows, self.failures, self.not_run, self.reports = [], [], [], {}

    def run_group(self, group):
        arguments = self.arguments
        command = [str(pathlib.Path(arguments.bin) / "hearth"), "benchmark", "--json", "--backend", arguments.backend,
                   "--model", arguments.model, "--threads", arguments.threads, "--repetitions", arguments.repetitions,
                   *group["flags"]]
        if group["vram"] and arguments.backend == "cuda":
            command += ["--vram", f"{BUDGET_MIB}MiB"]
        begin = time.monotonic()
        with VramWatch() as watch:
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=arguments.group_seconds, check=False)
                failure = done.stderr.strip() if done.returncode != 0 else None
            except subprocess.TimeoutExpired:
                failure = f"no end within {arguments.group_seconds} s"
        if failure:
            self.failures.append(f"{group['name']}: {failure}")
            return
        report = json.loads(done.stdout)
        self.reports[group["name"]] = report
        vram = None if watch.most_mib is None else {"before_mib": watch.before_mib, "most_mib": watch.most_mib}
        for row in group["rows"]:
            self.add_row(row, report, vram)
        if vram and group["vram"] and watch.most_mib - watch.before_mib > BUDGET_MIB:
            self.failures.append(f"{group['name']}: {watch.most_mib - watch.before_mib} MiB of VRAM, allowed {BUDGET_MIB}")
        print(f"-- {group['name']}: {time.monotonic() - begin:.0f} s, VRAM {vram}", flush=True)

    def add_row(self, row, report, vram):
        name, test, tokens, context, required, goal = row
        result = next(r for r in report["results"]
                      if (r["test"], r["tokens"], r["context"]) == (test, tokens, context))
        speed = result["tokens_per_second"]["median"]
        if required < 1:  # a share of the speed at 2k
            base = self.rows[0]["tokens_per_second"] if self.rows else 0
            required, goal = required * base, goal * base
        made = {"row": name, "tokens_per_second": speed, "required": required, "goal": goal, "vram": vram,
                "min": result["tokens_per_second"]["min"], "max": result["tokens_per_second"]["max"]}
        if "tiers" in result:
            made["hit_rate"] = result["tiers"]["hit_rate"]
        if speed < required:
            self.failures.append(f"{name}: {speed:.1f} tok/s, required {required:.1f}")
        if "between_tokens_seconds" in result:
            times = result["between_tokens_seconds"]
            made["late"] = times["p95"] / times["p50"]
            if made["late"] > LATE:
                self.failures.append(f"{name}: P95 between tokens is {made['late']:.2f} times the median, allowed {LATE}")
        self.rows.append(made)

    def too_small(self, group):
        card = ask_smi("memory.total")
        if self.arguments.backend == "cpu" or not card:
            return None
        needed = BUDGET_MIB if group["vram"] else ALL_MIB
        return f"the card has {card[0]} MiB, {needed} are needed" if int(card[0]) < needed else None

    def text(self):
        lines = [f"{'row':42} {'tok/s':>9} {'min':>9} {'max':>9} {'required':>9} {'goal':>9} {'hits':>6} {'p95/p50':>8} {'VRAM MiB':>9}"]
        for row in self.rows:
            hits = f"{100 * row['hit_rate']:.1f}" if "hit_rate" in row else ""
            late = f"{row['late']:.2f}" if "late" in row else ""
            vram = row["vram"]["most_mib"] if row["vram"] else ""
            lines.append(f"{row['row']:42} {row['tokens_per_second']:9.1f} {row['min']:9.1f} {row['max']:9.1f} "
                         f"{row['required']:9.1f} {row['goal']:9.1f} {hits:>6} {late:>8} {vram:>9}")
        lines += [f"not run: {what}" for what in self.not_run]
        lines += [f"below:   {what}" for what in self.failures]
        return "\n".join(lines) + "\n"

    def run(self):
        arguments = self.arguments
        wanted = arguments.groups.split(",")
        for group in GROUPS:
            if group["name"] not in wanted:
                continue
            reason = self.too_small(group)
            if reason:
                self.not_run += [f"{row[0]}: {reason}" for row in group["rows"]]
            else:
                self.run_group(group)
        out = pathlib.Path(arguments.out)
        card = ask_smi("name,driver_version,memory.total")
        report = {"speed": self.rows, "card": card, "model": arguments.model, "failures": self.failures,
                  "not_run": self.not_run, "reports": self.reports}
        (out / "speed.json").write_text(json.dumps(report, indent=1) + "\n")
        (out / "speed.txt").write_text(f"{card}\n{self.text()}")
        print(self.text())
        return 1 if self.failures and not arguments.record_only else 0


if __name__ == "__main__":
    sys.exit(Speed(parse()).run())
