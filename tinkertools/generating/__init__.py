"""Questions and answers that a model makes from documents.

Where documents come from and how they are cut is in `documents`, what is asked and what of a reply is taken in
`questions`, what is one too many in `repeats`, and how all of it is asked, kept and counted in `making`.
"""
