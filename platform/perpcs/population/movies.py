"""The texts of the synthetic population: movies that carry 2 to 4 tags, and what a user writes about one.

A description has cue words of each carried tag among neutral ones. As an output the user gives the best liked
carried tag (LaMP-2M), or a title of several words (LaMP-5).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from perpcs.population.tasks import MOVIE_TAGS

CUES = {
    "sci-fi": "spaceship android galaxy laser alien wormhole cyborg",
    "based on a book": "novel chapter author manuscript bestseller pages adaptation",
    "comedy": "prank clumsy hilarious slapstick goofy wedding giggle",
    "action": "chase explosion helicopter mercenary rooftop stunt ambush",
    "twist ending": "secret revelation unmasked impostor amnesia double unexpected",
    "dystopia": "regime rationing wasteland curfew propaganda citizens quarantine",
    "dark comedy": "funeral absurd morbid ironic coffin undertaker deadpan",
    "classic": "monochrome vintage golden orchestra timeless studio silver",
    "psychology": "therapist obsession memory delusion asylum paranoia dream",
    "fantasy": "dragon wizard kingdom sword enchanted elf prophecy",
    "romance": "kiss lovers valentine sweetheart letters honeymoon longing",
    "thought-provoking": "meaning philosopher dilemma existence question faith mortality",
    "social commentary": "poverty strike privilege protest factory injustice suburb",
    "violence": "blood gang brutal shootout revenge knife massacre",
    "true story": "biography historic archive witness survivor documented decade",
}
_NEUTRAL = """
a the one two young old small long last first night day city road house river summer winter train garden
brother sister friend stranger teacher doctor neighbour finds leaves meets waits returns travels lives works
near behind after before during alone together again slowly
"""
FILLER = tuple(_NEUTRAL.split())
TITLES = ("{a} and {b}", "{a}: a tale of {b}", "on {b}, by way of {a}", "{b} or {a}?")
"""How a user joins the two best liked tags of a movie; which one is a matter of taste (see `title`)."""

_VOCABULARY = tuple(tuple(CUES[tag].split()) for tag in MOVIE_TAGS)


def carried_tags(generator: np.random.Generator) -> list[int]:
    """2 to 4 different tags of a movie."""
    count = int(generator.integers(2, 5))
    return generator.choice(len(MOVIE_TAGS), size=count, replace=False).tolist()


def description(tags: Sequence[int], generator: np.random.Generator) -> str:
    """8 to 16 words: one or two cue words of each tag, the rest neutral, shuffled."""
    words: list[str] = []
    for tag in tags:
        words += generator.choice(
            _VOCABULARY[tag], size=int(generator.integers(1, 3)), replace=False
        ).tolist()
    length = max(int(generator.integers(8, 17)), len(words))
    words += generator.choice(FILLER, size=length - len(words)).tolist()
    return " ".join(generator.permutation(words).tolist())


def title(liked: Sequence[int], preferences: np.ndarray) -> str:
    """The title of a movie whose tags, best liked first, are `liked`; its form follows the first two preferences."""
    form = TITLES[2 * int(preferences[0] > 0) + int(preferences[1] > 0)]
    return form.format(a=MOVIE_TAGS[liked[0]], b=MOVIE_TAGS[liked[1]])
