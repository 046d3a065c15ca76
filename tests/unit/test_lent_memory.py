"""Memory that is lent: what is asked of the driver, in which order, and what is counted. The driver is a stand-in."""

import ctypes
import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from reasonmill import peak_memory
from reasonmill.errors import OutOfMemory, ReasonmillError
from reasonmill.sample.cuda.lent_memory import LentMemory

PAGE, ADDRESS, DEVICE = 2 << 20, 0x7F00_0000_0000, 3


class Driver:
    """Notes calls as (name, numbers), and what they refer to; a card of 16 pages.

    Attributes:
        fails: code of the error, by the name of the call that has it.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.fails: dict[str, int] = {}
        self.free = 16 * PAGE
        self.handles: dict[int, int] = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)

        def call(*arguments: Any) -> int:
            self.calls.append((name, *(getattr(one, "value", one) for one in arguments if not hasattr(one, "_obj"))))
            return self.fails.get(name) or int(getattr(self, f"_{name}", lambda *others: 0)(*arguments))

        return call

    def _cuMemGetAllocationGranularity(self, page: Any, properties: Any, option: int) -> int:
        page._obj.value = PAGE
        return 0

    def _cuMemAddressReserve(self, address: Any, *others: Any) -> int:
        address._obj.value = ADDRESS
        return 0

    def _cuMemCreate(self, handle: Any, size: Any, properties: Any, flags: Any) -> int:
        asked = properties._obj
        assert ctypes.sizeof(asked) == 32  # as of CUDA's header
        assert (asked.type, asked.location.type, asked.location.id, asked.handle_types) == (1, 1, DEVICE, 0)
        if size.value > self.free:
            return 2
        self.free -= size.value
        handle._obj.value = len(self.calls)
        self.handles[len(self.calls)] = size.value
        return 0

    def _cuMemSetAccess(self, address: Any, size: Any, access: Any, count: Any) -> int:
        given = access._obj
        assert ctypes.sizeof(given) == 12
        assert (given.location.type, given.location.id, given.flags) == (1, DEVICE, 3)
        return 0

    def _cuMemRelease(self, handle: Any) -> int:
        self.free += self.handles.pop(handle.value)
        return 0

    def _cuGetErrorString(self, code: int, text: Any) -> int:
        text._obj.value = b"not supported"
        return 0


class Card:
    """What torch says of the card: `used` bytes of its own, the most of them, and calls beside the driver's."""

    used = most = cached = 0


@pytest.fixture
def driver() -> Driver:
    return Driver()


@pytest.fixture
def card(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> Iterator[Card]:
    one = Card()

    def empty_cache() -> None:
        driver.calls.append(("empty_cache",))
        driver.free, one.cached = driver.free + one.cached, 0

    def reset() -> None:
        one.most = one.used

    monkeypatch.setattr(peak_memory, "_beside", peak_memory._Beside())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (driver.free, 16 * PAGE))
    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: driver.calls.append(("synchronize",)))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: one.used)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: one.most)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    yield one
    gc.collect()  # what failed is forgotten while the stand-ins are there


def lent(driver: Driver, size: int = 5 * PAGE - 7) -> LentMemory:
    return LentMemory(size, torch.device("cuda", DEVICE), driver)


def test_addresses_are_reserved_once_and_memory_comes_and_goes_behind_them(driver: Driver, card: Card) -> None:
    memory, size = lent(driver), 5 * PAGE
    handle, *_ = driver.handles
    mapping = [
        ("cuMemCreate", size, 0),
        ("cuMemMap", ADDRESS, size, 0, handle, 0),
        ("cuMemSetAccess", ADDRESS, size, 1),
    ]
    assert driver.calls == [
        ("cuMemGetAllocationGranularity", 0),
        ("cuMemAddressReserve", size, 0, 0, 0),
        *mapping,
    ]
    assert memory.size == size
    assert memory.__cuda_array_interface__ == {
        "shape": (size,), "typestr": "|u1", "data": (ADDRESS, False), "version": 2
    }  # fmt: skip
    driver.calls.clear()
    memory.take()
    assert not driver.calls
    for _ in range(2):
        memory.give_back()
    assert driver.calls == [("synchronize",), ("cuMemUnmap", ADDRESS, size), ("cuMemRelease", handle)]
    assert not memory.is_there
    assert driver.free == 16 * PAGE
    driver.calls.clear()
    memory.take()
    handle, *_ = driver.handles
    assert driver.calls == [mapping[0], ("cuMemMap", ADDRESS, size, 0, handle, 0), mapping[2]]
    driver.calls.clear()
    del memory
    gc.collect()
    assert driver.calls == [
        ("synchronize",),
        ("cuMemUnmap", ADDRESS, size),
        ("cuMemRelease", handle),
        ("cuMemAddressFree", ADDRESS, size),
    ]


def test_what_torch_keeps_is_freed_only_where_it_is_in_the_way(driver: Driver, card: Card) -> None:
    memory = lent(driver)
    memory.give_back()
    driver.free, card.cached = 5 * PAGE, 11 * PAGE
    memory.take()
    assert ("empty_cache",) not in driver.calls
    memory.give_back()
    driver.free, card.cached = 5 * PAGE - 1, 11 * PAGE + 1
    memory.take()
    assert memory.is_there
    assert driver.calls.count(("empty_cache",)) == 1


def test_a_card_without_room_is_an_error_after_which_it_can_be_taken_again(driver: Driver, card: Card) -> None:
    memory = lent(driver)
    memory.give_back()
    driver.free = 4 * PAGE
    with pytest.raises(OutOfMemory, match=r"keys and values take 10 MiB, and of its 32 MiB 8 MiB are free") as caught:
        memory.take()
    assert "max_tokens" in caught.value.fix
    assert not memory.is_there
    driver.free = 5 * PAGE
    memory.take()
    assert memory.is_there


@pytest.mark.parametrize(
    "name", ["cuMemGetAllocationGranularity", "cuMemAddressReserve", "cuMemCreate", "cuMemMap", "cuMemSetAccess"]
)
def test_no_error_of_the_driver_is_passed_over_and_none_leaves_memory_behind(
    name: str, driver: Driver, card: Card
) -> None:
    driver.fails[name] = 801
    with pytest.raises(ReasonmillError, match=rf"refused {name} for \d+ MiB: not supported \(801\)"):
        lent(driver)
    gc.collect()
    assert driver.free == 16 * PAGE
    assert peak_memory.used_bytes("cuda") == 0
    reserved = name not in ("cuMemGetAllocationGranularity", "cuMemAddressReserve")
    assert (("cuMemAddressFree", ADDRESS, 5 * PAGE) in driver.calls) == reserved


def test_the_peak_of_memory_is_that_of_the_fullest_phase_with_what_was_lent_then(driver: Driver, card: Card) -> None:
    peak_memory.begin_peak("cuda")
    memory = lent(driver)
    card.used, card.most = 10, 70  # while it samples
    assert peak_memory.used_bytes("cuda") == 5 * PAGE + 10
    assert peak_memory.peak_bytes("cuda") == 5 * PAGE + 70
    memory.give_back()
    card.used, card.most = 20, 4 * PAGE  # while it learns
    assert peak_memory.used_bytes("cuda") == 20
    assert peak_memory.peak_bytes("cuda") == 5 * PAGE + 70
    card.most = 6 * PAGE
    assert peak_memory.peak_bytes("cuda") == 6 * PAGE
    memory.take()
    card.most = card.used = 30
    assert peak_memory.peak_bytes("cuda") == 6 * PAGE
    peak_memory.begin_peak("cuda")
    assert peak_memory.peak_bytes("cuda") == 5 * PAGE + 30
