"""`hearth serve` for the GPU bundle's scripts: Python 3 and its standard library only."""

import http.client
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import threading
import time

START_SECONDS = 120
ANSWER_SECONDS = 120


def wait_for(condition, seconds, what):
    """The first true value of `condition`, asked again and again; what it raises means: not yet."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            value = condition()
            if value:
                return value
            last = value
        except (OSError, KeyError, ValueError, http.client.HTTPException) as error:
            last = error
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s: {what} (last: {last})")
        time.sleep(0.02)


def used_vram_mib():
    """The first GPU's memory in use by all processes; None without nvidia-smi."""
    try:
        done = subprocess.run(["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0"],
                              capture_output=True, text=True, timeout=20, check=True)
        return int(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def serve_command(bin_dir, model, run_dir, flags):
    return [str(pathlib.Path(bin_dir) / "hearth"), "serve", "--model", str(model), "--port", "0",
            "--run-dir", str(run_dir), *flags]


class Cluster:
    """The three services; ends them when left. The log, one JSON object a line, goes to `log`."""

    def __init__(self, bin_dir, model, flags, log, environment=None):
        self.bin_dir = pathlib.Path(bin_dir)
        self.run_dir = pathlib.Path(tempfile.mkdtemp(prefix="hearth-gpu-"))
        self.log_path = pathlib.Path(log)
        self._log = open(log, "ab")
        begin = time.monotonic()
        self._process = subprocess.Popen(serve_command(bin_dir, model, self.run_dir, flags),
                                         stdout=self._log, stderr=subprocess.STDOUT,
                                         env={**os.environ, **(environment or {})})
        try:
            self.port = wait_for(self._port, START_SECONDS, "the gateway listens")
            wait_for(self.is_ready, START_SECONDS, "the cluster is ready")
        except BaseException:
            self.stop()
            raise
        self.start_seconds = time.monotonic() - begin

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        """The exit status."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
        shutil.rmtree(self.run_dir, ignore_errors=True)
        return self._process.returncode

    def _check_alive(self):
        if self._process.poll() is not None:
            last = self.log_path.read_text(errors="replace").splitlines()[-5:]
            raise RuntimeError(f"hearth serve ended with {self._process.returncode}:\n" + "\n".join(last))

    def _port(self):
        self._check_alive()
        return int((self.run_dir / "gateway.port").read_text())

    def is_ready(self):
        self._check_alive()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/ready")
            return connection.getresponse().status == 200
        finally:
            connection.close()

    def process_of(self, service):
        """The process id of "gpu-worker", ...; None while there is none."""
        for entry in pathlib.Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                stat = (entry / "stat").read_text()
                program = (entry / "cmdline").read_bytes().split(b"\0")[0]
            except OSError:
                continue
            state, parent = stat.rsplit(")", 1)[1].split()[:2]
            if state != "Z" and int(parent) == self._process.pid and program.endswith(f"hearth-{service}".encode()):
                return int(entry.name)
        return None

    def kill(self, service):
        os.kill(self.process_of(service), signal.SIGKILL)

    def chat(self, prompt, **fields):
        """The answer's text. Raises what went wrong."""
        response, connection = self._post({"messages": [{"role": "user", "content": prompt}], **fields})
        with connection:
            body = json.loads(response.read())
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {body}")
        return body["choices"][0]["message"]["content"]

    def stream(self, prompt, **fields):
        """The pieces of an answer; an error event is raised as RuntimeError."""
        response, connection = self._post(
            {"messages": [{"role": "user", "content": prompt}], "stream": True, **fields})
        with connection:
            if response.status != 200:
                raise RuntimeError(f"{response.status}: {response.read().decode(errors='replace')}")
            for line in response:
                data = line.strip().removeprefix(b"data: ")
                if not data or data == b"[DONE]":
                    continue
                event = json.loads(data)
                if "error" in event:
                    raise RuntimeError(event["error"]["message"])
                for choice in event["choices"]:
                    if choice["delta"].get("content"):
                        yield choice["delta"]["content"]

    def _post(self, body):
        connection = _Connection("127.0.0.1", self.port, timeout=ANSWER_SECONDS)
        request = {"model": "demo", "temperature": 0, "max_tokens": 64, **body}
        connection.request("POST", "/v1/chat/completions", json.dumps(request),
                           {"Content-Type": "application/json"})
        return connection.getresponse(), connection

    def hearth(self, *arguments):
        """What `hearth ARGUMENTS --run-dir ...` prints; RuntimeError with its errors where it fails."""
        command = [str(self.bin_dir / "hearth"), *arguments, "--run-dir", str(self.run_dir)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode != 0:
            raise RuntimeError(done.stderr.strip() or f"{command}: {done.returncode}")
        return done.stdout


class _Connection(http.client.HTTPConnection):
    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def at_once(n_threads, items, work):
    """work(item) for all items, in n_threads threads: the results in order. The first error is raised."""
    results = [None] * len(items)
    errors = []
    left = iter(range(len(items)))
    lock = threading.Lock()

    def run():
        while not errors:
            with lock:
                i = next(left, None)
            if i is None:
                return
            try:
                results[i] = work(items[i])
            except Exception as error:  # pylint: disable=broad-except
                errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results
