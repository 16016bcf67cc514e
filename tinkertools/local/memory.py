"""How many tokens go through a model at once: as many as keep the device busy, fewer where memory is scarce."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil
import torch

from tinkertools.errors import EngineError
from tinkertools.local import threads
from tinkertools.reporting import Notify

T = TypeVar("T")

# From here on, more tokens at once are no faster; on a processor, for each of its cores.
_BUSY_TOKENS = {"cpu": 512, "cuda": 16384}
# Fewer are not tried: the weights themselves are too large then.
_FEWEST_TOKENS = 64
# Of what is free, the share that one pass may take; the rest is for logits, gradients on their way, and others.
_SHARE = 0.5


class TokenBudget:
    """The most tokens of a pass. It depends on nothing but the model and the memory that was free at the first one.

    What is computed does not depend on it but for the order of its sums.
    """

    def __init__(self, device: torch.device, notify: Notify) -> None:
        self._device = device
        self._notify = notify
        self._tokens = threads.count(device) * _BUSY_TOKENS.get(device.type, _BUSY_TOKENS["cuda"])
        self._fitted = False

    @property
    def forward(self) -> int:
        """For passes that keep nothing for a gradient."""
        return self._tokens

    def backward(self, measure: Callable[[int], float]) -> int:
        """For passes that keep what a gradient needs; `measure` runs a pass and tells its bytes a token."""
        if not self._fitted:
            room = free_bytes(self._device) * _SHARE / measure(_FEWEST_TOKENS)
            while self._tokens > room and self._tokens > _FEWEST_TOKENS:
                self._tokens //= 2
            self._fitted = True
        return self._tokens

    def within(self, run: Callable[[], T]) -> T:
        """`run`, and again with half of the tokens at once as often as memory runs out.

        `run` must leave nothing behind where it fails.

        Raises:
            EngineError: memory runs out with the fewest tokens too.
        """
        while True:
            try:
                return run()
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if self._tokens <= _FEWEST_TOKENS:
                    raise EngineError(
                        f"out of memory with {self._tokens} tokens at once",
                        hint="use a smaller base model, --max-length or --rank, or a Tinker server",
                    ) from error
            # Outside of `except`: the error holds what was computed.
            self._tokens //= 2
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            self._notify(f"out of memory: the step is repeated with {self._tokens} tokens at once")


def out_of_memory(error: BaseException) -> bool:
    """Whether it says that memory ran out; on a processor torch has no class of its own for that."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def free_bytes(device: torch.device) -> int:
    """What could be allocated now; a container's limit counts."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = int(psutil.virtual_memory().available)
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return max(free, 0)


def saved_bytes(run: Callable[[], object], parameters: frozenset[int]) -> int:
    """The bytes that a pass keeps for its gradient, without those of the parameters, by their storage's address."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()  # noqa: F841 - alive until all is counted: a freed address could be used twice
    return sum(kept.values())
