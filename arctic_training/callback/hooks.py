"""Events: methods that call listeners ``pre-<event>`` before they run and ``post-<event>`` after."""

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any, Self, TypeVar

from arctic_training.compatibility.names import EVENTS
from arctic_training.distributed.heartbeat import record_heartbeat
from arctic_training.errors.short_repr import short_repr
from arctic_training.errors.types import RegistryError

F = TypeVar("F", bound=Callable[..., object])
Listener = Callable[..., object]

_EVENT = "__event__"
_EVENTS = "_events"
"""The attribute of an error that holds the events through which it passed."""


def hook(event: str) -> Callable[[F], F]:
    """Marks a method as an event. Overrides stay events; an override that calls ``super()`` calls listeners once.

    A dash in the name of an event, here or where it is listened to, counts as an underscore.
    """
    event = event.replace("-", "_")

    def mark(method: F) -> F:
        pre, post, after = f"pre-{event}", f"post-{event}", f"what follows {event}"

        @functools.wraps(method)
        def announced(self: "Hooked", *args: object, **kwargs: object) -> object:
            if event in self._active_events:
                return method(self, *args, **kwargs)
            self._active_events.add(event)
            record_heartbeat(event)
            try:
                for listener, takes in self._listeners_at(pre):
                    changed = listener(*(self, *args)[:takes])
                    if changed is not None:
                        changed = changed if isinstance(changed, tuple) else (changed,)
                        args = changed + args[len(changed) :]
                value = method(self, *args, **kwargs)
                for listener, takes in self._listeners_at(post):
                    changed = listener(*(self, value)[:takes])
                    value = value if changed is None else changed
                return value
            except Exception as error:
                vars(error).setdefault(_EVENTS, []).append((event, self, args))
                raise
            finally:
                self._active_events.discard(event)
                record_heartbeat(after)

        setattr(announced, _EVENT, event)
        return announced  # type: ignore[return-value]

    return mark


def events_of(error: BaseException) -> list[tuple[str, "Hooked", tuple[Any, ...]]]:
    """Returns the events that ``error`` passed through, the outermost first: name, object, arguments of the call."""
    return list(reversed(vars(error).get(_EVENTS, [])))


class Hooked:
    """Base class of objects whose `hook` methods are events.

    A listener is called with the object and as many of the event's arguments (``pre-``) or its value (``post-``) as
    it takes. A return value other than None replaces them, so a listener may replace a batch, a loss or a model.
    A class states listeners as ``callbacks`` or as methods ``pre_<event>_callback``. Each object has its own list
    ``callbacks``, which starts with those of its classes; `listen` and list methods add to it.
    """

    callbacks: list[tuple[str, Listener]] = ()  # type: ignore[assignment]  # a list would be that of every class
    _active_events: set[str]
    _last_callbacks: list[tuple[str, Listener]]
    """The callbacks from which `_listeners` was built."""
    _listeners: dict[str, list[tuple[Listener, int]]]

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        for attribute, method in list(cls.__dict__.items()):
            inherited = next((getattr(base, attribute) for base in cls.__mro__[1:] if hasattr(base, attribute)), None)
            if hasattr(inherited, _EVENT) and inspect.isfunction(method) and not hasattr(method, _EVENT):
                setattr(cls, attribute, hook(getattr(inherited, _EVENT))(method))
        for stated in cls._own_listeners():
            cls._moment(stated)

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        self = super().__new__(cls)
        self._active_events, self._last_callbacks, self._listeners = set(), [], {}
        classes = (base for base in reversed(cls.__mro__) if issubclass(base, Hooked))
        self.callbacks = [stated for base in classes for stated in base._own_listeners()]
        return self

    @classmethod
    @functools.cache
    def events(cls) -> frozenset[str]:
        """Returns the names of the events of the class."""
        return frozenset(getattr(method, _EVENT) for _, method in inspect.getmembers(cls) if hasattr(method, _EVENT))

    @classmethod
    def _own_listeners(cls) -> list[tuple[str, Listener]]:
        stated = list(cls.__dict__.get("callbacks", ()))
        for attribute, method in cls.__dict__.items():
            when, _, what = attribute.removesuffix("_callback").partition("_")
            if attribute.endswith("_callback") and when in ("pre", "post") and inspect.isfunction(method):
                stated.append((f"{when}-{what}", method))
        return stated

    @classmethod
    def _moment(cls, stated: tuple[str, Listener]) -> str:
        """Returns the ``pre-<event>`` or ``post-<event>`` that is stated. Raises `RegistryError` for an unknown one."""
        pair: object = stated
        if not (isinstance(pair, (tuple, list)) and len(pair) == 2 and isinstance(pair[0], str) and callable(pair[1])):
            raise RegistryError(
                f"{short_repr(pair)} among the callbacks of {cls.__name__}; expected (event, function), "
                "such as ('post-step', function)"
            )
        event = pair[0]
        when, _, what = event.partition("-")
        what, known = what.replace("-", "_"), cls.events()
        if what not in known and (now := EVENTS.get(what)) in known:
            warnings.warn(
                f"the event {what} is {now} here; its former name will be removed", FutureWarning, stacklevel=3
            )
            what = now
        if when not in ("pre", "post") or what not in known:
            raise RegistryError(
                f"{cls.__name__} has no event {event!r}; pre- and post- go with: {', '.join(sorted(known))}"
            )
        return f"{when}-{what}"

    def listen(self, event: str, listener: Listener) -> None:
        """Calls ``listener`` at ``event`` from now on. Raises `RegistryError` when the class has no such event."""
        self.callbacks.append((self._moment((event, listener)), listener))

    def _listeners_at(self, moment: str) -> list[tuple[Listener, int]]:
        """Returns the listeners of ``pre-<event>`` or ``post-<event>`` with the number of arguments that each takes.

        Raises `RegistryError` for an entry of ``callbacks`` that is no listener, or names no event of the class.
        """
        if self._last_callbacks != self.callbacks:  # tuples that are the same are equal without a closer look
            listeners: dict[str, list[tuple[Listener, int]]] = {}
            for stated in self.callbacks:
                listeners.setdefault(self._moment(stated), []).append((stated[1], count_arguments(stated[1])))
            self._last_callbacks, self._listeners = list(self.callbacks), listeners
        return self._listeners.get(moment, [])


def count_arguments(listener: Listener) -> int:
    """Returns the number of positional arguments that a listener takes."""
    parameters = inspect.signature(listener).parameters.values()
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return 100
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
