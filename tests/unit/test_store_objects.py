"""Objects and the commit protocol."""

import errno
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from damage import flip
from failing_disk import UNREACHABLE, fail_reading
from reasonmill.errors import StoreError
from reasonmill.store.commit import MANIFEST, damaged_files, replace_file
from reasonmill.store.objects import ObjectStore

FILES = {"a.txt": b"alpha", "weights/model.bin": b"\x00\x01\x02"}


def writer(files: Mapping[str, bytes]) -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        for name, data in files.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    return write


def open_store(root: Path, *, write: bool = True) -> ObjectStore:
    for name in ("objects", "tmp"):
        (root / name).mkdir(exist_ok=True)
    return ObjectStore(root / "objects", write=write)


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(tmp_path)


def blake2b(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=32).hexdigest()


def test_an_object_is_named_by_its_manifest_which_lists_every_file(store: ObjectStore, tmp_path: Path) -> None:
    digest = store.put(writer(FILES))
    path = store.path(digest)

    assert path == tmp_path / "objects" / digest
    assert {name: (path / name).read_bytes() for name in FILES} == FILES
    manifest = (path / MANIFEST).read_bytes()
    assert blake2b(manifest) == digest
    assert json.loads(manifest) == [
        {"path": "a.txt", "size": 5, "blake2b": blake2b(b"alpha")},
        {"path": "weights/model.bin", "size": 3, "blake2b": blake2b(b"\x00\x01\x02")},
    ]
    assert store.digests() == [digest]
    assert list((tmp_path / "tmp").iterdir()) == []


def test_equal_content_gives_the_equal_digest_whatever_the_order_of_writing(store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = open_store(tmp_path / "other")
    backwards = dict(reversed(FILES.items()))

    assert store.put(writer(FILES)) == other.put(writer(backwards))


@pytest.mark.parametrize(
    "files",
    [
        {"a.txt": b"alphA", "weights/model.bin": b"\x00\x01\x02"},
        {"b.txt": b"alpha", "weights/model.bin": b"\x00\x01\x02"},
        {"a.txt": b"alpha"},
    ],
    ids=["content", "name", "fewer"],
)
def test_other_content_gives_another_digest(store: ObjectStore, files: dict[str, bytes]) -> None:
    assert store.put(writer(files)) != store.put(writer(FILES))


def test_a_commit_never_overwrites(store: ObjectStore, tmp_path: Path) -> None:
    digest = store.put(writer(FILES))
    before = {path: path.stat().st_ino for path in store.path(digest).rglob("*")}

    assert store.put(writer(FILES)) == digest
    assert {path: path.stat().st_ino for path in store.path(digest).rglob("*")} == before
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("name", ["a.txt", "weights/model.bin", MANIFEST])
def test_a_flipped_bit_is_reported_with_the_file_name(store: ObjectStore, tmp_path: Path, name: str) -> None:
    digest = store.put(writer(FILES))
    flip(store.path(digest) / name)

    with pytest.raises(StoreError, match=name) as caught:
        open_store(tmp_path).path(digest)
    assert caught.value.where == str(tmp_path / "objects" / digest / name)
    assert caught.value.fix


def test_a_missing_and_an_added_file_are_damage(store: ObjectStore, tmp_path: Path) -> None:
    digest = store.put(writer(FILES))
    (store.path(digest) / "weights" / "stray.json").write_text("{}")
    with pytest.raises(StoreError, match=r"weights/stray\.json"):
        open_store(tmp_path).path(digest)

    (tmp_path / "objects" / digest / "a.txt").unlink()
    with pytest.raises(StoreError, match=r"a\.txt"):
        open_store(tmp_path).path(digest)


def incidents_of(store: ObjectStore) -> list[str]:
    """What the store reported, without the random part of quarantined names."""
    told: list[str] = []
    store._incidents.tell(told.append)
    return [re.sub("-[0-9a-f]{8};", ";", line) for line in told]


def test_a_put_takes_the_place_of_a_damaged_equal_object(store: ObjectStore, tmp_path: Path) -> None:
    digest = store.put(writer(FILES))
    flip(store.path(digest) / "a.txt")

    again = open_store(tmp_path)
    assert again.put(writer(FILES)) == digest
    assert open_store(tmp_path).path(digest)
    (kept,) = (tmp_path / "quarantine").iterdir()
    assert (kept / "a.txt").read_bytes() == b"alph`"
    assert incidents_of(again) == [
        f"objects/{digest}/a.txt is damaged and now in quarantine/{digest}; the same object was just rebuilt"
    ]
    assert list((tmp_path / "tmp").iterdir()) == []


def test_an_object_that_is_not_sound_is_told_and_put_aside(store: ObjectStore, tmp_path: Path) -> None:
    digest = store.put(writer(FILES))
    assert store.sound_path(digest, instead="all is well") == store.path(digest)
    for name in FILES:
        flip(store.path(digest) / name)

    again = open_store(tmp_path)
    assert again.sound_path(digest, instead="it is made again") is None
    assert again.sound_path(digest, instead="it is made again") is None
    assert not again.exists(digest)
    assert again.put(writer(FILES)) == digest
    shutil.rmtree(again.path(digest))
    for _ in range(2):
        assert again.sound_path(digest, instead="it is made again") is None
    assert [line.removeprefix(f"objects/{digest}").split(" and ")[0] for line in incidents_of(again)] == [
        "/a.txt is damaged", "/weights/model.bin is damaged", " is missing; it is made again",
    ]  # fmt: skip
    with pytest.raises(StoreError, match="reading only"):
        open_store(tmp_path, write=False).sound_path(digest, instead="nothing")


@pytest.mark.parametrize("mend", ["sound_path", "put", "delete"])
@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("nowhere")], ids=["file", "link"])
def test_what_is_no_directory_in_the_place_of_an_object_is_damage(
    store: ObjectStore, tmp_path: Path, mend: str, make: Callable[[Path], None]
) -> None:
    digest = store.put(writer(FILES))
    shutil.rmtree(store.path(digest))
    make(tmp_path / "objects" / digest)

    again = open_store(tmp_path)
    with pytest.raises(StoreError, match=r"manifest\.json"):
        again.path(digest)
    if mend == "delete":
        again.delete(digest)
        assert not again.exists(digest)
    else:
        if mend == "sound_path":
            assert again.sound_path(digest, instead="the same object was just rebuilt") is None
        assert again.put(writer(FILES)) == digest
        assert open_store(tmp_path).path(digest)
        (kept,) = (tmp_path / "quarantine").iterdir()
        assert not kept.is_dir()
        assert incidents_of(again) == [
            f"objects/{digest}/manifest.json is damaged and now in quarantine/{digest}; "
            "the same object was just rebuilt"
        ]
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("number", UNREACHABLE)
@pytest.mark.parametrize("what", ["all objects", "an object", "a directory of one", "a file"])
def test_what_can_not_be_reached_is_neither_missing_nor_damaged(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, what: str
) -> None:
    path = store.path(store.put(writer(FILES)))
    failing = {"all objects": path.parent, "an object": path, "a directory of one": path / "weights"}
    again = open_store(tmp_path)
    with monkeypatch.context() as patch:
        fail_reading(patch, number, failing.get(what, path / "a.txt"))
        for use in (again.path, again.damaged_files, lambda digest: again.sound_path(digest, instead="it is lost")):
            with pytest.raises(StoreError, match=f"can't be read or written: {os.strerror(number)}") as caught:
                use(path.name)
            assert caught.value.where.startswith(str(path.parent))
    assert incidents_of(again) == []
    assert again.sound_path(path.name, instead="all is well") == path


@pytest.mark.parametrize("name", ["a.txt", "weights", MANIFEST])
def test_a_sector_that_can_not_be_read_is_damage(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    digest = store.put(writer(FILES))
    fail_reading(monkeypatch, errno.EIO, store.path(digest) / name)
    assert open_store(tmp_path).sound_path(digest, instead="it is made again") is None
    assert len(list((tmp_path / "quarantine").iterdir())) == 1


@pytest.mark.parametrize("when", [MANIFEST, "a.txt", "walk"])
def test_an_object_that_is_removed_while_it_is_looked_at_is_no_error(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    path = store.path(store.put(writer(FILES)))

    def remove_first(call: Callable[..., object]) -> Callable[..., object]:
        def opened(name: object, *arguments: object, **options: object) -> object:
            if when == "walk" or Path(str(name)).name == when:
                shutil.rmtree(path, ignore_errors=True)
            return call(name, *arguments, **options)

        return opened

    place = (os, "walk") if when == "walk" else (io, "open")
    monkeypatch.setattr(*place, remove_first(getattr(*place)))
    assert damaged_files(path, path.name) != []


def test_a_link_to_a_directory_that_was_added_is_damage(store: ObjectStore, tmp_path: Path) -> None:
    path = store.path(store.put(writer(FILES)))
    (path / "weights" / "more").symlink_to(tmp_path)
    assert open_store(tmp_path).damaged_files(path.name) == ["weights/more"]


def test_a_deleted_object_is_gone_and_can_be_put_again(store: ObjectStore, tmp_path: Path) -> None:
    digest = store.put(writer(FILES))
    store.delete(digest)

    assert not store.exists(digest)
    assert store.digests() == []
    assert list((tmp_path / "tmp").iterdir()) == []
    with pytest.raises(StoreError, match=digest):
        store.path(digest)
    with pytest.raises(StoreError, match=digest):
        store.delete(digest)
    assert store.put(writer(FILES)) == digest


@pytest.mark.parametrize("digest", ["0" * 64, "../tmp", "", "0" * 63])
def test_an_unknown_digest_is_an_error(store: ObjectStore, digest: str) -> None:
    store.put(writer(FILES))
    assert not store.exists(digest)
    with pytest.raises(StoreError):
        store.path(digest)


def test_only_plain_files_can_be_committed(store: ObjectStore, tmp_path: Path) -> None:
    def link(directory: Path) -> None:
        (directory / "link").symlink_to(tmp_path / "elsewhere")

    for write, message in [(link, "link"), (writer({}), "at least one file"), (writer({MANIFEST: b"[]"}), "manifest")]:
        with pytest.raises(ValueError, match=message):
            store.put(write)
    assert store.digests() == []
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_store_open_for_reading_refuses_to_write(store: ObjectStore, tmp_path: Path) -> None:
    digest = store.put(writer(FILES))
    reader = open_store(tmp_path, write=False)

    assert reader.path(digest) == store.path(digest)
    with pytest.raises(StoreError, match="reading only"):
        reader.put(writer({"b": b"b"}))
    with pytest.raises(StoreError, match="reading only"):
        reader.delete(digest)
    assert reader.digests() == [digest]


def test_replace_file_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    replace_file(path, b"first, and longer")
    replace_file(path, b"second")

    assert path.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [path]
