"""check_doc_paths.py on a repository made for it: it must find what is missing, and only that."""

import pathlib
import subprocess
import sys
import tempfile
import unittest

CHECKER = pathlib.Path(__file__).with_name("check_doc_paths.py")


class CheckDocPaths(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)
        for path in ("common/base/file.h", "common/base/file.cc", "docs/other.md"):
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).touch()

    def check(self, text, name="docs/page.md"):
        (self.root / name).write_text(text, encoding="utf-8")
        result = subprocess.run([sys.executable, CHECKER, self.root], capture_output=True, text=True, check=False)
        return result.returncode, result.stdout

    def test_what_exists_passes(self):
        code, out = self.check("`common/base/file.{h,cc}`, `common/base/`, `common/*/file.h`, [other](other.md#part).\n"
                               "```\n$ cat common/base/file.h\n```\n")
        self.assertEqual(code, 0, out)

    def test_missing_paths_fail_wherever_they_are_named(self):
        for text in ("see `common/base/gone.h`", "see `common/base/{file,gone}.h`", "see `common/gone/`",
                     "see `service/typo.cc`", "see [it](gone.md)", "see `common/gone*.h`",
                     "```\ncat common/base/gone.h\n```", "see `gone.yml`"):
            for name in ("README.md", "docs/page.md"):
                with self.subTest(text=text, name=name):
                    code, out = self.check("first line\n" + text, name)
                    self.assertEqual(code, 1, out)
                    self.assertIn(f"{name}:", out)
                    (self.root / name).unlink()

    def test_the_line_is_named(self):
        self.assertIn("docs/page.md:3: common/gone.h does not exist", self.check("\n\n`common/gone.h`")[1])

    def test_names_that_are_no_paths_pass(self):
        code, out = self.check("`/v1/models`, `build/release/bin/hearth`, `config.json`, `-Wall`, `a/b`, `absl::Status`,"
                               " [web](https://example.org/a.md), `RUN_DIR/worker.sock`\n")
        self.assertEqual(code, 0, out)

    def test_a_repository_without_documents_fails(self):
        (self.root / "docs/other.md").unlink()
        result = subprocess.run([sys.executable, CHECKER, self.root], capture_output=True, text=True, check=False)
        self.assertEqual(result.returncode, 1)


if __name__ == "__main__":
    unittest.main()
