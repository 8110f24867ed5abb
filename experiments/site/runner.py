"""Builds the site: the pages of this folder, and the reference written beside a copy of them."""

import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

from experiments.common.errors import UserError
from experiments.common.progress import make_console
from experiments.options import Site
from experiments.site.cells import only_shown

SOURCE = Path(__file__).parent
PAGES = ("*.md", "guides", "from", "explain")
BUILT = "objects.inv"  # every site of Sphinx has one


def run(options: Site) -> None:
    """Builds it into `options.out`.

    Raises:
      UserError: Sphinx is not there, `options.out` holds something else, or the build fails, on
        warnings too.
    """
    needed = ("sphinx", "myst_nb", "sphinx_copybutton", "latex2mathml")
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise UserError(f"{missing[0]} is missing; pip install -e . --group site")
    out = options.out
    if out.exists() and not (out.is_dir() and ((out / BUILT).is_file() or not any(out.iterdir()))):
        raise UserError(f"--out {out}: is there, and is no site")
    with tempfile.TemporaryDirectory(prefix="bnjax-site-") as folder:
        pages, built = Path(folder, "pages"), Path(folder, "html")
        copy_pages(pages)
        if build(pages, built):
            raise UserError("the site was not built; what is wrong stands above")
        shutil.rmtree(out, ignore_errors=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(built, out)
    make_console().print(f"see {out / 'index.html'}", markup=False)


def copy_pages(folder: Path) -> None:
    """What people wrote, into `folder`, where more is written beside it."""
    folder.mkdir()
    for path in (path for pattern in PAGES for path in SOURCE.glob(pattern)):
        copy = shutil.copytree if path.is_dir() else shutil.copy2
        copy(path, folder / path.name)
    for page in folder.rglob("*.md"):
        page.write_text(only_shown(page.read_text(encoding="utf-8")), encoding="utf-8")


def build(pages: Path, out: Path, *more: str) -> int:
    """Writes the HTML of `pages`; the exit code of Sphinx, to which a warning is an error."""
    from sphinx.cmd.build import build_main

    words = ["--fail-on-warning", "--quiet", "-c", SOURCE, "-d", pages.parent / "doctrees"]
    return build_main([*map(str, words), *more, str(pages), str(out)])
