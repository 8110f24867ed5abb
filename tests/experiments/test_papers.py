"""What is cited is known, and what is known is cited."""

import inspect
import re

import pytest

from experiments.papers import COURSES, PAPERS, WORKS, citations
from experiments.registry import EXPERIMENTS
from experiments.report.page import environment
from tests._committed import committed, needs_results
from tests.test_promises import PUBLIC

YEAR = re.compile(r"\b(19|20)\d\d\b")


def sources() -> set[str]:
    """Of the experiments, and of the rows of their results."""
    rows = (row for result in committed() for row in result.summary["claims"])
    return {e.source for e in EXPERIMENTS} | {row["source"] for row in rows}


def docstring_sources() -> set[str]:
    """Of every public name of bnjax, from "Source:" to the end of the paragraph."""
    docs = (inspect.getdoc(thing) or "" for thing in PUBLIC.values())
    return {text for doc in docs for text in re.findall(r"^Source: .*(?:\n.+)*", doc, re.M)}


@needs_results
def test_every_citation_has_an_address_and_every_address_is_cited():
    cited = set()
    for text in sources() | docstring_sources():
        pieces = list(citations(text))
        assert "".join(piece for piece, _ in pieces) == text
        assert not [piece for piece, work in pieces if not work and YEAR.search(piece)], text
        cited |= {work for _, work in pieces if work}
    assert set(WORKS.values()) == cited
    assert len({work.address for work in cited}) == len(WORKS)


@pytest.mark.parametrize("key", PAPERS)
def test_a_year_may_stand_in_brackets_and_a_citation_on_two_lines(key):
    author, _, year = key.rpartition(" ")
    for text in (key, f"{author} ({year})", key.replace(" ", "\n"), f"({key})"):
        assert [work for _, work in citations(f"after {text}, eq. 2") if work] == [PAPERS[key]]


def test_lecturers_are_found_as_words_and_in_no_others():
    found = list(citations("Lee's reading list; Ng: Long, Ngo"))
    assert [piece for piece, work in found if work] == ["Lee", "Ng"]
    assert {work for _, work in found if work} < set(COURSES.values())


def test_a_source_links_what_it_cites_and_is_escaped():
    claims = environment().get_template("claims.html").module
    words = str(claims.source("Ioffe & Szegedy 2015, Fig. 1 <b>; Long")).strip()
    link = r'<a href="https://arxiv.org/abs/1502.03167" title="Batch norm[^"]*">'
    assert re.fullmatch(link + r"Ioffe &amp; Szegedy 2015</a>, Fig. 1 &lt;b&gt;; Long", words)
