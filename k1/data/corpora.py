"""Three corpora read from installed packages, so that the default run needs no network.

wikitext: Wikipedia articles in gensim's test data; code: the Python standard library;
science: the docstrings of NumPy and SciPy.
"""

import ast
import bz2
import importlib.util
import inspect
import platform
import re
import sysconfig
import textwrap
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from k1.errors import K1Error

WIKI_DUMP = "test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
WIKI_MIN_CHARS, SCIENCE_MIN_CHARS = 500, 300
SKIPPED_DIRS = {"test", "tests", "idle_test", "testing", "__pycache__", "site-packages", "dist-packages"}
# Machine-dependent files, tables of characters or texts, and packages that some Linux distributions leave out.
NOT_CODE = re.compile(
    r"_sysconfigdata|config-|sitecustomize\.py|encodings/(?!__init__|idna|punycode|utf_8_sig)|pydoc_data/|locale\.py|"
    r"html/entities\.py|this\.py|stringprep\.py|re/_casefix\.py|curses/has_key\.py|"
    r"(idlelib|lib2to3|distutils|ensurepip|tkinter|turtledemo|venv)/|turtle\.py"
)
# Build tools, and helpers for other packages.
NOT_SCIENCE = re.compile(r"(distutils|f2py|_lib|_pyinstaller|_utils|typing|_typing)/|conftest\.py|__config__\.py")

# Private-use characters stand for what has no text: a paragraph with UNREADABLE is dropped, REMOVED is tidied away.
UNREADABLE, REMOVED = "\ue000", "\ue001"
# Tags of these articles that only format their text; lists, tables, formulas and the like are all UNREADABLE.
TEXT_TAGS = set("b i s small sub sup span blockquote nowiki div".split())
# Templates that leave a whole sentence when removed: notes, sources, pronunciation, maintenance.
SILENT_TEMPLATE = re.compile(
    r"cit(e|ation)|sfn|rp$|refn|efn|ipa|respell|page needed|verify|clarify|when|who|which|where|by whom|vague|dubious|"
    r"failed verif|better source|full|coord|nbsp|update"
)
TEXT_TEMPLATE = re.compile(r"(lang|transl|nowrap|small|angbr|nihongo|sc)\b")

DROPPED_SECTIONS = {"see also", "examples", "example", "references", "methods", "usage"}
FIELD_SECTIONS = {"parameters", "other parameters", "returns", "yields", "raises", "warns", "attributes", "options"}
TABLE_OR_PROMPT = re.compile(r"^\s*(>>>|\.\.\. |\||\+[-=+]+\+|[-=]{2,}( +[-=]{2,})+\s*$)|\w {3,}\S|\w +- {2,}\w", re.M)
CODE = re.compile(
    r"^\s*(>>>|={2,} +==|\$ |%|#|import |from \w+ import|def |class |for .*:$|print)|"
    r"\b(np|sp|plt|scipy)\.|\w = \w[\w.]*\(",
    re.M,
)


def package_dir(name: str) -> Path:
    """The folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise K1Error(f"the package {name}, source of a corpus, is missing; run: pip install -r requirements.txt")
    return Path(spec.submodule_search_locations[0])


def python_files(root: Path, excluded: re.Pattern) -> list[Path]:
    """The .py files under `root` that are no tests and not `excluded`, sorted by relative path."""
    files = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).parts
        name = "/".join(parts)
        if SKIPPED_DIRS.isdisjoint(parts) and not path.name.startswith("test_") and not excluded.match(name):
            files[name] = path
    return [files[name] for name in sorted(files)]


def _wikitext_documents() -> Iterator[str]:
    dump = package_dir("gensim") / WIKI_DUMP
    package_dir("mwparserfromhell")
    if not dump.is_file():
        raise K1Error("the installed gensim lacks the test data of wikitext; run: pip install -r requirements.txt")
    try:
        from gensim.corpora.wikicorpus import extract_pages
    except RuntimeError as error:  # smart_open, which it imports, looks into the home folder
        raise K1Error(f"the package gensim cannot be imported ({error}); set HOME to a folder")

    with bz2.open(dump, "rb") as file:
        for _title, markup, _page_id in extract_pages(file, ()):
            if markup and not markup.lstrip().lower().startswith("#redirect"):
                document = clean_wikitext(markup)
                if len(document) >= WIKI_MIN_CHARS:
                    yield document


def _code_documents() -> Iterator[str]:
    for path in python_files(Path(sysconfig.get_paths()["stdlib"]), NOT_CODE):
        try:
            text = path.read_text(encoding="utf-8").strip()
        except UnicodeDecodeError:
            continue
        if text:
            yield text


def _science_documents() -> Iterator[str]:
    seen: set[str] = set()
    for path in [file for package in ("numpy", "scipy") for file in python_files(package_dir(package), NOT_SCIENCE)]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_text(encoding="utf-8"))
        for docstrings in object_docstrings(tree):
            paragraphs = "\n\n".join(filter(None, map(clean_docstring, docstrings))).split("\n\n")
            # Related functions share whole docstrings or the description of a parameter.
            fresh = [text for text in paragraphs if len(text) < 120 or text[0] == " " or text not in seen]
            seen.update(fresh)
            document = "\n\n".join(fresh)
            if len(document) >= SCIENCE_MIN_CHARS:
                yield document


BUNDLED_CORPORA: dict[str, Callable[[], Iterator[str]]]
BUNDLED_CORPORA = {"wikitext": _wikitext_documents, "code": _code_documents, "science": _science_documents}


def bundled_documents(name: str) -> Iterator[str]:
    """The documents of the bundled corpus `name`, in a fixed order."""
    return BUNDLED_CORPORA[name]()


def bundled_version(name: str) -> str:
    """The versions of what the corpus is read from, e.g. "numpy 2.4.6, scipy 1.17.1"."""
    if name == "code":
        return f"Python {platform.python_version()}"
    packages = {"wikitext": ("gensim", "mwparserfromhell"), "science": ("numpy", "scipy")}[name]
    for package in packages:
        package_dir(package)
    return ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)


def _template_text(template) -> str:
    """What a reader sees of a wiki template, for the few kinds that stand inside sentences."""
    name = str(template.name).strip().lower()
    args = [_wiki_text(param.value).strip() for param in template.params if not param.showkey]
    if name == "convert" and len(args) > 1:
        return " ".join(args[:4] if args[1] in ("-", "–", "to", "and", "by", "x") else args[:2])
    if args and TEXT_TEMPLATE.match(name):
        return args[-1] if name in ("lang", "transl") else args[0]
    return REMOVED if SILENT_TEMPLATE.match(name) else UNREADABLE


def _wiki_text(wikicode) -> str:
    """The plain text of parsed wiki markup, with markers where something without text stood."""
    import mwparserfromhell.nodes as nodes

    text = ""
    for node in wikicode.nodes:
        if isinstance(node, nodes.Text):
            text += str(node)
        elif isinstance(node, nodes.Wikilink):
            # Files and categories are not part of the sentence.
            other = re.match(r"\s*(file|image|category):", str(node.title), re.I)
            text += REMOVED if other else _wiki_text(node.text or node.title)
        elif isinstance(node, nodes.Template):
            text += _template_text(node)
        elif isinstance(node, nodes.Tag):
            tag = str(node.tag).strip().lower()
            shown = _wiki_text(node.contents) if tag in TEXT_TAGS and node.contents else UNREADABLE
            text += {"ref": REMOVED, "br": "\n"}.get(tag, shown)
        elif isinstance(node, nodes.ExternalLink):
            text += _wiki_text(node.title) if node.title else UNREADABLE
        elif isinstance(node, nodes.HTMLEntity):
            text += node.normalize()
    return text


def _tidy(line: str) -> str:
    """Repair spacing and punctuation around what was removed from a line."""
    line = re.sub(rf"{REMOVED}|'{{2,}}", "", line)
    line = re.sub(r"\(\s*(?:[,;:–/-]\s*)*\)", "", line)
    line = re.sub(r"\([\s,;:]+", "(", line)
    line = re.sub(r"[\s,;:]+\)", ")", line)
    line = re.sub(r"([,;])(?:\s*[,;])+", r"\1", line)
    line = re.sub(r"\s+([,;:.!?])(?=\s|$|[\"”)])", r"\1", line)
    line = re.sub(r"\s+", " ", line)
    return line.strip()


def clean_wikitext(markup: str) -> str:
    """Prose paragraphs of one wiki page, joined by blank lines; everything else is dropped."""
    import mwparserfromhell

    lines = map(_tidy, _wiki_text(mwparserfromhell.parse(markup)).split("\n"))
    return "\n\n".join(
        line
        for line in lines
        if len(line) >= 80
        and re.match(r"[\"“‘'(]*(?![a-z])[^\W_]", line)
        and re.search(r"[.!?][\"”’')\]]*$", line)
        and sum(c.isalpha() or c == " " for c in line) > 0.85 * len(line)
        and not re.search(UNREADABLE + r"|[|<>{}_\\]", line)
    )


def _sections(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Split a docstring at its underlined headings into (title, lines); the first title is empty."""
    title = ""
    body: list[str] = []
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
        start, indent = i, line[: len(line) - len(line.lstrip(" "))] + " "
        while i < len(lines) and (not lines[i].strip() or lines[i].startswith(indent)):
            i += 1
        body = textwrap.dedent("\n".join(lines[start:i])).strip("\n")
        if not directive:
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
            names = [str(a.value) for a in call.args[:-1] if isinstance(a, ast.Constant)]
            texts = [c.value for c in ast.walk(call.args[-1]) if isinstance(c, ast.Constant)]
            added.setdefault(names[-1], []).extend(t for t in texts if isinstance(t, str) and "\n" in t)
    yield from added.values()
