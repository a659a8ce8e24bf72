"""A row that cannot be used, and which one it is."""

from arctic_training.errors import DataError


class RowError(DataError):
    """``row`` counts from 0 in what was being read; whoever knows the file counts on from there."""

    def __init__(self, row: int, what: str) -> None:
        super().__init__(row, what)  # so that it survives the way out of another process
        self.row, self.what = row, what

    def __str__(self) -> str:
        return f"row {self.row + 1}: {self.what}"
