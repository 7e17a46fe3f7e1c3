"""One run in several processes, a device each, as `accelerate launch` and `torchrun` start them.

The first process is the run: it plans, reads, writes and prints. The others wait; they do with it each stage that trains or
generates much (`together`), and wait again. What ends one of them ends all, and one of them says why.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import wraps
from typing import Any, NoReturn, ParamSpec, TypeVar

from discernment.errors import DiscernmentError, RunError

Asked = ParamSpec("Asked")
Found = TypeVar("Found")

STAGE_LIMIT = timedelta(hours=2)
"""How long a process waits for another within a stage; the first may be writing checkpoints or looking at probe prompts."""
IDLE_LIMIT = timedelta(days=365)
"""How long the others wait for the next stage that trains."""
GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
"""What gloo and NCCL say when another process has ended."""


class _Place:
    """Where this process is: with whom it waits, and whether all are at a stage."""

    waiting: Any = None
    at_a_stage = False


def launched() -> int:
    """How many processes a launcher has started for this run."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def several() -> bool:
    """Whether this process is one of several."""
    return launched() > 1


def sharing() -> int:
    """How many processes do what this one is at: all at a stage that they do together, otherwise one."""
    return launched() if _Place.at_a_stage else 1


def place() -> int:
    """This process's number, from 0."""
    return int(os.environ.get("RANK") or 0) if several() else 0


def is_first() -> bool:
    """Whether this process writes and prints; one that is alone does."""
    return place() == 0


def check_alone(what: str) -> None:
    """Make sure that this is the only process.

    Args:
        what: What cannot be done by several, as it begins a sentence.

    Raises:
        RunError: If there are others.
    """
    if several():
        raise RunError(f"{what} works in one process; start it without `accelerate launch` or `torchrun`.")


def take_part(lead: Callable[[], None]) -> None:
    """Do the run, or wait for its stages and take part in them, whichever this process is for.

    Args:
        lead: What the first process does.

    Raises:
        Exception: What `lead` or a stage raises; in the other processes, that the first has gone.
    """
    import torch.distributed as dist

    _meet()
    if is_first():
        try:
            lead()
        finally:
            if not _Place.at_a_stage:  # where the others would not hear it
                _from_first(None)
    else:
        while (call := _from_first(None)) is not None:
            work, arguments, named = call
            work(*arguments, **named)
            gc.collect()  # the next stage loads another model
    dist.destroy_process_group()


def leave(code: int) -> NoReturn:
    """End this process, one of several, without taking Python down, in which gloo's threads abort it now and then.

    Args:
        code: What it exits with.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def together(work: Callable[Asked, Found]) -> Callable[Asked, Found]:
    """Let all processes do a stage when the first one comes to it; alone, it is done as ever.

    Its arguments are sent to the others, but for one called `progress`. All that it writes, the first has to write
    (`is_first`, `on_first`).
    """

    @wraps(work)
    def enter(*arguments: Asked.args, **named: Asked.kwargs) -> Found:
        if _Place.waiting is None or _Place.at_a_stage:
            return work(*arguments, **named)
        if is_first():
            _from_first(
                (enter, arguments, {name: value for name, value in named.items() if name != "progress"})
            )
        _Place.at_a_stage = True
        found = work(*arguments, **named)
        _from_first(None)  # none is done before all are
        _Place.at_a_stage = False
        return found

    return enter


def is_shared(work: Callable[..., Any]) -> bool:
    """Whether all processes can do a stage together, or there is but one."""
    return not several() or hasattr(work, "__wrapped__")


def check_together() -> None:
    """Make sure that all processes are at the stage that is about to train.

    Raises:
        RunError: If the others wait.
    """
    if not _Place.at_a_stage:
        check_alone("This training")


def on_first(work: Callable[Asked, Found], *arguments: Asked.args, **named: Asked.kwargs) -> Found:
    """Do something in the first process of a stage, and have in all what it gave.

    Args:
        work: What to do; it gives something small.
        *arguments: Its arguments.
        **named: Its named arguments.

    Raises:
        DiscernmentError: In all processes, if it raises that in the first.
    """
    if not _Place.at_a_stage:
        return work(*arguments, **named)
    found: Found | DiscernmentError | None = None
    if is_first():
        try:
            found = work(*arguments, **named)
        except DiscernmentError as error:
            found = error
    found = _from_first(found)
    if isinstance(found, DiscernmentError):
        raise found
    return found


def gathered(what: Found) -> list[Found]:
    """What each process of a stage has, in their order; none in all but the first.

    Args:
        what: What this one has; something small.
    """
    import torch.distributed as dist

    if not _Place.at_a_stage:
        return [what]
    found: list[Any] | None = [None] * launched() if is_first() else None
    dist.gather_object(what, found, dst=0, group=_Place.waiting)
    return found or []


def is_to_tell() -> bool:
    """Whether this process is to say why the run ends: the first that asks is, of those that fail."""
    import torch.distributed as dist

    if not several() or not dist.is_initialized():
        return True
    try:
        store = dist.distributed_c10d._get_default_store()
        return int(store.add("discernment/told", 1)) == 1
    except RuntimeError:  # it went with the first process
        return True


def has_lost_another(error: BaseException) -> bool:
    """Whether an error says that another process has ended."""
    return several() and isinstance(error, RuntimeError) and any(words in str(error) for words in GONE)


def _meet() -> None:
    """Wait until all processes are there, and choose this one's device."""
    import torch
    import torch.distributed as dist
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    # Each process needs the weights for what is done before they are spread over the devices.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    PartialState(cpu=cpu, timeout=STAGE_LIMIT)
    # Beside that of the devices, whose libraries take a long wait for a fault.
    _Place.waiting = dist.new_group(backend="gloo", timeout=IDLE_LIMIT)


def _from_first(what: Any) -> Any:
    """What the first process gives, in all."""
    import torch.distributed as dist

    box = [what]
    dist.broadcast_object_list(box, src=0, group=_Place.waiting)
    return box[0]
