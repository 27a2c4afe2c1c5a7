"""The groups of a feed's settings: `bricks`, which keys it has, and `stream`, where its rows go."""

from collections.abc import Mapping
from datetime import date
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from typing_extensions import Self

from ucs_pipeline.bricks.base import LEVELS, BrickClass
from ucs_pipeline.bricks.number import BRICK, NumberBricks
from ucs_pipeline.bricks.partitions import Partitions
from ucs_pipeline.bricks.text import Digit, TextBricks
from ucs_pipeline.bricks.time import TimeBricks, Unit, parsed
from ucs_pipeline.errors import BrickError

Level = Literal["brick", "block", "part", "shard"]

_ONLY: Mapping[str, tuple[str, ...]] = {
    "number": ("width",),
    "time": ("zone", "unit", "settle_s"),
    "text": ("base", "digit", "column"),
}
"""Settings that only one class has."""


class Settings(BaseModel):
    """Settings that refuse unknown names."""

    model_config = ConfigDict(extra="forbid")


class Written(NamedTuple):
    """What YAML may make of a setting. The validator of the setting refuses the rest."""

    kind: Any


_End = Annotated[int | str | None, Written(int | str | float | date | None)]
"""One end of a feed."""


class Bricks(Settings):
    """Which bricks a feed has: the class of its key and the first and last key."""

    # `class` is a Python keyword, so the attribute is `kind` and the setting keeps the standard's word.
    kind: Literal["number", "time", "text"] = Field(
        alias="class",
        description="Class of the key: number (bricks of 10,000 consecutive ids), time (of an hour), or text (of "
        "keys whose md5 has the same four digits).",
    )
    first: _End = Field(
        default=None,
        description="First key of the feed; its brick is the first one. number: an id, 0 if left out. time: an hour "
        "such as 2013-01-01T00, or a day. text: a brick, 0.0.0.0 if left out.",
    )
    last: _End = Field(
        default=None,
        description="Last key of the feed; its brick is the last one. number: an id. time: an hour, or a day with all "
        "its hours. text: a brick, the last possible one if left out.",
    )
    level: Level = Field(
        default="brick",
        description="What a Dagster partition is: a brick, or all bricks of a block, part or shard, named by the "
        "first parts of their names. Entry IDs and their order do not depend on the level.",
    )
    width: int = Field(default=BRICK, ge=1, description="number: ids in a brick.")
    zone: str = Field(
        default="UTC", description="time: the time zone whose hours are the bricks, such as Europe/Berlin."
    )
    unit: Unit = Field(default="s", description="time: what an integer key counts since 1970: s, ms, us or ns.")
    settle_s: float = Field(
        default=60.0, ge=0, description="time: seconds after the end of an hour until its brick is sealed."
    )
    base: Literal[10, 100, 1000] = Field(
        default=10, description="text: number of values of each digit: 10 (0 to 9), 100 (0 to 99) or 1000 (0 to 999)."
    )
    digit: Digit = Field(
        default="sum",
        description="text: how eight hex digits of the md5 become a digit. sum: their sum, as the standard defines "
        "it; uneven above base 10. integer: their value as one number.",
    )
    column: str | None = Field(
        default=None,
        min_length=1,
        description="text: a column or SQL expression that holds the brick's ordinal, so that the table's index can "
        "find a brick.",
    )

    @field_validator("first", "last", mode="before")
    @classmethod
    def _key(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, date):
            # YAML turns date-like text into dates.
            value = value.isoformat()
        if info.data.get("kind") == "number" and isinstance(value, str) and value.isascii() and value.isdecimal():
            value = int(value)
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        if info.data.get("kind") in ("time", "text"):
            if not isinstance(value, str | None):
                raise ValueError("expected text, such as 2013-01-01T00 or 0.0.0.0")
        elif not whole and value is not None:
            raise ValueError("expected an id, an integer greater than or equal to 0")
        return value

    @model_validator(mode="after")
    def _of_its_class(self) -> Self:
        for kind, settings in _ONLY.items():
            for setting in settings:
                if kind != self.kind and getattr(self, setting) != type(self).model_fields[setting].default:
                    raise ValueError(
                        f"bricks.{setting} is for the {kind} class, and bricks.class is {self.kind}. Leave it out."
                    )
        if self.kind != "text" and self.last is None:
            raise ValueError("bricks.last is missing.")
        if self.kind == "time" and self.first is None:
            raise ValueError("bricks.first is missing.")
        return self

    def brick_class(self) -> BrickClass:
        """The class of bricks.

        Raises:
            BrickError: there is no such zone.
        """
        if self.kind == "number":
            return NumberBricks(self.width)
        if self.kind == "text":
            return TextBricks(self.base, self.digit)
        try:
            return TimeBricks(self.zone)
        except BrickError as error:
            raise BrickError(f"bricks.zone: {error}") from None

    def ends(self) -> tuple[int, int]:
        """Ordinals of the class of the first and the last brick.

        Raises:
            BrickError: `first` or `last` is no key of the class.
        """
        bricks = self.brick_class()
        if isinstance(bricks, NumberBricks):
            ids = int(self.first or 0), int(self.last or 0)
            self._refuse_reversed(*ids)
            first, last = (bricks.ordinal_of_name(bricks.get_brick_name(key)) for key in ids)
        elif isinstance(bricks, TimeBricks):
            first, last = _hour(bricks, "first", self.first, 0), _hour(bricks, "last", self.last, 23)
        else:
            first, last = _brick(bricks, "first", self.first or "0.0.0.0"), self.base**4 - 1
            last = last if self.last is None else _brick(bricks, "last", self.last)
        self._refuse_reversed(first, last)
        return first, last

    def _refuse_reversed(self, first: int, last: int) -> None:
        if last < first:
            raise BrickError(f"bricks.last ({self.last}) comes before bricks.first ({self.first or 0}). Swap them.")

    def partitions(self, offset: int) -> Partitions:
        """The bricks and partitions.

        Raises:
            BrickError: the class has no such bricks.
        """
        return Partitions(self.brick_class(), *self.ends(), LEVELS.index(self.level), offset)


class Stream(Settings):
    """The Redis stream a feed writes to."""

    name: str | None = Field(
        default=None, min_length=1, description="Key of the stream in Redis; the feed's name if left out."
    )
    order: Literal["strict", "any"] = Field(
        default="strict",
        description="strict: every entry ID is <brick>-<row>, so the stream is always a prefix of the table in brick "
        "order. any: bricks are published in any order and in parallel, and other clients may write to "
        "the stream; Redis assigns the IDs, and a ledger next to the stream records the published rows.",
    )
    id_offset: int = Field(
        default=0,
        ge=0,
        description="Added to the first half of every entry ID, to continue an existing stream after the entries of a "
        "previous writer, which stay.",
    )
    max_len: int = Field(
        default=10_000_000,
        ge=1,
        description="Entries the stream may hold. `when_full` is what happens at this limit.",
    )
    max_bytes: int | None = Field(
        default=None,
        ge=1,
        description="Bytes of Redis memory the stream may take, in addition to `max_len`. Redis counts about 1 KB for "
        "each pending entry of a consumer group as well.",
    )
    when_full: Literal["wait", "trim_acknowledged", "trim"] = Field(
        default="wait",
        description="wait: until the consumers have trimmed entries. trim_acknowledged: remove the entries that every "
        "consumer group has acknowledged, then wait. trim: remove the oldest entries, read or not.",
    )
    timeout_s: float = Field(
        default=180.0,
        gt=0,
        description="Seconds without progress after which a run that waits for Redis, ClickHouse or free capacity "
        "fails.",
    )
    max_rows_per_second: float | None = Field(
        default=None,
        gt=0,
        description="Rows to publish per second, at most, spread evenly; for replays and back-tests.",
    )
    pace: float | None = Field(
        default=None,
        gt=0,
        description="time: how many times as fast as the clock rows are published, by the times of their keys, such "
        "as 1000; for replays and back-tests.",
    )
    min_replicas: int = Field(
        default=0, ge=0, description="Replicas that must confirm a brick's entries before the brick is materialized."
    )
    shards: int = Field(
        default=1,
        ge=1,
        description="Streams to spread the feed over, for more than one Redis core. Partitions are assigned in turn "
        "to <stream>.0, <stream>.1 and so on. Each stream has an asset of its own, and limits apply to "
        "each stream.",
    )


def _brick(bricks: BrickClass, setting: str, name: object) -> int:
    try:
        return bricks.ordinal_of_name(str(name))
    except BrickError as error:
        raise BrickError(f"bricks.{setting}: {error}") from None


def _hour(bricks: TimeBricks, setting: str, value: object, hour: int) -> int:
    """Ordinal of an hour; of the given one if the value is a day."""
    text = str(value)
    try:
        if text.count(".") == 3:
            return bricks.ordinal_of_name(text)
        moment = parsed(text)
        return bricks.ordinal_of_key(moment.replace(hour=hour) if len(text) == len("2013-01-01") else moment)
    except BrickError as error:
        raise BrickError(f"bricks.{setting}: {error}") from None
    except ValueError:
        raise BrickError(
            f"bricks.{setting}: expected an hour such as 2013-01-01T00, or a day such as 2013-01-01 (found {value!r})."
        ) from None
