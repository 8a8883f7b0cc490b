"""What a reply comes down to: the letter that it means, however it is dressed, and a text but for its spelling."""

import pytest

from uae_jax.bench.replies import letter, normal

ANIMALS = ("a dog", "a cat", "a wild cat")
THINGS = tuple(f"c{number} thing" for number in range(9))  # so many that "I" is a letter
NUMBERS = ("-5", "5", "5%", "15")


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        # A letter at the start, however it is dressed.
        *((said, "B") for said in ("B", "(B)", "B.", "B?", "B!", "<B>", '"B"', "`B`", "**B**", "__B__", "B: a cat")),
        *((said, "B") for said in ("b", "b.", "(b)", "b) a cat", "B. a cat", "B - a cat", "B because it purrs")),
        ("a", "A"),
        ("A is correct", "A"),
        ("A because it barks", "A"),
        ("A. A dog", "A"),
        ("B, A cat", "B"),
        # Declared.
        ("The answer is C.", "C"),
        ("The answer is **B**", "B"),
        ("The correct answer is: **B**", "B"),
        ("Answer: A", "A"),
        ("Answer: b", "B"),
        ("I think B", "B"),
        ("I think it is B.", "B"),
        (r"\boxed{B}", "B"),
        ("The answer is B, not A", "B"),
        # By its text: the first letter is an article.
        ("A dog", "A"),
        ("a cat", "B"),
        ("A 3D cat", "B"),
        ("The answer is a cat", "B"),
        ("It is a cat.", "B"),
        ("It is a wild cat.", "C"),  # which holds "cat", too
        # Nothing, or more than one thing.
        *((said, None) for said in ("a dog or a cat", "A or B", "A, B", "A/B", "The answer is A or C")),
        ("D", None),  # no such choice
        ("The answer is not B", None),
        ("no idea", None),
        ("", None),
    ],
)
def test_what_choice_a_reply_comes_down_to(said, meant):
    assert letter(said, ANIMALS) == meant


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("I", "I"),
        ("The answer is I.", "I"),
        ("I think it is c2 thing", "C"),  # "I" begins a sentence
        ("I'd say B", "B"),
        ("I am not sure", None),
    ],
)
def test_a_pronoun_is_no_letter(said, meant):
    assert letter(said, THINGS) == meant


@pytest.mark.parametrize(
    ("said", "meant"), [("-5", "A"), ("5", "B"), ("five", "B"), ("It is 5 %.", "C"), ("15", "D"), ("5 or 15", None)]
)
def test_numbers_are_told_apart_by_sign_and_unit(said, meant):
    assert letter(said, NUMBERS) == meant


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Two.", "2", True),
        ("the Red Cup", "red cup", True),
        ("1,000", "1000", True),
        ("1,234,567", "1234567", True),
        ("\N{MINUS SIGN}5", "-5", True),
        ("5 per cent", "5%", True),
        ("3-5", "3 - 5", True),  # a dash between numbers is no sign
        ("-5", "5", False),
        ("5%", "5", False),
        ("3.5", "35", False),
        ("1,2", "12", False),
        ("12", "2", False),
        ("", "2", False),
    ],
)
def test_texts_are_the_same_but_for_spelling(one, other, same):
    assert (normal(one) == normal(other)) == same
