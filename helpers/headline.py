"""A chapter's main number, shown to the reader and left where `./course run` finds it."""

from dataclasses import asdict, dataclass
from html import escape

KEY = "course_headline"  # in an output's metadata, because Sphinx warns about a mime type that it does not know


@dataclass(frozen=True)
class Headline:
    """A number in words, the data it rests on, and whether all of them are real."""

    text: str
    data: str
    real: bool

    def __repr__(self):
        return f"{self.text} ({self.data})"

    def _repr_mimebundle_(self, include=None, exclude=None):
        page = f'<p class="course-headline"><strong>{escape(self.text)}</strong> {escape(self.data)}</p>'
        return {"text/plain": repr(self), "text/html": page}, {KEY: asdict(self)}


def headline(text, *provenances):
    """Show a chapter's main number, and leave it where `./course run` finds it.

    Call it once, in the recap: `headline("test accuracy 78.1 %", data.provenance)`. Name every data set that the number
    rests on; raises TypeError without one. The output's metadata carry `{"text": ..., "data": ..., "real": ...}`.
    """
    from IPython.display import display

    if not provenances:
        raise TypeError("headline() wants the provenance of the data: headline(text, data.provenance)")
    display(Headline(text, "; ".join(map(str, provenances)), all(p.real for p in provenances)))
