"""usage: probes.py [FOLDER]: writes the rows of the benchmark `probes`, the same ones each time.

The files in evals/benchmarks/probes were made by it: for each probe 200 questions of four choices, and the
examples that stand before them. The choices of a question have one form, and each place is right 50 times:
neither length nor place gives the answer away.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

QUESTIONS, EXAMPLES, CHOICES = 200, 8, 4
LABELS = "ABCD"
Question = tuple[str, list[str]]
"""What stands before the answer, and the choices."""
Placed = tuple[str, list[str], int]
"""A question and the place of its right choice."""
Maker = Callable[[random.Random, list[int], set[str]], list[Question]]
"""Makes a question for each place that the right choice is to have, none of them a known one."""
Row = dict[str, Any]

# ---- arithmetic -----------------------------------------------------------------------------------------

OFFSETS = (8, 11, 13, 17, 19, 22)
"""By how much a wrong sum is off. Nearer ones a model of 135M parameters hardly tells apart."""


def one_sum(draw: random.Random, place: int) -> Question:
    """A sum of two numbers, or a chain of three with the sum of the first two written out.

    All sums have two digits. The choices ascend: the right one is the lowest as often as the highest.
    """
    is_chain = draw.random() < 0.5
    while True:
        first, second = draw.randint(10, 80), draw.randint(1, 9) if is_chain else draw.randint(10, 80)
        third = draw.randint(1, 9) if is_chain else 0
        total = first + second
        low = [total - offset for offset in OFFSETS if total - offset >= 10]
        high = [total + offset for offset in OFFSETS if total + offset + third <= 99]
        if total + third > 99 or len(low) < place or len(high) < CHOICES - 1 - place:
            continue
        sums = sorted([total, *draw.sample(low, place), *draw.sample(high, CHOICES - 1 - place)])
        if is_chain:
            return f"{first} + {second} + {third} =", [f"{n} + {third} = {n + third}" for n in sums]
        return f"{first} + {second} =", [str(n) for n in sums]


# ---- brackets -------------------------------------------------------------------------------------------

PAIRS = {"(": ")", "[": "]", "{": "}", "<": ">"}
"""Opening bracket → closing one."""


def one_text(draw: random.Random, place: int) -> Question:
    """Brackets, some of them closed; the choices are what closes the innermost open one.

    Half of the texts end with a closing bracket: there the last opening one is not the innermost open one.
    """
    is_behind_closed = draw.random() < 0.5
    while True:
        text, waiting = list[str](), list[str]()
        for _ in range(draw.randint(4, 8)):
            if waiting and draw.random() < 0.45:
                text.append(PAIRS[waiting.pop()])
            else:
                waiting.append(draw.choice(list(PAIRS)))
                text.append(waiting[-1])
        is_right = bool(waiting) and waiting[-1] == list(PAIRS)[place]
        if is_right and (text[-1] in PAIRS.values()) == is_behind_closed:
            return " ".join(text), list(PAIRS.values())


# ---- copy -----------------------------------------------------------------------------------------------

WORDS = """apple bird boat bread bridge car cat chair church city clock cloud coat corn dog door egg farm fire
fish flower forest game garden gold grass hand hat heart hill horse house island key king lake lamp leaf map
milk moon mountain music ocean paper piano queen rain ring river road rock rose salt sea ship shoe snow song
star stone sugar sun table tea train tree watch water wind window wine winter wolf"""
WHO = [
    "The teacher",
    "The doctor",
    "My brother",
    "Our neighbour",
    "A friend",
    "The writer",
    "The driver",
    "Her uncle",
]
DID = [
    "went home early",
    "wrote a short letter",
    "talked about the weather",
    "slept very well",
    "had a long day",
]
WHEN = [
    "on Monday",
    "last week",
    "before lunch",
    "after work",
    "in the evening",
    "some years ago",
    "that day",
]
LENGTH, SENTENCES = 8, 22


def copy(draw: random.Random, places: list[int], _: set[str]) -> list[Question]:
    """Two lists of the same words, 200 tokens of other text, and the beginning of one list again.

    The questions stand at different words of one list. Their choices are words of its rest; one of the wrong
    ones is what follows in the other list, so that the last word alone does not say what comes next.
    """
    names = draw.sample(("Anna", "Ben"), 2)
    words, others = _two_orders(draw, len(places))
    filler = " ".join(f"{draw.choice(WHO)} {draw.choice(DID)} {draw.choice(WHEN)}." for _ in range(SENTENCES))
    lists = sorted(f"{n}'s list: {', '.join(w)}." for n, w in zip(names, (words, others), strict=True))
    begun = "\n".join(lists) + f"\n\n{filler}\n\n{names[0]}'s list again:"
    questions = list[Question]()
    for number, place in enumerate(places, 1):
        right, other = words[number], others[others.index(words[number - 1]) + 1]
        rest = [word for word in words[number + 1 :] if word != other]
        choices = [other, *draw.sample(rest, CHOICES - 2)]
        draw.shuffle(choices)
        choices.insert(place, right)
        questions.append((begun + "".join(f" {word}," for word in words[:number]), choices))
    return questions


def _two_orders(draw: random.Random, count: int) -> tuple[list[str], list[str]]:
    """Words in two orders: what the second has behind each of the first `count` comes later in the first."""
    while True:
        words = draw.sample(WORDS.split(), LENGTH)
        others = draw.sample(words, LENGTH)
        follower = dict(itertools.pairwise(others))
        if all(follower.get(words[k]) in words[k + 2 :] for k in range(count)):
            return words, others


# ---- facts ----------------------------------------------------------------------------------------------

TABLES = {
    "The capital of {} is": """
        France Paris, Italy Rome, Spain Madrid, Germany Berlin, Austria Vienna, Japan Tokyo, China
        Beijing, Russia Moscow, Egypt Cairo, Greece Athens, Portugal Lisbon, Poland Warsaw, Ireland
        Dublin, Norway Oslo, Sweden Stockholm, Finland Helsinki, Hungary Budapest, Cuba Havana,
        Canada Ottawa, Peru Lima, Kenya Nairobi, Iran Tehran, Iraq Baghdad, Thailand Bangkok,
        England London, Belgium Brussels, Turkey Ankara, Denmark Copenhagen""",
    "The opposite of {} is": """
        hot cold, big small, up down, left right, day night, black white, open closed, fast slow,
        high low, old new, rich poor, hard soft, wet dry, light dark, full empty, happy sad, early
        late, good bad, strong weak, long short, true false, inside outside, love hate, war peace,
        start finish, push pull, buy sell, clean dirty, win lose, alive dead""",
    "One {}, two": """
        child children, man men, woman women, mouse mice, foot feet, tooth teeth, goose geese, leaf
        leaves, knife knives, wolf wolves, city cities, baby babies, box boxes, bus buses, ox oxen,
        person people, half halves, country countries, story stories, church churches""",
    "Today I {}, yesterday I": """
        go went, see saw, eat ate, write wrote, run ran, sing sang, drink drank, buy bought, think
        thought, teach taught, speak spoke, drive drove, swim swam, fly flew, give gave, take took,
        sleep slept, come came, find found, know knew, feel felt, bring brought, begin began, forget
        forgot""",
    "The month after {} is": """
        January February, February March, March April, April May, May June, June July, July August,
        August September, September October, October November, November December, December January""",
    "The day after {} is": """
        Monday Tuesday, Tuesday Wednesday, Wednesday Thursday, Thursday Friday, Friday Saturday,
        Saturday Sunday, Sunday Monday""",
    "The number after {} is": """
        one two, two three, three four, four five, five six, six seven, seven eight, eight nine,
        nine ten, ten eleven, eleven twelve""",
    "The colour of {} is": """
        grass green, snow white, blood red, coal black, the_sky blue, chocolate brown, a_lemon
        yellow, a_flamingo pink, an_elephant grey""",
    "The number of legs of {} is": """
        a_spider eight, a_scorpion eight, an_ant six, a_bee six, a_beetle six, a_dog four, a_horse
        four, a_cow four, a_bird two, a_human two, a_chicken two, a_cat four""",
    "{} is a kind of": """
        A_rose flower, An_oak tree, A_salmon fish, An_eagle bird, An_ant insect, A_piano instrument,
        Red colour, Iron metal, Football sport, A_carrot vegetable, A_banana fruit, A_cobra snake,
        French language, A_poodle dog, A_truck vehicle, A_robin bird""",
    "A young {} is called a": """
        dog puppy, cat kitten, cow calf, sheep lamb, goat kid, horse foal, bear cub, swan cygnet,
        deer fawn, duck duckling""",
    "{} is a country in": """
        France Europe, Italy Europe, Spain Europe, Germany Europe, Kenya Africa, Nigeria Africa,
        Ghana Africa, Egypt Africa, China Asia, Japan Asia, India Asia, Thailand Asia, Brazil
        America, Peru America, Chile America, Canada America""",
    "The sound that a {} makes is called a": """
        dog bark, cat meow, lion roar, cow moo, duck quack, pig oink, bee buzz, owl hoot, bird chirp""",
    "A {} works in a": """
        teacher school, nurse hospital, farmer field, cook kitchen, pilot plane, judge court, sailor
        ship, miner mine, actor theatre, librarian library, priest church""",
}
"""Sentence → what stands in it, and how it goes on; `_` is a space."""


def one_fact(draw: random.Random, place: int) -> Question:
    """One of the facts; the wrong choices are of its table, and of like length."""
    facts_of_all = [(sentence, *fact) for sentence, table in TABLES.items() for fact in pairs(table)]
    sentence, subject, right = draw.choice(facts_of_all)
    others = sorted({answer for _, answer in pairs(TABLES[sentence])} - {right})
    draw.shuffle(others)
    others.sort(key=lambda answer: abs(len(answer) - len(right)))
    choices = draw.sample(others[:5], CHOICES - 1)
    choices.insert(place, right)
    return sentence.format(subject.replace("_", " ")), choices


def pairs(table: str) -> list[tuple[str, str]]:
    """(subject, answer) of each fact."""
    return [(subject, answer) for subject, answer in (fact.split() for fact in table.split(","))]


# ---- rows -----------------------------------------------------------------------------------------------


def _each(make: Callable[[random.Random, int], Question]) -> Maker:
    """A maker of questions that have nothing in common."""

    def several(draw: random.Random, places: list[int], known: set[str]) -> list[Question]:
        questions = dict[str, Question]()
        for place in places:
            while (question := make(draw, place))[0] in known or question[0] in questions:
                pass
            questions[question[0]] = question
        return list(questions.values())

    return several


def _closed(text: str, right: str) -> str:
    """All that closes a text of brackets, the innermost first."""
    waiting = list[str]()
    for bracket in text.split():
        if bracket in PAIRS:
            waiting.append(PAIRS[bracket])
        else:
            waiting.pop()
    assert waiting[-1] == right
    return " ".join(reversed(waiting))


PROBES: dict[str, tuple[Maker, Callable[[str, str], str] | None]] = {
    "arithmetic": (_each(one_sum), lambda _, right: right),
    "brackets": (_each(one_text), _closed),
    "copy": (copy, None),
    "facts": (_each(one_fact), None),
}
"""Name → what makes its questions, and what stands behind an example; None: without examples."""


def rows(probe: str) -> list[Row]:
    """The questions in the columns of OpenBookQA, behind the same examples; no text twice."""
    make, finish = PROBES[probe]
    draw = random.Random(f"probes {probe}")
    known, solved = set[str](), ""
    for text, choices, place in _questions(make, draw, EXAMPLES if finish else 0, known):
        assert finish is not None
        example = f"{text} {finish(text, choices[place])}"
        solved += f"{example}\n"
        # What begins as an example does has its answer before it.
        known |= set(itertools.accumulate(example.split(), "{} {}".format))
    return [
        {
            "id": f"{probe}-{number:03}",
            "question_stem": solved + text,
            "choices": {"text": choices, "label": list(LABELS)},
            "answerKey": LABELS[place],
        }
        for number, (text, choices, place) in enumerate(_questions(make, draw, QUESTIONS, known), 1)
    ]


def _questions(make: Maker, draw: random.Random, count: int, known: set[str]) -> list[Placed]:
    """New questions, each place once in every four."""
    questions = list[Placed]()
    while len(questions) < count:
        places = draw.sample(range(CHOICES), CHOICES)
        group = make(draw, places, known)
        known |= {text for text, _ in group}
        questions += [(*question, place) for question, place in zip(group, places, strict=True)]
    return questions


def main(folder: Path) -> None:
    """Writes the files."""
    for probe in PROBES:
        text = "".join(json.dumps(row) + "\n" for row in rows(probe))
        (folder / f"{probe}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "evals/benchmarks/probes"))
