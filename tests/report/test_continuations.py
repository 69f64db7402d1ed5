"""The words of a continuation, and which of them the training text does not have."""

from k1.report.continuations import pieces_of, without_known, words_of


def test_words_at_the_edges_of_a_continuation():
    assert words_of("The riv", "er is, 3 den_se Ways") == [
        ("river", 0, 2), ("is", 3, 5), ("den", 9, 12), ("se", 13, 15),
    ]  # fmt: skip
    assert words_of("The river ", "Ends.") == [("ends", 0, 4)]
    assert words_of("The river", " ends") == words_of("The river", "") == words_of("a", "b") == []


def test_the_pieces_are_the_text_and_those_of_new_words_are_marked():
    text = "er Xyl is\n a XYL, <b>"
    pieces = pieces_of(text, words_of("riv", text), {"xyl", "river"})
    assert "".join(piece for piece, _ in pieces) == text
    assert [piece for piece, is_marked in pieces if is_marked] == ["er", "Xyl", "XYL"]
    assert pieces_of("", [], {"a"}) == []


def test_known_words_are_those_of_any_document_in_either_case_and_no_more_is_read_than_must_be():
    documents = iter(("One TWO", "straße-three", "never read"))
    assert without_known({"one", "two", "strasse"}, documents) == set() and next(documents) == "never read"
    assert without_known({"two", "thre"}, ["one TWO three"]) == {"thre"}
