"""Hooks of MkDocs (mkdocs.yml).

* ARCHITECTURE.md and CHANGELOG.md, which stand in the repository's root, become pages.
* Links from pages to other files of the repository are checked. They become links to `repo_url` if
  mkdocs.yml has one, and plain text otherwise: the files are not part of the site.
* Lists are indented as Python-Markdown wants them. Markdown elsewhere aligns what belongs to an item
  with its text (two columns after `*`, three after `1.`); Python-Markdown wants four per level.
* A pattern in the navigation, such as `notes/*.md`, stands for the pages that match it and are not
  listed elsewhere.
"""

import fnmatch
import logging
import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

log = logging.getLogger("mkdocs.hooks.docs")

# files of the root by the page that they become
ROOT_PAGES = {"ARCHITECTURE.md": "architecture.md", "CHANGELOG.md": "changelog.md"}

FENCE = re.compile(r"^ {0,3}(```+|~~~+).*?^ {0,3}\1[`~]*[ \t]*$", re.MULTILINE | re.DOTALL)
ITEM = re.compile(r"^( *)([*+-]|\d+[.)])( +)(?=\S)")
LINK = re.compile(r"(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^()\s]+)\)")
REFERENCE = re.compile(r"^\[(?P<text>[^\]]+)\]:\s*(?P<target>\S+)\s*$", re.MULTILINE)


def on_files(files, config):
    root = Path(config.config_file_path).parent
    for source, page in ROOT_PAGES.items():
        text = (root / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    listed = set(_listed(config.nav))
    pages = sorted(f.src_uri for f in files.documentation_pages())
    config.nav = _expand(config.nav, [p for p in pages if p not in listed])
    return files


def on_page_markdown(markdown, page, config, files):
    root = Path(config.config_file_path).parent
    page_uri = page.file.src_uri
    sources = {v: k for k, v in ROOT_PAGES.items()}
    # where the source of this page stands, relative to the root
    source = sources.get(page_uri) or posixpath.join("docs", page_uri)

    def target_of(target):
        """The target as a link of the site, or None for a file that is not part of it."""
        if re.match(r"[a-z]+:|#", target) or target.startswith("/"):
            return target
        path, anchor = (target.split("#", 1) + [""])[:2]
        place = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        anchor = f"#{anchor}" if anchor else ""
        in_site = ROOT_PAGES.get(place)
        if place.startswith("docs/"):
            in_site = place.removeprefix("docs/")
            if files.get_file_from_path(in_site) is None and (root / place).exists():
                in_site = None
        if in_site:
            return posixpath.relpath(in_site, posixpath.dirname(page_uri) or ".") + anchor
        if place.startswith("..") or not (root / place).exists():
            log.warning(f"{source}: there is no file {target!r}")
        if config.repo_url:
            return f"{config.repo_url.rstrip('/')}/blob/main/{place}{anchor}"
        return None

    def inline(match):
        target = target_of(match["target"])
        if target is None:
            return match["text"]
        return f"{match['image']}[{match['text']}]({target})"

    def reference(match):
        # a definition cannot become text: links by it would show their brackets
        return f"[{match['text']}]: {target_of(match['target']) or '#'}"

    def prose(text):
        return REFERENCE.sub(reference, LINK.sub(inline, text))

    parts, end = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [prose(markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return _indented("".join(parts) + prose(markdown[end:]))


def _indented(markdown):
    """The text with four columns of indentation per level of a list, and a blank line before an item
    that follows a paragraph."""
    lines, levels, fence, blank = [], [], None, True
    block_of_items = False
    for line in markdown.split("\n"):
        indent = len(line) - len(line.lstrip(" "))
        if not line.strip():
            lines.append("")
            blank = True
            continue
        item = None if fence else ITEM.match(line)
        if item and not blank and not block_of_items and (levels or item[2] in ("*", "+", "-", "1.")):
            lines.append("")
            blank = True
        if blank:
            block_of_items = bool(item)
        # a line that stands further left than the text of an item ends it, unless it continues a
        # paragraph
        while levels and not fence and indent < levels[-1] and (blank or item):
            levels.pop()
        shift = 4 * len(levels) - (levels[-1] if levels else 0)
        lines.append(" " * max(0, shift) + line if shift > 0 else line)
        if item and indent < (levels[-1] if levels else 0) + 4:
            levels.append(len(item[0]))
            marker = item[2].ljust(4)
            lines[-1] = " " * (4 * len(levels) - 4) + marker + line[len(item[0]) :]
        mark = re.match(r" *(```+|~~~+)", line)
        if mark and (fence is None or mark[1].startswith(fence)):
            fence = None if fence else mark[1]
        blank = False
    return "\n".join(lines)


def _listed(items):
    for item in items:
        if isinstance(item, dict):
            for value in item.values():
                yield from _listed(value if isinstance(value, list) else [value])
        else:
            yield item


def _expand(items, unlisted):
    expanded = []
    for item in items:
        if isinstance(item, dict):
            for title, value in item.items():
                nested = isinstance(value, list)
                expanded.append({title: _expand(value, unlisted) if nested else value})
        elif "*" in item:
            expanded += fnmatch.filter(unlisted, item)
        else:
            expanded.append(item)
    return expanded
