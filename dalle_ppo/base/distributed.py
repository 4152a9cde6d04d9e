"""A team of several processes, on torch.distributed: gloo for what is small, NCCL between GPUs."""

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from dalle_ppo.base.team import Result, Team, as_it_is
from dalle_ppo.base.watch import MEETING, SILENCE, Watch, start_watch

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed.device_mesh import DeviceMesh

LONGEST_WAIT = timedelta(hours=1)
"""How long a process waits for one that lives: it may be writing a checkpoint, or asking a slow reward."""
BUCKET = 2**25
"""Numbers that are added up at a time."""


class ProcessTeam(Team):
    """Several processes, each with a device of its own.

    Args:
        rank: number of this process.
        size: number of processes.
        watch: notices a lost process.
    """

    def __init__(self, rank: int, size: int, watch: Watch) -> None:
        super().__init__(rank, size)
        self.watch = watch
        self.tensors: Any = None  # the group that tensors travel in; None is the default one, gloo

    def use_gpus(self) -> None:
        """Tensors travel between the current CUDA devices from now on."""
        import torch.distributed as dist

        self.tensors = self._wait(lambda: dist.new_group(backend="nccl", timeout=LONGEST_WAIT))

    def mesh(self) -> "DeviceMesh":
        """The processes as torch's FSDP2 wants them named."""
        import torch.distributed as dist
        from torch.distributed.device_mesh import DeviceMesh

        group = dist.group.WORLD if self.tensors is None else self.tensors
        return DeviceMesh.from_group(group, "cpu" if self.tensors is None else "cuda")

    def gather(self, value: Any) -> list[Any]:
        import torch.distributed as dist

        received = [None] * self.size
        self._wait(lambda: dist.all_gather_object(received, value))
        return received

    def join(self, part: "Tensor", count: int) -> "Tensor":
        import torch
        import torch.distributed as dist

        if count < self.size:
            return part
        bounds = self.bounds(count)
        lengths = [end - start for start, end in pairwise(bounds)]
        padded = part.new_zeros((max(lengths), *part.shape[1:]))
        padded[: len(part)] = part
        received = [torch.empty_like(padded) for _ in range(self.size)]
        # As bytes, because not every backend knows every dtype.
        outputs = [tensor.view(torch.uint8) for tensor in received]
        self._wait(lambda: dist.all_gather(outputs, padded.view(torch.uint8), group=self.tensors))
        return torch.cat([rows[:length] for rows, length in zip(received, lengths, strict=True)])

    def add_up(self, tensors: Sequence["Tensor"]) -> None:
        bucket: list[Tensor] = []
        for tensor in [*tensors, None]:
            full = sum(t.numel() for t in bucket) >= BUCKET
            if bucket and (tensor is None or full or tensor.dtype != bucket[0].dtype):
                self._add_bucket(bucket)
                bucket = []
            if tensor is not None:
                bucket.append(tensor)

    def send_tensors(
        self, tensors: "dict[str, Tensor] | None", kept: "Callable[[str, Tensor], Tensor]" = as_it_is
    ) -> dict[str, "Tensor"]:
        import torch
        import torch.distributed as dist

        kinds = {name: (t.shape, t.dtype) for name, t in tensors.items()} if self.is_first else None
        kinds = self.gather(kinds)[0]
        received = {}
        for name, (shape, dtype) in kinds.items():
            tensor = tensors[name].contiguous() if self.is_first else torch.empty(shape, dtype=dtype)
            flat = tensor.reshape(-1).view(torch.uint8)
            self._wait(lambda flat=flat: dist.broadcast(flat, src=0))
            received[name] = tensor if self.is_first else kept(name, tensor)
        return received

    def end_if_lost(self, error: BaseException) -> None:
        import torch.distributed as dist

        of_backend = isinstance(error, dist.DistError) or "gloo" in str(error).lower()
        if isinstance(error, RuntimeError) and of_backend:
            self.watch.join(SILENCE + 5)

    def close(self) -> None:
        import torch.distributed as dist

        self._wait(dist.destroy_process_group)

    def _add_bucket(self, bucket: list["Tensor"]) -> None:
        import torch
        import torch.distributed as dist

        flat = torch.cat([tensor.flatten() for tensor in bucket])
        self._wait(lambda: dist.all_reduce(flat, group=self.tensors))
        for tensor, summed in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
            tensor.copy_(summed.view_as(tensor))

    def _wait(self, call: Callable[[], Result]) -> Result:
        try:
            return call()
        except RuntimeError as error:
            # A peer's connection broke. The watch knows why, says it and ends this process.
            self.watch.join(SILENCE + 5)
            raise error


def form_team(rank: int, size: int) -> ProcessTeam:
    """Meets the other processes of a launcher such as torchrun.

    Args:
        rank: number of this process, as the launcher has set it.
        size: number of processes.

    Raises:
        ValueError: they do not come together; names the launcher or what is missing.
    """
    import torch.distributed as dist

    if "MASTER_ADDR" not in os.environ:
        raise ValueError(
            f"started in {size} processes that do not know each other's address (no MASTER_ADDR); start them "
            "with torchrun or accelerate launch, or start one without mpirun"
        )
    try:
        meeting = timedelta(seconds=MEETING)
        store, _, _ = next(dist.rendezvous("env://", rank, size, timeout=meeting))
        watch = start_watch(store, rank, size)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=LONGEST_WAIT)
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"the {size} processes did not come together at {os.environ['MASTER_ADDR']} ({reason}); check "
            "that each was started, and that the machines reach each other"
        ) from None
    return ProcessTeam(rank, size, watch)


def take_device(team: Team, name: str) -> None:
    """Gives each process of a team a GPU of its own, if they are to use GPUs.

    Args:
        team: the processes; a single one keeps its device.
        name: the setting `device`.

    Raises:
        ValueError: a process has no GPU, or NCCL is missing; all processes raise the same one.
    """
    import torch
    import torch.distributed as dist

    if team.size == 1 or name == "cpu":
        return
    if name not in ("auto", "cuda"):
        raise ValueError(
            f"device is {name}; each of {team.size} processes takes a GPU of its own: use cuda or auto"
        )
    place = int(os.environ.get("LOCAL_RANK", team.rank))
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    with_gpu = team.gather((place, found))
    if name == "auto" and not any(count for _, count in with_gpu):
        return
    for rank, (number, count) in enumerate(with_gpu):
        if number >= count:
            raise ValueError(
                f"process {rank} has no GPU of its own: it is number {number} on its machine, which has "
                f"{count}; start as many processes as there are GPUs, or use --device cpu"
            )
    if not all(team.gather(dist.is_nccl_available())):
        raise ValueError(
            "NCCL is missing from this build of torch, and GPUs exchange gradients through it; install a "
            "build for Linux with CUDA, or use --device cpu"
        )
    torch.cuda.set_device(place)
    team.use_gpus()
