"""Messages without sessions: whoever has credit gets the next one, in turn."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable

from dropforge.servicebus.core.numbers import SortedNumbers
from dropforge.servicebus.core.ports import Receiver
from dropforge.servicebus.errors import BrokerError
from dropforge.servicebus.message import Message


class Competing:
    """Which messages wait, by sequence number, and the receivers, the one served longest ago first."""

    __slots__ = ("_hand_over", "_receivers", "_waiting")

    def __init__(self, hand_over: Callable[[int, Receiver], None]) -> None:
        self._hand_over = hand_over
        self._waiting = SortedNumbers()
        self._receivers: OrderedDict[Receiver, None] = OrderedDict()

    def ready(self, message: Message) -> bool:
        """A message waits; whether somebody may take it at once."""
        self._waiting.add(message.sequence)
        return bool(self._receivers)

    def gone(self, message: Message) -> None:
        """A message that waited does not any more."""
        self._waiting.remove(message.sequence)

    def take_all(self) -> list[int]:
        """The numbers of all that waited; none waits any more."""
        numbers = list(self._waiting)
        self._waiting = SortedNumbers()
        return numbers

    def attach(self, receiver: Receiver) -> None:
        self._receivers[receiver] = None

    def detach(self, receiver: Receiver) -> None:
        self._receivers.pop(receiver, None)

    def credited(self, receiver: Receiver) -> bool:
        return receiver in self._receivers and len(self._waiting) > 0

    def pump(self) -> None:
        """Give messages out until none waits or nobody has credit."""
        waiting = self._waiting
        hungry = deque(receiver for receiver in self._receivers if receiver.credit > 0) if waiting else ()
        while hungry and waiting:
            receiver = hungry.popleft()
            self._hand_over(waiting.pop_first(), receiver)
            if receiver in self._receivers:
                self._receivers.move_to_end(receiver)
                if receiver.credit > 0:
                    hungry.append(receiver)

    def close(self, error: BrokerError) -> None:
        """Send all receivers away."""
        receivers = list(self._receivers)
        self._receivers.clear()
        for receiver in receivers:
            receiver.refused(error)
