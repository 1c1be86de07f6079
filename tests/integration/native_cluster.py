"""The three real services under `hearth serve` with the demo model, for tests in Python."""

import json
import pathlib
import re
import shutil
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
START_SECONDS = 60


def get(url, timeout=10):
    with urllib.request.urlopen(url, timeout=timeout) as answer:
        return answer.read().decode()


def wait_for(condition, seconds, what):
    """Returns the first true value of `condition`; what it raises counts as not yet."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            value = condition()
            if value:
                return value
            last = value
        except (OSError, KeyError, ValueError) as error:
            last = error
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s: {what} (last: {last})")
        time.sleep(0.05)


class NativeCluster:
    """Starts when entered, with metrics on ports of its own: `metrics_ports` by service."""

    def __init__(self, bin_dir):
        self._command = [str(pathlib.Path(bin_dir) / "hearth"), "serve", "--model", str(ROOT / "models/demo"),
                         "--port", "0", "--metrics"]
        self.metrics_ports = {}
        self.log = []

    def __enter__(self):
        self._run_dir = pathlib.Path(tempfile.mkdtemp(prefix="hearth-test-"))
        # Log lines come as JSON because stderr is no terminal.
        self._process = subprocess.Popen([*self._command, "--run-dir", str(self._run_dir)], text=True,
                                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self._reader = threading.Thread(target=self._read_log)
        self._reader.start()
        try:
            wait_for(self._is_ready, START_SECONDS, "the cluster is ready")
        except BaseException:
            self.__exit__()
            print("".join(self.log))
            raise
        return self

    def __exit__(self, *_):
        self._process.terminate()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        shutil.rmtree(self._run_dir, ignore_errors=True)

    def _read_log(self):
        for line in self._process.stdout:
            self.log.append(line)
            found = re.search(r'"service":"([a-z-]+)","message":"metrics are served","port":(\d+)', line)
            if found:
                self.metrics_ports[found[1]] = int(found[2])

    def _is_ready(self):
        if self._process.poll() is not None:
            raise RuntimeError(f"hearth serve ended with {self._process.returncode}")
        self.metrics_ports["gateway"] = int((self._run_dir / "gateway.port").read_text())
        get(self.url + "/ready")  # raises while it is not
        return len(self.metrics_ports) == 3

    @property
    def url(self):
        return f"http://127.0.0.1:{self.metrics_ports['gateway']}"

    def chat(self, question, **fields):
        """The answer's text; the status of a refused request."""
        body = {"model": "demo", "temperature": 0, "max_tokens": 64,
                "messages": [{"role": "user", "content": question}], **fields}
        request = urllib.request.Request(self.url + "/v1/chat/completions", json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["choices"][0]["message"]["content"]
        except urllib.error.HTTPError as error:
            return error.code
