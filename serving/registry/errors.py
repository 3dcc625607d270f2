"""What the registry refuses, each with what to do about it."""

from __future__ import annotations


class RegistryError(Exception):
    """Base of all; the message says what is wrong and what to do."""


class Unknown(RegistryError):
    """No task, data set, adapter or rollout of that name."""


class UnknownTask(Unknown):
    pass


class UnknownDataset(Unknown):
    pass


class UnknownAdapter(Unknown):
    pass


class UnknownRollout(Unknown):
    pass


class UnknownObject(Unknown):
    """No log object of that key was ever taken in or learned from."""


class DatasetConflict(RegistryError):
    """The digest is already recorded with other content."""


class AdapterNameReused(RegistryError):
    """The name already stands for other weights, data or terms. Names are never used twice."""


class AdapterInUse(RegistryError):
    """The adapter answers traffic, so its state cannot be changed from beside the route."""


class IllegalState(RegistryError):
    """That state may not follow the present one."""


class RouteInvalid(RegistryError):
    """The route asked for contradicts itself or names an adapter that may not answer."""


class RouteChanged(RegistryError):
    """Somebody changed the route since it was read: read it again and decide again."""


class StaleFence(RegistryError):
    """A newer holder of the task's lease has acted: stop, and change nothing."""


class RolloutChanged(RegistryError):
    """Somebody moved the rollout since it was read: read it again and decide again."""


class RolloutRefused(RegistryError):
    """This adapter may not be rolled out now, or not at all."""


class CannotJoin(RegistryError):
    """Two tasks cannot be one, or one cannot be two, as things stand."""


class NothingToRollBack(RegistryError):
    """The task is already where a rollback would bring it."""


class UnknownKey(Unknown):
    """No API key, or more than one, begins like that."""


class KeyChanged(RegistryError):
    """Somebody changed the key at the same time: look at it and try again."""
