"""`hearth verify` on every reference case there is, with no, few and all experts in VRAM: in float32, and the tiny-* also fast (the
others were made for odd shapes, some of which the GPU backend refuses, of random weights on which rounded activations have no tolerance, or are too short a text). Writes
verify.json; exit status 1 if a quantity of one is off."""

import argparse
import json
import pathlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

AT_ONCE = 4  # models are tiny, and most of the time is the start
ALL = 1 << 20


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
    # A shape that the kernels were not made for is refused by its field, not computed.
    if status not in (0, None) and "the CUDA backend takes no model with" in error:
        print(f"{folder.name:28} {mode:8} not for this backend: {error.split(': ', 1)[1]}", flush=True)
        return None
    result = {"case": folder.name, "mode": mode, "slots": slots, "exit_status": status}
    result["report" if text else "error"] = json.loads(text) if text else error
    name = "all" if slots == ALL else slots
    print(f"{folder.name:28} {mode:8} {name:>4} slots  {'ok' if status == 0 else f'exit {status}: {error}'}", flush=True)
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
        results = [result for result in pool.map(lambda run: verify(arguments, *run), runs) if result]
    n_right = sum(result["exit_status"] == 0 for result in results)
    (pathlib.Path(arguments.out) / "verify.json").write_text(json.dumps({"verify": results}, indent=1) + "\n")
    print(f"verify: {n_right} of {len(results)} runs on {len({result['case'] for result in results})} cases are within "
          f"tolerance; {len(runs) - len(results)} were refused by their shape")
    return 0 if n_right == len(results) > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
