"""The documentation says what is so: its links, keys, commands and code."""

import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path
from typing import get_type_hints

import pytest

from ctrlgen.training.denoising import Recipe
from ctrlgen.training.shipped import documented

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")]
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"```.*?```|`[^`\n]*`|^    .*$", re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The names by which headings can be linked, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    for link in LINK.findall(text):
        if "://" in link or link.startswith("mailto:"):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}"


@pytest.mark.parametrize("table", get_type_hints(Recipe))
def test_every_key_of_a_recipe_is_documented_as_it_is_declared(table: str) -> None:
    """Where it is not, put `documented(table)` into docs/recipes.md."""
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert page.split(f"## [{table}]\n\n")[1].split("\n\n## ")[0].rstrip() == documented(table)


def test_the_commands_page_is_what_help_says() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    command = [sys.executable, "-m", "typer", "ctrlgen.cli", "utils", "docs", "--name", "ctrlgen"]
    made = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert page.strip() == made.strip(), (
        "run: python -m typer ctrlgen.cli utils docs --name ctrlgen --output docs/cli.md"
    )


@pytest.mark.slow
def test_the_python_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "python-api.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(code, "python-api.md", "exec"), {})
    printed = capsys.readouterr().out
    assert printed.count("food: Japanese") == 2
    assert "near Café Adriatic" in printed


def test_the_architecture_page_names_every_file_of_the_rooms() -> None:
    """But commands and baselines, of which it says that there is a file each."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = [path for path in (ROOT / "ctrlgen").rglob("*.py") if not {"cli", "baselines", "report"} & set(path.parts)]
    assert [path.name for path in rooms if path.name[:2] != "__" and f"`{path.name}`" not in page] == []


def test_what_is_installed_is_pinned() -> None:
    """Each package that pyproject.toml names has the version that the tests ran with in constraints.txt."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    packages = {re.match(r"[\w.-]+", name)[0].lower() for name in named}  # type: ignore[index]
    pins = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert packages - {"ctrlgen"} == set(pins)
    assert pins == sorted(pins)
