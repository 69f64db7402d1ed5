"""The words of a continuation, and which of them the training text does not have."""

import gc
import weakref

from k1.report.continuations import Continuation, without_known, words_of


def test_words_at_the_edges_of_a_continuation():
    assert words_of("The riv", "er is, 3 den_se Ways") == [
        ("river", 0, 2), ("is", 3, 5), ("den", 9, 12), ("se", 13, 15),
    ]  # fmt: skip
    assert words_of("The river ", "Ends.") == [("ends", 0, 4)]
    assert words_of("The river", " ends") == words_of("The river", "") == words_of("a", "b") == []


def test_the_pieces_are_the_text_and_those_of_new_words_are_marked():
    text = "er Xyl is\n a XYL, <b>"
    pieces = Continuation(text, words_of("riv", text)).pieces({"xyl", "river"})
    assert "".join(piece for piece, _ in pieces) == text
    assert [piece for piece, is_marked in pieces if is_marked] == ["er", "Xyl", "XYL"]
    assert Continuation("", []).pieces({"a"}) == []


def test_known_words_are_those_of_any_document_in_either_case():
    read = []

    def documents():
        for text in ("One TWO", "straße-three", "never read"):
            read.append(text)
            yield text

    assert without_known({"one", "two", "strasse", "thre"}, documents()) == {"thre"}
    read.clear()
    assert without_known({"two"}, documents()) == set() and read == ["One TWO"]


class Document(str):
    """A text whose end of life can be seen."""


def test_a_long_text_is_not_held_in_memory():
    """One document after the other is read, and none is kept."""
    alive = weakref.WeakSet()

    def documents():
        for number in range(5):
            gc.collect()
            # The one that the reader still holds, and no more.
            assert len(alive) <= 1
            document = Document(f"word {number}")
            alive.add(document)
            yield document
            del document

    assert without_known({"new"}, documents()) == {"new"}
