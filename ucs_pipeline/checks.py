"""A feed's checks in Dagster: on its asset, unpartitioned, run by a job of their own."""

from collections.abc import Iterator, Mapping

import dagster as dg

from ucs_pipeline.errors import UcsError
from ucs_pipeline.feed import BrickFeed
from ucs_pipeline.findings import CHECKS, STREAM_NOT_BEHIND, Finding, findings

SHOWN = 100
"""Offenders shown in a check's table, at most."""


def checks_name(feed: BrickFeed) -> str:
    """Name of the job that runs a feed's checks."""
    return f"{feed.name}_checks"


def check_defs(feed: BrickFeed) -> dg.Definitions:
    """The checks of a feed, the job that runs them and nothing else, and its schedule if the feed asks for one.

    Building them connects to nothing.
    """
    job = dg.define_asset_job(
        checks_name(feed),
        selection=dg.AssetSelection.checks_for_assets(dg.AssetKey(feed.name)),
        description=f"Compares what is recorded of `{feed.name}` with its table and its stream.",
    )
    schedules = []
    if feed.check_schedule is not None:
        about = f"Runs the checks of `{feed.name}`, when its feed says."
        schedules.append(dg.ScheduleDefinition(job=job, cron_schedule=feed.check_schedule, description=about))
    return dg.Definitions(asset_checks=[_checks(feed)], jobs=[job], schedules=schedules)


def _checks(feed: BrickFeed) -> dg.AssetChecksDefinition:
    @dg.multi_asset_check(
        # No feed's name begins like this, and a step may have no other step's name.
        name=f"_{checks_name(feed)}",
        description=f"Compares what is recorded of `{feed.name}` with table `{feed.shown.table}` and stream "
        f"`{feed.stream_name}`.",
        specs=[
            dg.AssetCheckSpec(check.name, asset=dg.AssetKey(feed.name), description=check.description)
            for check in CHECKS
        ],
        # All are worked out together; the UI offers its buttons only for checks that can run by themselves.
        can_subset=True,
    )
    def checks(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        # Heavy imports wait for a run: definitions load in every process.
        from ucs_pipeline.facts import collect
        from ucs_pipeline.overview import overview
        from ucs_pipeline.redis_link import connect_redis
        from ucs_pipeline.source import open_source
        from ucs_pipeline.status import feed_statuses
        from ucs_pipeline.stream import open_stream

        try:
            source = open_source(feed)
            stream = open_stream(feed, connect_redis(feed.stream_name))
            warning = source.warning()
            facts = collect(feed, source, stream, context.instance, held_only=True)
            [status] = feed_statuses([feed], context.instance)
        except UcsError as error:
            # The failure itself is shown behind a stack trace; this line stands by itself in the run's log.
            context.log.error(str(error))
            raise dg.Failure(str(error)) from error
        glance = overview(status, sum(content.rows for content in facts.census.bricks.values()))
        wanted = {key.name for key in context.op_execution_context.selected_asset_check_keys}
        for finding in findings(facts, warning):
            if finding.check.name not in wanted:
                continue
            more = {"overview": _table(glance)} if finding.check is STREAM_NOT_BEHIND else {}
            yield _result(dg.AssetKey(feed.name), finding, more)

    return checks


def _table(glance: Mapping[str, str]) -> dg.TableMetadataValue:
    return dg.MetadataValue.table([dg.TableRecord({"of the feed": name, "now": text}) for name, text in glance.items()])


def _result(asset: dg.AssetKey, finding: Finding, more: Mapping[str, dg.MetadataValue]) -> dg.AssetCheckResult:
    metadata: dict[str, dg.MetadataValue | int | str] = {
        **more,
        **finding.figures,
        "offenders_total": len(finding.offenders) + finding.more,
    }
    if finding.offenders:
        records = [
            dg.TableRecord(dict(zip(finding.columns, offender, strict=True))) for offender in finding.offenders[:SHOWN]
        ]
        kinds = ["int" if isinstance(part, int) else "string" for part in finding.offenders[0]]
        columns = [dg.TableColumn(*column) for column in zip(finding.columns, kinds, strict=True)]
        metadata["offenders"] = dg.MetadataValue.table(records, dg.TableSchema(columns))
    if finding.warning:
        metadata["warning"] = finding.warning
    return dg.AssetCheckResult(
        passed=finding.passed,
        asset_key=asset,
        check_name=finding.check.name,
        severity=dg.AssetCheckSeverity.ERROR if finding.check.serious else dg.AssetCheckSeverity.WARN,
        description=finding.sentence,
        metadata=metadata,
    )
