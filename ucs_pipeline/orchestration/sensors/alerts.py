"""Alerts about runs that failed and checks that did not pass, posted to a webhook.

Plain sensors with a cursor of their own: Dagster's `run_failure_sensor` advances its cursor when its body fails, and an
alert that the webhook refused would be lost. Here it is sent again at a later tick. An alert may come twice.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import dagster as dg
from dagster import AssetCheckEvaluation, DagsterEventType

from ucs_pipeline.errors import counted
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.orchestration.checks.definitions import check_key, checks_name
from ucs_pipeline.orchestration.checks.finding import CHECKS
from ucs_pipeline.orchestration.names import RANGE_TAGS, feed_key, feeds_in, runs_tag
from ucs_pipeline.orchestration.sensors.webhook import URL_VARIABLE, WebhookError, post, webhook_url

_RUNS_AT_ONCE = 20
"""Most runs that a tick reads."""

_TICK_SECONDS = 20
"""After so long a tick begins no further alert: Dagster ends a tick after a minute, and its cursor would be lost."""

_SECONDS = 30
_LONGEST_TEXT = 2000
_BRICKS_TAG = "ucs/bricks"
_RETRIED_TAG = "dagster/will_retry"

_Change = Literal[DagsterEventType.RUN_FAILURE, DagsterEventType.RUN_SUCCESS]
_FeedsOf = Callable[[dg.DagsterRun], Sequence[str]]


def alert_defs() -> dg.Definitions:
    """The sensors that watch all feeds of a code location, if `UCS_ALERT_WEBHOOK_URL` is set; else nothing."""
    if webhook_url() is None:
        return dg.Definitions()
    failed: _Change = DagsterEventType.RUN_FAILURE
    ended: _Change = DagsterEventType.RUN_SUCCESS
    return dg.Definitions(
        sensors=[
            _sensor("run_failure_alerts", "every run of a feed that fails and is not launched again", failed),
            _sensor("check_failure_alerts", "every check of a feed that does not pass", ended),
        ]
    )


def _names_of(feeds: Sequence[Feed]) -> _FeedsOf:
    """The names of the feeds of a run."""
    names = [feed.name for feed in feeds]
    jobs = {checks_name(feed): feed.name for feed in feeds}
    keys = {feed_key(feed): feed.name for feed in feeds}
    checks = {check_key(feed, check): feed.name for feed in feeds for check in CHECKS}

    def feeds_of(run: dg.DagsterRun) -> list[str]:
        found = {jobs.get(run.job_name), *(name for name in names if runs_tag(name) in run.tags)}
        # A run that never started has no tag of the feed yet, but it has a selection.
        found |= {keys.get(key) for key in run.asset_selection or ()}
        found |= {checks.get(key) for key in run.asset_check_selection or ()}
        return [name for name in names if name in found]

    return feeds_of


def _sensor(name: str, what: str, change: _Change) -> dg.SensorDefinition:
    @dg.sensor(
        name=name,
        description=f"Posts {what} to the webhook in {URL_VARIABLE}.",
        minimum_interval_seconds=_SECONDS,
        # On by default, since the variable is set on purpose.
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        url = webhook_url()
        assert url
        if context.cursor is None:
            newest = context.instance.fetch_run_status_changes(change, limit=1).records
            context.update_cursor(str(newest[0].storage_id if newest else 0))
            return dg.SkipReason(f"skipped: alerts begin with the next run that ends. Next check in {_SECONDS} s.")
        after = dg.RunStatusChangeRecordsFilter(change, after_storage_id=int(context.cursor))
        assert context.repository_def
        assets = context.repository_def.assets_defs_by_key.values()
        feeds_of = _names_of(feeds_in(spec for asset in assets for spec in asset.specs))
        sent, until = 0, time.monotonic() + _TICK_SECONDS
        for record in context.instance.fetch_run_status_changes(after, limit=_RUNS_AT_ONCE, ascending=True).records:
            run = context.instance.get_run_by_id(record.run_id)
            message = alert(context.instance, run, feeds_of(run)) if run else None
            if message is not None:
                if sent and time.monotonic() >= until:
                    return dg.SkipReason(
                        f"skipped: the webhook is slow. {counted(sent, 'alert')} sent. Next check in {_SECONDS} s."
                    )
                try:
                    post(url, message)
                except WebhookError as error:
                    if not sent:
                        raise
                    # A failed tick does not move the cursor, so these would be sent again.
                    return dg.SkipReason(f"skipped: {counted(sent, 'alert')} sent, then: {error}")
                sent += 1
            context.update_cursor(str(record.storage_id))
        found = f"{counted(sent, 'alert')} sent" if sent else "no run or check has failed"
        return dg.SkipReason(f"skipped: {found}. Next check in {_SECONDS} s.")

    return sensor


def alert(instance: dg.DagsterInstance, run: dg.DagsterRun, feeds: Sequence[str]) -> dict[str, Any] | None:
    """The alert about a run that has ended; None if there is none.

    Its `text` is the whole message; the rest is for programs.
    """
    if not feeds:
        return None
    feed, bricks = ", ".join(feeds), _bricks(run)
    error = _error(instance, run) if run.is_failure_or_canceled and run.tags.get(_RETRIED_TAG) != "true" else None
    failed = _failed_checks(instance, run)
    if error is None and not failed:
        return None
    about = f"feed {feed!r}, bricks {bricks}" if bricks else f"feed {feed!r}"
    lines = [] if error is None else [f"{about}: run {run.run_id} failed: {error}"]
    lines += [f"check {check.check_name} ({check.severity.value}) failed: {check.description}" for check in failed]
    return {
        "text": "\n".join(lines)[:_LONGEST_TEXT],
        "feed": feed,
        "bricks": bricks,
        "run_id": run.run_id,
        "error": error and error[:_LONGEST_TEXT],
        "failed_checks": [check.check_name for check in failed],
    }


def _bricks(run: dg.DagsterRun) -> str | None:
    ends = [run.tags.get(tag) for tag in RANGE_TAGS]
    return run.tags.get(_BRICKS_TAG) or ("...".join(map(str, ends)) if all(ends) else run.tags.get("dagster/partition"))


def _error(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str:
    """The error message of a failed step, or else Dagster's message."""
    for record in instance.get_records_for_run(run.run_id, of_type=DagsterEventType.STEP_FAILURE).records:
        event = record.event_log_entry.dagster_event
        data = event.step_failure_data if event else None
        if data and data.user_failure_data and data.user_failure_data.description:
            return data.user_failure_data.description
        if data and data.error:
            # Only the class of an unexpected error: its text may hold secrets, and the alert goes to another service.
            return f"{(data.error.cause or data.error).cls_name}; open the run's log"
    for record in instance.get_records_for_run(run.run_id, of_type=DagsterEventType.RUN_FAILURE).records:
        event = record.event_log_entry.dagster_event
        if event and event.message:
            return event.message
    return "open the run's log"


def _failed_checks(instance: dg.DagsterInstance, run: dg.DagsterRun) -> list[AssetCheckEvaluation]:
    records = instance.get_records_for_run(run.run_id, of_type=DagsterEventType.ASSET_CHECK_EVALUATION).records
    events = [record.event_log_entry.get_dagster_event() for record in records]
    return [event.asset_check_evaluation_data for event in events if not event.asset_check_evaluation_data.passed]
