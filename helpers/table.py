"""A table that reads well in a notebook, in the book and in a terminal."""

import re

from tabulate import tabulate

NUMBER = re.compile(r"[-−+]?[\d,]*\.?\d+(e[-+]?\d+)?( ?%)?(\u00a0±\u00a0[\d.]+)?|nan")


class Table:
    """Rows (dicts with the same keys) shown as Markdown in a notebook and as aligned text elsewhere.

    Integers get thousands separators. Floats are shown as `decimals` says: one number for all columns, or a dict
    from column to number of decimals (3 where it is silent). Columns of numbers, also of numbers in text, stand
    flush right, whatever cells are empty.
    """

    def __init__(self, rows, decimals=3):
        self.rows = list(rows)
        self.decimals = decimals

    def __getitem__(self, column):
        """One column as a list."""
        return [row[column] for row in self.rows]

    def __len__(self):
        return len(self.rows)

    def _text(self, column, value):
        if isinstance(value, bool) or value is None:
            return {True: "yes", False: "no", None: ""}[value]
        if isinstance(value, int):
            return f"{value:,}"
        if isinstance(value, float):
            decimals = self.decimals.get(column, 3) if isinstance(self.decimals, dict) else self.decimals
            return f"{value:,.{decimals}f}"
        return str(value).replace(" ± ", "\u00a0±\u00a0")  # kept on one line

    def _render(self, style):
        head = columns = list(self.rows[0]) if self.rows else []
        body = [[self._text(column, row[column]) for column in columns] for row in self.rows]
        numeric = [
            any(cells) and all(NUMBER.fullmatch(text) for text in cells if text) for cells in zip(*body, strict=True)
        ]
        if style == "pipe":  # a bar would end the cell
            head, *body = [[text.replace("|", r"\|") for text in row] for row in (columns, *body)]
        align = ["right" if is_number else "left" for is_number in numeric]
        return tabulate(body, head, tablefmt=style, colalign=align if body else None, disable_numparse=True)

    def _repr_markdown_(self):
        return self._render("pipe")

    def __repr__(self):
        return self._render("simple")
