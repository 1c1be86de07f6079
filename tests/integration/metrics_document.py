"""docs/metrics.md against what the three real services serve after one chat: names, types and labels, both ways.

    metrics_document.py BIN_DIR
"""

import re
import sys

from native_cluster import ROOT, NativeCluster, get

DOCUMENT = ROOT / "docs/metrics.md"
ANSWER = "Lighthouse (noun): a tower with a light that gives warning of shoals to passing ships."


def documented(text):
    """{service: {metric: (type, labels)}}; what every service has is in each."""
    sections, section = {}, None
    for line in text.splitlines():
        if line.startswith("## "):
            section = sections.setdefault(line[3:].strip(), {})
        row = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if section is None or not line.startswith("| `"):
            continue
        name, kind, unit, labels, question = row
        assert unit and question.endswith((".", "?")), f"{name}: no unit or no question"
        assert name not in section, f"{name}: twice in one section"
        section[name.strip("`")] = (kind, frozenset(re.findall(r"`(\w+)`", labels)))
    common = sections.pop("every service")
    return {service: metrics | common for service, metrics in sections.items()}


def scraped(text):
    """{metric: (type, labels)}"""
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M))
    labels = {name: set() for name in kinds}
    for name, inside in re.findall(r"^(\w+)(?:\{(.*)\})? \S+$", text, re.M):
        family = name if name in kinds else re.sub(r"_(bucket|sum|count)$", "", name)
        labels[family].update(set(re.findall(r'(\w+)="', inside)) - {"le"})
    return {name: (kind, frozenset(labels[name])) for name, kind in kinds.items()}


def differences(service, expected, found):
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            yield f"{service}: {name} is documented but not served"
        elif name not in expected:
            yield f"{service}: {name} is served but not documented"
        elif expected[name] != found[name]:
            yield f"{service}: {name} is documented as {expected[name]} but served as {found[name]}"


def main():
    expected = documented(DOCUMENT.read_text(encoding="utf-8"))
    problems = []
    with NativeCluster(sys.argv[1]) as cluster:
        answer = cluster.chat("What is a lighthouse?")
        assert answer == ANSWER, answer
        assert set(expected) == set(cluster.metrics_ports), f"sections {set(expected)}"
        for service, port in cluster.metrics_ports.items():
            found = scraped(get(f"http://127.0.0.1:{port}/metrics"))
            problems += differences(service, expected[service], found)
    print("\n".join(problems) or f"{sum(map(len, expected.values()))} metrics are as documented")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
