"""Write the tables of docs/benchmarks.md from what stands in results/benchmarks.

A part between `<!-- NAME -->` and `<!-- end -->` gets the table of that benchmark, or the one of
its experiments; parts whose benchmark was not run stay as they are.
"""

import re
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
RESULTS = ROOT / "results" / "benchmarks"


def table_of(name: str) -> str | None:
    """The Markdown of a benchmark's table, its headings one level lower."""
    for file in (RESULTS / name / "all.md", RESULTS / name / "table.md"):
        if file.is_file():
            lines = file.read_text(encoding="utf-8").splitlines()[2:]
            return "\n".join(f"#{line}" if line.startswith("#") else line for line in lines).strip()
    return None


def main() -> None:
    """Fill every part, and copy the pictures that the page shows."""

    def filled(found: re.Match[str]) -> str:
        name, table = found[1], table_of(found[1])
        if table is None:
            return found[0]
        pictures = ""
        for picture in ("table", "classes", "all"):
            source = RESULTS / name / f"{picture}.png"
            if source.is_file():
                target = PAGE.parent / "pictures" / f"benchmark-{name}-{picture}.png"
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(source, target)
                pictures += f"\n\n![{picture} of {name}](pictures/{target.name})"
        return f"<!-- {name} -->\n\n{table}{pictures}\n\n<!-- end -->"

    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(re.sub(r"<!-- ([\w.-]+) -->.*?<!-- end -->", filled, text, flags=re.DOTALL))


if __name__ == "__main__":
    main()
