"""Events: announced once, heard by those who listen, never by others."""

from typing import Any

import pytest

from arctic_training.callback.callback import Callback
from arctic_training.callback.hooks import Hooked, hook
from arctic_training.config.sections.base import ComponentConfig
from arctic_training.errors.types import RegistryError


class Host(Hooked):
    def __init__(self) -> None:
        self.heard: list[Any] = []

    @hook("step")
    def step(self, x: int) -> int:
        self.heard.append(x)
        return x

    @hook("create_model")
    def create_model(self) -> tuple[int, int]:
        return (1, 2)


class Child(Host):
    callbacks = [("pre-step", lambda self, x: x + 1), ("post-step", lambda self, value: value * 10)]

    def step(self, x: int) -> int:
        return super().step(x)


def test_an_override_that_calls_super_announces_once() -> None:
    child = Child()
    assert child.step(1) == 20
    assert child.heard == [2]


def test_listeners_stated_as_methods_and_with_a_dash() -> None:
    class Method(Host):
        def pre_step_callback(self, x: int) -> int:
            return x * 3

        callbacks = [("post-create-model", lambda self, value: value[::-1])]

    assert Method().step(2) == 6
    assert Method().create_model() == (2, 1)  # a tuple is one value, not a list of arguments


def test_a_listener_takes_as_much_as_it_wants() -> None:
    host = Host()
    host.listen("pre-step", lambda self: self.heard.append("before"))
    host.listen("post-step", lambda self: self.heard.append("after"))
    assert host.step(5) == 5
    assert host.heard == ["before", 5, "after"]


def test_a_listener_may_want_nothing_at_all() -> None:
    host, calls = Host(), []
    host.listen("pre-step", lambda: calls.append("before"))
    host.listen("post-step", lambda *, more=None: calls.append("after"))
    assert (host.step(5), calls) == (5, ["before", "after"])


@pytest.mark.parametrize("wrong", [Callback(ComponentConfig()), print, "post-step", ("post-step",), ("post-step", 1)])
def test_what_is_no_event_with_a_function_is_refused(wrong: Any) -> None:
    host, message = Host(), "among the callbacks of .*; expected .event, function., such as .'post-step', function."
    host.callbacks.append(wrong)
    with pytest.raises(RegistryError, match=message):
        host.step(1)
    with pytest.raises(RegistryError, match=message):
        type("Wrong", (Host,), {"callbacks": [wrong]})


def test_listening_does_not_leak_into_the_class_or_its_other_objects() -> None:
    first, second = Host(), Host()
    first.listen("pre-step", lambda self, x: x + 1)
    assert (first.step(1), second.step(1), Host().step(1)) == (2, 1, 1)


def test_what_is_appended_to_the_list_of_one_object_is_heard_by_it_alone() -> None:
    class Silent(Hooked):
        @hook("nothing")
        def nothing(self) -> None: ...

    one, other = Child(), Child()
    one.callbacks.append(("post-step", lambda self, value: value + 7))
    one.callbacks += [("pre-step", lambda self, x: x + 1)]
    assert (one.step(1), other.step(1), Child().step(1), Host().step(1)) == (37, 20, 20, 1)
    Silent().nothing()  # a class without such an event is none the wiser
    one.callbacks.pop()
    assert one.step(1) == 27
    with pytest.raises(AttributeError):
        Hooked.callbacks.append(("post-step", print))  # would be of every class


def test_an_appended_callback_with_an_unknown_event_is_refused_at_the_next_one() -> None:
    child = Child()
    child.callbacks.append(("post-stpe", print))
    with pytest.raises(ValueError, match="Child has no event 'post-stpe'; pre- and post- go with: create_model, step"):
        child.step(1)
    assert child.heard == []


@pytest.mark.parametrize("declared", ["one-arg", "one_arg"])
def test_a_dash_and_an_underscore_are_one_spelling(declared: str) -> None:
    class Dashed(Hooked):
        callbacks = [(f"pre-{declared}", lambda self, x: x + 1)]

        @hook(declared)
        def one(self, x: int) -> int:
            return x

        def post_one_arg_callback(self, value: int) -> int:
            return value * 10

    dashed = Dashed()
    for event in ("post-one-arg", "post-one_arg"):
        dashed.listen(event, lambda self, value: value + 1)
        dashed.callbacks.append((event, lambda self, value: value + 1))
    assert (dashed.one(1), Dashed.events()) == (24, {"one_arg"})


def test_an_event_that_fails_can_be_announced_again() -> None:
    host, calls = Host(), []

    def fail_once(self: Host) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("once")

    host.listen("pre-step", fail_once)
    with pytest.raises(ValueError, match="once"):
        host.step(1)
    assert host.step(1) == 1 and len(calls) == 2


def test_a_misspelt_event_is_refused_when_the_class_is_defined() -> None:
    with pytest.raises(ValueError, match="Wrong has no event 'pre-stpe'; pre- and post- go with: create_model, step"):

        class Wrong(Host):
            callbacks = [("pre-stpe", lambda self: None)]


def test_a_callback_listens_with_all_its_methods() -> None:
    class Both(Callback):
        def pre_step(self, trainer: Host, x: int) -> int:
            return x + 100

        def post_step(self, trainer: Host) -> None:
            trainer.heard.append("done")

    host = Host()
    Both(ComponentConfig()).attach(host)
    assert host.step(1) == 101 and host.heard == [101, "done"]


def test_a_callback_with_an_unknown_event_is_refused() -> None:
    class Odd(Callback):
        def pre_nothing(self, trainer: Host) -> None: ...

    with pytest.raises(ValueError, match="no event 'pre-nothing'"):
        Odd(ComponentConfig()).attach(Host())


def test_a_listener_may_name_an_event_by_its_former_name() -> None:
    class Rollouts(Hooked):
        @hook("generate_rollouts")
        def generate_rollouts(self) -> int:
            return 1

    host = Rollouts()
    with pytest.warns(FutureWarning, match="the event answer is generate_rollouts here") as warned:
        host.listen("post-answer", lambda self, value: value + 1)
    assert warned[0].filename == __file__
    assert host.generate_rollouts() == 2

    class Answers(Hooked):
        @hook("answer")
        def answer(self) -> int:
            return 3

    other = Answers()  # an event of its own
    other.listen("post-answer", lambda self, value: value + 1)
    assert other.answer() == 4
