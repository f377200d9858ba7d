"""LMDB's file format, read page by page with every number checked: a damaged file is a DataError, never a signal.

The lmdb library maps the file and trusts it: a damaged one ends the process (SIGSEGV, SIGBUS, an assertion).
The format is that of LMDB 0.9 (data version 1) on 64-bit little-endian machines: two meta pages, of which the
newer one counts, and B+ trees of branch, leaf and overflow pages. A named database is a tree of its own, kept as a row
of the main one.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import IO, NamedTuple, overload

from ..errors import DataError
from ..files import open_input

_HEADER = struct.Struct("<QHHHH")  # page number, pad, flags, lower, upper
_META = struct.Struct("<IIQQ")  # magic, version, address, map size
_TREE = struct.Struct(
    "<IHHQQQQQ"
)  # pad (page size), flags, depth, branch, leaf, overflow pages, entries, root
_NODE = struct.Struct("<HHHH")  # size or page (low, high), flags or page (top), size of the key
_OVERFLOW = struct.Struct("<QHHI")  # page number, pad, flags, pages
_PAGE_NUMBER = struct.Struct("<Q")

_MAGIC, _VERSION, _NO_PAGE = 0xBEEFC0DE, 1, 2**64 - 1
_BRANCH, _LEAF, _OVERFLOWS = 1, 2, 4
_KINDS = 0x6F  # bits of the page flags that name its kind
_BIG, _NAMED = 1, 2  # node flags: the value is on overflow pages, or is a named database
_REVERSED, _INTEGER_KEYS = 2, 8  # tree flags: keys are compared from their end, or as numbers
_MAX_DEPTH = 32  # LMDB's cursor stack
_COPIED = 1 << 16  # up to this size, one read and a copy are faster than two reads
_LEAST_ROW = 10  # bytes of a row on its page: 2 for its offset, 8 for its head


@cache
def _large_node(length: int) -> struct.Struct:
    """A row's head, its key of some length, and the page of its value."""
    return struct.Struct(f"<HHHH{length}sQ")


def _reverse(key: bytes) -> bytes:
    return key[::-1]


# What sorts the keys of a tree, by its flags. Integer keys are little-endian and of one length.
_ORDERS: dict[int, Callable[[bytes], bytes]] = {0: bytes, _REVERSED: _reverse, _INTEGER_KEYS: _reverse}


class Tree(NamedTuple):
    """A tree of a file (of free pages, or of the main or a named database): its levels, rows and root page."""

    flags: int
    depth: int
    entries: int
    root: int


class Place(NamedTuple):
    """Where a row's value starts in the file, its size in bytes, and whether it is on overflow pages."""

    start: int
    size: int
    is_large: bool


class StoredValue:
    """The bytes of a large value, read from the file where they are asked for."""

    def __init__(self, file: PageFile, place: Place) -> None:
        self._file, self._place = file, place
        head = file.read(place.start - 16, 16 + min(place.size, 64))
        file.check_overflow(place, head)
        self._start, self._block = 0, head[16:]

    def __len__(self) -> int:
        return self._place.size

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> bytes: ...
    def __getitem__(self, index: int | slice) -> int | bytes:
        size = self._place.size
        start, stop = index.indices(size)[:2] if isinstance(index, slice) else (index, index + 1)
        if not self._start <= start <= stop <= self._start + len(self._block):
            length = min(max(stop - start, 64), size - start)
            self._start, self._block = start, self._file.read(self._place.start + start, length)
        part = self._block[start - self._start : stop - self._start]
        return part if isinstance(index, slice) else part[0]


class PageFile:
    """An open data.mdb, in a folder or a file by itself: its rows in key order, and the row under a key.

    ``name`` is that of a database in it, empty for the main one. Raises DataError where it has no such database, and
    where the main one is read and has named ones.

    Nothing is mapped, so a file that is cut short while it is read is a DataError too; and nothing but the file
    descriptor is held, so it can be used by several threads and after a fork.
    """

    def __init__(self, folder: Path, name: str = "") -> None:
        self.folder = folder
        self.path = folder / "data.mdb" if folder.is_dir() else folder
        self._own = f"{folder}: data.mdb" if folder.is_dir() else f"{folder}: the file"
        try:
            self._handle: IO[bytes] = open_input(self.path, buffering=0)
        except OSError as error:
            raise DataError(
                f"{self._own} cannot be read ({error.strerror}); check its permissions"
            ) from error
        self._lock = Lock()
        self.size = os.fstat(self._handle.fileno()).st_size
        self.page_size = 0
        self._read_meta()
        if name:
            self.rows_tree = self._named(name)
        self._check_rows_tree()

    def _read_meta(self) -> None:
        """Take page size, trees and number of pages from the newer meta page, as LMDB does."""
        newest = -1
        for number in (0, 1):
            page = self._read_or_none(number * self.page_size, 16 + _META.size + 2 * _TREE.size + 16)
            if page is None:
                raise self._foreign("its first two pages are missing")
            magic, version, _, self.map_size = _META.unpack_from(page, 16)
            if magic != _MAGIC:
                other = page[12:16] == page[16:20][::-1] or struct.pack("<I", _MAGIC) in page[8:20]
                other = other or struct.pack(">I", _MAGIC) in page[8:20]
                raise self._foreign(
                    "written on another kind of machine; Caffe's are of 64-bit little-endian ones"
                    if other
                    else "its first bytes are not LMDB's"
                )
            if version != _VERSION:
                raise self._foreign(f"format {version}; LMDB 0.9 writes {_VERSION}")
            trees = [_TREE.unpack_from(page, 16 + _META.size + place * _TREE.size) for place in (0, 1)]
            last, transaction = struct.unpack_from("<QQ", page, 16 + _META.size + 2 * _TREE.size)
            page_size = trees[0][0]
            if page_size & (page_size - 1) or not 256 <= page_size <= 65536:
                raise self.damaged(f"a page size of {page_size}")
            if number and page_size != self.page_size:
                raise self.damaged("two page sizes")
            self.page_size = page_size
            if transaction > newest:
                newest, self.last_page = transaction, last
                self.free, self.main = (
                    Tree(flags, depth, entries, root) for _, flags, depth, _, _, _, entries, root in trees
                )
        self.rows_tree = self.main
        needed = (self.last_page + 1) * self.page_size
        if self.size < needed:
            raise DataError(f"{self._own} has {self.size} of {needed} bytes; copy or build it again")

    def _check_rows_tree(self) -> None:
        if self.rows_tree.flags not in _ORDERS:
            raise DataError(
                f"{self.folder}: its keys are sorted otherwise than Caffe's (flags {self.rows_tree.flags:#x}); "
                "build it again with `ilgnet lmdb make`"
            )
        self._order = _ORDERS[self.rows_tree.flags]
        if self.rows_tree.entries > self.size // _LEAST_ROW:
            raise self.damaged(f"{self.rows_tree.entries:,} rows in {self.size:,} bytes")

    def names(self) -> list[str]:
        """The names of the databases in the main one."""
        return [os.fsdecode(name) for name, _ in self._named_trees()]

    def _named_trees(self) -> Iterator[tuple[bytes, Tree]]:
        count = 0
        for page, rows in self._leaves(self.main):
            count += rows
            if count > min(self.main.entries, self.size // _LEAST_ROW):  # pages that point to each other
                raise self.damaged(f"{count:,} rows where it states {self.main.entries:,}")
            for index in range(rows):
                size, flags, start, key = self._node(page, index)
                if flags == _NAMED:
                    if size != _TREE.size or start + size > len(page):
                        raise self.damaged(f"the database {os.fsdecode(key)!r} in it")
                    _, tree_flags, depth, _, _, _, entries, root = _TREE.unpack_from(page, start)
                    yield key, Tree(tree_flags, depth, entries, root)

    def _named(self, name: str) -> Tree:
        for key, tree in self._named_trees():
            if key == os.fsencode(name):
                return tree
        raise DataError(
            f"{self.folder}: has no database {name!r}; {self._choice() or 'it has no named ones'}"
        )

    def _choice(self) -> str:
        """Which databases can be chosen, and how; empty if there are none."""
        names = self.names()
        more = ", ..." if len(names) > 10 else ""
        return (names and f"choose {', '.join(names[:10])}{more} with --db NAME, or as source: DB#NAME") or ""

    def _foreign(self, why: str) -> DataError:
        return DataError(f"{self.folder}: is not an LMDB ({why}); give the folder of data.mdb")

    def damaged(self, what: str) -> DataError:
        """The error for a file whose content contradicts itself."""
        return DataError(f"{self._own} is damaged ({what}); copy or build it again")

    def _read_or_none(self, start: int, size: int) -> bytes | None:
        """``size`` bytes from ``start``, or None if the file ends before."""
        if size > self.size - start:
            return None
        parts = []
        try:
            while size:
                part = self._read_at(start, size)
                if not part:
                    return None
                parts.append(part)
                start, size = start + len(part), size - len(part)
        except OSError as error:
            raise DataError(f"{self._own} cannot be read ({error.strerror}); check the disk") from error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    if hasattr(os, "pread"):

        def _read_at(self, start: int, size: int) -> bytes:
            return os.pread(self._handle.fileno(), size, start)

    else:  # Windows

        def _read_at(self, start: int, size: int) -> bytes:
            with self._lock:
                self._handle.seek(start)
                return self._handle.read(size)

    def read(self, start: int, size: int) -> bytes:
        """``size`` bytes of the file from ``start``. Raises DataError if it ends before."""
        data = self._read_or_none(start, size)
        if data is None:
            raise self.damaged(f"{size:,} bytes at {start:,}, of {self.size:,} in the file")
        return data

    def _page(self, number: int, kind: int) -> tuple[bytes, int]:
        """A branch or leaf page and its number of nodes, at least one."""
        if not 2 <= number <= self.last_page:
            raise self.damaged(f"page {number} of {self.last_page + 1}")
        page = self.read(number * self.page_size, self.page_size)
        own, _, flags, lower, upper = _HEADER.unpack_from(page)
        if own != number or flags & _KINDS != kind:
            raise self.damaged(f"page {number} is not a {'leaf' if kind == _LEAF else 'branch'} of its tree")
        if not 18 <= lower <= upper <= self.page_size or lower % 2:
            raise self.damaged(f"page {number} has no valid number of rows")
        return page, (lower - 16) // 2

    def _node(self, page: bytes, index: int) -> tuple[int, int, int, bytes]:
        """Low 32 bits, flags, the offset after the key, and the key of a page's node."""
        try:
            (at,) = struct.unpack_from("<H", page, 16 + 2 * index)
            low, high, flags, length = _NODE.unpack_from(page, at)
        except struct.error:
            raise self.damaged(f"page {_PAGE_NUMBER.unpack_from(page)[0]}, row {index}") from None
        start = at + 8
        if start + length > len(page):
            raise self.damaged(f"page {_PAGE_NUMBER.unpack_from(page)[0]}, the key of row {index}")
        return low | high << 16, flags, start + length, page[start : start + length]

    def _row(self, page: bytes, index: int) -> tuple[bytes, Place]:
        """Key of a leaf's row, and where its value is. Overflow pages are not read."""
        size, flags, start, key = self._node(page, index)
        (page_number,) = _PAGE_NUMBER.unpack_from(page)
        if flags == 0:
            if start + size > len(page):
                raise self.damaged(f"page {page_number}, the value of row {index}")
            return key, Place(page_number * self.page_size + start, size, False)
        if flags == _NAMED:
            raise DataError(f"{self.folder}: holds several databases; {self._choice()}")
        if flags != _BIG or start + 8 > len(page):
            raise self.damaged(f"page {page_number}, the flags of row {index}")
        (number,) = _PAGE_NUMBER.unpack_from(page, start)
        pages = -(-(16 + size) // self.page_size)
        if not 2 <= number <= self.last_page + 1 - pages:
            raise self.damaged(f"page {number} of {self.last_page + 1}")
        return key, Place(number * self.page_size + 16, size, True)

    def check_overflow(self, place: Place, header: bytes = b"") -> None:
        """Raise DataError unless a large value is where its row says; ``header`` is that of its page, if read."""
        self.check_overflows([place], header[:16] or self.read(place.start - 16, 16))

    def check_overflows(self, places: Sequence[Place], headers: bytes) -> None:
        """Check the headers of several large values, 16 bytes each, as `check_overflow`."""
        for place, (number, _, flags, pages) in zip(places, _OVERFLOW.iter_unpack(headers), strict=True):
            expected = place.start // self.page_size
            if number != expected or flags & _KINDS != _OVERFLOWS or pages * self.page_size < 16 + place.size:
                raise self._not_overflow(expected, place)

    def _not_overflow(self, page: int, place: Place) -> DataError:
        return self.damaged(f"page {page} does not hold a value of {place.size:,} bytes")

    def value(self, place: Place) -> bytes:
        """The bytes of a row's value."""
        if not place.is_large:
            return self.read(place.start, place.size)
        if place.size > _COPIED:
            self.check_overflow(place)
            return self.read(place.start, place.size)
        data = self.read(place.start - 16, 16 + place.size)
        self.check_overflow(place, data)
        return data[16:]

    def _leaves(self, tree: Tree) -> Iterator[tuple[bytes, int]]:
        """The leaf pages of a tree in order, with their numbers of rows."""
        if tree.root == _NO_PAGE:
            return
        if not 1 <= tree.depth <= _MAX_DEPTH:
            raise self.damaged(f"a tree of {tree.depth} levels")
        stack = [iter((tree.root,))]
        while stack:
            number = next(stack[-1], None)
            if number is None:
                stack.pop()
            elif len(stack) == tree.depth:
                yield self._page(number, _LEAF)
            else:
                page, count = self._page(number, _BRANCH)
                stack.append(iter([self._child(page, index) for index in range(count)]))

    def _child(self, page: bytes, index: int) -> int:
        low, high, _, _ = self._node(page, index)
        return low | high << 32

    def _page_rows(self, page: bytes, count: int) -> list[tuple[bytes, Place]]:
        """The rows of a leaf page, as `_row` reads each.

        Large values under keys of one length, which most databases hold, take one call of struct per row here.
        """
        found: list[tuple[bytes, Place]] = []
        page_size, most, length = self.page_size, self.last_page + 1, -1
        node = _NODE
        for index, at in enumerate(struct.unpack_from(f"<{count}H", page, 16)):
            try:
                low, high, flags, own_length, key, number = node.unpack_from(page, at)
                size = low | high << 16
                is_usual = own_length == length and flags == _BIG
                is_usual = is_usual and 2 <= number <= most + (-16 - size) // page_size
            except (ValueError, struct.error):  # the first row, or one at the end of its page
                is_usual = False
            if is_usual:
                found.append((key, Place(number * page_size + 16, size, True)))
                continue
            found.append(self._row(page, index))
            length = len(found[-1][0])
            node = _large_node(length)
        return found

    def _pages(self) -> Iterator[tuple[bytes, list[tuple[bytes, Place]]]]:
        """Every leaf page in key order, with its rows' keys and where their values are.

        Raises DataError if the keys are not in order or are not as many as the file states: that also ends the
        walk of pages that point to each other.
        """
        last, count, order = b"", 0, self._order
        for page, length in self._leaves(self.rows_tree):
            rows = self._page_rows(page, length)
            for key, _ in rows:
                own = key if order is bytes else order(key)
                if own <= last and count:
                    raise self.damaged(f"page {_PAGE_NUMBER.unpack_from(page)[0]}, keys out of order")
                last, count = own, count + 1
            yield page, rows
        if count != self.rows_tree.entries:
            raise self.damaged(f"{count:,} rows where it states {self.rows_tree.entries:,}")

    def _rows(self) -> Iterator[tuple[bytes, Place, bytes]]:
        """Every row in key order: its key, where its value is, and its page."""
        return ((key, place, page) for page, rows in self._pages() for key, place in rows)

    def places(self) -> Iterator[tuple[bytes, Place]]:
        """Every key in order and where its value is, which is not read."""
        return chain.from_iterable(rows for _, rows in self._pages())

    def headed(self) -> Iterator[tuple[bytes, bytes | StoredValue]]:
        """Every row in key order; a large value is read from the file only where it is asked for."""
        for key, place, page in self._rows():
            yield key, StoredValue(self, place) if place.is_large else self._stored(page, place)

    def rows(self) -> Iterator[tuple[bytes, bytes]]:
        """Every row in key order."""
        for key, place, page in self._rows():
            yield key, self.value(place) if place.is_large else self._stored(page, place)

    def _stored(self, page: bytes, place: Place) -> bytes:
        start = place.start % self.page_size
        return page[start : start + place.size]

    def get(self, key: bytes) -> bytes | None:
        """The value under a key, or None."""
        tree = self.rows_tree
        if tree.root == _NO_PAGE:
            return None
        if not 1 <= tree.depth <= _MAX_DEPTH:
            raise self.damaged(f"a tree of {tree.depth} levels")
        number = tree.root
        for _ in range(tree.depth - 1):
            page, count = self._page(number, _BRANCH)
            # The first key of a branch is not stored: it stands for all below the second.
            number = self._child(page, max(self._search(page, count, key, 1) - 1, 0))
        page, count = self._page(number, _LEAF)
        index = self._search(page, count, key, 0) - 1
        if index < 0:
            return None
        found, place = self._row(page, index)
        return self.value(place) if found == key else None

    def _search(self, page: bytes, count: int, key: bytes, first: int) -> int:
        """The number of nodes of a page, from ``first`` on, up to and including ``key``."""
        low, high = first, count
        while low < high:
            middle = (low + high) // 2
            if self._order(self._node(page, middle)[3]) <= self._order(key):
                low = middle + 1
            else:
                high = middle
        return low

    def close(self) -> None:
        self._handle.close()


class _PageAudit(PageFile):
    """A file whose pages are recorded as they are visited: no page may have two uses."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._used = bytearray(self.last_page + 1)

    def _use(self, number: int, pages: int = 1) -> None:
        if any(self._used[number : number + pages]):
            raise self.damaged(f"page {number} is used twice")
        self._used[number : number + pages] = bytes([1]) * pages

    def _page(self, number: int, kind: int) -> tuple[bytes, int]:
        page = super()._page(number, kind)
        self._use(number)
        return page

    def _page_rows(self, page: bytes, count: int) -> list[tuple[bytes, Place]]:
        return [self._row(page, index) for index in range(count)]

    def _row(self, page: bytes, index: int) -> tuple[bytes, Place]:
        key, place = super()._row(page, index)
        if place.is_large:
            self.check_overflow(place)
            first, last = place.start // self.page_size, (place.start + place.size - 1) // self.page_size
            self._use(first, last + 1 - first)
        return key, place

    def check(self) -> None:
        for _ in self.places():
            pass
        count = 0
        for page, rows in self._leaves(self.free):
            for index in range(rows):
                self._free_pages(self.value(self._row(page, index)[1]))
                count += 1
        if count != self.free.entries or self.free.flags != _INTEGER_KEYS:
            raise self.damaged("the tree of free pages")

    def _free_pages(self, numbers: bytes) -> None:
        """Check one list of free pages: its length, then page numbers from the last to the first."""
        listed = [number for (number,) in _PAGE_NUMBER.iter_unpack(numbers[: len(numbers) // 8 * 8])]
        if not listed or len(listed) <= listed[0]:
            raise self.damaged("a list of free pages")
        previous = self.last_page + 1
        for number in listed[1 : listed[0] + 1]:
            if not 2 <= number < previous:
                raise self.damaged("a list of free pages")
            self._use(number)
            previous = number


def check_pages(folder: Path) -> None:
    """Walk every page of a database before it is written to. Raises DataError if it is damaged."""
    file = _PageAudit(folder)
    try:
        file.check()
    finally:
        file.close()
