"""The demo model's evaluation through HTTP: its 200 questions, 8 at once, with the expert cache at 10, 25, 50 and 100 % of the
experts and with every policy. An answer is right if it is, letter by letter, the one that float32 gives. Writes evaluation.json;
exit status 1 if fewer than --least answers are right somewhere, or the GPU's memory in use is more than was laid out. With --backend
cpu there is no cache and one round."""

import argparse
import json
import pathlib
import sys
import time

from cluster import Cluster, at_once, used_vram_mib, wait_for

N_EXPERTS = 256
POLICIES = ["lru", "prompt", "predictive", "recency", "profile"]
PROFILE_SECONDS = 30  # uses are reported and counted every 5 s


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bin", required=True, help="folder of the programs")
    parser.add_argument("--model", required=True, help="models/demo")
    parser.add_argument("--out", default=".", help="folder for the results")
    parser.add_argument("--backend", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--slots", default="26,64,128,256", help="of 256 experts")
    parser.add_argument("--policies", default=",".join(POLICIES))
    parser.add_argument("--alone-slots", type=int, default=64, help="where the questions are also asked one by one")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--least", type=int, default=196, help="of 200; in proportion of fewer")
    parser.add_argument("--seconds", type=float, default=240, help="nothing is begun later than this")
    parser.add_argument("--flags", default="", help="more flags of hearth serve, separated by blanks")
    return parser.parse_args()


def ask_all(cluster, rows, n_at_once):
    """Texts and seconds; every second answer is streamed."""
    begin = time.monotonic()

    def ask(numbered):
        number, row = numbered
        return cluster.chat(row["prompt"]) if number % 2 == 0 else "".join(cluster.stream(row["prompt"]))

    return at_once(n_at_once, list(enumerate(rows)), ask), time.monotonic() - begin


def uses(status):
    return (sum(layer["hits"] for layer in status["layers"]), sum(layer["misses"] for layer in status["layers"]))


class Evaluation:
    def __init__(self, arguments):
        self.arguments = arguments
        self.begin = time.monotonic()
        rows = json.loads((pathlib.Path(arguments.model) / "evaluation.json").read_text())
        self.rows = rows[:arguments.questions]
        self.least = arguments.least * len(self.rows) // 200
        self.rounds, self.vram, self.not_run = [], [], []

    def is_late(self, what):
        late = time.monotonic() - self.begin > self.arguments.seconds
        if late:
            self.not_run.append(what)
            print(f"{what}: not run, no time left", flush=True)
        return late

    def round(self, cluster, name, n_at_once, **labels):
        has_cache = self.arguments.backend == "cuda"
        status = lambda: json.loads(cluster.hearth("cache", "status", "--json")) if has_cache else None
        before = status()
        texts, seconds = ask_all(cluster, self.rows, n_at_once)
        wrong = [{"prompt": row["prompt"], "want": row["answer"], "answer": text}
                 for row, text in zip(self.rows, texts) if text != row["answer"]]
        result = {"name": name, **labels, "at_once": n_at_once, "right": len(texts) - len(wrong), "of": len(texts),
                  "seconds": round(seconds, 2), "wrong": wrong}
        if has_cache:
            after = status()
            hits, misses = (b - a for a, b in zip(uses(before), uses(after)))
            result["hit_rate"] = round(hits / max(1, hits + misses), 4)
            result["policy_in_force"] = after["policy"]
        self.rounds.append(result)
        hit_rate = f", {100 * result['hit_rate']:.1f} % hits" if has_cache else ""
        print(f"{name}: {result['right']} of {result['of']} right in {seconds:.1f} s{hit_rate}", flush=True)
        return texts

    def start(self, slots, policy):
        arguments = self.arguments
        flags = ["--backend", arguments.backend, *arguments.flags.split()]
        if arguments.backend == "cuda":
            flags += ["--expert-slots", str(slots), "--cache-policy", policy]
        cluster = Cluster(arguments.bin, arguments.model, flags, pathlib.Path(arguments.out) / f"evaluation-{slots}.log")
        print(f"-- {slots} slots: ready after {cluster.start_seconds:.1f} s", flush=True)
        return cluster

    def check_vram(self, slots, before, log):
        """What nvidia-smi sees against the table in the worker's log."""
        used = used_vram_mib()
        table = next((line for line in log.read_text().splitlines() if "VRAM is laid out" in line), None)
        if used is None or table is None:
            return
        parts = [line.split() for line in json.loads(table)["message"].splitlines()[1:]]
        planned = sum(float(part[-2]) for part in parts if part[:2] != ["not", "used"])
        self.vram.append({"slots": slots, "laid_out_mib": round(planned, 1), "used_mib": used - before})
        print(f"{slots} slots: {used - before} MiB of VRAM in use, {planned:.0f} laid out", flush=True)

    def with_slots(self, slots, policies):
        before = used_vram_mib()
        with self.start(slots, policies[0]) as cluster:
            for policy in policies:
                if self.is_late(f"{slots} slots, {policy}"):
                    continue
                if policy != policies[0] or policy == "profile":
                    # "profile" is refused until the store has counts.
                    wait_for(lambda: self.change(cluster, policy), PROFILE_SECONDS, f"policy {policy}")
                self.round(cluster, f"{slots} slots, {policy}", 8, slots=slots, policy=policy)
            if slots == self.arguments.alone_slots:
                self.alone(cluster, f"{slots} slots, ")
            self.check_vram(slots, before, cluster.log_path)

    def change(self, cluster, policy):
        try:
            cluster.hearth("cache", "policy", policy)
        except RuntimeError as error:
            cluster.chat(self.rows[0]["prompt"])  # counts are collected while steps run
            raise ValueError(error) from error
        return True

    # How far the answers depend on their company: the same questions at once and one by one, each twice.
    def alone(self, cluster, prefix):
        texts = {}
        for name, n in (("8 at once", 8), ("8 at once again", 8), ("one by one", 1), ("one by one again", 1)):
            if self.is_late(prefix + name):
                return
            texts[name] = self.round(cluster, prefix + name, n)
        differ = lambda a, b: sum(x != y for x, y in zip(texts[a], texts[b]))
        self.company = {"of": len(self.rows), "at_once_twice": differ("8 at once", "8 at once again"),
                        "one_by_one_twice": differ("one by one", "one by one again"),
                        "at_once_and_one_by_one": differ("8 at once", "one by one")}
        print("texts that differ:", self.company, flush=True)

    company = None

    def run(self):
        arguments = self.arguments
        if arguments.backend == "cpu":
            with self.start(0, "") as cluster:
                self.round(cluster, "cpu", 8)
                self.alone(cluster, "cpu, ")
        else:
            policies = arguments.policies.split(",")
            for slots in map(int, arguments.slots.split(",")):
                if not self.is_late(f"{slots} slots"):
                    self.with_slots(slots, policies)
        bad = [result["name"] for result in self.rounds if result["right"] < self.least]
        bad += [f"VRAM with {use['slots']} slots" for use in self.vram if use["used_mib"] > use["laid_out_mib"]]
        report = {"evaluation": "demo", "backend": arguments.backend, "experts": N_EXPERTS, "least": self.least,
                  "rounds": self.rounds, "texts_that_differ": self.company, "vram": self.vram, "not_run": self.not_run,
                  "bad": bad}
        if self.company and arguments.backend == "cpu" and any(self.company[k] for k in self.company if k != "of"):
            bad.append("texts differ")  # on the CPU no text depends on its company
        (pathlib.Path(arguments.out) / "evaluation.json").write_text(json.dumps(report, indent=1) + "\n")
        print(f"evaluation: {len(self.rounds)} rounds, worst {min(r['right'] for r in self.rounds)} of {len(self.rows)} "
              f"right (at least {self.least}); bad: {bad}; not run: {len(self.not_run)}")
        return 1 if bad or self.not_run else 0


if __name__ == "__main__":
    sys.exit(Evaluation(parse()).run())
