"""docs/gallery.md: each picture has a source that the page's commands write, and is small enough to commit."""

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_each_picture_is_made_by_a_command_of_the_page():
    made = runpy.run_path(str(DOCS / "make_gallery.py"))
    text = (DOCS / "gallery.md").read_text(encoding="utf-8")
    pictures, commands = made["pictures"](text), made["commands"](text)
    assert len(pictures) == text.count("](images/gallery/") >= 8
    folders = {words[words.index("-o") + 1] for words in map(str.split, commands) if "-o" in words}
    for source, target in pictures:
        assert str(source.parent.relative_to(DOCS.parent)) in folders
        assert 3000 < target.stat().st_size < 60_000
    there = {path.name for path in (DOCS / "images" / "gallery").iterdir()}
    assert there == {target.name for _, target in pictures}
