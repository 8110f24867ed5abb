"""`python -m experiments site`: guides, reference and laboratory as a site that reads offline.

The pages are the Markdown files beside this one: a file put into `guides`, `from` or `explain` is
in the site, and its code is run by the build and by the tests. The reference is written from each
room's `__all__` (`reference`); formulas become MathML (`mathml`).
"""
