"""`BrickFeed`: the feed as a Dagster component, written in YAML (`type: ucs_pipeline.BrickFeed`) or in Python.

Both reach the same builder, `ucs_pipeline.orchestration.build`.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast, get_origin

import dagster as dg
from pydantic import BaseModel, Field, ValidationError, create_model, model_validator
from pydantic.functional_validators import ModelWrapValidatorHandler
from typing_extensions import Self

from ucs_pipeline.errors import FeedError
from ucs_pipeline.feed import redaction as masking
from ucs_pipeline.feed.error_messages import called, mistake, sentence, shown, texts
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.feed.settings import Written
from ucs_pipeline.feed.yaml_text import TEMPLATE, refuse_misread
from ucs_pipeline.orchestration._dagster import is_valid_cron_string, is_valid_name
from ucs_pipeline.orchestration.build import build_feed
from ucs_pipeline.orchestration.component.scaffold import FeedScaffolder


@dg.scaffold_with(FeedScaffolder)
class BrickFeed(dg.Component, Feed, dg.Resolvable):
    """Moves a ClickHouse table into a Redis stream, brick by brick, exactly once and in order.

    One feed is one partitioned asset: each brick is a partition, and materialising it puts the brick's rows
    into the stream. Raises `FeedError` on settings that cannot work.
    """

    @model_validator(mode="after")
    def _shown_by_dagster(self) -> Self:
        # The assets of shards have names with a number, which are never reserved.
        if self.stream.shards == 1 and not is_valid_name(self.name):
            raise ValueError(
                f"name {self.name!r} is reserved by Dagster. Choose another; stream.name may be {self.name}."
            )
        for setting, cron in (("schedule", self.schedule), ("check_schedule", self.check_schedule)):
            if cron is not None and not is_valid_cron_string(cron):
                raise ValueError(
                    f"{setting} {cron!r} is not a cron schedule. Give minute, hour, day of the month, month and day of "
                    "the week, such as '30 5 * * *'."
                )
        try:
            dg.AssetSpec(self.name, group_name=self.group, owners=self.owners, tags=self.tags)
        except dg.DagsterInvalidDefinitionError as error:
            raise ValueError(f"group, owners or tags: {error}") from None
        return self

    @classmethod
    def model(cls) -> type[BaseModel]:
        """The model of the YAML; errors come as one message."""
        return _checked_model()

    @classmethod
    def resolve_from_yaml(cls, yaml: str, *, scope: Mapping[str, Any] | None = None) -> Self:
        """The feed a YAML text describes.

        Raises:
            FeedError: it describes none.
        """
        try:
            feed: Self = super().resolve_from_yaml(yaml, scope=scope)
        except ValidationError as error:
            raise FeedError(error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")) from None
        try:
            refuse_misread(yaml)
        except FeedError as error:
            raise FeedError(f"{called(feed.name)}: {error}") from None
        return feed

    @classmethod
    def resolve_from_model(cls, context: dg.ResolutionContext, model: BaseModel) -> Self:
        """The feed a YAML file describes, its `{{ templates }}` filled in.

        Raises:
            FeedError: it describes none.
        """
        settings: dict[str, Any] = model.model_dump(exclude_unset=True)
        secrets: set[str] = set()
        try:
            _refuse_misread(context)
            if any(TEMPLATE in text for text in texts(settings)):
                # Jinja's native types are not imported for feeds without.
                from ucs_pipeline.orchestration.component.templates import filled_in

                settings = filled_in(settings, context.scope, secrets)
        except FeedError as error:
            raise FeedError(f"{called(settings.get('name'))}: {error}") from None
        try:
            # All settings are plain data; validated as a whole, they give one message instead of a traceback per level.
            feed = cls(**settings)
        except FeedError as error:
            raise FeedError(masking.hider(secrets - {settings.get("name")})(str(error))) from None
        feed._from_environment = frozenset(secrets)
        return feed

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Definitions of this feed, for Dagster's component loader."""
        others = [feed for feed in context.component_tree.get_all_components(BrickFeed) if feed is not self]
        return build_feed(self, [*others, self])


def _model(settings: type[BaseModel]) -> type[BaseModel]:
    """Settings as YAML has them: each may be a template, so their limits are checked after it is filled in."""
    fields: dict[str, Any] = {}
    for name, field in settings.model_fields.items():
        written: Any = next(
            (mark.kind for mark in field.metadata if isinstance(mark, Written)), field.rebuild_annotation()
        )
        # In Python 3.10 `list[str]` is a type, too.
        if get_origin(written) is None and isinstance(written, type) and issubclass(written, BaseModel):
            written = _model(written)
        about: dict[str, Any] = {"description": field.description}
        if isinstance(field.default, str | int | float | None):
            # Shown in the schema; a default factory is not.
            about["default"] = field.default
        elif not field.is_required():
            about["default_factory"] = field.get_default
        fields[field.alias or name] = (written | str, Field(**about))
    return create_model(f"{settings.__name__}Model", __base__=dg.Model, **fields)


@cache
def _checked_model() -> type[BaseModel]:
    model, wrap = _model(BrickFeed), cast("Any", model_validator(mode="wrap"))
    return create_model(model.__name__, __base__=model, __validators__={"_one_sentence": wrap(_checked)})


def _refuse_misread(context: dg.ResolutionContext) -> None:
    if context.source_position_tree:
        position = context.source_position_tree.position
        file = Path(position.filename)
        # `resolve_from_yaml` handles a text that is in no file.
        if file.is_file():
            refuse_misread(file.read_text(encoding="utf-8"), position.start.line)


def _checked(value: Any, handler: ModelWrapValidatorHandler[BaseModel]) -> BaseModel:
    # Dagster's model allows a template for any type, and so reports each error twice.
    try:
        return handler(value)
    except ValidationError as error:
        if not isinstance(value, Mapping):
            raise mistake(None, f"a feed is a mapping of settings (found {shown(value)}).") from None
        name = value.get("name")
        try:
            BrickFeed(**value)
        except FeedError as wrong:
            raise mistake(name, str(wrong)) from None
        raise mistake(name, sentence(value, error, BrickFeed)) from None
