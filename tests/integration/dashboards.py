"""Debian's Prometheus scrapes the three real services as deploy/prometheus/local.yml says, and answers every expression of
the Grafana dashboard: no error, and numbers once there was traffic.

    dashboards.py BIN_DIR

Without Prometheus (./dev test fetches it) it is skipped by exit status 77, or fails if HEARTH_REQUIRE_PROMETHEUS is set.
"""

import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse

from native_cluster import ROOT, NativeCluster, get, wait_for

SKIPPED = 77
FETCHED = ROOT / "build/prometheus/usr/bin"
ANSWER_SECONDS = 90


def find_program(name):
    return shutil.which(name, path=f"{FETCHED}:{os.environ.get('PATH', '')}")


def configuration(ports):
    """local.yml with this run's ports, scraping often."""
    text = (ROOT / "deploy/prometheus/local.yml").read_text()
    for service, written, actual in (("gateway", 8080, ports["gateway"]), ("gpu-worker", 8081, ports["gpu-worker"]),
                                     ("expert-store", 8082, ports["expert-store"])):
        assert re.search(rf"job_name: {service}\n.*127.0.0.1:{written}\"", text), f"local.yml does not scrape {service}"
        text = text.replace(f"127.0.0.1:{written}", f"127.0.0.1:{actual}")
    return text.replace("scrape_interval: 5s", "scrape_interval: 1s")


class Prometheus:
    def __init__(self, config):
        self._folder = pathlib.Path(tempfile.mkdtemp(prefix="hearth-prometheus-"))
        (self._folder / "prometheus.yml").write_text(config)
        self._log = self._folder / "log"

    def __enter__(self):
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [find_program("prometheus"), f"--config.file={self._folder}/prometheus.yml",
                 f"--storage.tsdb.path={self._folder}/data", "--web.listen-address=127.0.0.1:0"], stdout=log, stderr=log)
        try:
            self._port = wait_for(self._listens, 60, "Prometheus listens")
        except BaseException:
            print(self._log.read_text())
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self._process.terminate()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _listens(self):
        if self._process.poll() is not None:
            raise RuntimeError("Prometheus ended")
        ports = re.findall(r'msg="Listening on" address=127\.0\.0\.1:(\d+)', self._log.read_text())
        return ports and int(ports[0])

    def query(self, expression):
        """The values of all series; an expression that is wrong raises."""
        try:
            text = get(f"http://127.0.0.1:{self._port}/api/v1/query?" + urllib.parse.urlencode({"query": expression}))
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{expression}: {error.read().decode()}") from error
        answer = json.loads(text)
        assert answer["status"] == "success", f"{expression}: {text}"
        return [float(series["value"][1]) for series in answer["data"]["result"]]


def expressions():
    dashboard = json.loads((ROOT / "deploy/grafana/dashboards/hearth.json").read_text())
    found = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(found) > 20, f"only {len(found)} expressions"
    return found


def answer_all(prometheus, cluster):
    """The expressions that have no number when the time is over."""
    pending, deadline = expressions(), time.monotonic() + ANSWER_SECONDS
    while pending and time.monotonic() < deadline:
        cluster.chat("What is a lighthouse?")
        assert cluster.chat("Too many", max_tokens=-1) == 400
        pending = [e for e in pending if not any(map(math.isfinite, prometheus.query(e)))]
    return pending


def main():
    if find_program("prometheus") is None:
        print("no prometheus here: ./dev setup fetches it")
        return 1 if os.environ.get("HEARTH_REQUIRE_PROMETHEUS") else SKIPPED
    for name in ("local.yml", "prometheus.yml"):
        subprocess.run([find_program("promtool"), "check", "config", ROOT / "deploy/prometheus" / name], check=True)
    with NativeCluster(sys.argv[1]) as cluster, Prometheus(configuration(cluster.metrics_ports)) as prometheus:
        wait_for(lambda: prometheus.query("up") == [1, 1, 1], 30, "all three services are scraped")
        pending = answer_all(prometheus, cluster)
    for expression in pending:
        print(f"no number for: {expression}")
    print(f"{len(expressions()) - len(pending)} of {len(expressions())} expressions are answered")
    return 1 if pending else 0


if __name__ == "__main__":
    sys.exit(main())
