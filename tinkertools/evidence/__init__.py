"""Numbers that hold: intervals, scores of texts, checks of answers."""
