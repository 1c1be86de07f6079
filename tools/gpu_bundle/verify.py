"""`hearth verify` on every reference case there is, with no, few and all experts in VRAM: in float32, and the tiny-* also fast (the
others were made for odd shapes, of random weights on which rounded activations have no tolerance, or are too short a text). The GPU
backend must refuse the cases of REFUSED. Writes verify.json; exit status 1 if a quantity of one is off or a refusal is amiss."""

import argparse
import json
import pathlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

AT_ONCE = 4  # models are tiny, and most of the time is the start
ALL = 1 << 20
REFUSED = {"made-equal-heads-f16", "made-top1-unnormalised"}  # heads of 8 and 16 dimensions


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bin", required=True, help="folder of the programs")
    parser.add_argument("--golden", required=True, help="tests/golden")
    parser.add_argument("--demo", help="models/demo, which demo-mtp's reference belongs to")
    parser.add_argument("--out", default=".", help="folder for the results")
    parser.add_argument("--backend", default="cuda", choices=["cuda", "cpu"])
    return parser.parse_args()


def verify(arguments, folder, mode, slots):
    model = folder if (folder / "config.json").exists() else arguments.demo
    command = [str(pathlib.Path(arguments.bin) / "hearth"), "verify", str(model), str(folder / "reference.safetensors"),
               "--backend", arguments.backend, "--threads", "4", mode, "--json"]
    if arguments.backend == "cuda":
        command += ["--expert-slots", str(slots)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
        status, text, error = done.returncode, done.stdout, done.stderr.strip()
    except subprocess.TimeoutExpired:
        status, text, error = None, "", "no end within 90 s"
    result = {"case": folder.name, "mode": mode, "slots": slots, "exit_status": status, "right": status == 0}
    if arguments.backend == "cuda" and folder.name in REFUSED:
        result["right"] = status == 2 and "the CUDA backend takes no model with head_dim" in error
    result["report" if text else "error"] = json.loads(text) if text else error
    name = "all" if slots == ALL else slots
    print(f"{folder.name:28} {mode:8} {name:>4} slots  {'ok' if status == 0 else f'exit {status}: {error}'}"
          f"{', as it must' if status != 0 and result['right'] else ''}", flush=True)
    return result


def main():
    arguments = parse()
    folders = sorted(config.parent for config in pathlib.Path(arguments.golden).glob("*/config.json")
                     if (config.parent / "reference.safetensors").exists())
    drafts = pathlib.Path(arguments.golden) / "demo-mtp"
    if arguments.demo and (drafts / "reference.safetensors").exists():
        folders.append(drafts)
    slots = [0, 8, ALL] if arguments.backend == "cuda" else [0]
    runs = [(folder, mode, n) for folder in folders for mode in ("--exact", "--fast") for n in slots
            if mode == "--exact" or folder.name.startswith("tiny-")]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        results = list(pool.map(lambda run: verify(arguments, *run), runs))
    n_right = sum(result["right"] for result in results)
    n_refused = sum(result["right"] and result["exit_status"] != 0 for result in results)
    (pathlib.Path(arguments.out) / "verify.json").write_text(json.dumps({"verify": results}, indent=1) + "\n")
    print(f"verify: {n_right} of {len(results)} runs on {len(folders)} cases are right: within tolerance, but for {n_refused} "
          "that must be refused")
    return 0 if n_right == len(results) > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
