"""Fails when a file or folder that the documentation names does not exist. Run by ./dev lint and CTest.

    check_doc_paths.py [ROOT]

Checked are README.md and everything in docs/: links, `backticks` and code blocks. What a build makes is left out.
"""

import pathlib
import re
import sys

# A path begins with one of these, or ends like a file of ours; anything else is a name.
FOLDERS = ("proto", "common", "services", "cli", "models", "bench", "tools", "tests", "deploy", "docs", "cmake", ".ci")
FILE = re.compile(r"[\w./{},*-]+\.(?:cc|cu|h|proto|py|sh|mjs|js|md|json|yml|yaml|cmake|jinja)")
# Files of a checkpoint or of a run, named everywhere without their folder.
NAMES = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "profile.json",
         "model.safetensors.index.json", "evaluation.json", "special_tokens_map.json"}
TICKS = re.compile(r"`([^`\s]+)`")
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")
WORD = re.compile(r"[\w.{},*/-]+")


def expand(path):
    """Braces as in a shell: a/{b,c}.h is two paths."""
    match = re.search(r"\{([^{}]*)\}", path)
    if not match:
        return [path]
    return [p for part in match[1].split(",") for p in expand(path[: match.start()] + part + path[match.end() :])]


def is_path(word):
    if not re.fullmatch(WORD, word) or word.startswith(("/", "-")) or word in NAMES:
        return False
    first = word.removeprefix("./").split("/")[0]
    return (first in FOLDERS and "/" in word) or (first != "build" and FILE.fullmatch(word) is not None)


def named_in(line, is_code):
    """The paths of a line of Markdown."""
    links = LINK.findall(line)
    words = WORD.findall(line) if is_code else TICKS.findall(line)
    return links + [word for word in (w.rstrip(".,") for w in words) if is_path(word)]


def exists(root, path, document):
    if "*" in path:
        return any(root.glob(path))
    return (root / path).exists() or (document.parent / path).exists()


def missing_in(root, document):
    is_code = False
    for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), 1):
        if line.lstrip().startswith("```"):
            is_code = not is_code
            continue
        for named in named_in(line, is_code):
            for path in expand(named):
                if not exists(root, path.rstrip("/"), document):
                    yield f"{document.relative_to(root)}:{number}: {path} does not exist"


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent).resolve()
    documents = sorted([*root.glob("*.md"), *root.glob("docs/**/*.md")])
    problems = [problem for document in documents for problem in missing_in(root, document)]
    if not documents:
        problems = [f"{root}: no documents"]
    print("\n".join(problems) or f"{len(documents)} documents name only what exists")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
