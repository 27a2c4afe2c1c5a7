"""A feed's checks in Dagster: on the asset of its stream, unpartitioned, run by a job of their own.

On the feed's own asset they would be part of each launch by hand. Each reads the whole table, and each would fail if
the launch is refused.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress

import dagster as dg

from ucs_pipeline.errors import UcsError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.orchestration.checks.finding import CHECKS, STREAM_NOT_BEHIND, Check, CheckResult
from ucs_pipeline.orchestration.checks.findings import findings, not_behind
from ucs_pipeline.orchestration.names import feed_key, stream_key
from ucs_pipeline.orchestration.resources import resource_keys, stream_address

SHOWN = 100
"""Offenders shown in a check's table, at most."""


def checks_name(feed: Feed) -> str:
    """Name of the job that runs a feed's checks."""
    return f"{feed.name}_checks"


def check_key(feed: Feed, check: Check) -> dg.AssetCheckKey:
    """Key of a check of a feed."""
    # Only any-order feeds share a stream.
    name = f"{feed.name}_{check.name}" if feed.any_order else check.name
    return dg.AssetCheckKey(stream_key(feed), name)


def check_defs(feed: Feed) -> dg.Definitions:
    """The checks of a feed, the job that runs only them, and its schedule if the feed sets one.

    Building them connects to nothing.
    """
    job = dg.define_asset_job(
        checks_name(feed),
        selection=dg.AssetSelection.checks(*(check_key(feed, check) for check in CHECKS)),
        description=f"Compares what is recorded of `{feed.name}` with its table and its stream.",
    )
    schedules = []
    if feed.check_schedule is not None:
        about = f"Runs the checks of `{feed.name}` at the times of `check_schedule`."
        schedules.append(dg.ScheduleDefinition(job=job, cron_schedule=feed.check_schedule, description=about))
    return dg.Definitions(asset_checks=[_checks(feed)], jobs=[job], schedules=schedules)


def _checks(feed: Feed) -> dg.AssetChecksDefinition:
    @dg.multi_asset_check(
        # No feed's name begins like this, and a step may have no other step's name.
        name=f"_{checks_name(feed)}",
        description=f"Compares what is recorded of `{feed.name}` with table `{feed.redacted.table}` and stream "
        f"`{feed.stream_name}`.",
        specs=[
            dg.AssetCheckSpec(
                check_key(feed, check).name,
                asset=stream_key(feed),
                # If both are launched in one run, the feed runs first.
                additional_deps=[feed_key(feed)],
                description=check.description,
            )
            for check in CHECKS
        ],
        # All are calculated together; the UI has buttons only for checks that can run alone.
        can_subset=True,
        required_resource_keys=resource_keys(feed),
    )
    def checks(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        # Imports Arrow and the clients, which definitions do without.
        from ucs_pipeline.orchestration.checks.facts import examine

        try:
            facts, warning, glance = examine(feed, context.instance, context.resources)
        except UcsError as error:
            # The failure is shown with a stack trace; this line is separate in the run's log.
            context.log.error(str(error))
            raise dg.Failure(str(error), metadata={"code": error.code}) from error
        wanted = context.op_execution_context.selected_asset_check_keys
        for finding in findings(facts, warning):
            key = check_key(feed, finding.check)
            if key in wanted:
                more = {"overview": _table(glance)} if finding.check is STREAM_NOT_BEHIND else {}
                yield dg.AssetCheckResult(
                    passed=finding.passed,
                    asset_key=key.asset_key,
                    check_name=key.name,
                    severity=_severity(finding.check),
                    description=finding.message,
                    metadata=_metadata(finding, more),
                )

    return checks


def after_run(
    feed: Feed, instance: dg.DagsterInstance, resources: object, published: int
) -> Iterator[dg.AssetObservation | dg.AssetCheckEvaluation]:
    """The checks that a run evaluates after publishing; none if Redis is down. `published`: rows that it has added."""
    # As above.
    from ucs_pipeline.orchestration.checks.facts import collect_without_table

    with suppress(UcsError):
        facts = collect_without_table(feed, instance, resources)
        finding, key, state = not_behind(facts), check_key(feed, STREAM_NOT_BEHIND), facts.verdict.end
        # An observation, not a materialisation: after that, checks that this run did not evaluate would count as out of
        # date.
        yield dg.AssetObservation(
            key.asset_key,
            metadata={
                "dagster/row_count": state.length,
                "last_id": str(state.top),
                "last_feed": feed.name,
                "published": published,
                "server": stream_address(feed, resources),
            },
        )
        yield dg.AssetCheckEvaluation(
            asset_key=key.asset_key,
            check_name=key.name,
            passed=finding.passed,
            severity=_severity(finding.check),
            description=finding.message,
            metadata=_metadata(finding, {}),
        )


def _severity(check: Check) -> dg.AssetCheckSeverity:
    return dg.AssetCheckSeverity.ERROR if check.serious else dg.AssetCheckSeverity.WARN


def _table(glance: Mapping[str, str]) -> dg.TableMetadataValue:
    return dg.MetadataValue.table([dg.TableRecord({"of the feed": name, "now": text}) for name, text in glance.items()])


def _metadata(finding: CheckResult, more: Mapping[str, dg.MetadataValue]) -> Mapping[str, dg.MetadataValue | int | str]:
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
    if not finding.passed:
        metadata["code"] = finding.check.code
    if finding.warning:
        metadata["warning"] = finding.warning
    return metadata
