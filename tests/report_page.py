"""Reads a report's page as a person would: sections with their text, their tables, and the numbers in their plots."""

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from xml.etree import ElementTree

SVG = "{http://www.w3.org/2000/svg}"


@dataclass
class PageTable:
    """A table: heading and cells as they are shown."""

    title: str
    columns: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)


@dataclass
class Section:
    """What stands between two headings of the second level: paragraphs, list entries and the like, and tables."""

    title: str
    texts: list[str] = field(default_factory=list)
    tables: list[PageTable] = field(default_factory=list)


class Page(HTMLParser):
    """A page's sections, and what a browser would fetch for it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.sections = [Section("")]
        self._inside: list[str] = []
        self.feed(text)

    def table(self, title: str, section: str | None = None) -> PageTable:
        """The only table of this title, in a section where one is named."""
        where = [s for s in self.sections if section is None or s.title == section]
        (found,) = (table for s in where for table in s.tables if table.title == title)
        return found

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("href", "src", "srcset", "xlink:href", "action", "data"):
                self.links.append(value or "")
            if name == "id":
                self.ids.append(value or "")
        if tag in ("meta", "link"):
            return
        self._inside.append(tag)
        section = self.sections[-1]
        if tag == "h2":
            self.sections.append(Section(""))
        elif tag == "summary":
            section.tables.append(PageTable(""))
        elif tag == "tr":
            section.tables[-1].rows.append([])
        elif tag == "td":
            section.tables[-1].rows[-1].append("")
        elif tag == "th":
            section.tables[-1].columns.append("")
        elif tag in ("p", "li", "h1", "h3", "figcaption"):
            section.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        inside, section = set(self._inside), self.sections[-1]
        if inside & {"svg", "style", "title"} or not data.strip():
            return
        if "h2" in inside:
            section.title += data
        elif "td" in inside:
            section.tables[-1].rows[-1][-1] += data
        elif "th" in inside:
            section.tables[-1].columns[-1] += data
        elif "summary" in inside:
            section.tables[-1].title += data
        else:
            section.texts[-1] += data


def plot_values(svg: str) -> dict[str, str]:
    """The texts of a plot that carry a name, by it: those that stand for a value."""
    out = {}
    for group in ElementTree.fromstring(svg[svg.index("<svg") :]).iter(f"{SVG}g"):
        name = group.get("id", "")
        if re.fullmatch(r"value-[\d-]+", name):
            out[name] = "".join(group.itertext()).strip()
    return out
