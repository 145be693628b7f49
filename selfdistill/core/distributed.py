"""What one process must know of the others. Everything here is a no-op in a single process.

Full state from sharded modules and back (FSDP2), so that a checkpoint looks the same whoever wrote it.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number; 0 writes and prints."""
    return dist.get_rank() if size() > 1 else 0


def add(value: Tensor) -> Tensor:
    """The sum over all processes."""
    if size() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def gather(value: Tensor) -> Tensor:
    """Rows of all processes, in rank order; the number of rows may differ between them."""
    if size() == 1:
        return value
    counts = [torch.zeros(1, dtype=torch.int64, device=value.device) for _ in range(size())]
    dist.all_gather(counts, torch.tensor([len(value)], device=value.device))
    longest = int(max(int(c) for c in counts))
    padded = value.new_zeros((longest, *value.shape[1:]))
    padded[: len(value)] = value
    parts = [torch.empty_like(padded) for _ in range(size())]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])


def most(number: int, device: torch.device | str = "cpu") -> int:
    """The largest of the processes' numbers."""
    return int(gather(torch.tensor([number], device=device)).max())


def share(rows: Tensor) -> Tensor:
    """This process's rows of a batch that all processes know: every size-th, starting at its rank."""
    return rows if size() == 1 else rows[rank() :: size()]


def average_(buffers: Iterable[Tensor]) -> None:
    """Make floating buffers (batch statistics) the mean over the processes, each of which saw other rows.

    Without it every process would score and teach with statistics of its own, of which a checkpoint keeps one set.
    Buffers that agree keep their bits.
    """
    if size() == 1:
        return
    floating = [buffer for buffer in buffers if buffer.is_floating_point()]
    if not floating:
        return
    mine = torch.cat([buffer.detach().double().flatten() for buffer in floating])
    rows = [torch.empty_like(mine) for _ in range(size())]
    dist.all_gather(rows, mine)
    mean = rows[0] + torch.stack([row - rows[0] for row in rows]).mean(0)
    mean = torch.where(torch.stack([row == rows[0] for row in rows]).all(0), rows[0], mean)  # infinite entries too
    for buffer, part in zip(floating, mean.split([buffer.numel() for buffer in floating]), strict=True):
        buffer.copy_(part.view_as(buffer))


def is_shard(value: object) -> TypeGuard[DTensor]:
    """Is it a tensor of which each process has a part?

    Without its module there are no sharded tensors; importing it costs half a second.
    """
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def replicated(module: nn.Module, heads: bool = False) -> nn.Module:
    """The module under DDP, with ``heads`` of which some may go unused. `ranks.average_` keeps its buffers together."""
    from torch.nn.parallel import DistributedDataParallel

    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # renamed in 2.13
    option: dict[str, Any] = {name: False, "find_unused_parameters": heads}
    return DistributedDataParallel(module, **option)


def shard(module: nn.Module) -> None:
    """Shard every child that has parameters, then what is left of the module itself (FSDP2).

    Every group is whole only while it computes: what follows the student's weights reads and writes shards.
    """
    from torch.distributed.fsdp import fully_shard

    if is_sharded(module):
        return
    shard_children(module)
    fully_shard(module, reshard_after_forward=True)


def shard_children(module: nn.Module) -> None:
    """Shard the children; a container without a forward of its own (a ModuleList) only passes this on."""
    from torch.distributed.fsdp import fully_shard

    for child in module.children():
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            shard_children(child)
        elif any(True for _ in child.parameters()) and not is_sharded(child):
            fully_shard(child, reshard_after_forward=True)


def shard_layers(module: nn.Module) -> None:
    """Shard every layer of the module's lists of layers, then what is left of it (FSDP2).

    From a forward pass to its backward pass the weights stay whole, so that whoever looks through them between the two
    (a teacher, with other weights in their place or without the adapter) asks nothing of other processes. In the
    backward pass a layer fetches the one before it, and not what was called before it: processes call teachers and
    write completions as often as their own rows need, and would fetch different layers.
    """
    from torch.distributed.fsdp import fully_shard

    layers = [fully_shard(layer, reshard_after_forward=False) for layer in _layers(module)]
    parts = [fully_shard(module, reshard_after_forward=False), *layers]
    for i, part in enumerate(parts):
        part.set_modules_to_backward_prefetch([parts[i - 1]])


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """The entries of the outermost lists."""
    for child in module.children():
        yield from child if isinstance(child, nn.ModuleList) else _layers(child)


@contextlib.contextmanager
def whole(module: nn.Module) -> Iterator[None]:
    """A sharded module's weights in one piece on every process, for as long as it lasts; all processes must enter.

    Its ``state_dict`` is not to be asked for meanwhile: that would shard them again.
    """
    if not is_sharded(module):
        yield
        return
    from torch.distributed.fsdp import FSDPModule

    parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()


def reshard(module: nn.Module) -> None:
    """Leave each process with its part of a sharded module's weights; nothing is communicated."""
    if size() == 1:
        return
    from torch.distributed.fsdp import FSDPModule

    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def is_sharded(module: nn.Module) -> bool:
    """Has FSDP2 taken this module's parameters?"""
    return any(is_shard(parameter) for parameter in module.parameters())


def gathered(tree: Any) -> Any:
    """The same tree with every sharded tensor made whole; all processes must call it."""
    if is_shard(tree):
        return tree.full_tensor()
    if isinstance(tree, dict):
        return {key: gathered(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(gathered(value) for value in tree)
    return tree


def local(value: Tensor) -> Tensor:
    """The part of a tensor that this process has; of a whole one all of it."""
    return value.to_local() if is_shard(value) else value


def shard_like(full: Tensor, example: Tensor) -> Tensor:
    """A whole tensor in parts, as another one is."""
    if is_shard(example) and full.shape == example.shape:
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(full, example.device_mesh, example.placements)
    return full


def load_module(module: nn.Module, state: dict[str, Any]) -> None:
    """``load_state_dict`` from whole tensors, sharding them as the module is sharded."""
    now = module.state_dict()
    module.load_state_dict(
        {name: shard_like(value, now[name]) if name in now else value for name, value in state.items()}
    )


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load whole optimizer state, sharding each tensor as its parameter is sharded."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    sharded = {
        index: {name: shard_like(v, params[index]) if isinstance(v, Tensor) else v for name, v in values.items()}
        for index, values in state["state"].items()
    }
    optimizer.load_state_dict({"state": sharded, "param_groups": state["param_groups"]})
