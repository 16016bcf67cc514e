"""Asking models for what they are not trained for here: to judge, to write data.

Who is asked is in `endpoints`, how many are asked at once, how fast and how often in `asker`, what it costs in `costs`,
and how texts that nobody trusts are shown in `framing`.
"""
