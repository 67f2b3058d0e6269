"""Hooks whose work must not be lost when a subclass overrides them."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def essential(hook: F) -> F:
    """Marks a hook that overriding hooks must call with `super()`; see `check_super`."""

    @wraps(hook)
    def marked(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = hook(self, *args, **kwargs)
        self.__dict__.setdefault("_reached", set()).add(hook.__name__)
        return found

    marked.essential = True  # type: ignore[attr-defined]
    return marked  # type: ignore[return-value]


def check_super(cls: type) -> None:
    """Makes the hooks of a class fail when they replace an essential hook and do not call it.

    Called for each subclass, from `__init_subclass__`. The hook may be one of a mixin.
    """
    marked = {name for base in cls.__mro__ for name, hook in vars(base).items() if getattr(hook, "essential", False)}
    for name in marked:
        own = getattr(cls, name)
        if not getattr(own, "essential", False):
            setattr(cls, name, _checked(own, name, cls.__name__))


def _checked(own: Callable[..., Any], name: str, owner: str) -> Callable[..., Any]:
    @wraps(own)
    def checked(self: Any, *args: Any, **kwargs: Any) -> Any:
        reached: set[str] = self.__dict__.setdefault("_reached", set())
        reached.discard(name)
        found = own(self, *args, **kwargs)
        if name not in reached:
            raise TypeError(f"{owner}.{name} replaces a hook that the project needs; call super().{name}(...) in it")
        return found

    checked.essential = True  # type: ignore[attr-defined]
    return checked
