"""Fails when a file or folder that the documentation names in `backticks` does not exist. Run by ./dev lint and CTest."""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
# What is checked begins with one of these; anything else in backticks is a name, not a path.
FOLDERS = ("proto", "common", "services", "cli", "models", "bench", "tools", "tests", "deploy", "docs", "cmake", ".ci")
PATH = re.compile(r"`([A-Za-z0-9_.][A-Za-z0-9_./{},*-]*)`|\]\(([^)#:]+)(?:#[^)]*)?\)")


def expand(path):
    """Braces as in a shell: a/{b,c}.h is two paths."""
    match = re.search(r"\{([^{}]*)\}", path)
    if not match:
        return [path]
    return [p for part in match[1].split(",") for p in expand(path[: match.start()] + part + path[match.end() :])]


def exists(path, document):
    if "*" in path:
        return any(ROOT.glob(path))
    return (ROOT / path).exists() or (document.parent / path).exists()


def missing_in(document):
    for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), 1):
        for match in PATH.finditer(line):
            in_ticks, link = match.groups()
            named = in_ticks or link
            if in_ticks and not ("/" in in_ticks and in_ticks.split("/")[0] in FOLDERS):
                continue
            for path in expand(named):
                if not exists(path.rstrip("/"), document):
                    yield f"{document.relative_to(ROOT)}:{number}: {path} does not exist"


def main():
    documents = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
    problems = [problem for document in documents for problem in missing_in(document)]
    print("\n".join(problems) or f"{len(documents)} documents name only what exists")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
