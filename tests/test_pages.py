"""The kernel's pages: when they are kept, when they are dropped. What it comes to: test_mount.py"""

from __future__ import annotations

import threading
import time

import pytest

from lmfs import pages as module
from lmfs.pages import PageCache, Seen, Use, Version


class Files:
    """Files by name, and handles of them; a list of what was dropped."""

    def __init__(self):
        self.by_name = {}
        self.handles = {}
        self.dropped = []
        self.in_drop = lambda name: None

    def put(self, name, *version, links=1):
        self.by_name[name] = Seen(Version(*version), links)

    def look(self, name, handle):
        if handle is not None:
            name = self.handles[handle]
        if name not in self.by_name:
            raise FileNotFoundError(name)
        return self.by_name[name]

    def drop(self, name):
        self.in_drop(name)
        self.dropped.append(name)


@pytest.fixture
def files():
    return Files()


@pytest.fixture
def pages(files, monkeypatch):
    monkeypatch.setattr(module, "LOOK_SECONDS", 3600)
    pages = PageCache(files.look, files.drop)
    pages.start()
    yield pages
    pages.close()


def settle(pages):
    """What is to be dropped is dropped."""
    done = threading.Event()
    pages._to_drop.put(("settled", done))
    assert done.wait(5)


@pytest.fixture
def open_file(files, pages):
    def opened(name, handle):
        files.handles[handle] = name
        return pages.opened(name, handle) is Use.KEEP

    return opened


class TestOpened:
    def test_pages_stay_while_nothing_changes(self, files, pages, open_file):
        files.put("/a", 1, 10, 100)
        assert [open_file("/a", number) for number in range(3)] == [False, True, True]

    @pytest.mark.parametrize("version", [(1, 10, 101), (1, 11, 100), (2, 10, 100)])
    def test_what_others_changed_is_opened_past_the_pages(self, files, pages, monkeypatch, version):
        monkeypatch.setattr(module, "RESTLESS_SECONDS", 0.2)
        files.handles |= dict.fromkeys(range(6), "/a")
        files.put("/a", 1, 10, 100)
        assert pages.opened("/a", 1) is Use.DROP
        files.put("/a", *version)
        assert [pages.opened("/a", 2), pages.opened("/a", 3)] == [Use.PAST] * 2
        time.sleep(0.2)
        assert [pages.opened("/a", 4), pages.opened("/a", 5)] == [Use.DROP, Use.KEEP]

    def test_so_is_what_has_several_names(self, files, pages):
        files.handles |= dict.fromkeys(range(6), "/a")
        files.put("/a", 1, 10, 100, links=2)
        assert [pages.opened("/a", 1), pages.opened("/a", 2)] == [Use.PAST] * 2
        files.put("/a", 1, 10, 100)
        assert [pages.opened("/a", 3), pages.opened("/a", 4)] == [Use.DROP, Use.KEEP]

    def test_what_was_changed_through_the_mount_is_kept(self, files, pages, open_file):
        files.put("/a", 1, 10, 100)
        open_file("/a", 1)
        for number, handle in enumerate((1, None)):
            with pages.changing("/a", handle):
                files.put("/a", 1, 11 + number, 105 + number)
            assert open_file("/a", 2 + number)
        settle(pages)
        assert files.dropped == ["settled"]

    def test_a_change_that_fails_may_have_changed_something(self, files, pages, open_file):
        files.put("/a", 1, 10, 100)
        open_file("/a", 1)

        def change():
            with pages.changing("/a", 1):
                files.put("/a", 1, 11, 102)
                raise OSError("no space")

        with pytest.raises(OSError, match="no space"):
            change()
        assert not open_file("/a", 2)

    def test_what_others_changed_before_a_change_is_not_kept(self, files, pages, open_file):
        files.put("/a", 1, 10, 100)
        open_file("/a", 1)
        files.put("/a", 1, 11, 100)
        with pages.changing("/a", 1):
            files.put("/a", 1, 12, 100)
        settle(pages)
        assert files.dropped == ["/a", "settled"]
        assert not open_file("/a", 2)

    def test_the_oldest_that_are_closed_are_forgotten(self, files, pages, open_file, monkeypatch):
        monkeypatch.setattr(module, "MAX_NAMES", 16)
        for number in range(40):
            files.put(f"/{number}", number, 1, 1)
            assert not open_file(f"/{number}", number)
            if number:
                pages.released(number)
        assert open_file("/0", 100), "it is open"
        assert open_file("/39", 101)
        assert not open_file("/1", 102)
        assert len(pages._names) <= 16

    def test_a_file_that_cannot_be_looked_at(self, files, pages, open_file):
        with pytest.raises(FileNotFoundError):
            open_file("/a", 1)
        with pages.changing("/a"):
            pass
        with pages.changing(None, 7):
            pass


class TestLookedAt:
    def look(self, files, pages, name):
        pages.looked_at(name, lambda: files.look(name, None).version)

    def test_what_others_changed_is_dropped_once(self, files, pages, open_file):
        files.put("/a", 1, 10, 100)
        open_file("/a", 1)
        self.look(files, pages, "/a")
        files.put("/a", 1, 11, 100)
        self.look(files, pages, "/a")
        self.look(files, pages, "/a")
        settle(pages)
        assert files.dropped == ["/a", "settled"]
        assert not open_file("/a", 2), "who opens it cannot know whether they are dropped by now"

    def test_of_what_is_closed_the_next_open_drops(self, files, pages, open_file):
        files.put("/a", 1, 10, 100)
        open_file("/a", 1)
        pages.released(1)
        files.put("/a", 1, 11, 100)
        self.look(files, pages, "/a")
        settle(pages)
        assert files.dropped == ["settled"]
        assert not open_file("/a", 2)

    def test_the_middle_of_a_change_is_none_of_others(self, files, pages, open_file):
        files.put("/a", 1, 10, 100)
        open_file("/a", 1)
        with pages.changing("/a", 1):
            files.put("/a", 1, 11, 100)
            self.look(files, pages, "/a")
            files.put("/a", 1, 12, 100)
        assert open_file("/a", 2)
        settle(pages)
        assert files.dropped == ["settled"]

    def test_what_is_open_is_watched(self, files, monkeypatch):
        monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
        pages = PageCache(files.look, files.drop)
        files.handles[1] = "/a"
        files.put("/a", 1, 10, 100)
        pages.opened("/a", 1)
        dropped = threading.Event()
        files.in_drop = lambda name: dropped.set()
        pages.start()
        try:
            assert not dropped.wait(0.2)
            files.put("/a", 1, 10, 101)
            assert dropped.wait(5)
            files.by_name.clear()  # removed: nothing to say
            dropped.clear()
            assert not dropped.wait(0.1)
            files.put("/a", 1, 10, 102)
            assert dropped.wait(5)
        finally:
            pages.close()

    def test_a_handle_of_what_was_removed_says_nothing_of_what_has_its_name(
        self, files, monkeypatch
    ):
        monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
        pages = PageCache(files.look, files.drop)
        files.handles |= {1: "/old", 2: "/a"}
        files.put("/old", 1, 10, 100)
        pages.opened("/a", 1)
        pages.removed("/a")
        files.put("/a", 2, 20, 200)
        pages.opened("/a", 2)
        pages.released(2)
        pages.start()
        try:
            time.sleep(0.2)
            assert not files.dropped
            assert pages.opened("/a", 2)
        finally:
            pages.close()

    def test_what_cannot_be_dropped_stops_nothing(self, files, pages, open_file):
        def refuse(name):
            if name == "/a":
                raise OSError("no")

        files.in_drop = refuse
        for name, handle in (("/a", 1), ("/b", 2)):
            files.put(name, handle, 10, 100)
            open_file(name, handle)
            files.put(name, handle, 11, 100)
            self.look(files, pages, name)
        settle(pages)
        assert files.dropped == ["/b", "settled"]


class TestSeveralNames:
    def test_pages_of_the_others_go_before_the_change_is_done(self, files, pages, open_file):
        files.put("/a", 1, 10, 100)
        open_file("/a", 1)  # while it had one name
        files.put("/a", 1, 10, 100, links=2)
        files.handles[2] = "/b"  # opened past the pages
        files.put("/b", 1, 10, 100, links=2)
        with pages.changing("/b", 2):
            for name in ("/a", "/b"):
                files.put(name, 1, 11, 100, links=2)
            assert not files.dropped
        assert files.dropped == ["/a"]
        assert not open_file("/a", 3)

    def test_so_do_those_of_its_own_name(self, files, pages, open_file):
        files.put("/a", 1, 10, 100)
        open_file("/a", 1)
        files.put("/a", 1, 10, 100, links=2)
        files.handles[2] = "/a"  # opened past the pages
        with pages.changing("/a", 2):
            files.put("/a", 1, 11, 100, links=2)
        assert files.dropped == ["/a"]

    def test_what_is_written_through_pages_is_in_them(self, files, pages, open_file):
        files.put("/a", 1, 10, 100)
        open_file("/a", 1)
        files.put("/a", 1, 10, 100, links=2)
        with pages.changing("/a", 1):
            files.put("/a", 1, 11, 100, links=2)
        settle(pages)
        assert files.dropped == ["settled"]

    def test_the_same_time_and_size_say_nothing(self, files, pages, open_file):
        """A write by another name within one tick of the clock."""
        files.put("/a", 1, 10, 100)
        open_file("/a", 1)
        pages.released(1)
        files.put("/b", 1, 10, 100, links=2)
        files.handles[2] = "/b"
        with pages.changing("/b", 2):
            pass
        assert not open_file("/a", 3)

    def test_who_writes_waits_for_a_drop_only_so_long(self, files, pages, open_file, monkeypatch):
        monkeypatch.setattr(module, "_DROP_SECONDS", 0.05)
        go_on = threading.Event()
        files.in_drop = lambda name: go_on.wait(10)
        files.put("/a", 1, 10, 100)
        open_file("/a", 1)
        files.put("/b", 1, 10, 100, links=2)
        files.handles[2] = "/b"
        with pages.changing("/b", 2):
            pass
        assert not files.dropped
        go_on.set()
        settle(pages)
        assert files.dropped == ["/a", "settled"]


class TestNames:
    @pytest.fixture(autouse=True)
    def two_files(self, files, pages, open_file):
        files.put("/d/a", 1, 10, 100)
        files.put("/e", 2, 20, 200)
        open_file("/d/a", 1)
        open_file("/e", 2)

    def test_pages_go_with_a_file(self, files, pages, open_file):
        files.put("/b", 1, 10, 100)
        pages.renamed("/d/a", "/b")
        assert [open_file("/b", 3), open_file("/d/a", 4)] == [True, False]

    def test_pages_go_with_a_directory(self, files, pages, open_file):
        files.put("/f/a", 1, 10, 100)
        pages.renamed("/d", "/f")
        assert open_file("/f/a", 3)
        files.put("/f/a", 1, 11, 100)
        pages.looked_at("/f/a", lambda: files.look("/f/a", None).version)
        settle(pages)
        assert files.dropped == ["/f/a", "settled"]

    def test_what_is_renamed_over_another(self, files, pages, open_file):
        files.put("/e", 1, 10, 100)
        pages.renamed("/d/a", "/e")
        assert open_file("/e", 3)
        pages.released(2)  # of the file that was there: not the new one's
        files.put("/e", 1, 11, 100)
        pages.looked_at("/e", lambda: files.look("/e", None).version)
        settle(pages)
        assert files.dropped == ["/e", "settled"]

    def test_names_that_are_exchanged(self, files, pages, open_file):
        files.put("/d", 2, 20, 200)
        files.put("/e/a", 1, 10, 100)
        pages.renamed("/d", "/e", exchanged=True)
        assert [open_file("/d", 3), open_file("/e/a", 4)] == [True, True]

    def test_a_new_file_with_the_name_of_one_that_is_gone(self, files, pages, open_file):
        pages.removed("/e")
        assert not open_file("/e", 3)
