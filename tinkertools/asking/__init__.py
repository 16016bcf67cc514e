"""Asking models for what they are not trained for here: to judge, to write data.

Who may be asked is in `models`, what a question and a reply are in `endpoints`; `opening` makes a model ready, a
service's by `hosted`, one of our engines by `engine`. How many are asked at once, how fast and how often is in `asker`,
what it costs in `costs`, and how texts that nobody trusts are shown in `framing`.
"""
