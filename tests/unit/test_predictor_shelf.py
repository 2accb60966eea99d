"""The predictor's shelf of loaded weights."""

from dataclasses import dataclass

from workers.predictor.shelf import Shelf


@dataclass(frozen=True)
class Thing:
    n_bytes: int


def shelf_of(**sizes: int) -> Shelf[str, Thing]:
    shelf: Shelf[str, Thing] = Shelf(max_items=3, max_bytes=100)
    for name, size in sizes.items():
        shelf.put(name, Thing(size))
    return shelf


def test_the_least_recently_used_item_is_given_up_first() -> None:
    shelf = shelf_of(a=1, b=1, c=1)
    shelf.take("a")
    shelf.put("d", Thing(1))
    assert "b" not in shelf
    assert all(name in shelf for name in "acd")


def test_items_are_given_up_until_their_bytes_fit() -> None:
    shelf = shelf_of(a=50, b=40)
    shelf.put("c", Thing(60))
    assert "a" not in shelf
    assert shelf.n_bytes == 100


def test_an_item_larger_than_the_whole_shelf_is_kept_alone() -> None:
    shelf = shelf_of(a=50, b=40)
    shelf.put("c", Thing(500))
    assert len(shelf) == 1
    assert shelf.take("c").n_bytes == 500


def test_replacing_an_item_does_not_count_it_twice() -> None:
    shelf = shelf_of(a=50)
    shelf.put("a", Thing(60))
    assert shelf.n_bytes == 60
    assert len(shelf) == 1
