"""One process or many: what a program that may run under `torchrun` needs to know.

`torchrun` starts N copies of a program and tells each its rank. The copies share the work of one
global batch; what must happen once (choosing a folder, training a tokenizer, printing) is done by
the first, and the others wait for its answer.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from run_folder import RunError

T = TypeVar("T")
PATIENCE = timedelta(hours=12)  # preparing a large corpus keeps the others waiting


class ProcessGroup:
    """The processes of one run. As a context manager it joins and leaves them.

    rank: this process's number, 0 … world_size - 1. local_rank: its number on this machine, which
    is also the number of its GPU.
    """

    def __init__(self, *, rank: int = 0, world_size: int = 1, local_rank: int = 0) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} must be at least 0 and below world_size {world_size}")
        self.rank, self.world_size, self.local_rank = rank, world_size, local_rank

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> ProcessGroup:
        """Read what `torchrun` set (RANK, WORLD_SIZE, LOCAL_RANK); without it, one process."""
        if "RANK" not in environment or "WORLD_SIZE" not in environment:
            return cls()
        return cls(
            rank=int(environment["RANK"]),
            world_size=int(environment["WORLD_SIZE"]),
            local_rank=int(environment.get("LOCAL_RANK", "0")),
        )

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def __enter__(self) -> ProcessGroup:
        if self.world_size > 1:
            # This module's functions take the current group as a default argument. Imported later,
            # by whichever library needs it, they would keep the group and its threads alive past
            # destroy_process_group, and the interpreter's end would now and then abort.
            importlib.import_module("torch.distributed.nn.functional")
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, timeout=PATIENCE)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.world_size > 1:
            dist.destroy_process_group()

    def from_first(self, make: Callable[[], T]) -> T:
        """Call `make` in the first process and give its result to all; it must be picklable.

        Where `make` raises, every process raises: the first its own error, the others a RunError
        with the same words.
        """
        if self.world_size == 1:
            return make()
        parcel: list[Any] = [None, None]
        failure: BaseException | None = None
        if self.is_first:
            try:
                parcel[0] = make()
            except BaseException as error:  # the others must not wait for ever; raised again below
                failure = error
                parcel[1] = str(error) or type(error).__name__
        dist.broadcast_object_list(parcel, src=0, device=torch.device("cpu"))
        if failure is not None:
            raise failure
        if parcel[1] is not None:
            raise RunError(parcel[1])
        return parcel[0]

    def device(self, device: torch.device) -> torch.device:
        """This process's own device: GPU number `local_rank` where `device` is a GPU."""
        return torch.device("cuda", self.local_rank) if device.type == "cuda" else device
