"""Functions that feeds of the tests name as their `transform`."""

import pandas as pd

seen: list[str] = []
"""Types that the columns of the last batch had."""


def words(frame: pd.DataFrame) -> pd.DataFrame:
    """Upper case, a sum, and a text that is missing for every second row."""
    seen[:] = [str(kind) for kind in frame.dtypes]
    return pd.DataFrame(
        {
            "word": frame["word"].str.upper(),
            "twice": frame["id"] * 2,
            "half": frame["id"] / 2,
            "odd": frame["id"].map(lambda n: "odd" if n % 2 else None),
            "at": frame["at"],
            "day": frame["day"],
            "yes": frame["yes"],
        }
    )


def shouted(frame: pd.DataFrame) -> pd.DataFrame:
    """Upper case, and a sum."""
    return pd.DataFrame({"word": frame["word"].str.upper(), "sum": frame["id"] + frame["part"]})


def same(frame: pd.DataFrame) -> pd.DataFrame:
    """What it was given."""
    return frame


def shorter(frame: pd.DataFrame) -> pd.DataFrame:
    """One row too few."""
    return frame.iloc[1:]


def sorted_otherwise(frame: pd.DataFrame) -> pd.DataFrame:
    """The same rows, backwards."""
    return frame.iloc[::-1]


def failing(frame: pd.DataFrame) -> pd.DataFrame:
    """A mistake."""
    return frame[["nothing"]]


def lists(frame: pd.DataFrame) -> pd.DataFrame:
    """Values that are no text."""
    return pd.DataFrame({"list": [[1]] * len(frame)})


def a_number(frame: pd.DataFrame) -> int:
    """No DataFrame."""
    return len(frame)
