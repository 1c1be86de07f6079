"""What Hearth does when its worker is killed while it generates, when the GPU fails under it, and when another process holds the
GPU's memory. Writes faults.json; exit status 1 if something did not end as it should. With --backend cpu only the worker is killed."""

import argparse
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

from cluster import Cluster, at_once, serve_command, wait_for

RECOVERY_SECONDS = 60
N_STREAMS = 4
QUESTION, ANSWER = "What is the capital of France?", "The capital of France is Paris."


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bin", required=True, help="folder of the programs")
    parser.add_argument("--model", required=True, help="models/demo")
    parser.add_argument("--out", default=".", help="folder for the results")
    parser.add_argument("--backend", default="cuda", choices=["cuda", "cpu"])
    return parser.parse_args()


@contextlib.contextmanager
def taken_vram(leave_mib):
    """Another process holds all of the GPU's memory but so much."""
    script = pathlib.Path(__file__).with_name("vram_holder.py")
    with subprocess.Popen([sys.executable, str(script), str(leave_mib)], text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        line = holder.stdout.readline()
        if not line.startswith("held "):
            raise RuntimeError("vram_holder got no memory")
        try:
            yield int(line.split()[1])
        finally:
            holder.stdin.close()
            holder.wait(timeout=30)


class Faults:
    def __init__(self, arguments):
        self.arguments = arguments
        self.out = pathlib.Path(arguments.out)
        self.is_cuda = arguments.backend == "cuda"
        self.results = {}
        self.failures = []

    def log(self, name):
        return self.out / f"faults-{name}.log"

    def cluster(self, name, *flags, environment=None):
        return Cluster(self.arguments.bin, self.arguments.model, ["--backend", self.arguments.backend, *flags], self.log(name),
                       environment)

    def expect(self, condition, what):
        if not condition:
            self.failures.append(what)
            print("NOT AS IT SHOULD BE: " + what, flush=True)

    # Ends the worker while streams run; `name` gets how they ended, and when a new worker answers.
    def worker_ends(self, name, cluster, end_worker):
        ends, pieces = [], [0] * N_STREAMS

        def generate(i):
            try:
                for _ in cluster.stream(QUESTION, max_tokens=20000, ignore_eos=True):
                    pieces[i] += 1
                ends.append((time.monotonic(), "an answer"))
            except RuntimeError as error:
                ends.append((time.monotonic(), str(error)))

        threads = [threading.Thread(target=generate, args=(i,)) for i in range(N_STREAMS)]
        for thread in threads:
            thread.start()
        wait_for(lambda: min(pieces) >= 8, 60, "all streams run")
        first = cluster.process_of("gpu-worker")
        begin = time.monotonic()
        end_worker()
        for thread in threads:
            thread.join()
        ended = max(end for end, _ in ends) - begin

        def answered():
            try:
                return cluster.process_of("gpu-worker") != first and cluster.chat(QUESTION)
            except RuntimeError as error:
                raise ValueError(error) from error

        text = wait_for(answered, RECOVERY_SECONDS, "an answer of the new worker")
        self.results[name] = {
            "streams": N_STREAMS, "pieces_before": pieces, "streams_ended_after_s": round(ended, 3),
            "streams_ended_with": sorted({reason for _, reason in ends}),
            "first_answer_after_s": round(time.monotonic() - begin, 3), "answer": text}
        self.expect(all(reason != "an answer" for _, reason in ends), f"{name}: each stream ends with an error")
        self.expect(text == ANSWER, f"{name}: the new worker answers right")

    def some_slots(self):
        return ["--expert-slots", "64"] if self.is_cuda else []

    def killed_worker(self):
        with self.cluster("killed-worker", *self.some_slots()) as cluster:
            self.worker_ends("killed_worker", cluster, lambda: cluster.kill("gpu-worker"))

    # A kernel of ours writes to an illegal address in the worker's process. The library that does it is preloaded and
    # knows nothing of the worker, which is the product's own.
    def lost_gpu(self):
        library = pathlib.Path(self.arguments.bin) / "hearth-gpu-fault"
        if not library.exists():
            self.results["lost_gpu"] = "not run: hearth-gpu-fault was not packed"
            return
        with tempfile.TemporaryDirectory(prefix="hearth-gpu-") as folder:
            pipe = pathlib.Path(folder) / "fault"
            os.mkfifo(pipe)
            environment = {"LD_PRELOAD": str(library.resolve()), "HEARTH_TEST_GPU_FAULT": str(pipe)}
            with self.cluster("lost-gpu", *self.some_slots(), environment=environment) as cluster:
                self.worker_ends("lost_gpu", cluster, lambda: os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)))
        log = self.log("lost-gpu").read_text()
        said = [line for line in log.splitlines() if "works no more for this process" in line]
        self.results["lost_gpu"]["worker_said"] = said[-1:]
        self.expect(said and "exit code 1" in log, "lost_gpu: the worker says why it ends, with status 1")

    # A start that must fail, with a reason that names numbers and a way out.
    def refused_start(self, name, leave_mib, *flags, needles):
        with taken_vram(leave_mib) as held, tempfile.TemporaryDirectory(prefix="hearth-gpu-") as run_dir:
            begin = time.monotonic()
            command = serve_command(self.arguments.bin, self.arguments.model, run_dir, ["--backend", "cuda", *flags])
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
            seconds = time.monotonic() - begin
        self.log(name).write_text(done.stdout + done.stderr)
        last = (done.stdout + done.stderr).strip().splitlines()[-1]
        self.results[name] = {"held_mib": held, "left_mib": leave_mib, "exit_status": done.returncode,
                              "seconds": round(seconds, 2), "last_line": last}
        self.expect(done.returncode == 2, f"{name}: exit status 2, was {done.returncode}")
        self.expect(all(needle in last for needle in needles), f"{name}: the last line says {needles}: {last}")

    # Nothing is allocated after the start: somebody who takes the rest must not matter.
    def vram_taken_while_running(self):
        with self.cluster("vram-taken-while-running", "--expert-slots", "64") as cluster:
            with taken_vram(0) as held:
                texts, error = [], None
                try:
                    texts = at_once(8, [QUESTION] * 24, cluster.chat)
                except Exception as caught:  # pylint: disable=broad-except
                    error = str(caught)
            right = sum(text == ANSWER for text in texts)
            self.results["vram_taken_while_running"] = {"held_mib": held, "asked": 24, "right": right, "error": error}
            self.expect(right == 24, "all questions are answered while another process holds all free VRAM")

    def run(self):
        steps = [self.killed_worker]
        if self.is_cuda:
            steps += [
                self.lost_gpu,
                lambda: self.refused_start("little_vram_left", 2048, "--kv-tokens", "8000000",
                                           needles=["MiB are needed", "nvidia-smi"]),
                lambda: self.refused_start("no_vram_left", 0, needles=["nvidia-smi"]),
                self.vram_taken_while_running]
        for step in steps:
            try:
                step()
            except Exception as error:  # pylint: disable=broad-except
                self.expect(False, f"{getattr(step, '__name__', 'a refused start')}: {error}")
        report = {"faults": self.results, "failures": self.failures}
        (self.out / "faults.json").write_text(json.dumps(report, indent=1) + "\n")
        print(json.dumps(report, indent=1))
        return 1 if self.failures else 0


if __name__ == "__main__":
    sys.exit(Faults(parse()).run())
