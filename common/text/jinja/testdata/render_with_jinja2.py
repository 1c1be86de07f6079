"""Renders templates with jinja2 as Hugging Face's apply_chat_template sets it up.

Used by oracle_test: reads {"variables": {...}, "templates": [...]} from stdin, writes a list of
{"text": ...} or {"error": ...} to stdout.
"""

import copy
import json
import sys

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        call = self.call_method("_render")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _render(self, caller):
        return caller()


def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def main():
    request = json.load(sys.stdin)
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation])
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    answers = []
    for source in request["templates"]:
        try:
            # A copy each: jinja2's indent appends to a list that it is given.
            answers.append({"text": environment.from_string(source).render(**copy.deepcopy(request["variables"]))})
        except Exception as error:
            answers.append({"error": str(error), "kind": type(error).__name__})
    json.dump(answers, sys.stdout)


main()
