"""Shows the dead letters of a queue, sends them again, or drops them.

    python scripts/dead_letters.py show QUEUE
    python scripts/dead_letters.py again QUEUE NUMBER...      # as `show` numbers them; `all`
    python scripts/dead_letters.py drop QUEUE NUMBER...

SERVICE_BUS is the namespace (<name>.servicebus.windows.net), reached as who is signed in, or a connection string. Each letter
is looked at once, so that one that fails again at once is not sent for ever. A killed `again` may send one twice, which does
nothing more.
"""

from __future__ import annotations

import argparse
import os
import sys
import uuid
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from azure.core.exceptions import AzureError

from dropforge.adapters.azure.storage import line_of
from dropforge.domain.errors import BadInput, DropforgeError, Refused

if TYPE_CHECKING:
    from azure.servicebus import ServiceBusClient, ServiceBusMessage, ServiceBusReceivedMessage, ServiceBusReceiver

# A command's message id is its identity and stays. So long the queue drops a second message of that id without a word.
WINDOW = timedelta(minutes=10)
COMMANDS = "commands"
WAIT_SECONDS = 5.0
_PAGE = 100


def letters(receiver: ServiceBusReceiver) -> list[ServiceBusReceivedMessage]:
    """What lies there now, oldest first; nothing is taken."""
    found: list[ServiceBusReceivedMessage] = []
    while page := receiver.peek_messages(_PAGE, sequence_number=(found[-1].sequence_number or 0) + 1 if found else 0):
        found += page
    return found


def settle(
    client: ServiceBusClient, queue: str, chosen: Collection[int] | None, *, again: bool
) -> tuple[list[int], list[int]]:
    """Send the letters of these numbers (None: all that lie there now) again, or only take them away; the numbers of those,
    and of those that did not come, because somebody else holds them. Raises `Refused` for a command that the queue would
    drop for its message id; nothing is sent then."""
    from azure.servicebus import ServiceBusSubQueue

    with client.get_queue_receiver(queue, sub_queue=ServiceBusSubQueue.DEAD_LETTER) as dead:
        here = {each.sequence_number: each for each in letters(dead)}
        wanted = set(here) if chosen is None else set(chosen) & set(here)
        if again and queue == COMMANDS:
            _check_window([here[number] for number in wanted])
        done: list[int] = []
        others: list[ServiceBusReceivedMessage] = []
        # Only so many: what is sent again may be back before this ends.
        while len(done) < len(wanted) and len(done) + len(others) < len(here):
            received = dead.receive_messages(min(_PAGE, len(here)), max_wait_time=WAIT_SECONDS)
            if not received:
                break
            for each in received:
                if each.sequence_number in wanted:
                    if again:
                        with client.get_queue_sender(queue) as sender:
                            sender.send_messages(_copy(each, queue))
                    dead.complete_message(each)
                    done.append(each.sequence_number)
                else:
                    others.append(each)
        for each in others:
            dead.abandon_message(each)
    return sorted(done), sorted(wanted - set(done))


def _check_window(messages: Collection[ServiceBusReceivedMessage]) -> None:
    ready = max((each.enqueued_time_utc + WINDOW for each in messages if each.enqueued_time_utc), default=None)
    if ready is not None and ready > datetime.now(UTC):
        raise Refused(f"the queue would drop one of them as a repetition; try again at {ready:%H:%M:%S} UTC")


def _copy(dead: ServiceBusReceivedMessage, queue: str) -> ServiceBusMessage:
    from azure.servicebus import ServiceBusMessage

    properties = {
        key: value
        for key, value in (dead.application_properties or {}).items()
        if not (key if isinstance(key, bytes) else key.encode()).startswith(b"DeadLetter")
    }
    return ServiceBusMessage(
        b"".join(dead.body),
        # Who takes an event knows it by what it tells; with its old id the queue would drop it for a day.
        message_id=dead.message_id if queue == COMMANDS else str(uuid.uuid4()),
        session_id=dead.session_id,
        content_type=dead.content_type,
        correlation_id=dead.correlation_id,
        reply_to=dead.reply_to,
        reply_to_session_id=dead.reply_to_session_id,
        application_properties=properties,
    )


def _show(client: ServiceBusClient, queue: str) -> None:
    from azure.servicebus import ServiceBusSubQueue

    with client.get_queue_receiver(queue, sub_queue=ServiceBusSubQueue.DEAD_LETTER) as dead:
        for each in letters(dead):
            why = each.dead_letter_error_description or each.dead_letter_reason
            told = f"{each.enqueued_time_utc:%Y-%m-%d %H:%M:%S} id {each.message_id} delivered {each.delivery_count} times: {why}"
            sys.stdout.write(f"{each.sequence_number} {told}\n    {str(each)[:500]}\n")


def _client() -> ServiceBusClient:
    from azure.servicebus import ServiceBusClient

    from dropforge.adapters.azure.identity import credential

    told = os.environ.get("SERVICE_BUS", "")
    if not told:
        raise BadInput("set SERVICE_BUS to the namespace, <name>.servicebus.windows.net, or to a connection string")
    # With one try more the client takes a quarter of a minute to say that there is no such queue.
    if "=" in told:
        return ServiceBusClient.from_connection_string(told, retry_total=2)
    return ServiceBusClient(told, credential(), retry_total=2)


def main(arguments: list[str]) -> int:
    options = argparse.ArgumentParser(prog="dead_letters", description=(__doc__ or "").partition("\n")[0])
    options.add_argument("what", choices=("show", "again", "drop"))
    options.add_argument("queue")
    options.add_argument("numbers", nargs="*", metavar="NUMBER", help="as `show` says them, or `all`")
    given = options.parse_args(arguments)
    try:
        if given.what != "show" and not given.numbers:
            raise BadInput(f"say which to {given.what}: numbers as `show` says them, or `all`")
        chosen = None if given.numbers == ["all"] else {int(each) for each in given.numbers}
        with _client() as client:
            if given.what == "show":
                _show(client, given.queue)
                return 0
            done, left = settle(client, given.queue, chosen, again=given.what == "again")
    except AzureError as error:
        told = "name a queue of the namespace in SERVICE_BUS, as somebody with the roles of docs/operate.md"
        sys.stderr.write(
            f"dead_letters: the queue {given.queue!r} cannot be asked: {line_of(error).rstrip('.')}; {told}\n"
        )
        return 1
    except (DropforgeError, ValueError) as error:
        sys.stderr.write(f"dead_letters: {error}\n")
        return 1
    sys.stdout.write(f"{'sent again' if given.what == 'again' else 'dropped'}: {', '.join(map(str, done)) or 'none'}\n")
    if left:
        told = "somebody else holds them, or has settled them; look again in a minute"
        sys.stderr.write(f"dead_letters: not reached: {', '.join(map(str, left))}; {told}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
