"""What happens to a stream while it is written, at a moment that no other process decides."""

from collections.abc import Callable

from ucs_pipeline.publishing.brick_results import ConfirmedBatch


def at(length: int, happens: Callable[[], object]) -> Callable[[ConfirmedBatch], None]:
    """Something that happens once, when the stream has so many entries.

    It happens in the sending thread: of the rows behind, only what is under way (`sender`) can still arrive.
    """
    waiting = [happens]

    def watch(span: ConfirmedBatch) -> None:
        if waiting and (span.length or 0) >= length:
            waiting.pop()()

    return watch
