"""Checks what MkDocs does not: `docs_prose.py SITE`, from the root of the repository.

* Lines of prose have at most 100 columns. Tables, code, and the addresses of links do not count.
* Links of the documents outside docs/ lead to files and headings that exist.
* Nothing on a built page looks like a list or a table that was meant to be one.

Prints a line per finding and exits 1 if there is one.
"""

import html
import re
import subprocess
import sys
from pathlib import Path

from pymdownx.slugs import slugify

COLUMNS = 100
SLUG = slugify(case="lower")

FENCE = re.compile(r"^\s*(?:>\s*)*(```+|~~~+)")
HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*$")
LIST_ITEM = re.compile(r"^\s*(?:[*+-]|\d+[.)])\s")
DEFINITION = re.compile(r"^\[[^\]]+\]:\s*(\S+)")
TARGET = re.compile(r"\]\(([^()\s]+)\)")
ADDRESS = re.compile(r"https?://[^\s)>\]]+")
INLINE_CODE = re.compile(r"(`+)(?:(?!\1).)+\1")


def documents():
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", "*.md"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [path for path in map(Path, sorted(set(listed.splitlines()))) if path.exists()]


def prose(path):
    """The lines that are neither in a fence nor in an indented block of code, with their numbers."""
    fence, blank, in_list, in_code = None, True, False, False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        mark = FENCE.match(line)
        if fence:
            if mark and mark[1].startswith(fence):
                fence = None
            continue
        if mark:
            fence = mark[1]
            continue
        if not line.strip():
            blank = True
            continue
        indented = line.startswith(("    ", "\t"))
        in_code = indented and (in_code or (blank and not in_list))
        if LIST_ITEM.match(line):
            in_list = True
        elif not line[0].isspace() and blank:
            in_list = False
        blank = False
        if not in_code:
            yield number, line


def width(line):
    """Columns of a line, the addresses of its links not counted."""
    return len(ADDRESS.sub("", TARGET.sub("]()", line)).rstrip())


def anchors(path, known={}):
    """The anchors of a document's headings."""
    if path not in known:
        seen = known[path] = set()
        for _, line in prose(path):
            heading = HEADING.match(line)
            if heading:
                text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1])
                slug = base = SLUG(html.unescape(text.replace("`", "")), "-")
                count = 0
                while slug in seen:
                    count += 1
                    slug = f"{base}-{count}"
                seen.add(slug)
    return known[path]


def broken_links(path):
    for number, line in prose(path):
        code_free = INLINE_CODE.sub("", line)
        definition = DEFINITION.match(line)
        targets = TARGET.findall(code_free) + ([definition[1]] if definition else [])
        for target in targets:
            if re.match(r"[a-z]+:", target):
                continue
            name, _, anchor = target.partition("#")
            to = (path.parent / name) if name else path
            if not to.exists():
                yield number, f"there is no {target}"
            elif anchor and to.suffix == ".md" and anchor not in anchors(to.resolve()):
                yield number, f"there is no heading for {target}"


def unrendered(page):
    """Paragraphs of a built page with a line that begins like an item or a row of a table."""
    text = page.read_text(encoding="utf-8")
    for paragraph in re.findall(r"<p>(.*?)</p>", text, re.DOTALL):
        for line in paragraph.splitlines()[1:]:
            if re.match(r"\s*(?:[*+-] |\d+\. |\|.*\|\s*$|```)", line):
                yield line.strip()


def main():
    findings = []
    for path in documents():
        for number, line in prose(path):
            table = line.lstrip("> ").startswith("|")
            if not table and not DEFINITION.match(line) and width(line) > COLUMNS:
                findings.append(f"{path}:{number}: {width(line)} columns, at most {COLUMNS}")
        if path.parts[0] != "docs":
            findings += [f"{path}:{number}: {what}" for number, what in broken_links(path)]
    site = Path(sys.argv[1])
    for page in sorted(site.rglob("*.html")):
        for line in unrendered(page):
            findings.append(f"{page.relative_to(site)}: not a list or table as it stands: {line}")
    print("\n".join(findings), file=sys.stderr)
    return 1 if findings else 0


sys.exit(main())
