"""Prose from wiki markup."""

import re

# Private-use characters stand for what has no text: a paragraph with UNREADABLE is dropped, REMOVED is tidied away.
UNREADABLE, REMOVED = "\ue000", "\ue001"
# Tags that only format their text; lists, tables, formulas and the like are all UNREADABLE.
TEXT_TAGS = set("b i u s em strong small big sub sup span font p q cite abbr blockquote nowiki var code tt div".split())
# Templates that leave a whole sentence when removed: notes, sources, pronunciation, maintenance.
SILENT_TEMPLATE = re.compile(
    r"cit(e|ation)|vcite|harv|sfn|rp$|refn|efn|ref\b|ipa|respell|pron|audio|inflation-fn|lsj|page needed|verify|"
    r"clarify|when|who|which|where|why|by whom|vague|dubious|dead link|failed verif|fact|cn$|better source|full|"
    r"specify|anchor|wayback|coord|flag|nbsp|update|[a-z]{2} icon|inconsistent|google books|isbn|oclc|issn"
)
TEXT_TEMPLATE = re.compile(r"(lang|transl|nowrap|small|smaller|vanchor|angbr|nihongo|sc|abbr|tooltip|nobold)\b")


def _template_text(template) -> str:
    """What a reader sees of a wiki template, for the few kinds that stand inside sentences."""
    name = str(template.name).strip().lower()
    args = [_wiki_text(param.value).strip() for param in template.params if not param.showkey]
    if name in ("convert", "cvt") and len(args) > 1:
        return " ".join(args[:4] if args[1] in ("-", "–", "to", "and", "by", "x") else args[:2])
    if args and TEXT_TEMPLATE.match(name):
        return args[-1] if name in ("lang", "transl") else args[0]
    return REMOVED if SILENT_TEMPLATE.match(name) else UNREADABLE


def _wiki_text(wikicode) -> str:
    """The plain text of parsed wiki markup, with markers where something without text stood."""
    from mwparserfromhell import nodes

    text = ""
    for node in wikicode.nodes:
        if isinstance(node, nodes.Text):
            text += str(node)
        elif isinstance(node, nodes.Wikilink):
            # Files, categories and links to other languages are not part of the sentence.
            other = re.match(r"\s*(file|image|category|media|[a-z]{2,3}(-[a-z]+)*):", str(node.title), re.I)
            text += REMOVED if other else _wiki_text(node.text or node.title)
        elif isinstance(node, nodes.Template):
            text += _template_text(node)
        elif isinstance(node, nodes.Tag):
            tag = str(node.tag).strip().lower()
            shown = _wiki_text(node.contents) if tag in TEXT_TAGS and node.contents else UNREADABLE
            text += {"ref": REMOVED, "references": REMOVED, "br": "\n"}.get(tag, shown)
        elif isinstance(node, nodes.ExternalLink):
            text += _wiki_text(node.title) if node.title else UNREADABLE
        elif isinstance(node, nodes.HTMLEntity):
            text += node.normalize()
        elif isinstance(node, nodes.Heading):
            text += "\n"
    return text


def _tidy(line: str) -> str:
    """Repair spacing and punctuation around what was removed from a line."""
    line = re.sub(rf"{REMOVED}|'{{2,}}|__[A-Z]+__|[\u200b\u200e\u200f\u00ad\ufeff]", "", line)
    previous = None
    while line != previous:
        previous = line
        line = re.sub(r"\(\s*(?:(?:or|and|pronounced|IPA|[,;:–/-])\s*)*\)", "", line)
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
        and not re.search(UNREADABLE + r"|[|<>{}_\\]|\[\[|\]\]|==|https?:|\(\)", line)
    )
