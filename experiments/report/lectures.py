"""The lectures' sentences with the verdicts of the committed results, as lectures.md."""

from collections.abc import Sequence
from itertools import groupby

from experiments.common.verdicts import MARKS
from experiments.lectures import SENTENCES, Sentence
from experiments.report.collect import Result

HEAD = """# What the lectures say, and what was found

Every sentence of the lectures that claims something, in short and in the lecture's own order; the
row of the experiment that tests it (`python -m experiments run NAME`, [pictures and
numbers](README.md)); and the verdict, on the embedded digits and where there is one on larger data.
A *control* or *identity* has none: nobody claims the first, and arithmetic decides the second.
Written by `python -m experiments report --gallery`.
"""


def lectures(found: Sequence[Result]) -> str:
    """The whole file."""
    parts = [HEAD]
    for lecture, sentences in groupby(SENTENCES, lambda sentence: sentence.lecture):
        rows = [("sentence", "in Chinese", "experiment", "row", "verdict"), ("---",) * 5]
        rows += [
            (s.said, s.chinese, f"`{s.program}`", s.row, verdicts(s, found)) for s in sentences
        ]
        parts.append(f"## {lecture}\n")
        parts.append("\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n")
    return "\n".join(parts)


def verdicts(sentence: Sentence, found: Sequence[Result]) -> str:
    """Those of its row in every result of its program, such as "digits: ✓ holds"."""
    words = []
    for result in found:
        if result.experiment.name == sentence.program:
            data = result.config["settings"].get("data", "digits")
            words += [
                f"{data}: {MARKS.get(row['verdict'], '')} {row['verdict'] or row['kind']}"
                for row in result.summary["claims"]
                if row["short"] == sentence.row
            ]
    return "; ".join(words).replace("  ", " ")
