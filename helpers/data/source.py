"""Where a data set comes from: the reader's folder, a download, or the stand-in."""

from collections.abc import Callable
from dataclasses import dataclass

from helpers import settings
from helpers.data import download
from helpers.data.banner import announce
from helpers.data.dataset import Provenance

SEED = 0  # of the stand-ins
READER = 3  # raise it when a reader gives other arrays from the same files, or refuses what it took before


@dataclass(frozen=True)
class Source:
    """One data set.

    layouts: classes, each for one way in which it may lie in a folder: `find(root)` gives an instance or None,
        `files()` what it consists of, `counts()` how many images it holds, checked, and `read()` its arrays; `layout`
        and `place` are its name and its folder. Messages name files by their place there, never by this machine's
        folders.
    archive: a function that gives the `download.Archive`, or None. by_hand: what to do where there is none.
    mistaken: {pattern of a path in the reader's folder: what is wrong with it}, for hints.
    """

    name: str
    title: str
    layouts: tuple[type, ...]
    archive: Callable[[], download.Archive] | None
    by_hand: str
    mistaken: dict[str, str]

    def find_in(self, root):
        """The layout in which the data set lies in the folder `root`, or None."""
        return next((found for layout in self.layouts if (found := layout.find(root))), None)

    def find(self):
        """The layout in which real data are on this machine, or None: in `COURSE_DATA`, else among the downloads."""
        roots = (folder() for folder in (settings.data_folder, settings.cache_folder))
        return next((found for root in roots if root and (found := self.find_in(root))), None)

    def real(self):
        """Real data as `COURSE_SOURCE` wants them; None means: draw the stand-in (the reader has been told)."""
        if settings.source() == "standin":
            announce(self.name, f"Drawn stand-in for {self.title}", "as COURSE_SOURCE=standin asks for.")
            return None
        found = self.find()
        if found is None and settings.source() == "real":
            self.fetch()
            found = self.find()
        if found is None:
            where = ", and not in the folder of COURSE_DATA either" if settings.data_folder() else ""
            announce(
                self.name,
                f"Drawn stand-in, not {self.title}",
                f"The real images are not among the downloads on this machine{where}, so what follows is measured on "
                f"drawn ones and must not be compared with the paper. {self.remedy()}",
            )
        return found

    def remedy(self):
        """What to do when it is not here: what stands in the way in `COURSE_DATA`, and how to get it."""
        get = self.by_hand
        if self.archive:
            get = f"To download the real ones ({self.archive().size}): ./course data fetch {self.name}"
        return " ".join(filter(None, (self.hint(), get)))

    def fetch(self):
        """Download it unless it is on this machine already.

        Raises an error for a damaged one that is here, FileNotFoundError for what has to be put there by hand,
        ConnectionError when no mirror delivers.
        """
        if found := self.find():
            found.counts()
            return
        if self.archive is None:
            raise FileNotFoundError(self.remedy())
        if hint := self.hint():
            print(hint, flush=True)
        download.fetch(self.archive(), settings.cache_folder())

    def hint(self):
        """What the reader's folder seems to hold in place of the data set, as a sentence, or ""."""
        root = settings.data_folder()
        if root is None or self.find_in(root):
            return ""
        root = root.resolve()
        for levels, parent in enumerate(list(root.parents)[:2], 1):
            found = self.find_in(parent)
            if found and (root == found.folder or root in found.folder.parents or found.folder in root.parents):
                return (
                    "The folder of COURSE_DATA lies inside the data set: set COURSE_DATA to the one that holds "
                    f"{root.relative_to(parent).parts[0]}/, {levels} up."
                )
        for child in sorted(path for path in root.iterdir() if path.is_dir()):
            if self.find_in(child):
                return f"They are one level deeper, in {child.name}/: set COURSE_DATA to that folder."
        archive = self.archive and self.archive().file
        if archive and (root / archive).is_file():
            return f"{archive} is in the folder of COURSE_DATA, but still packed: unpack it there (tar -xf {archive})."
        return next((text for pattern, text in self.mistaken.items() if any(root.glob(pattern))), "")

    def standin_provenance(self, train, test, size=""):
        """The Provenance of so many drawn images."""
        return Provenance(self.title, False, f"seed {SEED}, {train:,} + {test:,} images{size}")
