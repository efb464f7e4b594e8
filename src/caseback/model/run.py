"""Running a model with reads and edits: plan → taps → values, and nothing silent.

A plan names sites to read and edits to make. Every one of them must have happened when the run ends, or it raises. A
run may stop before a block and start late (the blocks before are skipped and a stored residual is put in), and it
computes only the logits that are asked for. Positions are cut before values are kept.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from caseback.core.errors import SiteError, SiteNotReached
from caseback.model.attention import Attend
from caseback.model.batch import Batch
from caseback.model.edits import Edit, Patch
from caseback.model.hooks import Hooks, clone_unless_grad, refuse_compiled, with_first_tensor
from caseback.model.sites import Site, expand
from caseback.model.taps import Key, Tap, check_supported, tapped

if TYPE_CHECKING:
    from caseback.model.model import Cost, Model

__all__ = ["Run", "Start", "cut", "execute", "paste", "positions", "run"]

Logits = Literal["last", "all"] | None


@dataclass(frozen=True)
class Start:
    """Begin at a block with a stored residual stream instead of the embedding."""

    layer: int
    resid_pre: Float[Tensor, "batch pos d_model"]


@dataclass(frozen=True)
class Run:
    """What a run read: `run["z.9.6@end"]`, and its logits."""

    batch: Batch
    logits: Tensor | None
    """[batch, vocab] at each row's last token, or [batch, pos, vocab], or None where the run stopped early or was not
    asked."""
    values: Mapping[str, Tensor] = field(repr=False)

    def __getitem__(self, site: str | Site) -> Tensor:
        try:
            return self.values[str(site)]
        except KeyError:
            raise SiteError(
                f"this run did not read {str(site)!r}; it read: {', '.join(self.values) or 'nothing'}"
            ) from None

    def patch(self, site: str | Site) -> Patch:
        """The edit that puts this run's value of a site into another run."""
        return Patch(site, self[site])


class _Stop(Exception):  # noqa: N818 - a signal, not an error
    """Raised in a block's pre-hook to end a run early."""


# --- positions ------------------------------------------------------------------------------------------------------------------------


def positions(site: Site, batch: Batch) -> tuple[Tensor, bool] | None:
    """Token indices [batch, n] of a site's position and whether it is one token; None where the position is open."""
    if site.position is None:
        return None
    lengths, first = batch.lengths, batch.mask.long().argmax(dim=1)
    if site.span is None:
        index = -1 if site.position == "end" else int(site.position)
        if bool(((index if index >= 0 else -index - 1) >= lengths).any()):
            raise SiteError(
                f"site {str(site)!r}: position {index} lies outside a prompt of {int(lengths.min())} tokens"
            )
        where = first + index if index >= 0 else batch.last + 1 + index
        return where[:, None], True
    name, inner = site.span
    if name not in batch.spans:
        raise SiteError(
            f"site {str(site)!r}: the batch has no span {name!r}; it has: {', '.join(batch.spans) or 'none'} (or use "
            "a token index, or 'end')"
        )
    start, end = batch.spans[name].unbind(dim=1)
    size = end - start
    if inner is not None:
        if bool(((inner if inner >= 0 else -inner - 1) >= size).any()):
            raise SiteError(
                f"site {str(site)!r}: span {name!r} has only {int(size.min())} tokens in row {int(size.argmin())}"
            )
        return (start + inner if inner >= 0 else end + inner)[:, None], True
    if bool((size != size[0]).any()):
        raise SiteError(
            f"site {str(site)!r}: span {name!r} has {int(size.min())} to {int(size.max())} tokens in this batch; ask "
            f"for one of them, as in '{name}[-1]'"
        )
    return start[:, None] + torch.arange(int(size[0]), device=start.device), False


def _view(value: Tensor, site: Site) -> Tensor:
    """The value with its head chosen and positions on axis 1; a view."""
    is_pattern = site.name == "pattern"
    if site.head is not None:
        value = value.select(1 if is_pattern else 2, site.head)
    return value.movedim(2, 1) if is_pattern and site.head is None else value


def cut(value: Tensor, site: Site, batch: Batch) -> Tensor:
    """The part of a tapped value that a site names. A single token drops the position axis."""
    where = positions(site, batch)
    if where is None:
        return value if site.head is None else value.select(1 if site.name == "pattern" else 2, site.head)
    index, single = where
    chosen = _view(value, site)[torch.arange(len(index), device=index.device)[:, None], index]
    if single:
        return chosen[:, 0]
    return chosen.movedim(1, 2) if site.name == "pattern" and site.head is None else chosen


def paste(value: Tensor, site: Site, batch: Batch, new: Tensor) -> Tensor:
    """A copy of a tapped value with the part that a site names replaced."""
    out = value.clone()
    where = positions(site, batch)
    if where is None:
        (out if site.head is None else out.select(1 if site.name == "pattern" else 2, site.head)).copy_(new)
        return out
    index, single = where
    if single:
        new = new.unsqueeze(1)
    elif site.name == "pattern" and site.head is None:
        new = new.movedim(2, 1)
    _view(out, site)[torch.arange(len(index), device=index.device)[:, None], index] = new
    return out


# --- execution ------------------------------------------------------------------------------------------------------------------------


def execute(
    model: Model,
    batch: Batch,
    taps: Mapping[Key, Tap],
    *,
    logits: Logits = "last",
    stop: int | None = None,
    start: Start | None = None,
    grad: bool = False,
    attend: Attend | None = None,
    given: Mapping[str, Any] | None = None,
) -> Tensor | None:
    """One forward pass with taps; returns the logits asked for. `attend` stands in for the attention function
    (`caseback.model.attention`); `given` are further arguments of the model's forward (`caseback.model.prefix`).

    With `grad` the stream entering the first block that runs is made a leaf, so that taps see tensors with a graph.
    Raises SiteNotReached for a tap that was never called. Hooks sit on the modules themselves, so that runs of one model
    in several threads take turns.
    """
    reached: set[Key] = set()
    kept: list[Tensor] = []
    stopped = False
    first = start.layer if start else 0
    if stop is not None and not first <= stop <= model.n_layers:
        raise SiteError(
            f"cannot stop before block {stop}: the model has blocks 0 to {model.n_layers - 1} ({model.n_layers} stops "
            f"before the final norm), and the run starts at block {first}"
        )
    refuse_compiled(model.hf)
    with model.lock, Hooks() as hooks, torch.set_grad_enabled(grad):
        if start is not None:
            _start_late(model, hooks, start, batch)
        if grad:
            hooks.into(model.blocks[first], lambda value: value.detach().requires_grad_())
        # a block that is passed over is still called: what it would show is not what lies there
        live = {key: tap for key, tap in taps.items() if key[1] is None or key[1] >= first}
        noted = {key: partial(_noted, reached, key, tap, batch.n) for key, tap in live.items()}
        hooks.enter_context(tapped(model, noted, attend))
        if stop is not None:
            hooks.into(
                model.blocks[stop] if stop < model.n_layers else model.module(model.family.final_norm), _raise_stop
            )
        elif logits != "all":
            rows, last = torch.arange(batch.n, device=model.device), batch.last.to(model.device)
            unembed = model.module(model.family.unembed)
            hooks.into(unembed, lambda value: value[rows, last][:, None] if logits == "last" else value[:, :1])
        try:
            arguments = {**model.arguments(batch), "use_cache": bool(given), **(given or {})}
            output = model.hf(**arguments, return_dict=True)
            if logits != "all" and output.logits.shape[1] != 1:
                raise SiteNotReached(
                    f"the unembedding was not cut to one token: {model.family.unembed!r}, as the row of "
                    f"{model.family.name} names it, was not called"
                )
            kept.append(output.logits[:, 0] if logits == "last" else output.logits)
        except _Stop:
            stopped = True
    if missing := [str(Site(*key)) for key in taps if key not in reached]:
        where = f"; the run stopped before block {stop}" if stopped else ""
        begun = f"; the run started at block {start.layer}" if start else ""
        raise SiteNotReached(
            f"the run ended without reaching {', '.join(missing)}{where}{begun}; reached: "
            f"{', '.join(str(Site(*k)) for k in reached) or 'nothing'}"
        )
    model.cost.forwards += batch.n
    return kept[0] if kept and logits is not None else None


def _noted(reached: set[Key], key: Key, tap: Tap, n: int, value: Tensor) -> Tensor:
    reached.add(key)
    if value.ndim == 2:  # OPT and Llama 4 run their MLP on all tokens side by side
        return tap(value.unflatten(0, (n, -1))).flatten(0, 1)
    return tap(value)


def _raise_stop(value: Tensor) -> Tensor:
    raise _Stop


def _start_late(model: Model, hooks: Hooks, start: Start, batch: Batch) -> None:
    """Blocks before `start.layer` pass their input on; the stored residual replaces what reaches that block.
    `model.layers` is not cut: masks are indexed by layer."""
    if not 0 <= start.layer < model.n_layers:
        raise SiteError(f"cannot start at block {start.layer}: the model has blocks 0 to {model.n_layers - 1}")
    if start.resid_pre.shape != (needed := (*batch.ids.shape, model.d_model)):
        raise SiteError(
            f"cannot start at block {start.layer} with a stream of shape {tuple(start.resid_pre.shape)} where the batch "
            f"needs {needed}"
        )
    for block in model.blocks[: start.layer]:
        hooks.instead_of(block, passing(model))
    hooks.into(model.blocks[start.layer], lambda value: start.resid_pre.to(value))


def passing(model: Model, change: Callable[[Tensor], Tensor] | None = None) -> Callable[..., Any]:
    """A forward for a block that does no work: its input, changed or as it is, packed as this family's blocks return
    it."""
    like = model.block_output

    def forward(*args: Any, **kwargs: Any) -> Any:
        value = args[0] if args else kwargs["hidden_states"]
        value = value if change is None else change(value)
        return value if like is None else with_first_tensor(like, value)

    return forward


# --- the public run -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowEdit:
    """An edit of some rows of the batch only (sweeps)."""

    edit: Edit
    rows: slice | None = None
    """None: every row."""


def plan_sites(model: Model, patterns: Sequence[str | Site]) -> list[Site]:
    """All sites the patterns select, each once; raises SiteError or FamilyError for what does not exist."""
    sites: dict[Site, None] = {}
    for pattern in patterns:
        name = pattern.name if isinstance(pattern, Site) else pattern.split(".")[0].split("@")[0]
        check_supported(model, name)
        sites |= dict.fromkeys(expand(pattern, layers=model.site_layers, heads=model.heads))
    return list(sites)


def run(
    model: Model,
    batch: Batch,
    *,
    read: Sequence[str | Site] = (),
    edit: Sequence[Edit | RowEdit] = (),
    logits: Logits = "last",
    stop: int | None = None,
    start: Start | None = None,
) -> Run:
    """Run a batch, read sites (as they are after the edits) and make edits, in the order given where they share a site."""
    batch = batch.to(model.device)
    values: dict[str, Tensor] = {}
    fired: list[int] = []
    taps = _taps(model, batch, plan_sites(model, read), edit, values, fired, keep=clone_unless_grad)
    out = execute(model, batch, taps, logits=logits, stop=stop, start=start)
    _all_fired(model, edit, fired)
    return Run(batch, out, {str(site): values[str(site)] for site in plan_sites(model, read)})


def _edits(model: Model, edit: Sequence[Edit | RowEdit]) -> Iterator[tuple[int, Site, RowEdit]]:
    for number, item in enumerate(edit):
        row = item if isinstance(item, RowEdit) else RowEdit(item)
        for site in plan_sites(model, [row.edit.site]):
            yield number, site, row


def _taps(
    model: Model,
    batch: Batch,
    reads: Sequence[Site],
    edit: Sequence[Edit | RowEdit],
    values: dict[str, Tensor],
    fired: list[int],
    *,
    keep: Callable[[Tensor], Tensor],
) -> dict[Key, Tap]:
    by_key: dict[Key, tuple[list[tuple[int, Site, RowEdit]], list[Site]]] = {}
    for number, site, row in _edits(model, edit):
        by_key.setdefault(site.tap, ([], []))[0].append((number, site, row))
    for site in reads:
        by_key.setdefault(site.tap, ([], []))[1].append(site)
    return {key: partial(_visit, batch, edits, sites, values, fired, keep) for key, (edits, sites) in by_key.items()}


def _visit(
    batch: Batch,
    edits: Sequence[tuple[int, Site, RowEdit]],
    sites: Sequence[Site],
    values: dict[str, Tensor],
    fired: list[int],
    keep: Callable[[Tensor], Tensor],
    value: Tensor,
) -> Tensor:
    """The tap of a plan at one place: its edits in order, then its reads."""
    for number, site, row in edits:
        value = _edited(value, site, row, batch)
        fired.append(number)
    for site in sites:
        values[str(site)] = keep(cut(value, site, batch))
    return value


def _edited(value: Tensor, site: Site, row: RowEdit, batch: Batch) -> Tensor:
    if row.rows is None:
        return paste(value, site, batch, row.edit.new(cut(value, site, batch)))
    out = value.clone()
    part, spans = value[row.rows], {name: ranges[row.rows] for name, ranges in batch.spans.items()}
    rows = Batch(batch.ids[row.rows], batch.mask[row.rows], spans)
    out[row.rows] = paste(part, site, rows, row.edit.new(cut(part, site, rows)))
    return out


def _all_fired(model: Model, edit: Sequence[Edit | RowEdit], fired: list[int]) -> None:
    wanted = [number for number, _, _ in _edits(model, edit)]
    if sorted(fired) != sorted(wanted):
        missing = sorted(
            {
                str((e.edit if isinstance(e, RowEdit) else e).site)
                for i, e in enumerate(edit)
                if fired.count(i) != wanted.count(i)
            }
        )
        raise SiteNotReached(
            f"the edits at {', '.join(missing)} fired {len(fired)} times where {len(wanted)} were planned"
        )


@contextmanager
def counting(model: Model) -> Iterator[Cost]:
    """The cost of what runs inside: forwards and backwards counted in sequences."""
    before = (model.cost.forwards, model.cost.backwards)
    spent = type(model.cost)()
    yield spent
    spent.forwards, spent.backwards = model.cost.forwards - before[0], model.cost.backwards - before[1]


def accepts(model: Model, argument: str) -> bool:
    """Whether the model's forward takes an argument by name."""
    return argument in inspect.signature(model.hf.forward).parameters
