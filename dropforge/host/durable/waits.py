"""Which external event fulfils which wait, as the host sees it; and where the SDK sees it otherwise.

The host keeps early events in the order of arrival and matches names without regard to case, newest wait first. The
Python SDK matches case-sensitively and hands one early event to every later wait of the same name
(azure-functions-durable-python #507). Where the two differ Azure hangs; the engine behaves the same and says why.
"""

from collections.abc import Sequence

from dropforge.host.durable.actions import Action, ActionType
from dropforge.host.durable.book import Book, Buffered, Wait
from dropforge.host.durable.messages import Message
from dropforge.host.durable.notices import Code, Notice


class Waits:
    """The waits and early events in a book."""

    def __init__(self, book: Book, instance_id: str) -> None:
        self.book = book
        self.notices: list[Notice] = []
        self._instance_id = instance_id

    def hear(self, message: Message) -> None:
        """Gives an event to the newest wait of its name, or keeps it (for the next execution, once this one ended)."""
        key = message.name.casefold()
        for wait in reversed(self.book.waiting if self.book.final is None else ()):
            if wait.name.casefold() == key:
                self.book.waiting.remove(wait)
                self._check_case(message.name, wait.name)
                return
        if any(early.name.casefold() == key for early in self.book.buffered):
            self._notice(
                Code.EVENT_LOST,
                f"a second event '{message.name}' came before the orchestrator waited for one; the Python SDK keeps "
                "only the last of them: give every wait its own event name, or collect events in an entity",
                message.name,
            )
        self.book.buffered.append(Buffered(message.name, message.text))

    def startable(self, top: Sequence[tuple[Action, list[Action]]], ended: bool) -> int:
        """How many top-level actions (each with its leaves) the host starts: none beyond a wait it sees unfulfilled.

        New waits are registered on the way. Sets `book.blocked` when the orchestrator went past such a wait.
        """
        book, cursor = self.book, _Cursor(self.book)
        book.blocked = False
        if not any(leaf.action_type is ActionType.WAIT_FOR_EVENT for _, leaves in top for leaf in leaves):
            return len(top)
        for place, (action, leaves) in enumerate(top):
            waits = [leaf for leaf in leaves if leaf.action_type is ActionType.WAIT_FOR_EVENT]
            if cursor.waits + len(waits) > book.waits_seen:
                for leaf in waits:
                    self._register(leaf.external_event_name)
            done = cursor.passes(action)
            if waits and not done and (ended or place < len(top) - 1):
                self._note_reuse(waits)
                # Held-back actions would be numbered later than the SDK numbers them if a retry moves on meanwhile.
                if not book.retries_open():
                    book.blocked = True
                    return place + 1
        return len(top)

    def _register(self, name: str) -> None:
        book = self.book
        number = book.waits_seen
        book.waits_seen += 1
        early = next((event for event in book.buffered if event.name.casefold() == name.casefold()), None)
        if early is None:
            book.waiting.append(Wait(number, name))
        else:
            book.buffered.remove(early)
            self._check_case(early.name, name)

    def _check_case(self, raised: str, waited: str) -> None:
        if raised != waited:
            self._notice(
                Code.EVENT_NAME_CASE,
                f"event '{raised}' was raised but the orchestrator waits for '{waited}': the names differ in case "
                "only, the host takes them for the same and the Python SDK does not, so this wait never ends",
                raised,
            )

    def _note_reuse(self, waits: list[Action]) -> None:
        names = sorted({wait.external_event_name for wait in waits})
        self._notice(
            Code.EVENT_REUSED,
            f"the orchestrator went past a wait for {names} that no event of its own has fulfilled: the Python SDK "
            "hands one early event to every later wait of that name; the host waits for another one, and the instance "
            "stays Running until it comes: give every wait its own event name",
            ",".join(names),
        )

    def _notice(self, code: Code, message: str, subject: str) -> None:
        self.notices.append(Notice(code, self._instance_id, message, subject))


class _Cursor:
    """Walks the actions in order and tells which the host sees complete."""

    def __init__(self, book: Book) -> None:
        self.numbered = 0
        self.waits = 0
        self._book = book
        self._started = len(book.signatures)
        self._busy = {task.action for task in book.open.values()}

    def passes(self, action: Action) -> bool:
        match action.action_type:
            case ActionType.WHEN_ALL:
                done = [self.passes(child) for child in action.compound_actions]  # all of them: it counts
                return all(done)
            case ActionType.WHEN_ANY:
                done = [self.passes(child) for child in action.compound_actions]
                return any(done) or not done
            case ActionType.WAIT_FOR_EVENT:
                self.waits += 1
                return all(wait.number != self.waits - 1 for wait in self._book.waiting)
            case ActionType.CONTINUE_AS_NEW:
                return True
            case _:
                self.numbered += 1
                if action.action_type is ActionType.SIGNAL_ENTITY:
                    return True
                place = self.numbered - 1
                return place < self._started and place not in self._busy
