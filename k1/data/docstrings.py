"""Prose from the docstrings of Python source files."""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator

DROPPED_SECTIONS = {"see also", "examples", "example", "references", "methods", "usage", "routine listings"}
FIELD_SECTIONS = {"parameters", "other parameters", "returns", "yields", "raises", "warns", "attributes", "options"}
TABLE_OR_PROMPT = re.compile(r"^\s*(>>>|\.\.\. |\||\+[-=+]+\+|[-=]{2,}( +[-=]{2,})+\s*$)|\w {3,}\S|\w +- {2,}\w", re.M)
CODE = re.compile(
    r"^\s*(>>>|={2,} +==|\$ |%|#|import |from \w+ import|def |class |for .*:$|print)|"
    r"\b(np|sp|plt|scipy)\.|\w = \w[\w.]*\(",
    re.M,
)


def _sections(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Split a docstring at its underlined headings into (title, lines); the first title is empty."""
    title, body = "", []
    for line in lines:
        rule = re.fullmatch(r"( *)([-=~^*#\"])\2{2,}\s*", line)
        alone = body and body[-1].strip() and not any(text.strip() for text in body[-2:-1])
        if rule and alone and re.match(rule[1] + r"\S", body[-1]):
            heading = body.pop().strip()
            yield title, body
            title, body = heading.lower().rstrip(":"), []
        elif not rule or rule[1]:
            body.append(line)
    yield title, body


def _paragraphs(text: str) -> Iterator[str]:
    """Prose and formulas of one section; an empty string stands for code or a table left out."""
    lines = [*textwrap.dedent(text).split("\n"), ""]
    block: list[str] = []
    i = 0
    while i < len(lines):
        line = lines[i]
        i += 1
        directive = re.match(r"\s*\.\.(?: ?([\w-]+)::(.*)| .*|)$", line)
        literal = not directive and line.rstrip().endswith("::")
        if line.strip() and not directive:
            block.append(re.sub(r",?::$", ":", line.rstrip()))
        if block and (not line.strip() or directive or literal):
            prose = textwrap.dedent("\n".join(block))
            yield "" if TABLE_OR_PROMPT.search(prose) else prose
            block = []
        if not directive and not literal:
            continue
        start, indent = i, re.match(r" *", line)[0] + " "
        while i < len(lines) and (not lines[i].strip() or lines[i].startswith(indent)):
            i += 1
        body = textwrap.dedent("\n".join(lines[start:i])).strip("\n")
        if literal:
            yield "" if CODE.search(body) else textwrap.indent(body, "    ")
        elif directive[1] == "math":
            formula = re.sub(r"^:(label|nowrap).*\n+", "", f"{directive[2].strip()}\n{body}".strip(), flags=re.M)
            yield ".. math::\n\n" + textwrap.indent(formula, "    ")
        elif directive[1] in ("note", "warning", "tip", "important", "caution", "attention"):
            yield from _paragraphs(f"{directive[2].strip()}\n{body}".strip())


def _fields(text: str) -> Iterator[str]:
    """The entries of a numpydoc field list (`name : type`, indented description) as `name: description`."""
    for entry in re.split(r"\n(?=\S)", textwrap.dedent(text).strip("\n")):
        head, _, description = entry.partition("\n")
        name, colon, _type = head.partition(":")
        prose = list(_paragraphs(description))
        # A return value without a name has only a type before its description.
        if prose and prose[0] and (colon or re.fullmatch(r"[\w, *]+", name)) and " or " not in name:
            prose[0] = f"{name.strip()}: {prose[0]}"
        yield from prose


def clean_docstring(docstring: str) -> str:
    """Prose and formulas of a numpydoc docstring, without examples, tables, link lists and scaffolding."""
    docstring = inspect.cleandoc(docstring)
    # Compiled functions repeat their signature first; a template placeholder alone on its line stands for a section.
    docstring = re.sub(r"\A([\w.]+\([^\n]*(\n[^\n]+)*\n\s*\n)+", "", docstring)
    docstring = re.sub(r"^\s*(%\(\w+\)s|\$\{\w+\})\s*$", "", docstring, flags=re.M)
    if re.search(r"%\(\w+\)s|\$\{\w+\}|[Cc]opyright|Redistribution|^:?Author", docstring, re.M):
        return ""
    kept: list[str] = []
    for title, lines in _sections(docstring.split("\n")):
        if title in DROPPED_SECTIONS:
            continue
        section = "\n".join(lines)
        is_fields = title in FIELD_SECTIONS or re.match(r"\s*[\w*, ]+ ?: [^\n]*\n +\S", section)
        for text in _fields(section) if is_fields else _paragraphs(section):
            if text:
                kept.append(text)
            elif kept and re.search(r"[:,]$", kept[-1]):
                # The sentence that introduces what was left out goes with it.
                kept[-1] = re.sub(r"(\A|(?<=[.!?])\s)(?:[^.!?]|[.!?](?!\s))*\Z", "", kept[-1])
    text = "\n\n".join(filter(None, kept))
    text = re.sub(r":(?!math)[a-z]+(?::[a-z]+)?:`", "`", text)
    text = re.sub(r"`~?([^`<>]+?)\s*<[^`<>]*>`(_{0,2})", lambda m: m[1] if m[2] else f"`{m[1]}`", text)
    return re.sub(r"\[(\w[^\[\]\n]*)\]_\b", r"[\1]", text)


def object_docstrings(tree: ast.Module) -> Iterator[list[str]]:
    """The docstrings of each top-level object of a module, those of methods with their class."""
    yield [ast.get_docstring(tree) or ""]
    added: dict[str, list[str]] = {}
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            members = node.body if isinstance(node, ast.ClassDef) else []
            objects = [node, *(m for m in members if isinstance(m, (ast.FunctionDef, ast.ClassDef)))]
            yield [ast.get_docstring(o) or "" for o in objects]
        call = getattr(node, "value", None)
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "add_newdoc":
            # The texts of compiled objects: (module, object, doc or (method, doc)) or (object, doc).
            names = [a.value for a in call.args[:-1] if isinstance(a, ast.Constant)]
            texts = [c.value for c in ast.walk(call.args[-1]) if isinstance(c, ast.Constant)]
            added.setdefault(names[-1], []).extend(t for t in texts if isinstance(t, str) and "\n" in t)
    yield from added.values()
