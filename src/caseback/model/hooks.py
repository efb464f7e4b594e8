"""Hooks that are always taken off again.

Everything caseback attaches to a model's modules goes through one context manager: when it ends, exception or not, the
model is as it was. Three kinds: see or change what goes into a module, what comes out of it, or stand in for its
`forward`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from caseback.core.errors import FamilyError

__all__ = ["Hooks", "first_tensor", "with_first_tensor"]

Visit = Callable[[Tensor], Tensor]


def first_tensor(output: Any) -> Tensor:
    """A block's or an attention's output as a tensor: transformers returns a tensor or a tuple that starts with it, by
    family and version."""
    value = output[0] if isinstance(output, tuple | list) else output
    if not isinstance(value, Tensor):
        raise FamilyError(
            f"a module returned {type(value).__name__} where a tensor was expected; the family's row names the wrong "
            "module"
        )
    return value


def with_first_tensor(output: Any, value: Tensor) -> Any:
    """The same output with its tensor replaced."""
    return (value, *output[1:]) if isinstance(output, tuple | list) else value


# Hooks and taps are partials of module-level functions: a closure would be decorated anew, a millisecond each, under the
# tests' shape checks.


def _entering(visit: Visit, keyword: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if args and isinstance(args[0], Tensor):
        value = visit(args[0])
        return None if value is args[0] else ((value, *args[1:]), kwargs)
    if isinstance(kwargs.get(keyword), Tensor):
        value = visit(kwargs[keyword])
        return None if value is kwargs[keyword] else (args, kwargs | {keyword: value})
    raise FamilyError(
        f"{type(module).__name__} is called without a tensor first and without {keyword!r}: the family's row does "
        "not fit"
    )


def _leaving(visit: Visit, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    old = first_tensor(output)
    value = visit(old)
    return None if value is old else with_first_tensor(output, value)


class Hooks(ExitStack):
    """A stack of hooks. `into`, `out_of` take a function tensor → tensor that returns its argument to change nothing."""

    def into(self, module: nn.Module, visit: Visit, *, keyword: str = "hidden_states") -> None:
        """Visit the first positional argument of a module, or its `keyword` argument."""
        handle = module.register_forward_pre_hook(partial(_entering, visit, keyword), with_kwargs=True)
        self.callback(handle.remove)

    def out_of(self, module: nn.Module, visit: Visit) -> None:
        """Visit the output of a module (its first tensor)."""
        handle = module.register_forward_hook(partial(_leaving, visit))
        self.callback(handle.remove)

    def instead_of(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        """Let `forward` stand in for the module's own (an instance attribute; the class is untouched)."""
        if "forward" in vars(module):
            raise FamilyError(
                f"{type(module).__name__} already has a replaced forward (another tool, or a nested run); undo that "
                "first"
            )
        module.forward = forward
        self.callback(vars(module).pop, "forward")


def refuse_compiled(module: nn.Module) -> None:
    """Raise FamilyError for a module torch.compile has touched: hooks added after compilation never fire
    (pytorch#117758)."""
    compiled = type(module).__name__ == "OptimizedModule" or any(
        getattr(m, "_compiled_call_impl", None) is not None for m in module.modules()
    )
    if compiled:
        raise FamilyError(
            "this model was compiled with torch.compile, and hooks added afterwards never fire; pass the module as "
            "it was before (`model._orig_mod`)"
        )


def module_at(root: nn.Module, path: str) -> nn.Module | None:
    """The submodule at a dotted path ("a|b": the first of the alternatives that exists), or None."""
    for alternative in path.split("|"):
        found: Any = root
        for part in alternative.split("."):
            found = getattr(found, part, None)
            if found is None:
                break
        if isinstance(found, nn.Module):
            return found
    return None


def clone_unless_grad(value: Tensor) -> Tensor:
    """A copy that in-place arithmetic of the model file cannot change (Falcon, Gemma 4); with gradients the very tensor
    is needed."""
    return value if torch.is_grad_enabled() and value.requires_grad else value.clone()
