"""Instances kept in memory between episodes, so that an episode need not read and parse its history again."""

from collections import OrderedDict

from dropforge.host.durable.settings import DurableSettings
from dropforge.host.durable.store import Hot, Store


class HotCache:
    """The least recently used go first. Only to be trimmed after a commit, when the store knows all they hold."""

    def __init__(self, store: Store, settings: DurableSettings) -> None:
        self._store = store
        self._settings = settings
        self._kept: OrderedDict[str, Hot] = OrderedDict()
        self._sizes: dict[str, int] = {}
        self._characters = 0

    def get(self, instance_id: str) -> Hot | None:
        """The instance, from memory or from the store; finished ones are not kept."""
        hot = self._kept.get(instance_id)
        if hot is not None:
            self._kept.move_to_end(instance_id)
            return hot
        hot = self._store.load(instance_id)
        if hot is not None and hot.live:
            self.put(hot)
        return hot

    def put(self, hot: Hot) -> None:
        """Keeps the instance and takes note of its size; to be called again when it has grown."""
        self._kept[hot.id] = hot
        size = hot.execution.characters
        self._characters += size - self._sizes.get(hot.id, 0)
        self._sizes[hot.id] = size

    def drop(self, instance_id: str) -> None:
        self._kept.pop(instance_id, None)
        self._characters -= self._sizes.pop(instance_id, 0)

    def __len__(self) -> int:
        return len(self._kept)

    def trim(self) -> None:
        """Keeps the bounds of the settings, by count and by characters of history."""
        settings = self._settings
        while self._kept and (len(self._kept) > settings.hot_executions or self._characters > settings.hot_characters):
            self.drop(next(iter(self._kept)))
